"""Pix2Video's guided latents (Ceylan et al. 2023, section 3.2): predictions that stay together.

Every frame's predicted clean latent x0 is pulled towards that of another frame in the first part
of sampling. The paper steps along the gradient of the squared distance through the UNet; its
published code takes the distance's own gradient, which needs no network: a pull in closed form.

The pull is carried by the prediction: a step goes from x to x sigma'/sigma + x0 (1 - sigma'/sigma),
so an x0 that is shifted by d / (1 - sigma'/sigma) shifts the next latent by d.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from .protocol import Edit

if TYPE_CHECKING:
    from .warping import Warp

TARGETS = ("previous frame", "anchor frame", "fixed step")
MODES = ("closed form", "gradient")
SETTLED = 1e-4
"""Relative change of a fixed step's targets below which they are taken to be found."""


@dataclass(frozen=True)
class LatentGuidance(Edit):
    """Pulls each frame's predicted x0 towards another frame's."""

    strength: float = 0.0122
    """Part of the distance that one step takes away, in the units of the variance-preserving
    latent: the published 200 / N at 512x512 (N = 4 * 64 * 64), the same at every size here."""
    until: float = 0.52
    """Fraction of the steps that are guided (published: 26 of 50)."""
    target: str = "previous frame"
    mode: str = "closed form"
    anchor: int = 0
    """Frame that the others are pulled to ("anchor frame")."""
    target_step: int = 25
    """Step of the previous frame that a frame is pulled to ("fixed step")."""
    region: Tensor | None = None
    """[F or 1,H,W] in 0..1: where frames are pulled."""
    warp: Warp | None = None
    """Where the points of a frame are in the frame that it is pulled to; None = in place."""

    @property
    def name(self) -> str:
        return "Latent Guidance"

    def check_clip(self, frames: int, size: tuple[int, ...], steps: int) -> None:
        if frames < 2:
            raise ValueError(
                f"{self.name}: expected at least 2 frames, got {frames}: a single frame has no "
                "other to be pulled to. Load more frames, or remove this node."
            )
        self.check_anchor(frames)
        if self.target == "fixed step" and self.target_step >= steps:
            raise ValueError(
                f"{self.name}: expected 'target_step' to be a step of the schedule (0 to "
                f"{steps - 1}), got {self.target_step}. Lower 'target_step'."
            )
        if self.region is not None and len(self.region) not in (1, frames):
            raise ValueError(
                f"{self.name}: expected a mask of 1 or {frames} frames, got {len(self.region)}. "
                "Cut the mask like the clip, or connect one mask for all frames."
            )
        if self.warp is not None:
            self.warp.check_clip(self.name, frames)

    def check_anchor(self, frames: int) -> None:
        """Raises: ValueError when the clip has no such frame."""
        if self.target == "anchor frame" and self.anchor >= frames:
            raise ValueError(
                f"{self.name}: expected 'anchor' to be a frame of the clip (0 to {frames - 1}), "
                f"got {self.anchor}. Lower 'anchor'."
            )

    def guides(self, step: int, steps: int) -> bool:
        """Whether step `step` of `steps` is guided."""
        return step < int(steps * self.until + 1e-6)

    def sources(self, frames: int) -> Tensor:
        """[F] int64: the frame that each frame is pulled to, -1 = none."""
        own = torch.arange(frames)
        if self.target == "anchor frame":
            return torch.where(own == self.anchor, -1, self.anchor)
        return own - 1

    def aim(self, x0: Tensor, fixed: Tensor | None, position: int) -> tuple[Tensor, Tensor]:
        """Where the predictions are pulled to at one step.

        Args:
            x0: [F,C,h,w] the raw predictions of this step.
            fixed: [F,C,h,w] those of the fixed step, for target "fixed step".
            position: index of this step in the source's schedule, for a field.

        Returns: (targets [F,C,h,w], weight [F,1,h,w] in 0..1; 0 = not pulled there).
        """
        sources = self.sources(len(x0))
        from_ = x0 if fixed is None else fixed
        targets = from_[sources.clamp(min=0).to(x0.device)]
        weight = (sources >= 0).to(x0).view(-1, 1, 1, 1).expand(-1, 1, *x0.shape[-2:])
        if self.warp is not None:
            targets, seen = self.warp.follow(targets, position)
            weight = weight * seen.to(weight)
        if self.region is not None:
            small = F.interpolate(self.region[:, None].float(), x0.shape[-2:], mode="area")
            weight = weight * small.to(weight)
        return targets, weight


def pull(x0: Tensor, target: Tensor, strength: float, sigma_next: float) -> Tensor:
    """Shift of the next latent, in ComfyUI's sigma space.

    In VP space it is -strength * (x0 - target), with strength 200/N in the published code; the
    latent of sigma space is larger by sqrt(1 + sigma_next^2).
    """
    return -strength * (1 + sigma_next**2) ** 0.5 * (x0 - target)


def pull_through_network(
    predict: Callable[[Tensor], Tensor],
    aim: Callable[[Tensor], tuple[Tensor, Tensor]],
    x: Tensor,
    strength: float,
    sigma: float,
    sigma_next: float,
) -> tuple[Tensor, Tensor]:
    """The paper's update: a step along the gradient of half the squared distance w.r.t. x.

    Args:
        predict: x [F,C,h,w] in sigma space -> predicted x0, differentiable.
        aim: x0 -> (targets, weight), taken as given (no gradient flows into them).

    Returns: (x0 [F,C,h,w], shift of the next latent), both in sigma space, detached.
    """
    with torch.enable_grad():
        point = x.clone().requires_grad_(True)
        x0 = predict(point)
        targets, weight = aim(x0.detach())
        distance = 0.5 * (weight * (x0 - targets).square()).sum()
        (gradient,) = torch.autograd.grad(distance, point)
    # x_vp = x / sqrt(1 + sigma^2): the gradient in VP space is larger by that root
    scale = ((1 + sigma**2) * (1 + sigma_next**2)) ** 0.5
    return x0.detach(), -strength * scale * gradient


def carried(x0: Tensor, shift: Tensor, sigma: float, sigma_next: float) -> Tensor:
    """The prediction with which an Euler (DDIM) step ends `shift` further.

    Raises: ValueError where the step does not go anywhere, so that no prediction can move it.
    """
    length = 1 - sigma_next / sigma
    if abs(length) < 1e-6:
        raise ValueError(f"a step from sigma {sigma:.4g} to {sigma_next:.4g} carries no shift")
    return x0 + shift / length
