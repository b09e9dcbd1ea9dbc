"""Runs the model on an inversion's own latents: to look at the source, or to play it back."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import comfy.patcher_extension
import comfy.samplers
import comfy.utils
import torch
from torch import Tensor

from ..protocol import Pass, run_in_parts
from ..types import Inversion, Position
from .attach import KEY, W, declared_rows
from .call import ModelCall, Room, per_frame
from .model import feature_layers, latent_format, require_supported, sites_of
from .validate import check_same_clip

Visit = Callable[[int, ModelCall], None]
FRAMES_PER_PASS = 16
"""Frames of a clip that is played back in one call: what Invert Video takes by default."""


class WalkSampler(comfy.samplers.Sampler):
    """Calls the model once at each wanted level; the answer is not used."""

    def __init__(self, inversion: Inversion, steps: Sequence[int]) -> None:
        self.inversion, self.steps = inversion, steps

    def sample(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        model_wrap: Any,
        sigmas: Tensor,
        extra_args: dict,
        callback: Callable | None,
        noise: Tensor,
        latent_image: Tensor | None = None,
        denoise_mask: Tensor | None = None,
        disable_pbar: bool = False,
    ) -> Tensor:
        """Called by ComfyUI."""
        bar = comfy.utils.ProgressBar(len(self.steps))
        for number, step in enumerate(self.steps):
            sigma = float(self.inversion.sigmas[step])
            model_wrap(noise, torch.full((len(noise),), sigma, device=noise.device), **extra_args)
            bar.update_absolute(number + 1)
        return noise


def walk_source(
    patcher: Any,
    inversion: Inversion,
    steps: Sequence[int],
    visit: Visit,
    node: str,
    frames_per_pass: int = 0,
) -> None:
    """Calls `visit(step, call)` at each step, where `call.run` takes source passes.

    Args:
        frames_per_pass: most frames that `visit` runs at once, for ComfyUI's plan of the memory
            (0 = all).

    Raises: ValueError when the model is not the one that inverted the clip.
    """
    require_supported(patcher, node)
    check_same_clip(node, patcher, inversion, inversion.clean)
    places = {float(inversion.sigmas[step]): step for step in steps}
    sites, layers, room = sites_of(patcher), feature_layers(patcher), Room()

    def apply_model(
        executor: Callable,
        x: Tensor,
        t: Tensor,
        c_concat: Tensor | None = None,
        c_crossattn: Tensor | None = None,
        control: dict | None = None,
        transformer_options: dict[str, Any] | None = None,
        **extra: Any,
    ) -> Tensor:
        options = transformer_options or {}
        call = ModelCall(
            executor, x, t, c_concat, c_crossattn, control, options, extra,
            sites, layers, inversion, room,
        )  # fmt: skip
        visit(places[min(places, key=lambda sigma: abs(sigma - call.sigma))], call)
        return x

    guider = _guider(patcher, inversion, apply_model, frames_per_pass)
    sampler = WalkSampler(inversion, steps)
    guider.sample(
        torch.zeros_like(inversion.clean.float()),
        torch.zeros_like(inversion.clean.float()),
        sampler,
        inversion.sigmas.float(),
        disable_pbar=True,
        seed=0,
    )


def play_back(patcher: Any, inversion: Inversion, node: str) -> Tensor:
    """Samples the inversion with its own conditioning and no guidance.

    Returns: [F,C,h,w] VAE latents, which a good inversion gives back as the clip's own.
    Raises: ValueError when the model is not the one that inverted the clip.
    """
    require_supported(patcher, node)
    check_same_clip(node, patcher, inversion, inversion.clean)
    room = Room()

    def apply_model(
        executor: Callable,
        x: Tensor,
        t: Tensor,
        c_concat: Tensor | None = None,
        c_crossattn: Tensor | None = None,
        control: dict | None = None,
        transformer_options: dict[str, Any] | None = None,
        **extra: Any,
    ) -> Tensor:
        rows, options = list(range(len(x))), transformer_options or {}
        context = per_frame(inversion.context, rows).to(x)
        if inversion.pooled is not None:
            extra["y"] = per_frame(inversion.pooled, rows).to(x.device)
        call = ModelCall(
            executor, x, t, c_concat, context, control, options, extra, [], room=room
        )  # fmt: skip
        return run_in_parts(call, torch.arange(call.frames), FRAMES_PER_PASS, Pass)[1].flatten(0, 1)

    guider = _guider(patcher, inversion, apply_model, FRAMES_PER_PASS)
    format_ = latent_format(inversion.latent_format)
    start = inversion.sigma_space(Position(0), float(inversion.sigmas[0]))
    sigmas = torch.cat([inversion.sigmas, torch.tensor([inversion.final_sigma])]).float()
    bar = comfy.utils.ProgressBar(len(sigmas) - 1)
    return guider.sample(
        torch.zeros_like(start),
        format_.process_out(start),
        comfy.samplers.sampler_object("euler"),
        sigmas,
        callback=lambda step, *_: bar.update_absolute(step + 1),
        disable_pbar=True,
        seed=0,
    )


def _guider(patcher: Any, inversion: Inversion, apply_model: Callable, frames_per_pass: int) -> Any:
    """Guidance 1, no edits of ours, and a conditioning that only has the right shape."""
    clone = patcher.clone()
    clone.remove_attachments(KEY)
    for kind in (W.OUTER_SAMPLE, W.PREPARE_SAMPLING, W.APPLY_MODEL):
        clone.remove_wrappers_with_key(kind, KEY)
    clone.add_wrapper_with_key(W.APPLY_MODEL, f"{KEY}_walk", apply_model)
    clone.add_wrapper_with_key(W.PREPARE_SAMPLING, f"{KEY}_walk", declared_rows(frames_per_pass))
    guider = comfy.samplers.CFGGuider(clone)
    settings = {} if inversion.pooled is None else {"pooled_output": torch.zeros(1, 1280)}
    guider.inner_set_conds({"positive": [[inversion.context[:1], settings]]})
    guider.set_cfg(1.0)
    return guider
