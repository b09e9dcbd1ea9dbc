"""TCVE's inversion and its DDIM sampler are the pack's own ones: recorded with a toy model."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest
import torch
from reweave.editing.inversion import final_sigma, invert
from reweave.kernels.schedule import ddim_step, sigma_space_from_vp, vp_from_sigma_space
from safetensors.torch import load_file
from torch import Tensor

TOLERANCE = 1e-4
RECORDED = load_file(Path(__file__).parents[1] / "goldens" / "tcve_ddim.safetensors")
ALPHAS = RECORDED["alphas_cumprod"].double()
SIGMAS = ((1 - ALPHAS) / ALPHAS).sqrt()
STEPS = RECORDED["timesteps"].long()
"""981, 961, ..., 1."""


def noise_of(latents: Tensor, timestep: int) -> Tensor:
    """The recording's stand-in for a model: eps from VP latents [F,C,h,w]."""
    mixed = torch.einsum("ij,fjhw->fihw", RECORDED["eps_mix"], latents)
    return mixed.tanh() * (0.5 + 0.5 * timestep / 1000) + 0.3 * latents


def predict(x: Tensor, sigma: float) -> Tensor:
    timestep = int((SIGMAS - sigma).abs().argmin())
    return x - sigma * noise_of(vp_from_sigma_space(x, sigma), timestep)


def frames(name: str) -> Tensor:
    """[1,C,F,h,w] as recorded -> [F,C,h,w]."""
    return RECORDED[name][0].transpose(0, 1)


def inverted(convention: str) -> dict[int, Tensor]:
    kept: dict[int, Tensor] = {}
    levels = SIGMAS[STEPS.flip(0)].tolist()
    start = final_sigma(convention, float(SIGMAS[0]))
    invert(predict, frames("x0"), levels, convention, start, kept.__setitem__)
    return kept


def sampled(start: Tensor, levels: Tensor) -> dict[int, Tensor]:
    x, kept = sigma_space_from_vp(start, float(levels[0])), {}
    for number, (sigma, after) in enumerate(pairwise(levels)):
        eps = (x - predict(x, float(sigma))) / sigma.float()
        x = ddim_step(x, eps, sigma, after)
        kept[number] = vp_from_sigma_space(x, after)
    return kept


def far(actual: Tensor, expected: Tensor) -> float:
    return float((actual - expected).abs().max())


@pytest.mark.parametrize("step", [1, 2, 3, 25, 50])
def test_the_inversion_is_the_recorded_one(step: int) -> None:
    expected = frames(f"inv_after_{step}")
    assert far(inverted("published")[step - 1], expected) < TOLERANCE
    assert far(inverted("target")[step - 1], expected) > TOLERANCE


@pytest.mark.parametrize("step", [1, 2, 25, 50])
def test_sampling_is_the_recorded_one(step: int) -> None:
    start = frames("inv_after_50")
    levels = torch.cat([SIGMAS[STEPS], SIGMAS[:1]])
    expected = frames(f"samp_after_{step}")
    assert far(sampled(start, levels)[step - 1], expected) < TOLERANCE
    shifted = torch.cat([SIGMAS[STEPS + 9], SIGMAS[:1]])
    assert far(sampled(start, shifted)[step - 1], expected) > TOLERANCE
