"""A clip whose atlas is known exactly: an object that turns and shows another side in every frame.

Pixels lie on texel centres, so that what is mapped to the texture comes back unchanged.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from reweave.editing.atlas.types import Atlas, Layer
from torch import Tensor

HEIGHT, WIDTH, SIDE = 32, 48, 16
BORDER = 2
"""Texels of the texture around all that is ever seen."""
TURN = 4
"""Texture columns by which the view moves from frame to frame, of SIDE columns seen."""


def texture(seed: int, frames: int = 8) -> Tensor:
    """[3,V,U] 0..1, random and smooth, as wide as all views together and a border."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(1, 3, 4, 3 + frames, generator=generator)
    size = (SIDE + 2 * BORDER, SIDE + TURN * (frames - 1) + 2 * BORDER)
    return F.interpolate(coarse, size, mode="bicubic")[0].clamp(0, 1)


def place(frame: int) -> tuple[int, int]:
    """(top, left) of the object."""
    return 6 + frame % 3, 8 + 2 * frame


def turning_atlas(frames: int = 8) -> Atlas:
    """Foreground and background, named so."""
    rows, columns = torch.arange(HEIGHT), torch.arange(WIDTH)
    y, x = torch.meshgrid(rows, columns, indexing="ij")
    high, wide = texture(1, frames).shape[1:]
    uv, alpha = [], torch.zeros(frames, 1, HEIGHT, WIDTH)
    for frame in range(frames):
        top, left = place(frame)
        across = (x - left + TURN * frame + BORDER + 0.5) / wide * 2 - 1
        down = (y - top + BORDER + 0.5) / high * 2 - 1
        uv.append(torch.stack([across, down], -1))
        alpha[frame, :, top : top + SIDE, left : left + SIDE] = 1
    front = Layer(torch.stack(uv), texture(1, frames), alpha, torch.ones(1, high, wide))
    own = torch.stack([(x + 0.5) / WIDTH * 2 - 1, (y + 0.5) / HEIGHT * 2 - 1], -1)
    back = torch.rand(3, HEIGHT, WIDTH, generator=torch.Generator().manual_seed(2))
    whole = torch.ones(frames, 1, HEIGHT, WIDTH)
    behind = Layer(own.expand(frames, -1, -1, -1), back, whole, torch.ones(1, HEIGHT, WIDTH))
    return Atlas((front, behind), ("foreground", "background"))


def pictures(atlas: Atlas, front: Tensor) -> Tensor:
    """The clip with that foreground texture -> IMAGE [F,H,W,3]."""
    frames = atlas.layers[1].texture.expand(atlas.frames, -1, -1, -1).clone()
    for frame in range(atlas.frames):
        top, left = place(frame)
        seen = view(front, frame)
        frames[frame, :, top : top + SIDE, left : left + SIDE] = seen
    return frames.movedim(1, -1)


def view(front: Tensor, frame: int) -> Tensor:
    """What a frame sees of a foreground texture [...,V,U] -> [...,SIDE,SIDE]."""
    start = BORDER + TURN * frame
    return front[..., BORDER : BORDER + SIDE, start : start + SIDE]
