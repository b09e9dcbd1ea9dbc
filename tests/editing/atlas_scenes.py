"""Small clips and atlases for the tests of layered atlases."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from reweave.demo.motion import Clip, random_clip
from reweave.editing.atlas.types import Atlas, Layer
from safetensors.torch import load_file
from torch import Tensor

GOLDEN = Path(__file__).resolve().parents[1] / "goldens" / "sv_atlas.safetensors"
PUBLISHED = {"resx": 64, "resy": 36, "maximum_number_of_frames": 6}


def textured_scene(frames: int = 6, size: int | tuple[int, int] = 64) -> Clip:
    """A spotted ring that turns and moves over a panning checkerboard."""
    return random_clip(frames, size, seed=8)


def identity_uv(height: int, width: int, frames: int = 1) -> Tensor:
    """[F,H,W,2] that puts each pixel on its own texel of a texture of the same size."""
    y, x = ((torch.arange(n) + 0.5) / n * 2 - 1 for n in (height, width))
    down, across = torch.meshgrid(y, x, indexing="ij")
    return torch.stack([across, down], -1).expand(frames, -1, -1, -1).clone()


def small_atlas(frames: int = 3, height: int = 12, width: int = 20) -> Atlas:
    """Two layers of random colours; the foreground fills the left half, softly."""
    generator = torch.Generator().manual_seed(3)
    uv = identity_uv(height, width, frames)
    shift = torch.arange(frames).view(-1, 1, 1, 1) * 0.05
    ramp = ((0.2 - uv[..., 0]) * 4 + 0.5).clamp(0, 1)[:, None]
    layers = []
    for offset, alpha in ((shift, ramp), (-shift, torch.ones_like(ramp))):
        texture = torch.rand(3, 16, 24, generator=generator) * 0.9
        layers.append(Layer(uv * 0.8 + offset, texture, alpha, torch.ones(1, 16, 24)))
    return Atlas(tuple(layers), ("foreground", "background"))


def checkpoint() -> dict[str, dict[str, Tensor]]:
    """The networks of the recorded atlas, as a published checkpoint holds them."""
    state: dict[str, dict[str, Tensor]] = {}
    for name, value in load_file(GOLDEN).items():
        if name.startswith("ckpt."):
            net, _, rest = name.removeprefix("ckpt.").partition(".")
            state.setdefault(net, {})[rest] = value
    return state


def write_published(folder: Path, **config: int) -> Path:
    """A published folder: config.json and checkpoint."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(PUBLISHED | config), encoding="utf-8")
    state = checkpoint() | {"optimizer_all_state_dict": {}, "iteration": 400000}
    torch.save(state, folder / "checkpoint")
    return folder
