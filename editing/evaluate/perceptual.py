"""LPIPS (Zhang et al. 2018): distance as a trained network sees it, where its weights are there."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from .types import LOWER, NEAR_SOURCE, Check, Evidence, Metric, unwatched

BACKBONE = "alexnet-owt-7be5be79.pth"
LEAST_SIDE = 64
"""Pixels that AlexNet needs."""


def backbone() -> Path:
    """Where torchvision keeps the weights of AlexNet. Nothing is ever downloaded from here."""
    return Path(torch.hub.get_dir()) / "checkpoints" / BACKBONE


def why_not(evidence: Evidence) -> str:
    """Why LPIPS cannot be had; empty where it can."""
    if min(evidence.source.shape[1:3]) < LEAST_SIDE:
        return f"the frames are smaller than {LEAST_SIDE} pixels"
    if not backbone().is_file():
        return f"the weights of AlexNet ({BACKBONE}) are not in torch's hub folder"
    return ""


def lpips(one: Tensor, other: Tensor, check: Check = unwatched) -> Tensor:
    """[n] LPIPS (AlexNet, by torchmetrics) of pictures [n,H,W,3] in 0..1, pair by pair.

    Args:
        check: called before every pair; it may raise to stop.
    """
    from torchmetrics.image import LearnedPerceptualImagePatchSimilarity

    network = LearnedPerceptualImagePatchSimilarity(net_type="alex", normalize=True)
    found = []
    for a, b in zip(one.movedim(-1, 1), other.movedim(-1, 1), strict=True):
        check()
        found.append(network(a[None], b[None]))
    return torch.stack(found).double().detach()


def lpips_metrics(evidence: Evidence, check: Check = unwatched) -> list[Metric]:
    """LPIPS-P, between source and edit, and LPIPS-T, between neighbours (StableVideo 4.3)."""
    paper, why = "StableVideo 4.3", why_not(evidence)
    if why:
        return [
            Metric("LPIPS-P", "", paper, NEAR_SOURCE, missing=why),
            Metric("LPIPS-T", "", paper, LOWER, missing=why),
        ]
    source, edited = (
        clip[..., :3].float().cpu().clamp(0, 1) for clip in (evidence.source, evidence.edited)
    )
    between = Metric(
        "LPIPS-P", "", paper, NEAR_SOURCE, "AlexNet", series=lpips(source, edited, check),
        note="0 = the edit changed nothing",
    )  # fmt: skip
    if evidence.frames < 2:
        alone = "the clip has one frame only"
        return [between, Metric("LPIPS-T", "", paper, LOWER, missing=alone)]
    series, own = (lpips(clip[:-1], clip[1:], check) for clip in (edited, source))
    return [between, Metric("LPIPS-T", "", paper, LOWER, "AlexNet", series, own)]
