"""A small clip, inverted with a small network, for the tests of the nodes."""

from __future__ import annotations

from typing import Any

import torch
from reweave.nodes import InvertVideo, TokenFlow
from torch import Tensor
from toy import conditioning, sample

FRAMES, STEPS, SIZE = 5, 4, 8


def clip(frames: int = FRAMES, size: int = SIZE, seed: int = 5) -> dict[str, Tensor]:
    """LATENT of a pattern that moves to the right."""
    generator = torch.Generator().manual_seed(seed)
    still = torch.randn(4, size, size, generator=generator)
    return {"samples": torch.stack([still.roll(frame, -1) for frame in range(frames)]) * 4}


def invert(
    model: Any,
    latent: dict[str, Tensor] | None = None,
    positive: list | None = None,
    **settings: Any,
) -> tuple:
    """(INVERSION, LATENT, SIGMAS) of Invert Video with small settings."""
    arguments = {
        "steps": STEPS, "saved_steps": STEPS, "evaluation": "target", "storage": "float32",
        "frames_per_pass": 2,
    }  # fmt: skip
    arguments |= settings
    latent = clip() if latent is None else latent
    positive = conditioning() if positive is None else positive
    return InvertVideo.execute(model=model, positive=positive, latent=latent, **arguments).args


def edited(model: Any, latent: dict[str, Tensor], sigmas: Tensor) -> Tensor:
    """What SamplerCustom makes of a prompt that is not the clip's."""
    return sample(model, latent["samples"], sigmas, conditioning(8), cfg=4.0)


def flow(model: Any, inversion: Any, **settings: Any) -> Any:
    """The MODEL with TokenFlow, as its node makes it."""
    arguments = {
        "interval": 2, "keyframe_seed": 1, "key_frames": "random per step",
        "rule": "published code", "frames_per_pass": 3, "max_joint_key_frames": 0,
    }  # fmt: skip
    return TokenFlow.execute(model=model, inversion=inversion, **(arguments | settings)).args[0]


class ToyVAE:
    """Eight times larger, every channel a colour."""

    def decode(self, samples: Tensor) -> Tensor:
        large = samples[:, :3].repeat_interleave(8, 2).repeat_interleave(8, 3)
        return torch.sigmoid(large / 4).movedim(1, -1)
