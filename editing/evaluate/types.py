"""What is measured and what came out: frozen values, and the words for what could not be had."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

LOWER, HIGHER, NEAR_SOURCE = "lower", "higher", "near the source"
Check = Callable[[], None]
"""Called between frames of a long measure; it may raise to stop."""


def unwatched() -> None:
    """Nobody stops it."""


@dataclass(frozen=True)
class Evidence:
    """Both clips and whatever else is known about them."""

    source: Tensor
    """[F,H,W,3] float in 0..1: the frames that were edited."""
    edited: Tensor
    """[F,H,W,3] float in 0..1."""
    mask: Tensor | None = None
    """[F or 1,H,W] in 0..1, 1 = object."""
    flow: Tensor | None = None
    """[F-1,H,W,2] exact motion of the source (x, y) in pixels, from each frame to the next."""
    uv: Tensor | None = None
    """[F,H,W,2] (x, y) where each pixel lies on its surface; -1 and 1 are the outer edges."""
    on_surface: Tensor | None = None
    """[F,H,W] in 0..1, 1 where `uv` is valid; None: everywhere."""
    source_embeddings: Tensor | None = None
    """[F,D] CLIP's projected picture embeddings of the source."""
    edited_embeddings: Tensor | None = None
    """[F,D] of the edited frames."""
    text_embedding: Tensor | None = None
    """[D] CLIP's projected text embedding of the prompt."""
    absent: dict[str, str] = field(default_factory=dict)
    """Why something is missing, in words: keys "picture embeddings", "text embedding", "uv"."""

    @property
    def frames(self) -> int:
        return len(self.source)

    def why_absent(self, what: str, otherwise: str) -> str:
        """The reason given for `what`, or a general one."""
        return self.absent.get(what, otherwise)


@dataclass(frozen=True)
class Metric:
    """One measure of an edit, over time; or why there is none."""

    name: str
    unit: str
    paper: str
    """Who defined it and where."""
    better: str
    """LOWER, HIGHER or NEAR_SOURCE."""
    estimator: str = ""
    """What measured the motion or made the features: values compare only with the same one."""
    series: Tensor | None = None
    """[n] float64, one per frame or pair of frames; NaN where it is not defined."""
    source_series: Tensor | None = None
    """[n] the same measure of the source itself, where that has a meaning."""
    total: float | None = None
    """Set where the value of the clip is not the mean of `series`."""
    source_total: float | None = None
    missing: str = ""
    """Why it could not be computed; empty where it was."""
    note: str = ""

    @property
    def value(self) -> float | None:
        """Value of the edited clip; None where it could not be computed."""
        return _mean(self.series) if self.total is None else self.total

    @property
    def source_value(self) -> float | None:
        """Value of the source itself; None where that has no meaning."""
        return _mean(self.source_series) if self.source_total is None else self.source_total


@dataclass(frozen=True)
class Report:
    """All measures of one edit, and the pictures of its worst places."""

    metrics: tuple[Metric, ...]
    frames: int
    size: tuple[int, int]
    """(height, width) in pixels."""
    heat: Tensor
    """[F,H,W] warp error of every pixel against the next frame, root mean square over the channels
    in 0..1; NaN where something gets covered or leaves the picture, and in the last frame."""

    def __getitem__(self, name: str) -> Metric:
        """Raises: KeyError for an unknown name."""
        for metric in self.metrics:
            if metric.name == name:
                return metric
        raise KeyError(name)

    @property
    def computed(self) -> tuple[Metric, ...]:
        return tuple(metric for metric in self.metrics if not metric.missing)

    @property
    def missing(self) -> tuple[Metric, ...]:
        return tuple(metric for metric in self.metrics if metric.missing)


def _mean(series: Tensor | None) -> float | None:
    if series is None:
        return None
    known = series[torch.isfinite(series)]
    return float(known.mean()) if len(known) else None
