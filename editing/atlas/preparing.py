"""What Fit Atlas is given, checked and made ready before anything runs for minutes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from ..checks import check_choice, check_range
from ..types import digest
from . import flow as flows
from .fitting import FitSettings
from .masks import spread_masks
from .objective import Problem

NODE = "Fit Atlas"
LAYERS = ("foreground and background", "background only")
SMALLEST = 16
"""Pixels along a side of a clip."""
MARGIN = 0.02
"""Part of the longer side around a mask that a clean background leaves out, too."""


@dataclass(frozen=True)
class FitRequest:
    """What Fit Atlas was asked for."""

    layers: str = LAYERS[0]
    mask_frames: str = ""
    """Frame numbers of the masks; empty: one mask per frame, or one of frame 0."""
    flow_method: str = flows.METHODS[0]
    settings: FitSettings = field(default_factory=FitSettings)


def check_request(image: Tensor, mask: Tensor | None, request: FitRequest) -> None:
    """Raises: ValueError for what cannot be fitted, before any work."""
    check_choice(NODE, "layers", request.layers, LAYERS)
    check_choice(NODE, "flow", request.flow_method, flows.METHODS)
    settings = request.settings
    check_range(NODE, "steps", settings.steps, 0)
    check_range(NODE, "texture_detail", settings.texture_detail, 0.25, 4)
    check_range(NODE, "stop_at_decibels", settings.stop_at, 0)
    if image.ndim != 4 or min(image.shape[1:3]) < SMALLEST or not len(image):
        came = "x".join(str(part) for part in image.shape)
        raise ValueError(
            f"{NODE}: expected frames of at least {SMALLEST}x{SMALLEST} pixels as one IMAGE batch, "
            f"got {came}. Connect the frames of a clip."
        )
    if not bool(torch.isfinite(image).all()):
        raise ValueError(f"{NODE}: the frames hold NaN or infinity. Check the node that made them.")
    if mask is not None:
        check_mask(image, mask, request)


def check_mask(image: Tensor, mask: Tensor, request: FitRequest) -> None:
    """Raises: ValueError for masks that cannot be those of the clip."""
    if mask.ndim not in (2, 3):
        raise ValueError(
            f"{NODE}: expected a MASK [frames,H,W], got {mask.ndim} dimensions. "
            "Convert the picture with Convert Image to Mask."
        )
    height, width = image.shape[1:3]
    ratio = mask.shape[-2] * width / (mask.shape[-1] * height)
    if not 0.97 < ratio < 1.03:
        raise ValueError(
            f"{NODE}: the mask is {mask.shape[-1]}x{mask.shape[-2]}, the clip {width}x{height}: "
            "another shape of picture. Cut and scale the mask like the clip."
        )
    if not bool(torch.isfinite(mask).all()):
        raise ValueError(f"{NODE}: the mask holds NaN or infinity. Check the node that made it.")
    mask_numbers(request.mask_frames, 1 if mask.ndim == 2 else len(mask), len(image))
    if not bool((mask > 0.5).any()):
        raise ValueError(
            f"{NODE}: the mask is empty (black everywhere), so there is no foreground. Paint the "
            "object in white, or disconnect 'mask' for one layer of the whole picture."
        )
    if not bool((mask < 0.05).any()):
        raise ValueError(
            f"{NODE}: the mask is white everywhere, so there is no background. Paint only the "
            "object in white, or disconnect 'mask' for one layer of the whole picture."
        )


def mask_numbers(text: str, masks: int, frames: int) -> list[int]:
    """The frames that the masks belong to.

    Raises: ValueError when number and frames of the masks do not fit.
    """
    words = text.replace(",", " ").replace(";", " ").split()
    if not words and masks in (1, frames):
        return list(range(masks))
    numbers = [int(word) for word in words if word.isdecimal()]
    fits = len(numbers) == len(words) == masks and numbers == sorted(set(numbers))
    if not fits or max(numbers, default=frames) >= frames:
        raise ValueError(
            f"{NODE}: got {masks} masks for {frames} frames and 'mask_frames' {text!r}. Connect "
            "one mask per frame, or write the frame number of each mask in ascending order, "
            f"counted from 0 and below {frames}, for example 0, {frames // 2}."
        )
    return numbers


def prepare(
    image: Tensor,
    mask: Tensor | None,
    request: FitRequest,
    given_flow: Tensor | None = None,
    device: torch.device | None = None,
    tell: Callable[[int, int], None] = lambda done, all: None,
) -> Problem:
    """The problem to be solved.

    Args:
        image: [F,H,W,3]. mask: [K,Hm,Wm] or None for one layer of everything.
        given_flow: [F-1,H,W,2] or [F-1,2,H,W] pixels to the next frame; None: estimated.
        device: where the fit runs; None: the CPU.
        tell: called with (pairs of frames done, all pairs) while the flow is estimated.

    Raises: ValueError for what cannot be fitted.
    """
    check_request(image, mask, request)
    clip = image[..., :3].movedim(-1, 1).to(device or "cpu", torch.float32).contiguous()
    if given_flow is None:
        flow = flows.estimate(clip, request.flow_method, tell)
    else:
        flow = _flow_from_elsewhere(given_flow, clip)
    if mask is None:
        return Problem(clip, [], flow)
    masks = F.interpolate(
        (mask[None] if mask.ndim == 2 else mask)[:, None].to(clip).clamp(0, 1),
        clip.shape[2:],
        mode="bilinear",
    )
    numbers = mask_numbers(request.mask_frames, len(masks), len(clip))
    if len(masks) < len(clip):
        masks = spread_masks(masks, numbers, clip, flow)
    if request.layers == LAYERS[0]:
        return Problem(clip, [masks], flow)
    reach = max(1, round(MARGIN * max(clip.shape[2:])))
    around = F.max_pool2d(masks, 2 * reach + 1, 1, reach)
    return Problem(clip, [], flow, considered=(around < 0.05).float())


def _flow_from_elsewhere(given: Tensor, clip: Tensor) -> flows.Flow:
    try:
        if given.ndim == 4 and given.shape[-1] == 2:
            given = given.movedim(-1, 1)
        return flows.given(given, clip)
    except (ValueError, AttributeError) as error:
        raise ValueError(
            f"{NODE}: 'flow_field' cannot be used: {error} Connect the flow of exactly these "
            "frames, or disconnect it."
        ) from error


def fit_key(
    image: Tensor, mask: Tensor | None, request: FitRequest, given_flow: Tensor | None
) -> str:
    """Content key of a fit: equal inputs, equal atlas."""
    parts: list[Tensor | str] = [image.float(), repr(request)]
    parts += [part.float() for part in (mask, given_flow) if isinstance(part, Tensor)]
    return digest(*parts, f"{mask is None}{given_flow is None}")


def planned_bytes(image: Tensor, request: FitRequest, layers: int) -> float:
    """Memory that a fit takes at its peak, roughly: the frames, their flow, and per layer the
    fields of the result."""
    pixels = image.shape[0] * image.shape[1] * image.shape[2]
    shared = 3 + 2 * 2 + 2 * 0.25
    return 4.0 * pixels * (shared + layers * (2 + 1 + 0.5) + (layers - 1) * 6)
