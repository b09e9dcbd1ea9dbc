"""A small random clip, the smallest network with every kind of site, and a spy on its calls."""

from __future__ import annotations

import sys
from typing import Any

import comfy.model_management
import comfy.patcher_extension
import comfy.samplers
import torch
import toy
from reweave.editing import host
from reweave.editing.protocol import Edit
from reweave.editing.types import Inversion
from torch import Tensor

SMALL = toy.SD15 | {
    "channel_mult": [1, 2], "num_res_blocks": [1, 1], "transformer_depth": [1, 1],
    "transformer_depth_output": [1] * 4,
}  # fmt: skip
SMALL_XL = toy.SDXL | {
    "channel_mult": [1, 2], "num_res_blocks": [1, 1], "transformer_depth": [0, 2],
    "transformer_depth_output": [3, 2, 2, 0], "transformer_depth_middle": 3,
}  # fmt: skip
ATTACH = sys.modules["reweave.editing.host.attach"]
"""The module; `host.attach` is its function."""
CLOSE = 1e-4
"""Largest difference against the standard deviation: what batches of other sizes round to."""


def same(actual: Tensor, expected: Tensor, tolerance: float = CLOSE) -> bool:
    """Equal but for rounding."""
    return float((actual - expected).abs().max()) < tolerance * float(expected.std())


def clip_latents(frames: int, size: int | tuple[int, int] = 8, seed: int = 5) -> Tensor:
    """[F,4,h,w] a drifting random picture, standard deviation 1; `size`: a side, or (h, w)."""
    generator = torch.Generator().manual_seed(seed)
    h, w = (size, size) if isinstance(size, int) else size
    first = torch.randn(1, 4, h, w, generator=generator)
    own = torch.randn(frames, 4, h, w, generator=generator)
    return torch.cat([first.roll(f // 2, -1) for f in range(frames)]) * 0.9 + own * 0.4


def source(
    model: Any,
    frames: int = 5,
    steps: int = 3,
    size: int | tuple[int, int] = 8,
    seed: int = 5,
) -> Inversion:
    """A random clip noised along ddim_uniform: on the schedule, though no model inverted it."""
    sampling = model.get_model_object("model_sampling")
    sigmas = comfy.samplers.calculate_sigmas(sampling, "ddim_uniform", steps)[:-1].float()
    clean = clip_latents(frames, size, seed)
    noise = clip_latents(frames, size, seed + 1)
    scale = sigmas[:, None, None, None, None]
    xl = model.model.diffusion_model.num_classes is not None
    return Inversion(
        latents=(clean + scale * noise) / (1 + scale**2).sqrt(),
        clean=clean,
        sigmas=sigmas,
        timesteps=sampling.timestep(sigmas).long(),
        context=toy.conditioning(seed + 2)[0][0],
        pooled=torch.randn(1, 2816, generator=torch.Generator().manual_seed(3)) if xl else None,
        latent_format=type(model.get_model_object("latent_format")).__name__,
    )


def edited(model: Any, *edits: Edit) -> Any:
    """A clone of the MODEL with these edits."""
    for edit in edits:
        model = host.attach(model, edit)
    return model


def sigmas_of(inversion: Inversion) -> Tensor:
    """The edit's schedule: the inversion's, down to 0."""
    return torch.cat([inversion.sigmas, torch.zeros(1)])


def start_of(inversion: Inversion) -> Tensor:
    """LATENT samples at the schedule's first level."""
    first = float(inversion.sigmas[0])
    position = inversion.locate(first)
    assert position is not None
    format_ = host.latent_format(inversion.latent_format)
    return format_.process_out(inversion.sigma_space(position, first))


def run(model: Any, inversion: Inversion, *edits: Edit, prompt: int = 1, **options: Any) -> Tensor:
    """Samples the clip from the trajectory's start under these edits."""
    positive = options.pop("positive", None) or toy.conditioning(prompt)
    latent = options.pop("latent", None)
    return toy.sample(
        edited(model, *edits),
        start_of(inversion) if latent is None else latent,
        options.pop("sigmas", sigmas_of(inversion)),
        positive,
        **options,
    )


def no_free_memory(monkeypatch: Any) -> None:
    """ComfyUI then runs every conditioning in a call of its own."""
    monkeypatch.setattr(
        comfy.model_management,
        "get_free_memory",
        lambda device=None, torch_free_too=False: (1e9, 1e9) if torch_free_too else 1,
    )


class Spy:
    """Notes the inner calls of the UNet. Put it on after the edits, so that it lies inside."""

    def __init__(self) -> None:
        self.calls: list[dict[str, Any]] = []

    def __deepcopy__(self, memo: dict) -> Spy:
        return self

    def on(self, model: Any) -> Any:
        """A clone of the MODEL that is spied on."""
        clone = model.clone()
        kind = comfy.patcher_extension.WrappersMP.APPLY_MODEL
        clone.add_wrapper_with_key(kind, "spy", self._note)
        return clone

    def _note(self, executor: Any, x: Tensor, t: Tensor, *args: Any, **extra: Any) -> Tensor:
        _, context, control, options = args
        kept = None if control is None else {k: list(v) for k, v in control.items()}
        self.calls.append(
            {
                "x": x, "context": context, "control": kept, "extra": extra,
                "frames": options.get("ad_params", {}).get("sub_idxs"),
                "branches": list(options["cond_or_uncond"]),
                "sigma": float(options["sigmas"][0]), "options": options,
            }
        )  # fmt: skip
        return executor(x, t, *args, **extra)

    def source_calls(self, inversion: Inversion) -> list[dict[str, Any]]:
        """The calls that were told the inversion's own conditioning."""
        width = inversion.context.shape
        return [
            call
            for call in self.calls
            if call["context"].shape[1:] == width[1:]
            and torch.equal(call["context"][:1], inversion.context[:1])
        ]
