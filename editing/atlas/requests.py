"""What the key-frame nodes are asked for, checked before anything runs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from ..checks import check_choice, check_range
from .explicit import visible
from .key_frames import (
    LEAST_OVERLAP,
    Box,
    check_key_frames,
    choose_key_frames,
    coverage_of,
    crop_box,
    jittered,
    parse_key_frames,
    views,
)
from .propagation import BACKDROPS, CARRIED, MAPPINGS, UNCOVERED, Carrying, KeyFrame
from .sdedit import SCHEDULES
from .types import Atlas, Layer

SAMPLERS = ("euler", "ddim")
"""ComfyUI's samplers that take the steps of the published DDIM (eta 0) exactly."""
FIRST = ("automatic", "noise", "source pixels")
"""What the first key frame starts from. "automatic": noise (published) with a ControlNet, which
holds the shape; the source's pixels without one."""
MULTIPLE = 64
"""Sides that the model draws are multiples of this many pixels (as published)."""


@dataclass(frozen=True)
class Cropping:
    """What part of a key frame the model sees, in pixels of the clip."""

    margin: int = 30
    minimum_side: int = 129
    jitter_seed: int | None = None
    """Draws a random part of every box (published, there without a seed); None: the box."""


@dataclass(frozen=True)
class Sampling:
    """How a key frame is drawn."""

    steps: int = 20
    cfg: float = 9.0
    sampler: str = SAMPLERS[0]
    noise_strength: float = 0.8
    """Noise on what earlier key frames look like from a later one."""
    first_strength: float = 0.8
    """Noise on the source's pixels, where the first key frame starts from them."""
    schedule: str = "clean"
    first: str = FIRST[0]
    resolution: int = 512
    """Pixels of the short side that the model draws."""
    control_strength: float = 1.0
    edit_seed: int = 1


@dataclass(frozen=True)
class Choice:
    """Which layer is edited, and at which key frames."""

    layer: str = "foreground"
    key_frames: str = ""
    """Frame numbers in the order of editing; empty: an automatic choice."""
    most: int = 3
    """Key frames that are chosen automatically, at most."""
    overlap: float = 0.4
    """Part of each that earlier ones must have seen, 0..1."""


@dataclass(frozen=True)
class Carriage:
    """How an edit goes over the texture; `Carrying` without a layer."""

    carried: str = CARRIED[0]
    mapping: str = MAPPINGS[0]
    texture_size: int = 0
    """Longest side of the texture; 0: the layer's own."""
    uncovered: str = UNCOVERED[0]
    backdrop: str = BACKDROPS[0]

    def on(self, layer: Layer) -> Carrying:
        """The same for one layer."""
        size = texture_size(layer, self.texture_size)
        return Carrying(size, self.carried, self.mapping, self.uncovered, self.backdrop)


@dataclass(frozen=True)
class EditRequest:
    """What Edit Key Frames was asked for."""

    choice: Choice = Choice()
    carriage: Carriage = Carriage()
    sampling: Sampling = Sampling()
    cropping: Cropping = Cropping()


@dataclass(frozen=True)
class GivenKeyFrames:
    """Key frames that were edited elsewhere, or came from Edit Key Frames."""

    image: Tensor
    """[K,H,W,3] whole frames in 0..1."""
    mask: Tensor | None
    """[K,H,W] which of their pixels count, besides alpha; None: a box around the object."""
    key_frames: str
    """Which frames of the clip they are."""
    layer: str = "foreground"


