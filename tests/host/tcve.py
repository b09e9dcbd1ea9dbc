"""The recorded TCVE network: ComfyUI's UNet with its image weights, and our temporal network."""

from __future__ import annotations

from typing import Any

import comfy.ldm.modules.diffusionmodules.openaimodel as openaimodel
import comfy.ops
import comfy.utils
import torch
from reweave.editing import host
from reweave.editing.temporal_unet.features import Features
from reweave.editing.temporal_unet.joining import Joint, joined
from reweave.editing.temporal_unet.network import TemporalNetwork
from reweave.editing.temporal_unet.payload import TemporalUNet, shapes
from reweave.editing.temporal_unet.plan import Architecture, read_plan
from reweave.editing.temporal_unet.published_names import from_published
from safetensors.torch import load_file
from torch import Tensor
from toy import GOLDENS, SD15

PUBLISHED = Architecture("published", "published code")
TINY: dict[str, Any] = SD15 | {
    "model_channels": 16, "channel_mult": [1, 1, 2, 2], "context_dim": 24, "num_heads": 8,
}  # fmt: skip


class EightGroups(comfy.ops.disable_weight_init):
    """ComfyUI always takes 32 groups; the recorded network has 16 channels and 8 groups."""

    class GroupNorm(comfy.ops.disable_weight_init.GroupNorm):
        def __init__(self, num_groups: int, num_channels: int, *args: Any, **kwargs: Any) -> None:
            del num_groups
            super().__init__(8, num_channels, *args, **kwargs)


def goldens(name: str) -> dict[str, Tensor]:
    return load_file(GOLDENS / f"{name}.safetensors")


def published_weights() -> dict[str, Tensor]:
    found = goldens("tcve_unet_tiny")
    return {name[2:]: value for name, value in found.items() if name.startswith("w.")}


def image_unet(weights: dict[str, Tensor]) -> torch.nn.Module:
    """ComfyUI's UNet with the recorded network's image weights."""
    unet = openaimodel.UNetModel(**TINY, dtype=torch.float32, operations=EightGroups)
    lists = {k: list(v) for k, v in TINY.items() if isinstance(v, list)}
    names = comfy.utils.unet_to_diffusers(TINY | lists)
    state = {ours: weights[theirs] for theirs, ours in names.items() if theirs in weights}
    unet.load_state_dict(state, strict=True)
    return unet.requires_grad_(False)


def temporal_network(
    unet: torch.nn.Module,
    weights: dict[str, Tensor],
    architecture: Architecture = PUBLISHED,
) -> TemporalNetwork:
    """Our network with the recorded temporal weights."""
    plan = read_plan(unet)
    net = TemporalNetwork(plan, architecture)
    net.load_state_dict(from_published(plan, weights), strict=True)
    return net


def forward(
    unet: torch.nn.Module, net: TemporalNetwork, clip: Tensor, t: Tensor, context: Tensor
) -> Tensor:
    """The whole network on [B,C,F,h,w] -> [B,C,F,h,w], as it was recorded."""
    branches, frames = clip.shape[0], clip.shape[2]
    rows = clip.transpose(1, 2)
    joint = Joint(Features(net, rows), branches)
    steps = t.expand(branches).repeat_interleave(frames)
    with joined(unet, joint):
        out = unet(rows.flatten(0, 1), steps, context.repeat_interleave(frames, 0))
    return out.unflatten(0, (branches, frames)).transpose(1, 2)


def trained(
    model: Any, architecture: Architecture, frames: int = 4, **changes: Any
) -> TemporalUNet:
    """A payload beside a small model, every weight random: as if it had been trained long."""
    plan = read_plan(model.model.diffusion_model)
    generator = torch.Generator().manual_seed(3)
    weights = {}
    for name, shape in shapes(plan, architecture).items():
        noise = torch.randn(shape, generator=generator)
        scale = noise[0].numel() ** -0.5 if noise.ndim > 1 else 0.1
        norm = name.endswith("weight") and noise.ndim == 1
        weights[name] = (noise * scale + (1.0 if norm else 0.0)).half()
        if "_query" in name:
            weights[name] *= 0.1
    settings = {
        "frames": frames,
        "adds_to_queries": architecture.published,
        "steps": 100,
        "fingerprint": host.fingerprint(model),
    }
    return TemporalUNet(weights, plan, architecture, **(settings | changes))
