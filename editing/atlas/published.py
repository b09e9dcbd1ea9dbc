"""Atlases that were trained with the published Neural Layered Atlases, Text2LIVE or StableVideo
code: a folder with config.json and a checkpoint of four networks."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..storage import require_safe_pickles
from .mapping import map_to_atlas
from .networks import CoordinateNet
from .types import Atlas, Layer

NETWORKS = {
    "model_F_mapping1_state_dict": (3, 2),
    "model_F_mapping2_state_dict": (3, 2),
    "F_atlas_state_dict": (2, 3),
    "model_F_alpha_state_dict": (3, 1),
}
"""Name in the checkpoint: dimensions in and out."""
RESOLUTION = 2000
"""Texels per unit of a network's uv (StableVideo's grid_atlas_resolution)."""
MOST_TEXELS = 4096
CELL = 4
"""Texels along a side of the squares in which coverage is counted."""


@dataclass(frozen=True)
class PublishedClip:
    """What config.json says of the clip."""

    width: int
    height: int
    frames: int


@dataclass(frozen=True)
class PublishedNets:
    """The four networks."""

    foreground: CoordinateNet
    background: CoordinateNet
    atlas: CoordinateNet
    alpha: CoordinateNet


def load_published(
    folder: Path,
    frames: int = 0,
    resolution: int = RESOLUTION,
    device: torch.device | None = None,
    tell: Callable[[int, int], None] = lambda done, all: None,
) -> Atlas:
    """The atlas of a published folder, as fields.

    Args:
        folder: holds config.json and `checkpoint`.
        frames: of the clip that the networks were trained on; 0: as config.json has it.
        resolution: texels per unit of uv.
        device: where the networks run; None: the CPU.
        tell: called with (frames done, all frames).

    Raises: ValueError when a file is missing, corrupt, foreign or holds program code.
    """
    clip = read_config(folder, frames)
    nets = read_checkpoint(folder / "checkpoint")
    if device is not None:
        nets = PublishedNets(*(net.to(device) for net in vars(nets).values()))
    return evaluate(nets, clip, resolution, tell=tell)


def read_config(folder: Path, frames: int = 0) -> PublishedClip:
    """The clip's size and length. Raises: ValueError for a missing or unusable config.json."""
    path = folder / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(
            f"expected config.json in {folder.name}, found none. Copy the whole published folder "
            "(config.json and checkpoint)."
        ) from error
    except ValueError as error:
        raise ValueError(
            f"{folder.name}/config.json is no JSON ({error}). Copy it again."
        ) from error
    try:
        count = frames or config.get("number_of_frames") or config["maximum_number_of_frames"]
        found = PublishedClip(int(config["resx"]), int(config["resy"]), int(count))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(
            f"{folder.name}/config.json lacks resx, resy or the number of frames ({error}). It "
            "must be the configuration that the atlas was trained with."
        ) from error
    if min(found.width, found.height, found.frames) < 1:
        raise ValueError(f"{folder.name}/config.json: sizes must be at least 1, got {found}.")
    return found


def read_checkpoint(path: Path) -> PublishedNets:
    """The networks. Nothing but tensors is read: a file that holds program code is refused.

    Raises: ValueError when the file is missing, corrupt, foreign or holds code.
    """
    if not path.is_file():
        raise ValueError(
            f"expected a file '{path.name}' in {path.parent.name}, found none. Copy the whole "
            "published folder (config.json and checkpoint)."
        )
    require_safe_pickles(f"{path.parent.name}/{path.name}")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        # an archive or a pickle that wants more than tensors; anything else is rubbish
        unsafe = "global" in str(error).lower() and _begins(path) in (b"P", b"\x80")
        problem = (
            "holds more than numbers (program code could run while it is read), so it was not "
            "opened. Use a checkpoint that you trust as the published code saves it"
            if unsafe
            else "cannot be read; it may be cut short. Copy it again"
        )
        raise ValueError(f"{path.parent.name}/{path.name} {problem}.") from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, IndexError, TypeError) as error:
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(
            f"{path.parent.name}/{path.name} cannot be read ({first}); it may be cut short or no "
            "checkpoint at all. Copy it again."
        ) from error
    return _networks(state, path)


