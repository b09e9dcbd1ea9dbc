"""A training of a few steps on a small model: for the tests of training and of its snapshots."""

from __future__ import annotations

from typing import Any

import torch
from clips import clip_latents
from reweave.editing.host.temporal_training import TrainingRequest, train_temporal
from reweave.editing.temporal_unet.payload import TemporalUNet
from reweave.editing.temporal_unet.plan import Architecture
from reweave.editing.temporal_unet.training import TrainingSettings
from toy import conditioning

KINDS = {
    "paper": Architecture(),
    "paper with down units": Architecture(down_units=True),
    "published": Architecture("published", "correct"),
}


def request(
    kind: str = "paper", steps: int = 3, every: int = 0, gigabytes: float = 24.0, **settings: Any
) -> TrainingRequest:
    """A training that shows in three steps that it works."""
    settings = {"learning_rate": 1e-3, "checkpointing": False} | settings
    return TrainingRequest(
        KINDS[kind], TrainingSettings(steps=steps, **settings), every, gigabytes, "a prompt"
    )


def train(model: Any, asked: TrainingRequest, frames: int = 4, seed: int = 5) -> TemporalUNet:
    """What the node does, on a small random clip."""
    return train_temporal(model, conditioning(), {"samples": clip_latents(frames, 8, seed)}, asked)


def frozen_copy(model: Any) -> dict[str, torch.Tensor]:
    """The weights of a MODEL as they are now."""
    return {name: value.clone() for name, value in model.model.state_dict().items()}


def assert_untouched(model: Any, before: dict[str, torch.Tensor]) -> None:
    """Same weights, no hooks, no replaced forward, no gradients."""
    after = model.model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    modules = model.model.modules()
    assert sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in modules) == 0
    assert not any("forward" in vars(module) for module in model.model.modules())
    assert not any(
        weight.requires_grad and weight.grad is not None for weight in model.model.parameters()
    )
