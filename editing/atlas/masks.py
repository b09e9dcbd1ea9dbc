"""Masks of every frame from masks of some: carried along the flow, then cut out by colour."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .flow import Flow, warp

SURE, UNSURE = 0.9, 0.1


def spread_masks(masks: Tensor, at: list[int], clip: Tensor, flow: Flow) -> Tensor:
    """Masks of all frames from masks of some.

    Every other frame takes the mask of the nearest one along the flow, step by step, and after
    each step the edge is cut out again (GrabCut, Rother et al. 2004) where the flow is doubtful.

    Args:
        masks: [K,1,H,W] 0..1. at: their frames, ascending. clip: [F,3,H,W].

    Returns: [F,1,H,W].
    """
    spread: list[Tensor] = [torch.empty(0)] * len(clip)
    for mask, frame in zip(masks, at, strict=True):
        spread[frame] = mask[None]
    for number, frame in enumerate(at):
        before = (at[number - 1] + frame) // 2 if number else -1
        for index in range(frame - 1, before, -1):
            moved = warp(spread[index + 1], flow.forward[index : index + 1])
            spread[index] = cut_out(clip[index], moved, flow.forward_ok[index])
        after = (frame + at[number + 1]) // 2 if number + 1 < len(at) else len(clip) - 1
        for index in range(frame + 1, after + 1):
            moved = warp(spread[index - 1], flow.backward[index - 1 : index])
            spread[index] = cut_out(clip[index], moved, flow.backward_ok[index - 1])
    return torch.cat(spread)


def cut_out(picture: Tensor, rough: Tensor, trusted: Tensor) -> Tensor:
    """The mask whose colours fit best near a rough one.

    Args:
        picture: [3,H,W]. rough: [1,1,H,W] 0..1. trusted: [H,W] bool, where only the edge itself
            may change; elsewhere all that is near the edge may.

    Returns: [1,1,H,W]; the rough mask itself where its colours tell nothing.
    """
    import cv2

    reach = max(1, round(max(rough.shape[2:]) / 64))
    labels = torch.where(rough[0, 0] > 0.5, cv2.GC_PR_FGD, cv2.GC_PR_BGD)
    for depth, where in ((reach, torch.ones_like(trusted)), (1, trusted)):
        high = F.max_pool2d(rough, 2 * depth + 1, 1, depth)[0, 0]
        low = -F.max_pool2d(-rough, 2 * depth + 1, 1, depth)[0, 0]
        labels = torch.where((low > SURE) & where, cv2.GC_FGD, labels)
        labels = torch.where((high < UNSURE) & where, cv2.GC_BGD, labels)
    if not bool((labels == cv2.GC_FGD).any()) or not bool((labels == cv2.GC_BGD).any()):
        return rough
    image = (picture * 255).round().clamp(0, 255).byte().movedim(0, -1).cpu().numpy()
    found = labels.byte().cpu().numpy()
    cv2.setRNGSeed(1)  # its colour models start from random clusters
    scratch = np.zeros((1, 65)), np.zeros((1, 65))
    cv2.grabCut(image[..., ::-1].copy(), found, None, *scratch, 2, cv2.GC_INIT_WITH_MASK)  # pyright: ignore[reportCallIssue, reportArgumentType]
    inside = (found == cv2.GC_FGD) | (found == cv2.GC_PR_FGD)
    cut = torch.from_numpy(inside).to(rough)[None, None]
    kept = float(cut.sum() / rough.sum().clamp_min(1))
    return F.avg_pool2d(cut, 3, 1, 1) if 0.6 < kept < 1.6 else rough
