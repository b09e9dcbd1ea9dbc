"""Scores of an edit whose result is known: rendered clips only."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from demo.edit_clips import EditClip, Look, Rendered, render
from demo.measure import shade_distance
from demo.scenes import COLOURS, Scene, object_points, outline_distance

NEAR = 0.2
"""Distance from the shades of the target's colour (RGB in 0..1) up to which a pixel has it."""
APART = 0.22
"""Largest channel's difference from the background at which a pixel belongs to the object; less
where the target's own object stands out less than twice as much."""
TELLABLE = 0.85
"""Structure kept of the target itself below which the measure is not defined for a clip."""
UNITS = {
    "target colour coverage": "",
    "leak": "/255",
    "structure kept": "",
    "distance to target": "/255",
}
BETTER = ("target colour coverage", "structure kept")
"""Scores that are better when they are higher."""
UNDEFINED = {
    "target colour coverage": "only where the edit names one plain colour",
    "leak": "a style changes every pixel",
    "structure kept": "the target's object looks too much like its background",
    "distance to target": "the layout of textures and patterns is the model's own choice",
}


def point_colours(frames: Tensor, scene: Scene, count: int = 400) -> Tensor:
    """Colours [F,3,P] of fixed physical points inside the object of a scene (a row per frame)."""
    generator = torch.Generator().manual_seed(5)
    uv = torch.rand(1, 2, count, generator=generator) * 1.9 - 0.95
    inside = outline_distance(uv)[0, int(scene.shape[0])] < -0.12
    at = object_points(scene, uv[:, :, inside].expand(len(frames), -1, -1))  # [F, 2, P]
    grid = at.transpose(1, 2)[:, :, None]
    return F.grid_sample(frames, grid, align_corners=False)[..., 0]


def truth_scores(
    edited: Tensor, decoded: Tensor, clip: EditClip, source: Rendered
) -> dict[str, float]:
    """Every score that the clip's edit defines.

    Args:
        edited: [F,3,H,W] in 0..1.
        decoded: [F,3,H,W] the source through the VAE: what is kept is compared with it.

    Returns: target colour coverage (share of the pixels that were meant to take a colour and lie
    within NEAR of its shades), leak (mean change where nothing was meant to change, of 255),
    structure kept (intersection over union of the object that stands out from the target's
    background with the object's true mask), distance to target (mean difference from the rendered
    target, of 255).
    """
    target = render(clip, edited.shape[-1], clip.target)
    found: dict[str, float] = {}
    if _structure(target.frames, target) >= TELLABLE:
        found["structure kept"] = max(
            _structure(edited, target),
            # a background that stays as it was is no loss of the object
            _structure(edited, source) if clip.source.shape == clip.target.shape else 0.0,
        )
    region, colour = _meant(clip, target)
    if colour and bool(region.any()):
        distance = shade_distance(edited.movedim(1, -1)[region])[:, COLOURS.index(colour)]
        found["target colour coverage"] = float((distance <= NEAR).float().mean())
    kept = _kept(clip, source, target)
    if bool(kept.any()):
        found["leak"] = float((edited - decoded).abs().mean(1)[kept].mean()) * 255
    if _determined(clip.source, clip.target):
        found["distance to target"] = float((edited - target.frames).abs().mean()) * 255
    return found


def _structure(edited: Tensor, target: Rendered) -> float:
    free = target.passer[:, 0] < 0.02  # the second object says nothing about the first
    own = (target.frames - target.background).abs().amax(1)[(target.mask[:, 0] > 0.98) & free]
    threshold = min(APART, 0.5 * float(own.median()))
    apart = ((edited - target.background).abs().amax(1) > threshold) & free
    solid = (target.mask[:, 0] > 0.5) & free
    return float((apart & solid).sum() / (apart | solid).sum().clamp(min=1))


def _meant(clip: EditClip, target: Rendered) -> tuple[Tensor, str]:
    """Where one plain colour was asked for [F,H,W] bool, and its name; empty where none was."""
    source, wanted = clip.source, clip.target
    if wanted.style == "none" and wanted.colour != source.colour and wanted.texture == "plain":
        return target.mask[:, 0] > 0.8, wanted.colour
    if wanted.style == "none" and wanted.back != source.back and wanted.pattern == "plain":
        return (target.mask + target.passer)[:, 0] < 0.02, wanted.back
    return torch.zeros_like(target.mask[:, 0], dtype=torch.bool), ""


def _kept(clip: EditClip, source: Rendered, target: Rendered) -> Tensor:
    """Where nothing was meant to change [F,H,W] bool."""
    one, other = clip.source, clip.target
    objects = torch.maximum(source.mask, target.mask)[:, 0]
    kept = torch.full_like(objects, one.style == other.style, dtype=torch.bool)
    if (one.colour, one.texture, one.shape) != (other.colour, other.texture, other.shape):
        kept &= objects < 0.02
    if (one.back, one.pattern) != (other.back, other.pattern):
        kept &= torch.minimum(source.mask, target.mask)[:, 0] + source.passer[:, 0] > 0.98
    return kept


def _determined(one: Look, other: Look) -> bool:
    """Whether the words say all of the target: a style, or new colours without a new texture."""
    return one.texture == other.texture and one.pattern == other.pattern


def faults(clip: EditClip, size: int) -> list[str]:
    """What the scores say wrongly of the perfect edit, and of no edit at all: nothing, or the
    numbers are not worth measuring."""
    source, target = render(clip, size), render(clip, size, clip.target)
    perfect = truth_scores(target.frames, source.frames, clip, source)
    found: list[str] = []
    if perfect.get("target colour coverage", 1.0) < 0.97:
        found.append(f"coverage of the target is {perfect['target colour coverage']:.2f}")
    if perfect.get("leak", 0.0) > 0.5 or perfect.get("distance to target", 0.0) > 0:
        found.append("the target itself leaks, or differs from itself")
    if "structure kept" not in perfect and clip.target.style == "none":
        found.append("the target's own object cannot be told from its background")
    nothing = truth_scores(source.frames, source.frames, clip, source)
    if nothing.get("target colour coverage", 0.0) > 0.1:
        found.append(f"coverage without an edit is {nothing['target colour coverage']:.2f}")
    return found
