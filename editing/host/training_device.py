"""The device on which textures are trained."""

from __future__ import annotations

import comfy.model_management
import torch
import torch.nn.functional as F

from .notices import say


def training_device() -> torch.device:
    """ComfyUI's device; the CPU where that one cannot look pictures up and learn from it.

    Apple's GPUs have no backward pass of `grid_sample`, and older PyTorch no border padding there.
    """
    device = comfy.model_management.get_torch_device()
    reason = "" if device.type in ("cpu", "cuda") else why_not(device)
    if not reason:
        return device
    say(f"textures cannot be trained on {device.type} ({reason}): the CPU is used")
    return torch.device("cpu")


def why_not(device: torch.device) -> str:
    """What PyTorch says when a lookup and its gradient are tried on two texels; "" if they work."""
    with torch.inference_mode(False), torch.enable_grad():
        try:
            texels = torch.zeros(1, 1, 2, 2, device=device, requires_grad=True)
            grid = torch.zeros(1, 1, 1, 2, device=device)
            found = F.grid_sample(texels, grid, padding_mode="border", align_corners=False)
            found.sum().backward()
        except RuntimeError as error:  # NotImplementedError is one
            return str(error).splitlines()[0] if str(error) else type(error).__name__
    return ""
