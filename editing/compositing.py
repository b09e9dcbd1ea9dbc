"""The source's pixels outside a mask, brought back through a soft seam."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from kornia.filters import gaussian_blur2d
from torch import Tensor

NODE = "Restore Background"


def restore_background(edited: Tensor, source: Tensor, mask: Tensor, seam: int) -> Tensor:
    """The edited frames inside the mask, the source's own pixels outside of it.

    Args:
        edited: [F,H,W,3] in 0..1.
        source: [F,H,W,3] in 0..1, the frames that were encoded.
        mask: [F or 1,Hm,Wm] in 0..1, 1 = edited; scaled to the frames.
        seam: width of the soft seam in pixels, 0 = hard. It lies inside the mask: where the mask
            is 0 every pixel is exactly the source's.

    Returns: [F,H,W,3] on the CPU, where ComfyUI keeps pictures.
    Raises: ValueError when frames, sizes or the mask do not fit.
    """
    if edited.shape != source.shape:
        raise ValueError(
            f"{NODE}: the edited frames are {_size(edited)}, the source's {_size(source)}. "
            "Connect the frames that went into VAE Encode as 'source'."
        )
    if len(mask) not in (1, len(edited)):
        raise ValueError(
            f"{NODE}: expected a mask of 1 or {len(edited)} frames, got {len(mask)}. "
            "Cut the mask like the clip, or connect one mask for all frames."
        )
    edited, source, mask = edited.cpu(), source.cpu(), mask.cpu()  # --gpu-only mixes devices
    weight = F.interpolate(mask[:, None].float().clamp(0, 1), edited.shape[1:3], mode="bilinear")
    if seam > 0:
        kernel, sigma = 2 * seam + 1, seam / 2
        blurred = gaussian_blur2d(weight, (kernel, kernel), (sigma, sigma), "replicate")
        # 0.5 at the mask's edge becomes 0 there: the seam stays inside
        weight = torch.minimum(weight, (2 * blurred - 1).clamp(0, 1))
    return torch.lerp(source.float(), edited.float(), weight.movedim(1, -1))


def _size(frames: Tensor) -> str:
    return "x".join(str(part) for part in frames.shape[:3])