def check_request(node: str, request: EditRequest) -> None:
    """Raises: ValueError for a setting that cannot work; links are not checked by the host."""
    choice, sampling, cropping = request.choice, request.sampling, request.cropping
    check_carriage(node, request.carriage)
    check_range(node, "most_key_frames", choice.most, 1)
    check_range(node, "overlap", choice.overlap, LEAST_OVERLAP, 1)
    check_range(node, "steps", sampling.steps, 1, 1000)
    check_range(node, "cfg", sampling.cfg, 0)
    check_range(node, "noise_strength", sampling.noise_strength, 0, 1)
    check_range(node, "first_strength", sampling.first_strength, 0, 1)
    check_range(node, "control_strength", sampling.control_strength, 0)
    check_range(node, "resolution", sampling.resolution, MULTIPLE)
    check_range(node, "margin", cropping.margin, 0)
    check_range(node, "minimum_side", cropping.minimum_side, 1)
    check_choice(node, "sampler", sampling.sampler, SAMPLERS)
    check_choice(node, "schedule", sampling.schedule, SCHEDULES)
    check_choice(node, "first_key_frame", sampling.first, FIRST)


def check_carriage(node: str, carriage: Carriage) -> None:
    """Raises: ValueError for a setting that cannot work."""
    check_choice(node, "carried", carriage.carried, CARRIED)
    check_choice(node, "mapping", carriage.mapping, MAPPINGS)
    check_choice(node, "uncovered", carriage.uncovered, UNCOVERED)
    check_choice(node, "backdrop", carriage.backdrop, BACKDROPS)
    check_range(node, "texture_size", carriage.texture_size, 0)


