"""Source features on disk, one file per step, so that a second edit of a clip is faster.

The field, the conv features and the key frames' queries and keys depend on the source, the
step and the key frames only: not on the prompt and not on the edit's latents.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from . import storage
from .protocol import Site, StepSource
from .types import compact, parse_site

KIND = "cached step"


@dataclass(frozen=True)
class StepCache:
    """A folder of steps of one clip, model, key-frame draw and precision."""

    folder: Path
    keeps_queries: bool = True
    """Queries and keys of the key frames are large; False leaves them out."""
    keeps_features: bool = True

    def _path(self, step: int) -> Path:
        return self.folder / f"step_{step:04d}.safetensors"

    def load(self, step: int) -> StepSource:
        """What the folder holds of this step; an unreadable file counts as absent.

        All of it is read into memory, because `save` may replace the file while it is in use: one
        step at a time, at most the cache's limit over the number of steps.
        """
        path = self._path(step)
        if not path.is_file():
            return StepSource()
        try:
            tensors, _ = storage.load(path, KIND)
        except ValueError:
            storage.discard(path)
            return StepSource()
        parts: dict[str, dict[Site, Tensor]] = {"index": {}, "queries": {}, "keys": {}}
        for name, value in tensors.items():
            part, _, site = name.partition("/")
            if site:
                parts[part][parse_site(site)] = value
        return StepSource(
            **parts,
            features=tensors.get("features"),
            key_features=tensors.get("key_features"),
        )

    def save(self, step: int, source: StepSource) -> None:
        """Keeps a step. A disk that cannot take it costs speed, never the edit."""
        tensors = self._kept(source)
        for name in tensors:
            if name.startswith("index/"):
                tensors[name] = compact(tensors[name])
        with suppress(ValueError):  # an older file stays: it holds less, all of it right
            storage.save(self._path(step), KIND, tensors, {})

    def gains(self, known: StepSource, found: StepSource) -> bool:
        """Whether `found` has parts that belong in the file and that `known` lacks."""
        return not self._kept(found).keys() <= self._kept(known).keys()

    def _kept(self, source: StepSource) -> dict[str, Tensor]:
        """The parts of a step that are kept, by their names in the file."""
        tensors: dict[str, Tensor] = {}
        for part in ("index", "queries", "keys") if self.keeps_queries else ("index",):
            tensors |= {f"{part}/{site}": value for site, value in getattr(source, part).items()}
        if self.keeps_features and source.features is not None:
            tensors["features"] = source.features
        if self.keeps_features and source.key_features is not None:
            tensors["key_features"] = source.key_features
        return tensors


def on_device(source: dict[Site, Tensor], device: torch.device) -> dict[Site, Tensor]:
    """The same tensors where the model computes."""
    return {site: value.to(device) for site, value in source.items()}
