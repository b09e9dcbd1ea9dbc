"""A training that was stopped, on disk: it goes on as if it had not been."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from .. import storage
from ..types import digest
from .plan import Architecture, Plan
from .training import Trainer, TrainingSettings

KIND = "training snapshot"


def snapshot_key(
    latents: Tensor,
    told: Mapping[str, Tensor],
    model: str,
    plan: Plan,
    architecture: Architecture,
    settings: TrainingSettings,
) -> str:
    """Equal for trainings that take the same steps, however many.

    Args:
        latents: [F,C,h,w] the clip.
        told: the conditioning, by the UNet's names.
        model: what the image model is.
    """
    same = replace(settings, steps=0, checkpointing=True)
    parts = (str(plan), str(architecture), str(same), model)
    return digest(latents.float(), *(value.float() for value in told.values()), *parts)


def save_snapshot(path: Path, trainer: Trainer) -> None:
    """Raises: ValueError when it cannot be written."""
    state = trainer.state()
    storage.save(path, KIND, state["tensors"], {"losses": state["losses"]})


def resume_from(path: Path, trainer: Trainer) -> bool:
    """Whether the trainer goes on from the snapshot; an unreadable or longer one is not used."""
    if not path.is_file():
        return False
    try:
        tensors, plain = storage.load(path, KIND)
        if len(plain["losses"]) > trainer.settings.steps:
            return False
        trainer.resume(tensors, plain["losses"])
    except (KeyError, ValueError, RuntimeError):
        path.unlink(missing_ok=True)
        return False
    path.touch()
    return True
