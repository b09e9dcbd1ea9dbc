"""How well an inversion gives its clip back: PSNR, a plot, and what to do about it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .figures import drawn

GOOD = 30.0
"""dB from which a round trip is hard to tell from the VAE's own pictures."""
POOR_AUTOENCODER = 24.0
IDENTICAL = 99.0
"""dB shown for pictures without any difference."""


@dataclass(frozen=True)
class InversionReport:
    """PSNR of every frame, in dB."""

    round_trip: Tensor
    """[F] inverted and played back, against the VAE's own output."""
    autoencoder: Tensor
    """[F] the VAE's output against the clip: the most that any edit can keep."""
    steps: int
    convention: str

    @property
    def text(self) -> str:
        """Numbers of every frame, and advice in words."""
        worst = int(self.round_trip.argmin())
        lines = [
            f"Round trip (inverted and played back): {float(self.round_trip.mean()):.1f} dB on "
            f"average, worst {float(self.round_trip[worst]):.1f} dB at frame {worst}.",
            f"VAE alone: {float(self.autoencoder.mean()):.1f} dB on average.",
            *self.advice(),
            "",
            "frame  round trip  VAE alone",
        ]
        for frame, (trip, own) in enumerate(
            zip(self.round_trip.tolist(), self.autoencoder.tolist(), strict=True)
        ):
            lines.append(f"{frame:5d}  {trip:7.1f} dB {own:7.1f} dB")
        return "\n".join(lines)

    def advice(self) -> list[str]:
        """What to change, most useful first; a line of praise where nothing is wrong."""
        found = []
        if float(self.round_trip.min()) < GOOD:
            found.append(f"The round trip is below {GOOD:g} dB: edits will drift from the clip.")
            found.append(
                f"- Raise 'steps' of Invert Video (now {self.steps} kept; 500 with 50 saved steps "
                "is accurate and slow)."
            )
            if self.convention != "current":
                found.append(
                    f"- Set 'evaluation' of Invert Video to 'current' (now '{self.convention}')."
                )
            found.append("- Describe in the positive prompt what the clip shows, nothing else.")
        if float(self.autoencoder.min()) < POOR_AUTOENCODER:
            found.append(
                f"The VAE alone is below {POOR_AUTOENCODER:g} dB: fine detail is lost before any "
                "edit. Use larger frames or the VAE that belongs to the checkpoint."
            )
        return found or ["The inversion is good."]


def psnr(one: Tensor, other: Tensor) -> Tensor:
    """Peak signal-to-noise ratio of pictures [F,H,W,C] in 0..1 -> [F] dB, at most IDENTICAL."""
    error = (one.clamp(0, 1) - other.clamp(0, 1)).double().square().flatten(1).mean(1)
    return (-10 * torch.log10(error.clamp(min=10 ** (-IDENTICAL / 10)))).float().cpu()


def as_encoded(node: str, image: Tensor, height: int, width: int) -> Tensor:
    """The middle of pictures [F,H,W,C] that a VAE encoded, which drops a few border pixels.

    Raises: ValueError when the sizes differ by more than that.
    """
    top, left = image.shape[1] - height, image.shape[2] - width
    if not (0 <= top < 64 and 0 <= left < 64):
        raise ValueError(
            f"{node}: the inversion's pictures are {width}x{height}, 'image' is "
            f"{image.shape[2]}x{image.shape[1]}. Connect the pictures that were encoded for "
            "Invert Video, after any resizing."
        )
    top, left = top // 2, left // 2
    return image[:, top : top + height, left : left + width]


def plot(report: InversionReport) -> Tensor:
    """PSNR over time as a picture -> [1,H,W,3] float32 in 0..1."""

    def draw(axes: Any) -> None:
        frames = range(len(report.round_trip))
        axes.plot(frames, report.round_trip.tolist(), marker="o", label="inverted and played back")
        alone = "VAE alone (against the clip)"
        axes.plot(frames, report.autoencoder.tolist(), marker=".", label=alone)
        axes.axhline(
            GOOD, linestyle="--", color="grey", linewidth=1, label=f"good from {GOOD:g} dB"
        )
        title = "Does the inversion give the clip back?"
        axes.set(xlabel="frame", ylabel="PSNR in dB", title=title)
        axes.grid(alpha=0.3)
        axes.legend()

    return drawn(draw)
