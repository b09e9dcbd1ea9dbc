"""What changed where nothing should: PSNR, MSE and SSIM outside a mask (FiVE)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..report import IDENTICAL
from .types import HIGHER, LOWER, Check, Evidence, Metric, unwatched

FIVE = "FiVE, as PnPBench"
MSE, PSNR, SSIM = "background MSE", "background PSNR", "background SSIM"
UNITS = {MSE: "1e-4", PSNR: "dB", SSIM: ""}
LEAST_SIDE = 16
"""Pixels that SSIM's window of 11 needs, with a little to average over."""


def background(evidence: Evidence) -> Tensor | None:
    """Outside the object: [F,H,W] bool at the clip's size; None without a mask."""
    if evidence.mask is None:
        return None
    size = evidence.source.shape[1:3]
    mask = F.interpolate(evidence.mask[:, None].float().cpu(), size, mode="bilinear")[:, 0]
    return (mask < 0.5).expand(evidence.frames, -1, -1)


def background_mse(one: Tensor, other: Tensor, outside: Tensor) -> Tensor:
    """[F] mean over the background's pixels and channels of (I - J)^2, values in 0..1, by
    torchmetrics; NaN where a frame has no background.

    Args:
        one, other: [F,H,W,3].
        outside: [F,H,W] bool.
    """
    from torchmetrics.functional import mean_squared_error

    frames = zip(one.double(), other.double(), outside, strict=True)
    return torch.stack([mean_squared_error(a[shown], b[shown]) for a, b, shown in frames])


def background_psnr(one: Tensor, other: Tensor, outside: Tensor) -> Tensor:
    """[F] PSNR of the background's pixels, by torchmetrics, at most IDENTICAL (two equal pictures);
    arguments and NaN as for `background_mse`."""
    from torchmetrics.functional.image import peak_signal_noise_ratio

    found = [
        peak_signal_noise_ratio(a[shown], b[shown], data_range=1.0)
        for a, b, shown in zip(one.double(), other.double(), outside, strict=True)
    ]
    return torch.stack(found).clamp(max=IDENTICAL)


def ssim_maps(one: Tensor, other: Tensor, check: Check = unwatched) -> Tensor:
    """[F,H,W] SSIM (Wang et al. 2004) at every pixel, mean over the channels, by torchmetrics:
    Gaussian window 11, sigma 1.5, borders mirrored. Its mean is torchmetrics' SSIM.

    Args:
        one, other: [F,H,W,3] in 0..1.
        check: called before every frame; it may raise to stop.
    """
    from torchmetrics.functional.image import structural_similarity_index_measure

    maps = []
    for a, b in zip(one.double().movedim(-1, 1), other.double().movedim(-1, 1), strict=True):
        check()
        found = structural_similarity_index_measure(
            a[None], b[None], data_range=1.0, return_full_image=True
        )
        maps.append(found[1][0].mean(0))
    return torch.stack(maps)


def background_ssim(
    one: Tensor, other: Tensor, outside: Tensor, check: Check = unwatched
) -> tuple[Tensor, Tensor]:
    """SSIM of pictures whose object is set to black; arguments as for `ssim_maps`.

    Returns: [F] mean of the map over the background (NaN without any), and [F] over the whole
    picture, as FiVE's code has it: there the blackened object counts as perfectly kept.
    """
    shown = outside[..., None]
    maps = ssim_maps(one * shown, other * shown, check)
    return torch.where(outside, maps, torch.nan).flatten(1).nanmean(1), maps.flatten(1).mean(1)


def background_metrics(evidence: Evidence, check: Check = unwatched) -> list[Metric]:
    """Source against edit outside the mask.

    PSNR and MSE are those of the background's pixels alone. FiVE's code sets the object to black
    in both pictures and averages over all pixels, which adds -10 log10(share of the background)
    to the PSNR; the notes give both.
    """
    outside = background(evidence)
    if outside is None or not bool(outside.any()):
        why = "no mask" if outside is None else "the mask covers the whole picture"
        return [_metric(name, missing=why) for name in UNITS]
    one, other = (
        clip[..., :3].float().cpu().clamp(0, 1) for clip in (evidence.source, evidence.edited)
    )
    psnr, mse = (by(one, other, outside) for by in (background_psnr, background_mse))
    share = outside.double().flatten(1).mean(1)
    published = (psnr - 10 * torch.log10(share)).clamp(max=IDENTICAL).nanmean()
    found = [
        _metric(MSE, mse * 1e4, note=f"{float(share.mean()):.0%} of the picture"),
        _metric(PSNR, psnr, note=f"averaged as in FiVE's code: {published:.2f} dB"),
    ]
    if min(one.shape[1:3]) < LEAST_SIDE:
        why = f"the frames are smaller than {LEAST_SIDE} pixels"
        return [*found, _metric(SSIM, missing=why)]
    similarity, whole = background_ssim(one, other, outside, check)
    note = f"averaged as in FiVE's code: {whole.mean():.4f}"
    return [*found, _metric(SSIM, similarity, note=note)]


def _metric(name: str, series: Tensor | None = None, missing: str = "", note: str = "") -> Metric:
    better = LOWER if name == MSE else HIGHER
    return Metric(name, UNITS[name], FIVE, better, series=series, missing=missing, note=note)
