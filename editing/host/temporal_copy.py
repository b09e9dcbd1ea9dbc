"""The private, frozen copy of a MODEL's UNet that a training runs."""

from __future__ import annotations

import copy
from collections.abc import Callable
from itertools import chain
from typing import Any

import comfy.ldm.modules.attention as comfy_attention
import comfy.model_management
import torch
from torch import Tensor, nn

from ..temporal_unet.network import checkpointed
from ..types import digest
from .content_keys import PROBED
from .model import unet_of, with_own_weights


def precision_of(patcher: Any) -> tuple[torch.dtype, torch.dtype | None]:
    """dtype of the frozen weights, and of the arithmetic (None = float32).

    Half precision only where CUDA has bfloat16: float16 would need its losses scaled.
    """
    device = patcher.load_device
    if device.type != "cuda" or not comfy.model_management.should_use_bf16(device):
        return torch.float32, None
    stored = next(unet_of(patcher).parameters()).dtype
    keep = stored in (torch.float16, torch.bfloat16)
    return stored if keep else torch.bfloat16, torch.bfloat16


def resident_bytes(patcher: Any, dtype: torch.dtype) -> float:
    """Bytes of image models on the device that trains: the copy, and the MODEL where it stays."""
    copied = sum(weight.numel() for weight in unet_of(patcher).parameters()) * dtype.itemsize
    stays = patcher.offload_device == patcher.load_device
    return float(copied + (patcher.model_size() if stays else 0))


def private_unet(patcher: Any, dtype: torch.dtype, node: str) -> nn.Module:
    """A frozen copy of the UNet with its LoRAs, on the device that trains.

    It waits in RAM until ComfyUI has taken the MODEL off the device: never two there.
    """
    source = with_own_weights(patcher, node)
    comfy.model_management.load_models_gpu([source], force_full_load=True)
    unet = copied_to_ram(unet_of(source))
    comfy.model_management.unload_all_models()
    return unet.requires_grad_(False).eval().to(patcher.load_device, dtype)


def copied_to_ram(module: nn.Module) -> Any:
    """A deep copy whose weights lie in RAM, wherever those of the module do."""
    known: dict[int, Any] = {}  # what deepcopy takes for copied already
    with torch.no_grad():
        for value in chain(module.parameters(), module.buffers()):
            own = value.detach().to("cpu", copy=True)
            known[id(value)] = nn.Parameter(own, False) if isinstance(value, nn.Parameter) else own
        return copy.deepcopy(module, known)


def weights_key(unet: nn.Module) -> str:
    """Content key of a UNet as it computes, LoRAs and merged LoRAs too: some of every weight.

    The fingerprint of a MODEL reads its ends only, so that it can be read anywhere.
    """
    parts: list[Tensor | str] = []
    for name, weight in unet.state_dict().items():
        flat = weight.flatten()
        parts += [f"{name}{tuple(weight.shape)}", flat[:: max(1, len(flat) // PROBED)].float()]
    return digest(*parts)


def checkpoint_blocks(unet: nn.Module) -> None:
    """Lets the private copy's blocks compute their activations again in the backward pass."""
    for module in unet.modules():
        if type(module).__name__ in ("ResBlock", "SpatialTransformer"):
            plain = module.forward
            module.forward = _again(plain)


def _again(plain: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def forward(*inputs: Any) -> Tensor:
        return checkpointed(plain, *inputs)

    return forward


def predictor(
    unet: nn.Module, told: dict[str, Tensor], device: torch.device
) -> Callable[[Tensor, int], Tensor]:
    """Calls the private UNet on all frames with the clip's own prompt."""

    def attention(_chosen: Callable, *args: Any, **options: Any) -> Tensor:
        # kernels for inference may have no gradient
        return comfy_attention.attention_pytorch(*args, **options)

    def predict(noisy: Tensor, timestep: int) -> Tensor:
        frames = len(noisy)
        rows = {n: value.to(noisy).expand(frames, *value.shape) for n, value in told.items()}
        steps = torch.full((frames,), float(timestep), device=device)
        options = {"optimized_attention_override": attention}
        return unet(noisy, steps, transformer_options=options, **rows)

    return predict
