"""A clip as a few textures: the payload of the REWEAVE_ATLAS socket."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor

from .. import storage


@dataclass(frozen=True)
class Layer:
    """One layer of a clip: where each pixel lies on its texture, and how much of it is seen."""

    uv: Tensor
    """[F,H,W,2] float32 (x, y); -1 and 1 are the texture's outer edges."""
    texture: Tensor
    """[3,V,U] float32 sRGB 0..1."""
    alpha: Tensor
    """[F,1,H,W] float32 0..1; the backmost layer's is 1 everywhere."""
    coverage: Tensor
    """[1,V,U] float32 >= 0; 0 where no frame ever sees the texel."""


@dataclass(frozen=True)
class Atlas:
    """Layers from front to back; fields, not networks."""

    layers: tuple[Layer, ...]
    names: tuple[str, ...]
    """One per layer, for example ("foreground", "background")."""

    KIND: ClassVar[str] = "atlas"

    @property
    def frames(self) -> int:
        return self.layers[0].uv.shape[0]

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of the clip in pixels."""
        _, height, width, _ = self.layers[0].uv.shape
        return height, width

    def save(self, path: Path) -> None:
        """Raises ValueError when the file cannot be written."""
        tensors = {
            f"{number}/{field.name}": getattr(layer, field.name)
            for number, layer in enumerate(self.layers)
            for field in fields(Layer)
        }
        storage.save(path, self.KIND, tensors, {"names": list(self.names)})

    @classmethod
    def load(cls, path: Path) -> Atlas:
        """Raises ValueError when the file is missing, corrupt, foreign or lacks parts."""
        tensors, plain = storage.load(path, cls.KIND)
        names = tuple(plain["names"])
        layers = tuple(
            Layer(**{field.name: tensors[f"{number}/{field.name}"] for field in fields(Layer)})
            for number in range(len(names))
        )
        try:
            check_layers(layers, names)
        except ValueError as error:
            raise ValueError(f"Loading the atlas: {path.name}: {error}") from error
        return cls(layers, names)


def check_layers(layers: tuple[Layer, ...], names: tuple[str, ...]) -> None:
    """Raises: ValueError when the layers cannot be those of one clip."""
    if not layers or len(layers) != len(names):
        raise ValueError(f"expected one name per layer, got {len(names)} and {len(layers)} layers.")
    frames, height, width = layers[0].uv.shape[:3]
    for layer, name in zip(layers, names, strict=True):
        wanted = {
            "uv": (frames, height, width, 2),
            "texture": (3, *layer.texture.shape[-2:]),
            "alpha": (frames, 1, height, width),
            "coverage": (1, *layer.texture.shape[-2:]),
        }
        for field, shape in wanted.items():
            value = getattr(layer, field)
            if tuple(value.shape) != shape:
                raise ValueError(
                    f"expected the {field} of layer '{name}' to be {shape}, got "
                    f"{tuple(value.shape)}. Make the atlas again and save it."
                )
            if not bool(torch.isfinite(value).all()):
                raise ValueError(
                    f"the {field} of layer '{name}' holds NaN or infinity. Make the atlas again."
                )
