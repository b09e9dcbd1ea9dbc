"""Drawing one picture with ComfyUI's own VAE, samplers and ControlNets."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import comfy.model_management
import comfy.samplers
import torch
from kornia.filters import canny
from torch import Tensor

from ..atlas.requests import Sampling
from ..atlas.sdedit import Schedule, from_noise, from_picture

CANNY = (0.4, 0.8)
"""Thresholds of the outline, as fractions: 100 and 200 of 255 (published)."""


@dataclass(frozen=True)
class Tools:
    """The models that draw a key frame, as ComfyUI hands them over."""

    model: Any
    vae: Any
    positive: list
    negative: list
    control_net: Any = None


def schedules(model: Any, asked: Sampling) -> tuple[Schedule, Schedule, Schedule]:
    """(from noise, from the first key frame's own pixels, from earlier key frames), for this model.

    Raises: ValueError for a strength that the schedule does not have.
    """
    table = model.get_model_object("model_sampling").sigmas.float().cpu()
    first, later = (
        from_picture(table, asked.steps, strength, asked.schedule, knob)
        for knob, strength in (
            ("first_strength", asked.first_strength),
            ("noise_strength", asked.noise_strength),
        )
    )
    return from_noise(table, asked.steps, asked.schedule), first, later


def outlines(picture: Tensor) -> Tensor:
    """Canny outlines of [3,h,w] as a picture [3,h,w] of 0 and 1."""
    return canny(picture[None].float(), *CANNY)[1][0].expand(3, -1, -1)


def encode(tools: Tools, picture: Tensor) -> Tensor:
    """[3,h,w] in 0..1 -> the model's latent [1,C,h/8,w/8]."""
    latent = tools.vae.encode(picture.movedim(0, -1)[None])
    return tools.model.get_model_object("latent_format").process_in(latent.float().cpu())


def decode(tools: Tools, latents: Tensor) -> Tensor:
    """The model's latent [1,C,h,w] -> picture [3,8h,8w] in 0..1."""
    samples = tools.model.get_model_object("latent_format").process_out(latents)
    return tools.vae.decode(samples)[0, ..., :3].movedim(-1, 0).float().cpu().clamp(0, 1)


def sample(
    tools: Tools,
    schedule: Schedule,
    x: Tensor,
    asked: Sampling,
    control: Tensor | None,
    step: Callable[[int], None],
) -> Tensor:
    """Runs ComfyUI's sampler on a schedule.

    Args:
        x: [1,C,h,w] latents at the schedule's first level, sigma space.
        control: [3,H,W] the ControlNet's picture.
        step: called with the number of finished steps.

    Returns: [1,C,h,w] the model's latents, to be decoded.
    """
    format_ = tools.model.get_model_object("latent_format")
    guider = comfy.samplers.CFGGuider(tools.model)
    guider.set_conds(*controlled(tools, control, asked.control_strength))
    guider.set_cfg(asked.cfg)

    def callback(number: int, *_: Any) -> None:
        comfy.model_management.throw_exception_if_processing_interrupted()
        step(number + 1)

    # x holds its noise already: none is added, and the latents are what the sampler scales back
    samples = guider.sample(
        torch.zeros_like(x),
        format_.process_out(x),
        comfy.samplers.sampler_object(asked.sampler),
        schedule.sigmas,
        callback=callback,
        disable_pbar=True,
        seed=asked.edit_seed,
    )
    return schedule.finish(format_.process_in(samples.float().cpu()))


def controlled(tools: Tools, control: Tensor | None, strength: float) -> tuple[list, list]:
    """(positive, negative) with the ControlNet, on both alike, as Apply ControlNet does it."""
    if control is None or strength == 0:
        return tools.positive, tools.negative
    hinted: dict[Any, Any] = {}

    def applied(conditioning: list) -> list:
        out = []
        for embedding, settings in conditioning:
            before = settings.get("control")
            if before not in hinted:
                net = tools.control_net.copy()
                net.set_cond_hint(control[None], strength, (0.0, 1.0), vae=tools.vae)
                net.set_previous_controlnet(before)
                hinted[before] = net
            more = {"control": hinted[before], "control_apply_to_uncond": False}
            out.append([embedding, settings | more])
        return out

    return applied(tools.positive), applied(tools.negative)


def latent_shape(model: Any, size: tuple[int, int]) -> tuple[int, int, int, int]:
    """Of the latents of a picture of this (height, width)."""
    channels = model.get_model_object("latent_format").latent_channels
    return 1, channels, size[0] // 8, size[1] // 8
