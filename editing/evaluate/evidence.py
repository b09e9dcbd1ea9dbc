"""What an artist connected, checked before anything is measured."""

from __future__ import annotations

import torch
from torch import Tensor

from .types import Evidence

NODE = "Consistency Report"


def gather(
    source: Tensor,
    edited: Tensor,
    mask: Tensor | None = None,
    flow: Tensor | None = None,
    uv: Tensor | None = None,
) -> Evidence:
    """Both clips and their ground truth, from ComfyUI's sockets.

    Args:
        source, edited: IMAGE [F,H,W,3].
        mask: MASK [F or 1,h,w], white = object.
        flow: IMAGE [F-1 or F,H,W,3], red = pixels to the right, green = pixels down.
        uv: IMAGE [F,H,W,3], red and green = place on the surface in 0..1, blue = 1 where it shows.

    Raises: ValueError when they do not belong together, naming the input and the knob.
    """
    _check_clips(source, edited)
    usable = None if mask is None else _mask(mask, len(source))
    surface = None if uv is None else _uv(uv, source)
    return Evidence(
        source=source,
        edited=edited,
        mask=usable,
        flow=None if flow is None else _flow(flow, source),
        uv=None if surface is None else surface[0],
        on_surface=None if surface is None else surface[1],
    )


def _check_clips(source: Tensor, edited: Tensor) -> None:
    if len(source) != len(edited):
        raise ValueError(
            f"{NODE}: 'source' has {len(source)} frames, 'edited' {len(edited)}. Connect the "
            "frames that were edited, cut both alike."
        )
    if source.shape[1:3] != edited.shape[1:3]:
        raise ValueError(
            f"{NODE}: 'source' is {_size(source)}, 'edited' {_size(edited)}. Connect the frames "
            "that went into VAE Encode as 'source', or resize both alike."
        )
    for name, clip in (("source", source), ("edited", edited)):
        if not bool(torch.isfinite(clip).all()):
            raise ValueError(
                f"{NODE}: '{name}' holds NaN or infinity, so nothing can be measured. Check the "
                "node that made it (a VAE in half precision does this: use fp32 or bf16)."
            )


def _mask(mask: Tensor, frames: int) -> Tensor:
    mask = mask[None] if mask.ndim == 2 else mask
    if len(mask) not in (1, frames):
        raise ValueError(
            f"{NODE}: expected a mask of 1 or {frames} frames, got {len(mask)}. Cut the mask like "
            "the clip, or connect one mask for all frames."
        )
    if not bool(torch.isfinite(mask).all()):
        raise ValueError(f"{NODE}: the mask holds NaN or infinity. Check the node that made it.")
    return mask.float().clamp(0, 1)


def _flow(flow: Tensor, source: Tensor) -> Tensor:
    """[F-1,H,W,2]."""
    if len(flow) not in (len(source) - 1, len(source)) or flow.shape[1:3] != source.shape[1:3]:
        raise ValueError(
            f"{NODE}: expected 'flow' to hold {len(source) - 1} pictures of {_size(source)} (one "
            f"from each frame to the next), got {len(flow)} of {_size(flow)}. Cut and render it "
            "like 'source', or disconnect it: the motion is then estimated."
        )
    motion = flow[: len(source) - 1, ..., :2].float()
    if not bool(torch.isfinite(motion).all()):
        raise ValueError(
            f"{NODE}: 'flow' holds NaN or infinity. Fill the empty places of the pass with 0."
        )
    return motion


def _uv(uv: Tensor, source: Tensor) -> tuple[Tensor, Tensor]:
    """uv [F,H,W,2] in -1..1 and where it is valid [F,H,W]."""
    if len(uv) != len(source) or uv.shape[1:3] != source.shape[1:3]:
        raise ValueError(
            f"{NODE}: expected 'uv' to hold {len(source)} pictures of {_size(source)}, got "
            f"{len(uv)} of {_size(uv)}. Cut and render it like 'source', or disconnect it."
        )
    valid = uv[..., 2] > 0.5
    if not bool(valid.any()):
        raise ValueError(
            f"{NODE}: the blue channel of 'uv' is 0 everywhere: it says where the surface is seen. "
            "Set blue to 1 on the object, or disconnect 'uv'."
        )
    places = uv[..., :2].float()
    if not bool(torch.isfinite(places[valid]).all()) or bool(_outside(places[valid])):
        raise ValueError(
            f"{NODE}: expected red and green of 'uv' between 0 and 1 (a place on the surface), got "
            f"{float(places[valid].min()):g} to {float(places[valid].max()):g}. Load the pass "
            "without colour management, or disconnect it."
        )
    return torch.where(valid[..., None], places, 0.5) * 2 - 1, valid.float()


def _outside(places: Tensor) -> bool:
    return bool(((places < 0) | (places > 1)).any())


def _size(clip: Tensor) -> str:
    return f"{clip.shape[2]}x{clip.shape[1]}"
