"""Random networks of the sizes that are measured, a random clip on their schedule, one edit."""

from __future__ import annotations

from typing import Any

import comfy.model_base
import comfy.model_patcher
import comfy.samplers
import comfy.supported_models
import torch
from torch import Tensor

SHARED = {
    "image_size": 32, "in_channels": 4, "out_channels": 4, "transformer_depth_middle": 1,
    "context_dim": 768, "num_heads": 8, "use_spatial_transformer": True, "legacy": False,
    "use_linear_in_transformer": False, "adm_in_channels": None, "use_temporal_attention": False,
}  # fmt: skip
MIDDLE = SHARED | {
    "model_channels": 64, "channel_mult": [1, 2, 4, 4], "num_res_blocks": [2, 2, 2, 2],
    "transformer_depth": [1] * 6 + [0] * 2, "transformer_depth_output": [1] * 9 + [0] * 3,
}  # fmt: skip
"""The mid-size network: channels 64, 128, 256, 256; 37.5 M parameters."""
DEMO = SHARED | {
    "model_channels": 320, "channel_mult": [1, 1, 1], "num_res_blocks": [1, 1, 1],
    "transformer_depth": [1] * 3, "transformer_depth_output": [1] * 6,
}  # fmt: skip
"""The demo checkpoint's shape."""
SMALL = SHARED | {
    "model_channels": 32, "channel_mult": [1, 2], "num_res_blocks": [1, 1],
    "transformer_depth": [1, 1], "transformer_depth_output": [1] * 4, "context_dim": 64,
}  # fmt: skip
"""Small enough for 128 frames on two cores; its prompt is narrow, because the host copies the
prompt for every frame."""
STEPS = 20


def network(config: dict[str, Any]) -> Any:
    """A ModelPatcher around a random network of ComfyUI's UNetModel, float32, CPU."""
    settings = comfy.supported_models.SD15(dict(config, dtype=torch.float32))
    settings.unet_config.update(config, dtype=torch.float32)
    settings.manual_cast_dtype = None
    with torch.inference_mode(False), torch.no_grad():
        model = comfy.model_base.BaseModel(settings, comfy.model_base.ModelType.EPS)
        generator = torch.Generator().manual_seed(0)
        for weight in model.parameters():
            weight.copy_(torch.randn(weight.shape, generator=generator))
            weight.mul_(weight[0].numel() ** -0.5 if weight.ndim > 1 else 0.05)
            weight.add_(1.0 if weight.ndim == 1 else 0.0)
    cpu = torch.device("cpu")
    return comfy.model_patcher.ModelPatcher(model, cpu, cpu)


def prompt(seed: int, model: Any) -> list:
    """CONDITIONING with a random text embedding of 77 tokens."""
    width = model.model.model_config.unet_config["context_dim"]
    return [[torch.randn(1, 77, width, generator=torch.Generator().manual_seed(seed)), {}]]


def clip(model: Any, frames: int, size: int, steps: int = STEPS) -> Any:
    """An inversion payload of a random drifting clip, on the schedule of `steps` steps."""
    from reweave.editing.host.model import fingerprint
    from reweave.editing.types import Inversion

    sampling = model.get_model_object("model_sampling")
    sigmas = comfy.samplers.calculate_sigmas(sampling, "ddim_uniform", steps)[:-1].float()
    generator = torch.Generator().manual_seed(1)
    picture, noise = torch.randn(2, 1, 4, size, size, generator=generator)
    shifts = range(frames)
    clean = torch.cat([picture.roll(shift, -1) for shift in shifts])
    grain = torch.cat([noise.roll(shift, -1) for shift in shifts])
    clean = clean + 0.2 * torch.randn(clean.shape, generator=generator)
    scale = sigmas[:, None, None, None, None]
    return Inversion(
        latents=(clean + scale * grain) / (1 + scale**2).sqrt(),
        clean=clean,
        sigmas=sigmas,
        timesteps=sampling.timestep(sigmas).long(),
        context=prompt(3, model)[0][0],
        fingerprint=fingerprint(model),
    )


def edit_once(model: Any, inversion: Any, sigmas: Tensor) -> Tensor:
    """Euler steps along `sigmas` from the trajectory, guidance 7.5."""
    first = float(sigmas[0])
    start = inversion.sigma_space(inversion.locate(first), first) / 0.18215
    guider = comfy.samplers.CFGGuider(model)
    guider.set_conds(prompt(4, model), prompt(5, model))
    guider.set_cfg(7.5)
    sampler = comfy.samplers.sampler_object("euler")
    nothing = torch.zeros_like(start)
    return guider.sample(nothing, start, sampler, sigmas, disable_pbar=True, seed=0)
