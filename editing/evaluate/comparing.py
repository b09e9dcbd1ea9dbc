"""What the viewer of Compare Videos is told: which clips play together, and their names."""

from __future__ import annotations

from typing import Any

from torch import Tensor

NODE = "Compare Videos"
LETTERS = "abcd"


def together(*clips: Tensor | None) -> list[Tensor]:
    """The connected clips.

    Args:
        clips: [F,H,W,3] each, or None where nothing is connected.

    Raises: ValueError when their numbers of frames differ.
    """
    given = {f"clip_{x}": clip for x, clip in zip(LETTERS, clips, strict=False) if clip is not None}
    counts = {len(clip) for clip in given.values()}
    if len(counts) > 1:
        named = ", ".join(f"'{name}' {len(clip)}" for name, clip in given.items())
        raise ValueError(
            f"{NODE}: expected clips of the same number of frames, got {named}. Cut them alike, "
            "for example with ImageFromBatch."
        )
    return list(given.values())


def names_of(labels: str, count: int) -> list[str]:
    """One name per clip: the artist's, then the letters."""
    given = [label.strip() for label in labels.split(",") if label.strip()]
    return [*given[:count], *(f"clip {x}" for x in LETTERS[len(given) : count])]


def shown(
    files: list[dict[str, str]], names: list[str], clips: list[Tensor], fps: float
) -> list[dict[str, Any]]:
    """One entry per clip for the viewer: its file, name, frames, frames per second and size."""
    return [
        {
            **file,
            "label": name,
            "frames": len(clip),
            "fps": fps,
            "width": clip.shape[2],
            "height": clip.shape[1],
        }
        for file, name, clip in zip(files, names, clips, strict=True)
    ]
