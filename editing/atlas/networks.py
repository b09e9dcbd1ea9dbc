"""The coordinate networks of Neural Layered Atlases, read-only: linear layers with ReLU between,
tanh at the end, sines and cosines of the input where its width asks for them."""

from __future__ import annotations

import torch
from torch import Tensor

AT_ONCE = 1 << 18
"""Points that are evaluated together: bounds the memory."""


class CoordinateNet:
    """One of the four networks, its shape read from its weights.

    Args:
        weights: `hidden.{i}.weight` [out,in] and `hidden.{i}.bias` [out] of every layer.
        dimensions: of a point: 3 (x, y, t) or 2 (u, v).

    Raises: ValueError when the weights are not those of such a network.
    """

    def __init__(self, weights: dict[str, Tensor], dimensions: int) -> None:
        self.layers: list[tuple[Tensor, Tensor]] = []
        while f"hidden.{len(self.layers)}.weight" in weights:
            name = f"hidden.{len(self.layers)}"
            if f"{name}.bias" not in weights:
                raise ValueError(f"{name}.bias is missing")
            self.layers.append((weights[f"{name}.weight"], weights[f"{name}.bias"]))
        if not self.layers:
            raise ValueError("hidden.0.weight is missing")
        wide = self.layers[0][0].shape[1]
        self.frequencies = 0 if wide == dimensions else wide // (2 * dimensions)
        if wide != dimensions and wide != 2 * dimensions * self.frequencies:
            raise ValueError(f"its first layer takes {wide} numbers, not {dimensions} coordinates")
        self._check(wide)

    def _check(self, wide: int) -> None:
        for (before, _), (weight, bias) in zip(self.layers, self.layers[1:], strict=False):
            fits = weight.shape[1] in (len(before), len(before) + wide)
            if not fits or len(bias) != len(weight):
                raise ValueError(f"layers of {tuple(before.shape)} and {tuple(weight.shape)}")

    @property
    def outputs(self) -> int:
        return len(self.layers[-1][0])

    def __call__(self, points: Tensor) -> Tensor:
        """[P,dimensions] -> [P,outputs] in -1..1; differentiable."""
        first = encoded(points, self.frequencies) if self.frequencies else points
        hidden = first
        for number, (weight, bias) in enumerate(self.layers):
            if number and weight.shape[1] > hidden.shape[1]:
                # a skip: as published, no gradient flows through it
                hidden = torch.cat([hidden, first.detach()], 1)
            hidden = torch.nn.functional.linear(hidden, weight, bias)
            if number + 1 < len(self.layers):
                hidden = hidden.relu()
        return hidden.tanh()

    def in_parts(self, points: Tensor) -> Tensor:
        """The same for many points, without gradients; the networks may be on another device."""
        device = self.layers[0][0].device
        with torch.no_grad():
            parts = [self(part.to(device)).to(points.device) for part in points.split(AT_ONCE)]
        return torch.cat(parts)

    def to(self, device: torch.device) -> CoordinateNet:
        """Moves it to a device."""
        self.layers = [(weight.to(device), bias.to(device)) for weight, bias in self.layers]
        return self


def encoded(points: Tensor, frequencies: int) -> Tensor:
    """Positional encoding [P,D] -> [P,2*D*K]: sin and cos of 2^k pi x, frequency by frequency."""
    angles = [2.0**k * torch.pi * points for k in range(frequencies)]
    return torch.cat([part for x in angles for part in (x.sin(), x.cos())], 1)