def _begins(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(1)


def _networks(state: Any, path: Path) -> PublishedNets:
    where = f"{path.parent.name}/{path.name}"
    missing = [name for name in NETWORKS if not isinstance(state, dict) or name not in state]
    if missing:
        raise ValueError(
            f"{where} is no atlas checkpoint: it lacks {', '.join(missing)}. Choose the folder of "
            "an atlas trained with Neural Layered Atlases, Text2LIVE or StableVideo."
        )
    found = []
    for name, (inward, outward) in NETWORKS.items():
        try:
            net = CoordinateNet({k: v.float() for k, v in state[name].items()}, inward)
        except (ValueError, AttributeError) as error:
            raise ValueError(f"{where}: {name} is not such a network: {error}.") from error
        if net.outputs != outward:
            raise ValueError(f"{where}: {name} gives {net.outputs} numbers, {outward} expected.")
        found.append(net)
    return PublishedNets(found[0], found[1], found[2], found[3])


@dataclass(frozen=True)
class Grid:
    """A layer's part of the square that the atlas network fills, in texels."""

    low: tuple[int, int]
    """(x, y) of the first texel."""
    size: tuple[int, int]
    """(U, V)."""
    uv: Tensor
    """[F,H,W,2] texels from `low`."""

    @property
    def scaled(self) -> Tensor:
        """[F,H,W,2] in -1..1 at the outer edges."""
        return 2 * self.uv / self.uv.new_tensor(self.size) - 1


def place(raw: Tensor, shift: float, resolution: int) -> Grid:
    """Where a layer's uv in 0..1 or -1..0 lie; the box is as published."""
    texels = (raw + shift) * resolution
    low = texels.flatten(0, 2).amin(0).int().tolist()
    uv = texels - texels.new_tensor(low)
    wide, high = uv.flatten(0, 2).amax(0).ceil().int().tolist()
    return Grid((low[0], low[1]), (wide, high), uv)


def evaluate(
    nets: PublishedNets,
    clip: PublishedClip,
    resolution: int = RESOLUTION,
    published_shift: bool = False,
    tell: Callable[[int, int], None] = lambda done, all: None,
) -> Atlas:
    """The fields that the networks stand for (StableVideo's AtlasData).

    Args:
        published_shift: parity with the published code, whose textures lie half a texel beside
            where they are read.
    """
    front, back, alpha = [], [], []
    for frame in range(clip.frames):
        points = coordinates(clip, frame)
        front.append(nets.foreground.in_parts(points) * 0.5 + 0.5)
        back.append(nets.background.in_parts(points) * 0.5 - 0.5)
        alpha.append(0.99 * (0.5 * (nets.alpha.in_parts(points) + 1)) + 0.001)
        tell(frame + 1, clip.frames)
    shape = (clip.frames, clip.height, clip.width)
    opacity = torch.stack(alpha).view(clip.frames, 1, *shape[1:])
    layers = []
    for raw, shift, share in ((front, 0.0, opacity), (back, 1.0, 1 - opacity)):
        grid = place(torch.stack(raw).view(*shape, 2), shift, resolution)
        if max(grid.size) > MOST_TEXELS:
            raise ValueError(
                f"a texture would have {grid.size[0]}x{grid.size[1]} texels. Lower 'resolution'."
            )
        texture = _texture(nets.atlas, grid, shift, resolution, 0.0 if published_shift else 0.5)
        size = (texture.shape[1], texture.shape[2])
        # only where it is asked for: the networks have a colour everywhere
        coarse = (-(-size[0] // CELL), -(-size[1] // CELL))
        _, coverage = map_to_atlas(share, grid.scaled, coarse, share)
        coverage = F.interpolate(coverage[None], size, mode="bilinear")[0]
        last = shift == 1.0
        shown = torch.ones_like(opacity) if last else opacity
        layers.append(Layer(grid.scaled, texture, shown, coverage))
    return Atlas(tuple(layers), ("foreground", "background"))


def coordinates(clip: PublishedClip, frame: int) -> Tensor:
    """[H*W,3] (x, y, t) of a frame as the networks know them: whole pixels, one scale for x and
    y."""
    y, x = torch.meshgrid(torch.arange(clip.height), torch.arange(clip.width), indexing="ij")
    half = max(clip.width, clip.height) / 2
    t = torch.full_like(x, frame) / (clip.frames / 2) - 1
    return torch.stack([x / half - 1, y / half - 1, t], -1).flatten(0, 1).float()


def _texture(
    net: CoordinateNet, grid: Grid, shift: float, resolution: int, middle: float
) -> Tensor:
    """[3,V,U] colours of the atlas network."""
    (left, top), (wide, high) = grid.low, grid.size
    x = (torch.arange(left, left + wide) + middle) / resolution - shift
    y = (torch.arange(top, top + high) + middle) / resolution - shift
    down, across = torch.meshgrid(y, x, indexing="ij")
    colours = net.in_parts(torch.stack([across, down], -1).flatten(0, 1))
    return ((colours + 1) / 2).T.reshape(3, high, wide)
