"""A training that was stopped, on disk: it goes on as if it had not been."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from .. import storage
from ..types import digest
from .plan import Architecture, Plan
from .training import Trainer, TrainingSettings

KIND = "training snapshot"
UNREADABLE = (KeyError, TypeError, ValueError, RuntimeError)
"""What a cut, foreign or old snapshot raises."""


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
        model: what the image model is: its weights, and how it computes.
    """
    same = replace(settings, steps=0, checkpointing=True)
    parts = (str(plan), str(architecture), str(same), model)
    return digest(latents.float(), *(value.float() for value in told.values()), *parts)


def save_snapshot(path: Path, trainer: Trainer) -> None:
    """Leaves a snapshot of more steps: it holds these steps, and a longer run goes on from it.

    Raises: ValueError when it cannot be written.
    """
    if _steps_in(path) > trainer.done:
        return
    state = trainer.state()
    storage.save(path, KIND, state["tensors"], {"losses": state["losses"]})


def _steps_in(path: Path) -> int:
    try:
        return len(storage.load_metadata(path, KIND)["losses"])
    except UNREADABLE:
        return 0


def resume_from(path: Path, trainer: Trainer) -> bool:
    """Whether the trainer goes on from the snapshot; an unreadable or longer one is not used."""
    if not path.is_file() or _steps_in(path) > trainer.settings.steps:
        return False
    try:
        tensors, plain = storage.load(path, KIND)
        trainer.resume(tensors, plain["losses"])
    except UNREADABLE:
        storage.discard(path)
        return False
    with suppress(OSError):  # its time only says what the cache drops first
        path.touch()
    return True
