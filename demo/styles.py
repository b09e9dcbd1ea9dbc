"""Whole-picture styles as deterministic pixel transforms: easy to learn for a small network, easy
to see for a person."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

LUMA = (0.299, 0.587, 0.114)


def luma(image: Tensor) -> Tensor:
    """Brightness [N, 1, H, W] of image [N, 3, H, W]."""
    return (image * image.new_tensor(LUMA).view(1, 3, 1, 1)).sum(1, keepdim=True)


def edges(image: Tensor) -> Tensor:
    """Edge strength [N, 1, H, W], about 0..1, of image [N, 3, H, W]: the largest colour step to
    the neighbours."""
    padded = F.pad(image, (1, 1, 1, 1), mode="replicate")
    dx = (padded[:, :, 1:-1, 2:] - padded[:, :, 1:-1, :-2]).abs()
    dy = (padded[:, :, 2:, 1:-1] - padded[:, :, :-2, 1:-1]).abs()
    return torch.maximum(dx, dy).amax(1, keepdim=True)


def smooth(image: Tensor, radius: int) -> Tensor:
    """A box blur of (2 radius + 1) pixels, edges replicated."""
    return F.avg_pool2d(F.pad(image, (radius,) * 4, mode="replicate"), 2 * radius + 1, stride=1)


def _tint(grey: Tensor, dark: tuple[float, ...], light: tuple[float, ...]) -> Tensor:
    low, high = (grey.new_tensor(colour).view(1, 3, 1, 1) for colour in (dark, light))
    return torch.lerp(low, high, grey)


def pencil_sketch(image: Tensor) -> Tensor:
    """Grey lines and a light wash on warm paper."""
    ink = (edges(image) * 1.6).clamp(0, 0.85)
    return _tint(
        ((0.72 + 0.28 * luma(image)) * (1 - ink)).clamp(0, 1), (0.1, 0.1, 0.12), (0.98, 0.97, 0.93)
    )


def sepia_photo(image: Tensor) -> Tensor:
    """Brown tones from brightness alone."""
    return _tint(luma(image), (0.16, 0.08, 0.03), (0.98, 0.88, 0.68))


def neon_night(image: Tensor) -> Tensor:
    """A dark blue night with glowing, saturated outlines."""
    grey = luma(image)
    glow = (edges(image) * 1.5).clamp(0, 1)
    vivid = (grey + (image - grey) * 1.8).clamp(0, 1)
    night = vivid * 0.35 + image.new_tensor((0.03, 0.02, 0.14)).view(1, 3, 1, 1)
    return torch.lerp(
        night, _tint(vivid.amax(1, keepdim=True), (0.1, 0.9, 1.0), (1.0, 0.25, 0.85)), glow
    )


def watercolor(image: Tensor) -> Tensor:
    """Soft, light washes with a darker rim."""
    soft = smooth(image, max(1, image.shape[-2] // 64))
    grey = luma(soft)
    wash = 0.34 + 0.66 * (grey + (soft - grey) * 1.35)
    return (wash - 0.3 * edges(soft)).clamp(0, 1)


def autumn(image: Tensor) -> Tensor:
    """Greens turn orange and red, the light becomes warm."""
    red, green, blue = image.unbind(1)
    return torch.stack(
        [0.25 * red + 0.95 * green, 0.35 * red + 0.4 * green, 0.6 * blue + 0.05], 1
    ).clamp(0, 1)


def ice(image: Tensor) -> Tensor:
    """Everything frozen: pale blue to white."""
    grey = luma(image)
    return (
        _tint((grey * 1.25).clamp(0, 1), (0.05, 0.2, 0.45), (0.93, 0.98, 1.0)) * 0.85 + image * 0.15
    ).clamp(0, 1)


STYLES: dict[str, Callable[[Tensor], Tensor]] = {
    "none": lambda image: image,
    "pencil sketch": pencil_sketch,
    "sepia photo": sepia_photo,
    "neon night": neon_night,
    "watercolor": watercolor,
    "autumn": autumn,
    "ice": ice,
}


def apply_style(image: Tensor, style: str) -> Tensor:
    """image [N, 3, H, W] in 0..1 in the named style; ValueError names the styles there are."""
    if style not in STYLES:
        raise ValueError(f"unknown style {style!r}: expected one of {', '.join(STYLES)}")
    return STYLES[style](image)
