"""The demo checkpoint's networks, built from the host's own classes so that training and ComfyUI
run the same code."""

from __future__ import annotations

import importlib
import math
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

ROOT = Path(__file__).resolve().parents[1]
HOST = ROOT / ".host" / "ComfyUI"
UNET_CONFIG: dict[str, Any] = {
    "image_size": 32,
    "in_channels": 4,
    "out_channels": 4,
    "model_channels": 320,
    "num_res_blocks": [1, 1, 1],
    "channel_mult": (1, 1, 1),
    "num_heads": 8,
    "use_spatial_transformer": True,
    "transformer_depth": [1, 1, 1],
    "transformer_depth_output": [1, 1, 1, 1, 1, 1],
    "transformer_depth_middle": 1,
    "context_dim": 768,
    "use_checkpoint": False,
    "legacy": False,
}


def host_module(name: str, comfyui: Path = HOST) -> ModuleType:
    """A module of the host, for example 'comfy.taesd.taesd'; ValueError when the host is not
    there."""
    if not (comfyui / "comfy").is_dir():
        raise ValueError(
            f"no ComfyUI at {comfyui}: run 'python dev.py setup' or pass --comfyui DIR"
        )
    if str(comfyui) not in sys.path:
        sys.path.insert(0, str(comfyui))
    if not torch.cuda.is_available() and not torch.backends.mps.is_available():
        importlib.import_module("comfy.cli_args").args.cpu = True
    return importlib.import_module(name)


def build_vae(comfyui: Path = HOST) -> nn.Module:
    """A TAESD autoencoder with our initial weights: pictures 0..1 <-> 4 latent channels at 1/8
    size."""
    taesd = host_module("comfy.taesd.taesd", comfyui)
    net = taesd.TAESD()
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    for module in net.modules():
        if isinstance(module, taesd.Block):
            module.conv[
                4
            ].weight.data *= 0.1  # near-identity blocks: a deep net without norms starts stable
    net.taesd_decoder[-1].weight.data *= 0.1
    net.taesd_decoder[-1].bias.data.fill_(0.5)
    net.vae_scale.requires_grad_(False)
    net.vae_shift.requires_grad_(False)
    return net.to(memory_format=torch.channels_last)


def build_unet(comfyui: Path = HOST, **changes: Any) -> nn.Module:
    """The demo's UNet with initial weights: every residual branch and the output start at zero."""
    module = host_module("comfy.ldm.modules.diffusionmodules.openaimodel", comfyui)
    ops = host_module("comfy.ops", comfyui).disable_weight_init
    net = module.UNetModel(
        **{**UNET_CONFIG, **changes}, dtype=torch.float32, device="cpu", operations=ops
    )
    for name, weight in net.named_parameters():
        if weight.dim() == 4:
            nn.init.kaiming_uniform_(weight, a=math.sqrt(5))
        elif weight.dim() == 2:
            nn.init.xavier_uniform_(weight)
        else:
            nn.init.constant_(weight, float(name.endswith("weight")))
        if "out_layers.3" in name or name.startswith("out.2") or "proj_out" in name:
            nn.init.zeros_(weight)
    return net.to(memory_format=torch.channels_last)


def alphas_cumprod() -> Tensor:
    """Stable Diffusion's 1000 alpha-bar values, float32 [1000]."""
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    return torch.cumprod(1 - betas, 0).float()