@contextmanager
def named(node: str) -> Iterator[None]:
    """Puts the node's name before the errors of pure code."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{node}: {error}") from error


def find_layer(atlas: Atlas, name: str) -> Layer:
    """The layer of that name.

    Raises: ValueError when the atlas has none.
    """
    wanted = name.strip().lower()
    for known, layer in zip(atlas.names, atlas.layers, strict=True):
        if known.lower() == wanted:
            return layer
    raise ValueError(
        f"expected 'layer' to be one of the atlas's ({', '.join(atlas.names)}), got {name!r}. "
        "Write one of these."
    )


def visible_layer(atlas: Atlas, name: str) -> Layer:
    """The layer of that name, its alpha less what the layers in front of it hide.

    Raises: ValueError when the atlas has none.
    """
    layer = find_layer(atlas, name)
    shares = visible([one.alpha for one in atlas.layers[:-1]])
    if not shares:
        return layer
    number = next(n for n, one in enumerate(atlas.layers) if one is layer)
    return replace(layer, alpha=shares[number])


def check_pictures(
    atlas: Atlas, image: Tensor, frames: int, what: str, knob: str = "image"
) -> Tensor:
    """Pictures [F,3,H,W] of an IMAGE [F,H,W,3], on the CPU as the atlas.

    Args:
        frames: how many there must be.
        what: what they are, in words.
        knob: the input that they came from.

    Raises: ValueError for NaN, or when number or size are not those of the atlas's clip.
    """
    height, width = atlas.size
    if len(image) != frames:
        raise ValueError(
            f"expected {frames} pictures in '{knob}' ({what}), got {len(image)}. Connect exactly "
            "these."
        )
    if tuple(image.shape[1:3]) != (height, width):
        raise ValueError(
            f"the atlas's clip is {width}x{height}, '{knob}' {image.shape[2]}x{image.shape[1]}. "
            "Connect the frames that the atlas was made from, or scale them to this size."
        )
    if not bool(torch.isfinite(image).all()):
        raise ValueError(f"'{knob}' holds NaN or infinity. Check the node that made it.")
    return image[..., :3].movedim(-1, 1).float().cpu()


def check_masks(mask: Tensor | None, like: Tensor) -> Tensor | None:
    """Masks [K,1,H,W] of a MASK, or None where none was connected.

    Args:
        like: [K,3,H,W] the pictures that they belong to.

    Raises: ValueError for another number or size, or where one is black everywhere.
    """
    if mask is None:
        return None
    mask = mask[None] if mask.ndim == 2 else mask
    expected = (len(like), *like.shape[2:])
    if tuple(mask.shape) != expected:
        came, wanted = _size(mask.shape), _size(expected)
        raise ValueError(
            f"expected one mask per key frame, {wanted} (pictures, height, width), got {came}. "
            "Connect the masks of Edit Key Frames, or disconnect 'mask'."
        )
    mask = mask.float().cpu().clamp(0, 1)
    empty = [number for number, one in enumerate(mask) if not bool((one > 0).any())]
    if empty:
        raise ValueError(
            f"the mask of key frame number {empty[0] + 1} is empty (black everywhere), so nothing "
            "of it would be used. Paint the edited part white, or disconnect 'mask'."
        )
    return mask[:, None]


def choose_places(layer: Layer, request: EditRequest) -> tuple[list[tuple[int, Box]], float]:
    """The key frames in the order of editing, each with its crop, and the part that they cover.

    Raises: ValueError for key frames that cannot be edited in turn.
    """
    seen, choice = views(layer), request.choice
    one_before = request.carriage.carried == CARRIED[1]
    chosen = parse_key_frames(choice.key_frames, len(seen))
    if not chosen:
        chosen = choose_key_frames(seen, choice.most, choice.overlap, previous_only=one_before)
    check_key_frames(seen, chosen, one_before)
    cropping = request.cropping
    places = [
        (f, crop_box(layer.alpha[f, 0], cropping.margin, cropping.minimum_side)) for f in chosen
    ]
    if cropping.jitter_seed is not None:
        generator = torch.Generator().manual_seed(cropping.jitter_seed)
        places = [(f, jittered(box, generator)) for f, box in places]
    return places, coverage_of(seen, chosen)


def read_key_frames(atlas: Atlas, given: GivenKeyFrames) -> tuple[Layer, list[KeyFrame]]:
    """The layer and its edited key frames.

    Raises: ValueError when numbers, pictures and masks do not fit together.
    """
    layer = visible_layer(atlas, given.layer)
    numbers = parse_key_frames(given.key_frames, atlas.frames)
    if not numbers:
        raise ValueError(
            "expected 'key_frames' to say which frames of the clip the pictures are, got nothing. "
            "Write their numbers, for example 0, 8, 16, or connect the text of Edit Key Frames."
        )
    pictures = check_pictures(atlas, given.image, len(numbers), "one per number in 'key_frames'")
    masks = check_masks(given.mask, pictures)
    seen = views(layer)
    for number in numbers:
        check_key_frames(seen, [number], False)
    keys = []
    for number, frame in enumerate(numbers):
        alpha = layer.alpha[frame]
        if masks is None:
            box = crop_box(alpha[0], 30, 1)
        else:
            box, alpha = bounds(masks[number, 0]), torch.minimum(alpha, masks[number].to(alpha))
        keys.append(KeyFrame(frame, box, box.cut(pictures[number]), box.cut(alpha)))
    return layer, keys


def bounds(mask: Tensor) -> Box:
    """The smallest box around all of a mask [H,W] that is not black."""
    rows, columns = (mask > 0).nonzero(as_tuple=True)
    top, left = int(rows.min()), int(columns.min())
    return Box(top, left, int(rows.max()) + 1 - top, int(columns.max()) + 1 - left)


def texture_size(layer: Layer, longest: int) -> tuple[int, int]:
    """(V, U) with that longest side and the layer's own aspect; 0: the layer's own size."""
    size = layer.texture.shape[1:]
    scale = longest / max(size) if longest else 1.0
    return max(round(size[0] * scale), 1), max(round(size[1] * scale), 1)


def drawing_size(box: Box, resolution: int) -> tuple[int, int]:
    """(height, width) at which the model draws a crop: the short side near `resolution`, both
    multiples of MULTIPLE (as published)."""
    scale = resolution / min(box.height, box.width)
    height, width = (round(side * scale / MULTIPLE) for side in (box.height, box.width))
    return max(height, 1) * MULTIPLE, max(width, 1) * MULTIPLE


def resized(picture: Tensor, size: tuple[int, int]) -> Tensor:
    """[3,h,w] -> [3,*size], bicubic as Pillow does it, kept in 0..1."""
    if tuple(picture.shape[1:]) == size:
        return picture
    return F.interpolate(picture[None], size, mode="bicubic", antialias=True)[0].clamp(0, 1)


def _size(shape: Sequence[int]) -> str:
    return "x".join(str(side) for side in shape)
