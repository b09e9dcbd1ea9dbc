"""What the quality benchmarks share: one clip into noise, one edit back out, and contact sheets.

Import it after `load_pack()`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from reweave.editing import host
from torch import Tensor

EVALUATION = "current"
"""Of every inversion (see Invert Video): what is kept of a run depends on it."""


@dataclass(frozen=True)
class Job:
    """One clip, ready to be edited."""

    model: Any
    """ComfyUI's MODEL."""
    vae: Any
    inversion: Any
    """Of the source frames, with the source's caption."""
    positive: list
    """The target's caption."""
    negative: list
    """The source's caption."""
    cfg: float
    frames: Tensor
    """[F,3,H,W] in 0..1."""
    decoded: Tensor
    """[F,3,H,W] the frames through the VAE."""
    mask: Tensor | None
    """[F,1,H,W] in 0..1: the object, where it is known. Only StableVideo uses it, for its atlas."""
    layers: tuple[str, ...] = ()
    """What the words change: foreground, background. Only StableVideo uses it."""


def encoded_text(clip_model: Any, text: str) -> list:
    """What CLIPTextEncode gives."""
    return clip_model.encode_from_tokens_scheduled(clip_model.tokenize(text))


def inverted(model: Any, vae: Any, source: list, frames: Tensor, steps: int) -> tuple[Any, Tensor]:
    """An inversion of frames [F,3,H,W], and what the VAE alone makes of them [F,3,H,W]."""
    latent = {"samples": vae.encode(frames.movedim(1, -1))}
    request = host.InversionRequest(steps, steps, EVALUATION, half=False)
    inversion = host.invert_clip(model, source, latent, request)
    return inversion, vae.decode(latent["samples"]).movedim(-1, 1)


def sample(
    model: Any, inversion: Any, edits: Sequence[Any], positive: list, negative: list, cfg: float
) -> Tensor:
    """What SamplerCustom does with add_noise off, from the inversion's own latents."""
    import comfy.samplers

    for edit in edits:
        model = host.attach(model, edit)
    guider = comfy.samplers.CFGGuider(model)
    guider.set_conds(positive, negative)
    guider.set_cfg(cfg)
    start = inversion.sigma_space(inversion.locate(float(inversion.sigmas[0])), inversion.sigmas[0])
    sigmas = torch.cat([inversion.sigmas, torch.tensor([inversion.final_sigma])])
    latent = host.latent_format(inversion.latent_format).process_out(start)
    sampler = comfy.samplers.sampler_object("euler")
    return guider.sample(
        torch.zeros_like(latent), latent, sampler, sigmas, disable_pbar=True, seed=0
    )


def save_sheet(rows: Sequence[Tensor], path: Path) -> None:
    """A contact sheet: one row of frames [n,3,H,W] per entry, from left to right."""
    from PIL import Image

    path.parent.mkdir(parents=True, exist_ok=True)
    sheet = torch.cat([row.permute(2, 0, 3, 1).flatten(1, 2) for row in rows])
    Image.fromarray((sheet.clamp(0, 1) * 255).byte().numpy()).save(path)
