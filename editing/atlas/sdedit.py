"""SDEdit (Meng et al. 2022) as StableVideo uses it: noise on a picture, then DDIM back.

Everything is in ComfyUI's sigma space, x = z0 + sigma * eps, where a DDIM step (eta 0) is an Euler
step; so ComfyUI's euler and ddim samplers run these schedules exactly.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ...kernels.schedule import vp_from_sigma_space

SCHEDULES = ("clean", "published")
"""How a picture is brought to its noise level.
"clean": to the level at which the denoiser starts; the last step ends at sigma 0.
"published": to one level more than the denoiser is told (t = 801 and 751 at strength 0.8 of 20
steps), and the last step ends at the model's lowest level, as in the published code."""


@dataclass(frozen=True)
class Schedule:
    """Where sampling starts, x = signal * z0 + noise * n with n ~ N(0, 1), and its levels."""

    signal: float
    noise: float
    sigmas: Tensor
    """[S+1] float32, descending; the last is the level at which sampling ends."""

    def start(self, clean: Tensor | None, noise: Tensor) -> Tensor:
        """The latents that the sampler begins with, sigma space.

        Args:
            clean: [1,C,h,w] the picture's latent; None: nothing but noise.
            noise: [1,C,h,w] ~ N(0, 1).
        """
        return self.noise * noise if clean is None else self.signal * clean + self.noise * noise

    def finish(self, x: Tensor) -> Tensor:
        """The latents to decode: those at the last level, in VP space."""
        return vp_from_sigma_space(x, float(self.sigmas[-1]))


def ddim_timesteps(steps: int, levels: int = 1000) -> list[int]:
    """The levels 1, 1 + c, 1 + 2c, ... with c = levels // steps, ascending.

    As published, and as ComfyUI's ddim_uniform: `steps` of them where it divides `levels`,
    otherwise up to a few more.
    """
    return list(range(1, levels, max(levels // steps, 1)))


def from_noise(table: Tensor, steps: int, schedule: str) -> Schedule:
    """Text to image: the whole schedule, from noise alone.

    Args:
        table: [levels] the model's sigma at every training timestep, ascending.
        steps: DDIM steps.
        schedule: one of SCHEDULES.
    """
    sigmas = _levels(table, ddim_timesteps(steps, len(table)), schedule)
    return Schedule(0.0, float((1 + sigmas[0] ** 2).sqrt()), sigmas)


def from_picture(
    table: Tensor, steps: int, strength: float, schedule: str, knob: str = "noise_strength"
) -> Schedule:
    """SDEdit: the last ``int(steps * strength)`` steps, from a picture with noise on it.

    Args:
        table: [levels] the model's sigma at every training timestep, ascending.
        steps: DDIM steps of the whole schedule.
        strength: the noise level t0 (StableVideo, section 3.3), 0..1.
        schedule: one of SCHEDULES.
        knob: the input that the strength came from.

    Raises: ValueError when no step is left, or when "published" has no level above its first one.
    """
    timesteps = ddim_timesteps(steps, len(table))
    count = int(steps * strength)
    if count < 1:
        raise ValueError(
            f"a noise strength of {strength:g} leaves none of {steps} steps. Raise "
            f"'{knob}' to {1 / steps:.2g} or more, or take more steps."
        )
    if schedule == "published" and count >= len(timesteps):
        raise ValueError(
            f"a noise strength of {strength:g} starts above the highest of {len(timesteps)} "
            f"levels in the published schedule. Lower '{knob}' (0.8 as published), or set "
            "'schedule' to 'clean'."
        )
    sigmas = _levels(table, timesteps[:count], schedule)
    start = sigmas[0]
    if schedule == "clean":
        return Schedule(1.0, float(start), sigmas)
    encoded = table[timesteps[count]].float()
    # VP at the encoder's level, sqrt(abar) z0 + sqrt(1 - abar) n, taken to be at the decoder's
    scale = ((1 + start**2) / (1 + encoded**2)).sqrt()
    return Schedule(float(scale), float(scale * encoded), sigmas)


def _levels(table: Tensor, timesteps: list[int], schedule: str) -> Tensor:
    """Descending sigmas of ascending timesteps, and where the last step ends."""
    end = table[:1] if schedule == "published" else torch.zeros_like(table[:1])
    return torch.cat([table[timesteps].flip(0), end]).float()
