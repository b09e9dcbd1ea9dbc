"""DDIM inversion (Song et al. 2021, section 4.3): a clip's deterministic way into noise.

One function, in ComfyUI's sigma space x = z0 + sigma * eps, where a DDIM step is an Euler step.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ..kernels.schedule import ddim_step, sigma_space_from_vp, vp_from_sigma_space

CONVENTIONS = ("current", "target", "published")
"""Which noise level the network is told while the latents are still one level below:
"current": the level they are at (the first step uses the target, it has no other).
"target": the level they go to, starting from a clean clip (sigma 0); an edit ends at sigma 0.
"published": the same, the clip taken to be at the model's lowest level, where an edit ends."""

STORAGE = ("float16", "float32")
START_MODES = ("trajectory", "extracted noise", "one shared noise")


def final_sigma(convention: str, sigma_min: float) -> float:
    """The level at which `convention` takes the clean clip to be."""
    return sigma_min if convention == "published" else 0.0


def invert(
    predict: Callable[[Tensor, float], Tensor],
    clean: Tensor,
    sigmas: Sequence[float],
    convention: str,
    start_sigma: float,
    keep: Callable[[int, Tensor], None],
) -> None:
    """Adds the model's own noise to a clip, level by level.

    Args:
        predict: (x, sigma) -> denoised x0, both [F,C,h,w] in sigma space.
        clean: [F,C,h,w] the clip in the model's latent space, VP at `start_sigma`.
        sigmas: ascending, without 0.
        convention: see CONVENTIONS.
        start_sigma: the level of `clean`, 0 unless the convention is "published".
        keep: called with (number of the level, [F,C,h,w] VP latents) at every level.

    Raises: ValueError for an unknown convention or latents that stop being finite.
    """
    if convention not in CONVENTIONS:
        raise ValueError(
            f"Invert Video: expected 'evaluation' to be one of {', '.join(CONVENTIONS)}; "
            f"got {convention!r}. Choose one of these in the node's list."
        )
    latents, level = clean, start_sigma
    for number, sigma in enumerate(sigmas):
        told = level if convention == "current" and level > 0 else sigma
        x = sigma_space_from_vp(latents, told)
        noise = (x - predict(x, told)) / told
        here = sigma_space_from_vp(latents, level)
        there = ddim_step(here, noise, level, sigma) if level > 0 else here + sigma * noise
        latents, level = vp_from_sigma_space(there, sigma), sigma
        if not bool(torch.isfinite(latents).all()):
            raise ValueError(
                f"Invert Video: the latents stopped being finite at step {number + 1} (sigma "
                f"{sigma:.4g}). Start ComfyUI with --force-fp32 or --bf16-unet, or check the clip."
            )
        keep(number, latents)


def start_latents(
    latents: Tensor,
    clean: Tensor,
    sigma: float,
    mode: str,
    noisiest: Tensor,
    noisiest_sigma: float,
    noise_number: int,
) -> Tensor:
    """Where an edit starts.

    Args:
        latents: [F,C,h,w] VP latents of the trajectory at `sigma`.
        clean: [F,C,h,w] the clip.
        mode: "trajectory" (the inverted latents), "extracted noise" (the clip noised again with
            the noise found at the noisiest level, as TokenFlow's code does), or "one shared
            noise" (one Gaussian image for all frames).
        noisiest: [F,C,h,w] VP latents at `noisiest_sigma`.
        noise_number: which Gaussian ("one shared noise").

    Returns: [F,C,h,w] in sigma space.
    Raises: ValueError for an unknown mode.
    """
    if mode == "trajectory":
        return sigma_space_from_vp(latents, sigma)
    if mode == "extracted noise":
        return clean + sigma * extracted_noise(noisiest, clean, noisiest_sigma)
    if mode == "one shared noise":
        generator = torch.Generator().manual_seed(noise_number)
        return clean + sigma * torch.randn((1, *clean.shape[1:]), generator=generator)
    raise ValueError(
        f"Inversion Latent: expected 'mode' to be one of {', '.join(START_MODES)}; got {mode!r}. "
        "Choose one of these in the node's list."
    )


def extracted_noise(noisiest: Tensor, clean: Tensor, sigma: float) -> Tensor:
    """eps = (x - z0) / sigma at the noisiest level (TokenFlow's "DDIM noise")."""
    return (sigma_space_from_vp(noisiest, sigma) - clean) / sigma
