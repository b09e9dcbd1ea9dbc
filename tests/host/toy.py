"""Small networks of ComfyUI's own classes: random weights, or the recorded reference's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import comfy.model_base
import comfy.model_patcher
import comfy.samplers
import comfy.supported_models
import torch
from safetensors.torch import load_file
from torch import Tensor

GOLDENS = Path(__file__).resolve().parents[1] / "goldens"

SD15 = {
    "image_size": 32, "in_channels": 4, "out_channels": 4, "model_channels": 32,
    "num_res_blocks": [2, 2, 2, 2], "channel_mult": [1, 2, 2, 2],
    "transformer_depth": [1, 1, 1, 1, 1, 1, 0, 0],
    "transformer_depth_output": [1] * 9 + [0] * 3, "transformer_depth_middle": 1,
    "context_dim": 32, "num_heads": 4, "use_spatial_transformer": True, "legacy": False,
    "use_linear_in_transformer": False, "adm_in_channels": None, "use_temporal_attention": False,
}  # fmt: skip

SDXL = SD15 | {
    "channel_mult": [1, 2, 2], "num_res_blocks": [2, 2, 2],
    "transformer_depth": [0, 0, 2, 2, 3, 3],
    "transformer_depth_output": [3, 3, 3, 2, 2, 2, 0, 0, 0],
    "transformer_depth_middle": 3, "use_linear_in_transformer": True,
    "num_classes": "sequential", "adm_in_channels": 2816, "num_heads": -1, "num_head_channels": 16,
}  # fmt: skip


def patcher(
    unet: dict[str, Any] | None = None,
    kind: comfy.model_base.ModelType = comfy.model_base.ModelType.EPS,
    seed: int = 0,
) -> comfy.model_patcher.ModelPatcher:
    """A ModelPatcher around a random network of SD1.5's (or SDXL's) layout."""
    config = dict(unet or SD15, dtype=torch.float32)
    xl = config["adm_in_channels"] is not None
    family = comfy.supported_models.SDXL if xl else comfy.supported_models.SD15
    settings = family(config)
    settings.unet_config.update(config)
    settings.manual_cast_dtype = None
    base = comfy.model_base.SDXL if xl else comfy.model_base.BaseModel
    with torch.inference_mode(False):
        model = base(settings, kind)
        generator = torch.Generator().manual_seed(seed)
        for weight in model.parameters():
            noise = torch.randn(weight.shape, generator=generator)
            scale = max(weight[:1].numel(), 1) ** -0.5 if weight.ndim > 1 else 0.05
            weight.data.copy_(noise * scale + (1.0 if weight.ndim == 1 else 0.0))
    cpu = torch.device("cpu")
    return comfy.model_patcher.ModelPatcher(model, cpu, cpu)


def reference_patcher(run: str = "tf") -> comfy.model_patcher.ModelPatcher:
    """The recorded network of TokenFlow ("tf") or Pix2Video ("p2v"), in ComfyUI's UNetModel."""
    config = json.loads((GOLDENS / f"{run}_unet_kwargs.json").read_text())
    result = patcher(SD15 | config)
    weights = load_file(GOLDENS / f"{run}_unet_ldm_weights.safetensors")
    unet = result.model.diffusion_model
    unet.load_state_dict({name: value.float() for name, value in weights.items()}, strict=True)
    return result


def conditioning(seed: int = 1, tokens: int = 7, width: int = 32) -> list:
    """CONDITIONING with a random text embedding."""
    generator = torch.Generator().manual_seed(seed)
    return [[torch.randn(1, tokens, width, generator=generator), {}]]


def sample(
    model: Any,
    latent: Tensor,
    sigmas: Tensor,
    positive: list,
    negative: list | None = None,
    cfg: float = 7.5,
    sampler: str = "euler",
    noise: Tensor | None = None,
    **options: Any,
) -> Tensor:
    """What SamplerCustom does with add_noise off."""
    guider = comfy.samplers.CFGGuider(model)
    guider.set_conds(positive, negative if negative is not None else conditioning(2))
    guider.set_cfg(cfg)
    noise = torch.zeros_like(latent) if noise is None else noise
    return guider.sample(
        noise, latent, comfy.samplers.sampler_object(sampler), sigmas, disable_pbar=True,
        seed=0, **options,
    )  # fmt: skip
