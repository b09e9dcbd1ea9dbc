"""Where an edit starts: the LATENT and SIGMAS that SamplerCustom continues from."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..checks import check_choice, check_range
from ..inversion import START_MODES, start_latents
from ..types import Inversion, Position
from .model import latent_format

NODE = "Inversion Latent"


def start_of(
    inversion: Inversion, start: int = 0, mode: str = "trajectory", noise_number: int = 0
) -> tuple[dict[str, Any], Tensor]:
    """The latents at step `start` of the inversion's schedule, and the sigmas from there on.

    Returns: LATENT with samples [F,C,h,w] as ComfyUI's samplers take them; sigmas [S-start+1]
        descending, the last is the level at which the clip is clean.
    Raises: ValueError for a step that the schedule does not have, or an unknown mode.
    """
    check_choice(NODE, "mode", mode, START_MODES)
    check_range(NODE, "start_at_step", start, 0, len(inversion.sigmas) - 1)
    noisiest, level = inversion.noisiest, inversion.noisiest_sigma
    if noisiest is None:
        noisiest, level = inversion.latents[0], float(inversion.sigmas[0])
    latents = start_latents(
        inversion.at(Position(start)),
        inversion.clean.float(),
        float(inversion.sigmas[start]),
        mode,
        noisiest.float(),
        level,
        noise_number,
    )
    samples = latent_format(inversion.latent_format).process_out(latents)
    end = torch.tensor([inversion.final_sigma])
    return {"samples": samples}, torch.cat([inversion.sigmas[start:].float(), end])
