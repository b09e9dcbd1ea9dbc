"""The single steps of key-frame editing, for artists who wire the loop themselves."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from .aggregation import View, combined, initial_weights, train
from .key_frames import Box
from .propagation import (
    CARRIED,
    Carrying,
    KeyFrame,
    PartialTexture,
    appearance,
    merged,
    partial_texture,
    starting_picture,
)
from .requests import check_pictures
from .types import Atlas, Layer

UNSEEN = ("original texture", "black")
"""What a texture shows where no key frame was seen; published: black."""
ENOUGH = 0.25
"""Coverage from which a texel wholly is the edit's; below, "unseen" shows through."""


@dataclass(frozen=True)
class Propagated:
    """Edited key frames, as another frame of the clip sees them."""

    picture: Tensor
    """[1,H,W,3] 0..1, the object on black."""
    mask: Tensor
    """[1,H,W] 0..1: the frame's alpha, 0 where nothing is known."""
    share: float
    """Part of the object in this frame that is known, 0..1."""


def propagate(
    atlas: Atlas,
    layer: Layer,
    keys: Sequence[KeyFrame],
    target: int,
    carrying: Carrying,
    source: Tensor | None,
) -> Propagated:
    """Key frames through the texture to another frame (StableVideo, section 3.3).

    Args:
        target: number of that frame.
        source: [F,H,W,3] the clip, shown where nothing is known; None: black there.

    Raises: ValueError for a wrong frame number, or a frame that shares nothing with the key frames.
    """
    if not 0 <= target < atlas.frames:
        raise ValueError(
            f"expected 'target_frame' between 0 and {atlas.frames - 1} (the clip has "
            f"{atlas.frames} frames, counted from 0), got {target}. Change that number."
        )
    whole = Box(0, 0, *atlas.size)
    used = keys[-1:] if carrying.carried == CARRIED[1] else keys
    known = merged([partial_texture(layer, k, carrying.size, carrying.mapping) for k in used])
    own = torch.zeros(3, *atlas.size)
    if source is not None:
        clip = check_pictures(atlas, source, atlas.frames, "one per frame of the clip", "source")
        own = clip[target]
    alpha = layer.alpha[target]
    seen = appearance(layer, known, target, whole, carrying.mapping == "published")[1]
    if not bool((seen & (alpha >= 0.5)).any()):
        numbers = ", ".join(str(key.frame) for key in used)
        raise ValueError(
            f"frame {target} shows nothing of what key frame {numbers} showed, so nothing can be "
            "carried over. Choose key frames that show the same side of the object."
        )
    picture = starting_picture(layer, known, own, target, whole, carrying.mapping, "source pixels")
    mask = alpha * seen
    share = float(mask.sum() / alpha.sum())
    return Propagated(picture.movedim(0, -1)[None], mask, share)


@dataclass(frozen=True)
class Aggregated:
    """One texture made of all key frames."""

    texture: Tensor
    """[3,V,U] 0..1."""
    coverage: Tensor
    """[1,V,U] 0..1, where any key frame was seen."""
    losses: Tensor
    """[iterations] of the network's training; empty without one."""


@dataclass(frozen=True)
class Training:
    """How the aggregation network is trained."""

    iterations: int = 500
    training_seed: int = 1
    device: torch.device | str = "cpu"


def aggregate_key_frames(
    layer: Layer,
    keys: Sequence[KeyFrame],
    carrying: Carrying,
    method: str,
    unseen: str,
    training: Training,
    step: Callable[[int, float], None] | None = None,
) -> Aggregated:
    """All key frames' partial textures as one (StableVideo, section 3.4).

    Args:
        method: one of `aggregation.METHODS`.
        unseen: one of UNSEEN.
        step: called with (number, loss) after every iteration of a training.
    """
    partials = [partial_texture(layer, k, carrying.size, carrying.mapping) for k in keys]
    published = carrying.mapping == "published"
    first = "published median" if published and method == "network" else method
    found = combined(partials, first)
    colours, losses = found.colours, torch.zeros(0)
    if method == "network":
        device = training.device
        sights = [_view(layer, key, published).to(device) for key in keys]
        start = initial_weights(training.training_seed, published)
        trained = train(colours.to(device), sights, start, training.iterations, step=step)
        colours, losses = trained.texture.to(colours), trained.losses
    return Aggregated(_filled(colours, found, layer, unseen), found.coverage.clamp(0, 1), losses)


def _view(layer: Layer, key: KeyFrame, published: bool) -> View:
    uv = key.box.cut(layer.uv[key.frame].movedim(-1, 0)).movedim(0, -1)[None]
    alpha = key.box.cut(layer.alpha[key.frame]) if key.alpha is None else key.alpha.to(uv)
    picture = key.picture.to(uv)
    if published:
        return View(uv, picture * alpha, torch.ones_like(alpha))
    return View(uv, picture, alpha)


def _filled(colours: Tensor, found: PartialTexture, layer: Layer, unseen: str) -> Tensor:
    own = torch.zeros_like(colours)
    if unseen == UNSEEN[0]:
        own = layer.texture.to(colours)
        if own.shape != colours.shape:
            size = colours.shape[1:]
            own = F.interpolate(own[None], size, mode="bilinear", antialias=True)[0]
    return torch.lerp(own, colours, (found.coverage / ENOUGH).clamp(max=1))
