"""The loss of a training as a picture and in words."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from ..figures import drawn

SMOOTHED = 20
"""Steps that are averaged: a single loss depends more on the noise level than on progress."""


def running_mean(losses: Sequence[float]) -> list[float]:
    """The mean of every loss with those before it, SMOOTHED at most."""
    found = []
    for end in range(1, len(losses) + 1):
        part = losses[max(0, end - SMOOTHED) : end]
        found.append(sum(part) / len(part))
    return found


def loss_curve(losses: Sequence[float], steps: int) -> Tensor:
    """Losses so far of a training of `steps` steps -> [1,H,W,3] in 0..1."""

    def draw(axes: Any) -> None:
        numbers = range(1, len(losses) + 1)
        axes.plot(numbers, losses, ".", color="silver", label="every step")
        axes.plot(numbers, running_mean(losses), color="tab:blue", label=f"mean of {SMOOTHED}")
        axes.set(xlabel="step", ylabel="loss", title="Training the temporal UNet")
        axes.set_xlim(0, max(steps, 2))
        axes.grid(alpha=0.3)
        axes.legend(loc="upper right")

    return drawn(draw)
