"""The noise schedule in ComfyUI's sigma space.

``x = x0 + sigma * eps`` with sigma > 0; the variance-preserving (VP) latent of the papers is
``x_vp = x / sqrt(1 + sigma**2)``. In sigma space one DDIM step with eta 0 is one Euler step.
A sigma is a number, a 0-d tensor, or a tensor ``[F]`` with one value per frame of ``[F, ...]``.
"""

import torch
from torch import Tensor

Sigma = float | Tensor


def ddim_step(x: Tensor, eps: Tensor, sigma_from: Sigma, sigma_to: Sigma) -> Tensor:
    """One DDIM step with eta 0, in sigma space, towards less noise or more (inversion).

    DDIM (Song et al. 2021, eq. 12 and section 4.3): ``x + (sigma_to - sigma_from) * eps``.

    Args:
        x: [..., C, h, w] latent at sigma_from, sigma space.
        eps: the noise predicted at sigma_from, same shape as x.
        sigma_from: noise level of x, > 0: a model cannot predict the noise of a clean latent.
        sigma_to: noise level of the result, >= 0.

    Raises:
        ValueError: sigma_from is 0 or negative, or an [F] sigma does not match x.
    """
    start = _like(sigma_from, x)
    if not bool((start > 0).all()):
        raise ValueError(
            f"ddim_step: sigma_from must be > 0 (noise is not defined on a clean latent), got "
            f"{sigma_from}. Start one level higher, or end the schedule at this sigma instead."
        )
    change = (_like(sigma_to, x) - start).to(x.dtype)
    return x + change * eps


def ddim_step_naive(x: Tensor, eps: Tensor, sigma_from: Sigma, sigma_to: Sigma) -> Tensor:
    """The definition: DDIM in VP space (Song et al. 2021, eq. 12), abar = 1 / (1 + sigma^2)."""
    abar_from = 1 / (1 + _like(sigma_from, x) ** 2)
    abar_to = 1 / (1 + _like(sigma_to, x) ** 2)
    x_vp = x * abar_from.sqrt()
    x0 = (x_vp - (1 - abar_from).sqrt() * eps) / abar_from.sqrt()
    return (abar_to.sqrt() * x0 + (1 - abar_to).sqrt() * eps) / abar_to.sqrt()


def vp_from_sigma_space(x: Tensor, sigma: Sigma) -> Tensor:
    """``x / sqrt(1 + sigma^2)``: sigma-space latent [..., C, h, w] to VP space, dtype kept."""
    return x * (1 / (1 + _like(sigma, x) ** 2).sqrt()).to(x.dtype)


def vp_from_sigma_space_naive(x: Tensor, sigma: Sigma) -> Tensor:
    """The definition: ``x0 * sqrt(abar) + eps * sqrt(1 - abar)`` is x times sqrt(abar)."""
    return (x * (1 / (1 + _like(sigma, x) ** 2)).sqrt()).to(x.dtype)


def sigma_space_from_vp(x: Tensor, sigma: Sigma) -> Tensor:
    """``x * sqrt(1 + sigma^2)``: VP latent [..., C, h, w] to sigma space, dtype kept."""
    return x * (1 + _like(sigma, x) ** 2).sqrt().to(x.dtype)


def sigma_space_from_vp_naive(x: Tensor, sigma: Sigma) -> Tensor:
    """The definition: x divided by sqrt(abar), abar = 1 / (1 + sigma^2)."""
    return (x / (1 / (1 + _like(sigma, x) ** 2)).sqrt()).to(x.dtype)


def eps_from_denoised(x: Tensor, denoised: Tensor, sigma: Sigma) -> Tensor:
    """``(x - denoised) / sigma``: the predicted noise, for eps and v models alike.

    Raises:
        ValueError: sigma is 0 or negative.
    """
    level = _like(sigma, x)
    if not bool((level > 0).all()):
        raise ValueError(
            f"eps_from_denoised: sigma must be > 0, got {sigma}: a clean latent holds no noise."
        )
    return (x - denoised) / level.to(x.dtype)


def denoised_from_eps(x: Tensor, eps: Tensor, sigma: Sigma) -> Tensor:
    """``x - sigma * eps``: the predicted clean latent x0, sigma space, same shape as x."""
    return x - _like(sigma, x).to(x.dtype) * eps


def _like(sigma: Sigma, x: Tensor) -> Tensor:
    """Sigma in float32 on x's device, shaped to broadcast over x's leading (frame) axis."""
    value = torch.as_tensor(sigma, dtype=_precision(x), device=x.device)
    if value.ndim == 0:
        return value
    if value.ndim != 1 or len(value) not in (1, len(x)):
        raise ValueError(
            f"sigma must be a number or one value per frame: expected shape () or ({len(x)},), "
            f"got {tuple(value.shape)} for x of shape {tuple(x.shape)}."
        )
    return value.view(-1, *[1] * (x.ndim - 1))


def _precision(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32
