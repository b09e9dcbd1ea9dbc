"""Does the same physical point keep its colour? Needs exact uv: rendered clips, or an atlas."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from scipy.interpolate import LinearNDInterpolator
from scipy.spatial import QhullError
from torch import Tensor

from .types import LOWER, Check, Evidence, Metric, unwatched

NAME, PAPER = "point colour variation", "ours (exact uv)"
ACROSS = 64
"""Points along each side of the grid that is laid over the surface."""
WHOLE = 0.999
"""Share of the four pixels around a point that must show the surface."""
MOST_PIXELS = 20_000
"""Pixels that a frame's uv is triangulated with; more are thinned out (uv is smooth)."""


def colour_variation(colours: Tensor, seen: Tensor | None = None) -> Tensor:
    """Standard deviation over time of each point's colour, mean over the channels.

    Args:
        colours: [F,3,P].
        seen: [F,P] bool, None: always.

    Returns: [P] float64; NaN for points that fewer than two frames see. Divided by the number of
    frames less one, as torch does.
    """
    values = colours.double()
    if seen is None:
        return values.std(0).mean(0)
    shown = seen[:, None].double()
    count = shown.sum(0)
    mean = (values * shown).sum(0) / count.clamp(min=1)
    squares = ((values - mean).square() * shown).sum(0)
    deviation = (squares / (count - 1).clamp(min=1)).sqrt().mean(0)
    return torch.where(count[0] > 1, deviation, torch.nan)


def places_over_time(
    uv: Tensor, on_surface: Tensor | None, points: Tensor, check: Check = unwatched
) -> Tensor:
    """Where every frame shows points of a surface.

    Args:
        uv: [F,H,W,2].
        on_surface: [F,H,W] in 0..1; None: everywhere.
        points: [P,2] uv of the points.
        check: called before every frame; it may raise to stop.

    Returns: [F,P,2], see `pixel_places`.
    """
    found = []
    for number, places in enumerate(uv.cpu()):
        check()
        found.append(pixel_places(places, shown_in(number, uv, on_surface) > 0.5, points))
    return torch.stack(found)


def shown_in(number: int, uv: Tensor, on_surface: Tensor | None) -> Tensor:
    """[H,W] in 0..1: where a frame shows the surface."""
    return torch.ones(uv.shape[1:3]) if on_surface is None else on_surface[number].cpu().float()


def surface_colours(
    clip: Tensor, uv: Tensor, on_surface: Tensor | None, places: Tensor
) -> tuple[Tensor, Tensor]:
    """The colours of points of a surface over time, read bilinearly where each frame shows them.

    Args:
        clip: [F,H,W,3].
        uv: [F,H,W,2].
        on_surface: [F,H,W] in 0..1; None: everywhere.
        places: [F,P,2] of the points, from `places_over_time`.

    Returns: colours [F,3,P] and seen [F,P] bool: the pixels around the point show the surface.
    """
    colours, seen = [], []
    for number, frame in enumerate(clip[..., :3].float().cpu().movedim(-1, 1)):
        at = places[number]
        known = torch.isfinite(at).all(1)
        grid = torch.nan_to_num(at, nan=-9.0)[None, None]
        layers = torch.cat([frame, shown_in(number, uv, on_surface)[None]])[None]
        read = F.grid_sample(layers, grid, align_corners=False)[0, :, 0]
        colours.append(read[:3])
        seen.append(known & (read[3] > WHOLE))
    return torch.stack(colours), torch.stack(seen)


def pixel_places(uv: Tensor, there: Tensor, points: Tensor) -> Tensor:
    """Where a frame shows points of a surface: its uv read backwards, linear between pixels.

    Args:
        uv: [H,W,2].
        there: [H,W] bool, the pixels that show the surface.
        points: [P,2].

    Returns: [P,2] places (x, y), -1 and 1 the outer edges of the frame; NaN beyond the surface.
    """
    height, width = there.shape
    step = max(1, round((float(there.sum()) / MOST_PIXELS) ** 0.5))
    rows, columns = torch.nonzero(there, as_tuple=True)
    kept = (rows % step == 0) & (columns % step == 0)
    rows, columns = rows[kept], columns[kept]
    places = torch.stack([(columns + 0.5) / width, (rows + 0.5) / height], 1) * 2 - 1
    try:
        backwards = LinearNDInterpolator(uv[rows, columns].double().numpy(), places.numpy())
    except (QhullError, ValueError):  # too few pixels, or all on one line
        return torch.full_like(points, torch.nan)
    return torch.from_numpy(backwards(points.double().numpy())).to(points.dtype)


def surface_points(uv: Tensor, on_surface: Tensor | None) -> Tensor:
    """A grid of points [P,2] over the part of the surface that the clip shows."""
    shown = uv.flatten(0, 2) if on_surface is None else uv[on_surface > 0.5]
    low, high = shown.amin(0).cpu(), shown.amax(0).cpu()
    along = (torch.arange(ACROSS) + 0.5) / ACROSS
    grid = torch.stack(torch.meshgrid(along, along, indexing="xy"), -1).flatten(0, 1)
    return low + grid * (high - low)


def point_metric(evidence: Evidence, check: Check = unwatched) -> Metric:
    """For every point of the surface that frames see: the standard deviation of its edited colour
    over time; mean over the points, in 8-bit values.

    The series is the mean distance of each frame's colours from their mean over time.
    """
    unit = "of 255"
    if evidence.uv is None:
        why = evidence.why_absent("uv", "no exact uv")
        return Metric(NAME, unit, PAPER, LOWER, missing=why)
    surface = (evidence.uv, evidence.on_surface)
    places = places_over_time(*surface, surface_points(*surface), check)
    found = [surface_colours(c, *surface, places) for c in (evidence.edited, evidence.source)]
    (colours, seen), (own, _) = found
    variation, source_variation = (colour_variation(c, seen) * 255 for c in (colours, own))
    if not bool(torch.isfinite(variation).any()):
        why = "no point of the surface is seen in two frames"
        return Metric(NAME, unit, PAPER, LOWER, missing=why)
    return Metric(
        NAME,
        unit,
        PAPER,
        LOWER,
        estimator="exact uv",
        note=f"{int((seen.sum(0) > 1).sum())} points",
        series=_from_mean(colours, seen) * 255,
        source_series=_from_mean(own, seen) * 255,
        total=float(variation.nanmean()),
        source_total=float(source_variation.nanmean()),
    )


def _from_mean(colours: Tensor, seen: Tensor) -> Tensor:
    """[F] mean over the points that a frame sees of |colour - its mean over time|."""
    shown = seen[:, None].double()
    mean = (colours.double() * shown).sum(0) / shown.sum(0).clamp(min=1)
    distance = (colours.double() - mean).abs().mean(1)
    return torch.where(seen, distance, torch.nan).nanmean(1)
