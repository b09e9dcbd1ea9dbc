"""Pictures of what has no picture: tokens as colours, matches as colours, a clip re-assembled."""

from __future__ import annotations

import colorsys
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from ..kernels.propagate import propagate
from .protocol import Site
from .types import NNField, TokenStore, parse_site

FRAMES_AT_ONCE = 16
"""Frames that are re-assembled together: bounds the memory, not the result."""


def principal_colours(tokens: Tensor) -> Tensor:
    """Tokens as three colours: their projections on the three main directions of all of them.

    Args:
        tokens: [F,L,C], any float type.

    Returns: [F,L,3] float32 in 0..1; two standard deviations around the mean fill the range.
    """
    flat = tokens.float().flatten(0, 1)
    flat = flat - flat.mean(0)
    _, vectors = torch.linalg.eigh(flat.T @ flat / len(flat))
    main = vectors.flip(1)[:, :3]
    # eigenvectors have no sign of their own: fixed, so that colours do not flip between runs
    strongest = main.gather(0, main.abs().argmax(0, keepdim=True))
    projected = flat @ (main * torch.where(strongest < 0, -1.0, 1.0))
    spread = projected.std(0, correction=0).clamp(min=1e-6)
    colours = (projected / (4 * spread) + 0.5).clamp(0, 1)
    return F.pad(colours, (0, 3 - colours.shape[1])).unflatten(0, tokens.shape[:2])


def token_pictures(store: TokenStore, scale: int) -> Tensor:
    """The least noisy step of a store as pictures, one block of frames per site.

    Args:
        scale: pixels per token of the finest grid.

    Returns: [sites*F,H,W,3] in 0..1.
    """
    last = store.steps[-1]
    sites = sorted(site for site, step in store.tokens if step == last)
    height = max(store.grids[site][0] for site in sites) * scale
    width = max(store.grids[site][1] for site in sites) * scale
    blocks = []
    for site in sites:
        colours = principal_colours(store.tokens[site, last])
        blocks.append(enlarged(colours.unflatten(1, store.grids[site]), height, width))
    return torch.cat(blocks)


def enlarged(pictures: Tensor, height: int, width: int) -> Tensor:
    """[F,h,w,3] -> [F,H,W,3], every cell a flat square."""
    moved = pictures.movedim(-1, 1)
    return F.interpolate(moved, (height, width), mode="nearest-exact").movedim(1, -1)


def colour_wheel(height: int, width: int) -> Tensor:
    """A colour for every place of a grid -> [h,w,3]: hue = direction, strength = distance."""
    y = torch.linspace(-1, 1, height) if height > 1 else torch.zeros(1)
    x = torch.linspace(-1, 1, width) if width > 1 else torch.zeros(1)
    y, x = torch.meshgrid(y, x, indexing="ij")
    hue = (torch.atan2(y, x) / (2 * torch.pi)) % 1.0
    distance = (torch.hypot(x, y) / 2**0.5).clamp(0, 1)
    rows = zip(hue.flatten().tolist(), distance.flatten().tolist(), strict=True)
    colours = [colorsys.hsv_to_rgb(h, d, 1 - 0.25 * d) for h, d in rows]
    return torch.tensor(colours).view(height, width, 3)


def shown_step(field: NNField) -> int:
    """Where matches are clear and the picture is not yet settled: four fifths of the way."""
    steps = sorted(field.steps)
    return steps[round(0.8 * (len(steps) - 1))]


def chosen_table(field: NNField, step: int, site: str, node: str) -> tuple[Site, Tensor]:
    """The site to look at (the finest where none is named) and its matches [F,R,L] int64.

    Raises: ValueError when the field lacks that step or site.
    """
    if step not in field.steps:
        held = ", ".join(str(number) for number in field.steps)
        raise ValueError(
            f"{node}: expected 'step' to be one that the field holds ({held}), got {step}. "
            "Choose one of these."
        )
    sites = sorted(place for place, at in field.index if at == step)
    wanted = site.strip()
    if not wanted:
        chosen = max(sites, key=lambda place: field.grids[place][0] * field.grids[place][1])
    elif wanted in [str(place) for place in sites]:
        chosen = parse_site(wanted)
    else:
        held = ", ".join(str(place) for place in sites)
        raise ValueError(
            f"{node}: expected 'site' to be one that the field holds ({held}), got {wanted!r}. "
            "Choose one of these, or leave it empty for the finest."
        )
    return chosen, field.index[chosen, step].long()


def check_pictures(field: NNField, image: Tensor, grid: tuple[int, int], node: str) -> None:
    """Raises: ValueError when the pictures [F,H,W,3] cannot be those of the field."""
    if len(image) != field.frames:
        raise ValueError(
            f"{node}: the field has {field.frames} frames, 'image' {len(image)}. "
            "Connect the pictures that were encoded for Invert Video."
        )
    height, width = image.shape[1:3]
    if height < grid[0] or width < grid[1]:
        raise ValueError(
            f"{node}: 'image' ({width}x{height}) is smaller than the field's grid "
            f"({grid[1]}x{grid[0]}). Connect the pictures that were encoded for Invert Video."
        )


def match_colours(field: NNField, image: Tensor, step: int, site: str, node: str) -> Tensor:
    """Where every place of every frame was found in its main key frame, as colours.

    Returns: [F,H,W,3] in 0..1 at the size of `image` [F,H,W,3].
    Raises: ValueError when step, site or pictures do not belong to the field.
    """
    chosen, index = chosen_table(field, step, site, node)
    grid = field.grids[chosen]
    check_pictures(field, image, grid, node)
    main = field.weights[step].argmax(1)
    matched = index[torch.arange(field.frames), main]
    colours = colour_wheel(*grid).flatten(0, 1)[matched].unflatten(1, grid)
    return enlarged(colours, image.shape[1], image.shape[2])


def reassembled(field: NNField, image: Tensor, step: int, site: str, node: str) -> Tensor:
    """The clip built from its key frames' pixels along the field (TokenFlow, figure 2).

    Every token carries its square of pixels; frames are blended like tokens are.

    Returns: [F,H,W,3] in 0..1.
    Raises: as `match_colours`.
    """
    chosen, index = chosen_table(field, step, site, node)
    grid = field.grids[chosen]
    check_pictures(field, image, grid, node)
    size = image.shape[1:3]
    cell = (-(-size[0] // grid[0]), -(-size[1] // grid[1]))
    whole = (grid[0] * cell[0], grid[1] * cell[1])
    keys = _resized(image[field.key_frames[step]].movedim(-1, 1).float(), whole)
    squares = F.unfold(keys, cell, stride=cell).transpose(1, 2)[None]
    parts = []
    for frames in _runs(field.frames):
        built = propagate(
            squares, index[frames], field.neighbours[step][frames], field.weights[step][frames]
        )
        parts.append(F.fold(built[0].transpose(1, 2), whole, cell, stride=cell))
    return _resized(torch.cat(parts), (size[0], size[1])).movedim(1, -1).clamp(0, 1)


def _resized(pictures: Tensor, size: tuple[int, int]) -> Tensor:
    if tuple(pictures.shape[-2:]) == size:
        return pictures
    return F.interpolate(pictures, size, mode="bilinear", antialias=True)


def _runs(frames: int) -> Iterator[Tensor]:
    yield from torch.arange(frames).split(FRAMES_AT_ONCE)
