"""What Invert Video was asked for, and what it cannot do."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import comfy.samplers
import torch
from torch import Tensor

from ..inversion import CONVENTIONS
from ..latent_guidance import LatentGuidance
from ..session import source_of
from .attach import edits_of
from .model import require_supported
from .validate import check_conditioning

NODE = "Invert Video"


@dataclass(frozen=True)
class InversionRequest:
    """What Invert Video was asked for."""

    steps: int = 50
    """Levels that the inversion visits (50, 500 or 1000 are usual)."""
    saved_steps: int = 50
    """Levels that are kept, for an edit of so many steps."""
    convention: str = "current"
    half: bool = True
    """Keep the latents in float16."""
    frames_per_pass: int = 16


def check_request(patcher: Any, positive: list, samples: Tensor, request: InversionRequest) -> None:
    """Raises: ValueError for what cannot be inverted."""
    require_supported(patcher, NODE)
    check_prompt(positive, patcher.model_options)
    fed = [
        edit.name
        for edit in edits_of(patcher)
        if source_of(edit) is not None or isinstance(edit, LatentGuidance)
    ]
    if fed:
        raise ValueError(
            f"{NODE}: this MODEL carries {' and '.join(fed)}, which acts on an edit, not on the "
            "source. "
            f"Connect the MODEL from before {fed[0]}."
        )
    if samples.ndim != 4:
        raise ValueError(
            f"{NODE}: expected image latents [frames, channels, h, w], got {samples.ndim} "
            "dimensions. Encode the frames with a VAE Encode of an image model."
        )
    if not bool(torch.isfinite(samples).all()):
        raise ValueError(f"{NODE}: the latents hold NaN or infinity. Try --fp32-vae.")
    if request.convention not in CONVENTIONS:
        raise ValueError(
            f"{NODE}: expected 'evaluation' to be one of {', '.join(CONVENTIONS)}; got "
            f"{request.convention!r}. Choose one of these in the node's list."
        )


def check_prompt(positive: list, options: dict[str, Any]) -> None:
    """An inversion holds one prompt, which acts on whole frames and at every level.

    Args:
        positive: CONDITIONING; its one entry may hold a context per frame.

    Raises: ValueError for what an edit could not be told again.
    """
    told = [settings for _, settings in positive]
    check_conditioning(NODE, {"positive": told}, options)
    if len(told) != 1:
        raise ValueError(
            f"{NODE}: expected one prompt in 'positive', got {len(told)} (Conditioning Combine and "
            "LoRA schedules make several). Connect one CLIP Text Encode, or join prompts with "
            "Conditioning Concat."
        )
    if told[0].get("mask") is not None:
        raise ValueError(
            f"{NODE}: expected a prompt for whole frames, got one with a mask (Conditioning Set "
            "Mask). Connect the prompt without it; a MASK on the Reweave node limits the edit."
        )
    start, end = told[0].get("start_percent", 0.0), told[0].get("end_percent", 1.0)
    if start > 0.0 or end < 1.0:
        raise ValueError(
            f"{NODE}: expected a prompt for all steps, got one from {start:g} to {end:g} "
            "(Conditioning Set Timestep Range). Connect the prompt without it, or set start to 0 "
            "and end to 1."
        )


def levels(sampling: Any, steps: int) -> list[float]:
    """Ascending sigmas of ddim_uniform with `steps` steps, without 0."""
    table = comfy.samplers.calculate_sigmas(sampling, "ddim_uniform", steps)
    return [float(sigma) for sigma in table.flip(0) if float(sigma) > 0]


def saved_levels(sampling: Any, request: InversionRequest, sigmas: list[float]) -> list[int]:
    """Numbers of the levels that an edit of `saved_steps` steps visits.

    Raises: ValueError when the inversion does not pass them all.
    """
    wanted = levels(sampling, min(request.saved_steps, request.steps))
    near = [min(range(len(sigmas)), key=lambda i: abs(sigmas[i] - sigma)) for sigma in wanted]
    if any(abs(sigmas[i] - s) > 1e-3 * s for i, s in zip(near, wanted, strict=True)):
        raise ValueError(
            f"{NODE}: an inversion of {request.steps} steps does not pass the levels of an edit "
            f"of {request.saved_steps} steps. Choose 'steps' as a multiple of 'saved_steps', both "
            "divisors of 1000: 25 and 25, 50 and 50, 500 and 50."
        )
    return near
