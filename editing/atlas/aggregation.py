"""Several key frames' textures as one (StableVideo, section 3.4)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ...kernels.layers import sample_texture
from ..figures import drawn
from .propagation import PartialTexture, merged

METHODS = ("mean", "median", "published median", "network")
"""`merged`, `median`, `published_median`; "network" is trained on what its first guess misses."""
HIDDEN = 64
RIM = 0.25
"""Part of a texel's largest coverage below which a key frame has no vote in the median."""
REACH = 3
"""Texels beyond those that are read that the network needs: 2 for two 3x3 kernels, 1 to spare."""

Weights = tuple[Tensor, Tensor]
"""The network's kernels: [64,3,3,3] of the convolution, [64,3,3,3] of the transposed one."""


def published_median(partials: Sequence[PartialTexture]) -> PartialTexture:
    """The lower median of all textures, their unwritten black texels included (published).

    Of two key frames it is the minimum per channel; a texel that one of three has seen is black.
    """
    colours = torch.stack([part.colours for part in partials]).median(0).values
    return PartialTexture(colours, _total(partials))


def median(partials: Sequence[PartialTexture]) -> PartialTexture:
    """The median of those textures in which a texel was written; of two, their mean.

    One that was written with a small part of the others' weight is the faint rim of a mask.
    """
    coverage = torch.stack([part.coverage for part in partials])
    written = (coverage > 0) & (coverage >= RIM * coverage.amax(0))
    colours = torch.stack([part.colours for part in partials])
    order = torch.where(written, colours, torch.inf).sort(0).values
    count = written.sum(0).expand_as(colours[0])  # [3,V,U]
    lower = ((count - 1) // 2).clamp(min=0)
    upper = (count // 2).clamp(max=len(partials) - 1)
    middle = (order.gather(0, lower[None]) + order.gather(0, upper[None]))[0] / 2
    return PartialTexture(torch.where(count > 0, middle, 0.0), _total(partials))


def combined(partials: Sequence[PartialTexture], method: str) -> PartialTexture:
    """All key frames' textures as one; for "network", its first guess.

    Args:
        method: one of METHODS.
    """
    if method == "published median":
        return published_median(partials)
    return merged(partials) if method == "mean" else median(partials)


def _total(partials: Sequence[PartialTexture]) -> Tensor:
    return torch.stack([part.coverage for part in partials]).sum(0)


@dataclass(frozen=True)
class View:
    """What the texture must look like from one key frame."""

    uv: Tensor
    """[1,h,w,2]."""
    target: Tensor
    """[3,h,w] 0..1."""
    weight: Tensor
    """[1,h,w] importance of each pixel. Published: 1, the target being alpha times the picture."""

    def to(self, device: torch.device | str) -> View:
        """The same on another device."""
        return View(self.uv.to(device), self.target.to(device), self.weight.to(device))


@dataclass(frozen=True)
class Trained:
    """A trained aggregation network and how it came there."""

    texture: Tensor
    """[3,V,U] 0..1."""
    losses: Tensor
    """[iterations] float32: before each step, summed over the key frames."""
    weights: Weights


def initial_weights(training_seed: int, published: bool = False) -> Weights:
    """Weights before training, from a generator.

    The first layer is uniform in +-1/sqrt(fan_in), as PyTorch starts it. The second is 0, so that
    the network begins as the identity, with the first guess itself; "published": uniform too.
    """
    generator = torch.Generator().manual_seed(training_seed)
    bound = 1 / math.sqrt(3 * 9)
    start = (torch.rand(2, HIDDEN, 3, 3, 3, generator=generator) * 2 - 1) * bound
    return start[0], start[1] if published else torch.zeros_like(start[1])


def aggregate(weights: Weights, texture: Tensor) -> Tensor:
    """The network: x + ConvT3x3(ReLU(Conv3x3(x))), 3 -> 64 -> 3 channels, no bias.

    Args:
        texture: [N,3,V,U].
    """
    hidden = F.relu(F.conv2d(texture, weights[0], padding=1))
    return texture + F.conv_transpose2d(hidden, weights[1], padding=1)


def train(
    texture: Tensor,
    views: Sequence[View],
    weights: Weights,
    iterations: int = 500,
    rate: float = 1e-3,
    momentum: float = 0.9,
    step: Callable[[int, float], None] | None = None,
) -> Trained:
    """Trains the network until the texture looks right from every key frame.

    SGD on the sum over key frames of mean |clamp(UV_i(net(texture))) - target|, by weight (section
    3.4; the published release fails here: its caller has switched gradients off).

    Args:
        texture: [3,V,U] the first guess, which is the network's input (published: the median).
        step: called with (number, loss) after every iteration.
    """
    losses = []
    with torch.inference_mode(False), torch.enable_grad():
        # tensors made in inference mode cannot take part in a graph, their copies can
        copies = [View(v.uv.clone(), v.target.clone(), v.weight.clone()) for v in views]
        part, sights = read_part(texture.clone(), copies)
        first, second = (weight.clone().to(part).requires_grad_() for weight in weights)
        optimizer = torch.optim.SGD([first, second], lr=rate, momentum=momentum)
        for number in range(iterations):
            optimizer.zero_grad()
            made = aggregate((first, second), part[None])[0]
            loss = torch.stack([_difference(made, sight) for sight in sights]).sum()
            loss.backward()
            optimizer.step()
            losses.append(float(loss.detach()))
            if step is not None:
                step(number, losses[-1])
    trained = first.detach(), second.detach()
    made = aggregate(trained, texture[None])[0].clamp(0, 1)
    return Trained(made, torch.tensor(losses), trained)


def training_bytes(size: tuple[int, int]) -> int:
    """Memory of a training on a texture of (V, U): the hidden layer, its ReLU, both gradients."""
    return 4 * HIDDEN * size[0] * size[1] * 4


def read_part(texture: Tensor, views: Sequence[View]) -> tuple[Tensor, list[View]]:
    """The part of a texture that the views read, as far as the network reaches, and their uv on it.

    The network gives the same there as on the whole texture, for less work.
    """
    size = texture.new_tensor([texture.shape[2], texture.shape[1]])  # (U, V)
    places = torch.cat([view.uv.flatten(0, 2) for view in views])
    texels = ((places.clamp(-1, 1) + 1) / 2 * size).long()
    low = (texels.amin(0) - REACH).clamp(min=0)
    high = torch.minimum(texels.amax(0) + REACH + 1, size.long())
    part = texture[:, int(low[1]) : int(high[1]), int(low[0]) : int(high[0])]
    moved = [(((v.uv + 1) / 2 * size - low) / (high - low) * 2 - 1) for v in views]
    pairs = zip(moved, views, strict=True)
    return part, [View(uv, view.target, view.weight) for uv, view in pairs]


def _difference(texture: Tensor, view: View) -> Tensor:
    """Mean over the pixels that count, so that the size of the picture around them does not."""
    seen = sample_texture(texture, view.uv)[0].clamp(0, 1)
    total = ((seen - view.target).abs() * view.weight).sum()
    return total / (len(view.target) * view.weight.sum()).clamp(min=1e-6)


def loss_curve(losses: Tensor) -> Tensor:
    """The training as a picture -> [1,400,800,3] in 0..1; says so where nothing was trained."""

    def draw(axes: Any) -> None:
        axes.set(xlabel="iteration", ylabel="mean difference, summed over key frames")
        axes.grid(alpha=0.3)
        if len(losses):
            axes.plot(range(1, len(losses) + 1), losses.tolist())
            start, end = float(losses[0]), float(losses[-1])
            axes.set_title(f"Aggregation network: loss {start:.4f} to {end:.4f}")
        else:
            axes.set_title("No training: this method has nothing to learn")

    return drawn(draw)
