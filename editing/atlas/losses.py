"""What a layered atlas is asked to be: the terms of Neural Layered Atlases (2021, section 3.2).

The formulas only; which points, weights and schedule is the fit's affair (fitting.py). Means over
all points, float32.
"""

from __future__ import annotations

import torch
from torch import Tensor


def colour(drawn: Tensor, wanted: Tensor) -> Tensor:
    """Squared colour error, summed over channels; [3,...] each."""
    return (drawn - wanted).square().sum(0).mean()


def sparsity(texture_colour: Tensor, alpha: Tensor) -> Tensor:
    """A front layer is black where it is not seen; [3,...] and [...]."""
    return ((1 - alpha) * texture_colour).square().sum(0).mean()


def rigidity(across: Tensor, down: Tensor) -> Tensor:
    """How far a mapping is from a rigid motion; at best 2 * sqrt(2), for a rigid one.

    Args:
        across, down: [...,2] what one pixel's step in x and in y becomes on the texture, in pixels
            (the columns of the Jacobian J).

    Returns: mean of ||J^T J|| + ||(J^T J + 0.001)^-1||, Frobenius norms.
    """
    xx, yy = across.square().sum(-1), down.square().sum(-1)
    xy = (across * down).sum(-1)
    grown = (xx.square() + 2 * xy.square() + yy.square()).clamp_min(1e-12).sqrt()
    a, d = xx + 0.001, yy + 0.001
    # ||inverse|| of a symmetric 2x2 matrix = ||matrix|| / determinant
    size = (a.square() + 2 * xy.square() + d.square()).sqrt()
    return (grown + size / (a * d - xy.square()).clamp_min(1e-6)).mean()


def carried(
    there: Tensor, here: Tensor, weight: Tensor, count: Tensor | float, soft: float = 1e-6
) -> Tensor:
    """A point keeps its place on the texture along the flow (in pixels of the texture).

    Args:
        there, here: [...,2] the place of the point in the other frame and in this one.
        weight: [...] how much the layer is seen, 0 where the flow is not to be believed.
        count: number of points to be averaged over.
        soft: distances below this count as their squares, so that what is nearly right rests.
    """
    distance = ((there - here).square().sum(-1) + soft * soft).sqrt() - soft
    return (distance * weight).sum() / count


def cross_entropy(alpha: Tensor, mask: Tensor, weight: Tensor | float = 1.0) -> Tensor:
    """Alpha against a rough mask; alpha strictly between 0 and 1."""
    return -((mask * alpha.log() + (1 - mask) * (1 - alpha).log()) * weight).mean()


def gradient(drawn: list[Tensor], wanted: list[Tensor]) -> Tensor:
    """Differences to the next pixel in x and in y are the clip's; [3,...] each."""
    pairs = zip(drawn, wanted, strict=True)
    return torch.stack([colour(a, b) for a, b in pairs]).sum()
