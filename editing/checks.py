"""Settings that cannot work, said before anything runs: which node, what came, which knob."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from .anchor_attention import KEYS, AnchorAttention
from .extended_attention import MODES, ExtendedAttention
from .keyframes import DRAWS, RULES
from .latent_guidance import MODES as GUIDANCE_MODES
from .latent_guidance import TARGETS, LatentGuidance
from .plug_and_play import PlugAndPlay
from .protocol import Site
from .tokenflow import TokenFlow
from .types import Inversion, NNField, parse_site


def check_choice(node: str, knob: str, value: str, options: Sequence[str]) -> None:
    """Raises: ValueError when `value` is not one of the list's entries."""
    if value not in options:
        raise ValueError(
            f"{node}: expected '{knob}' to be one of {', '.join(options)}; got {value!r}. "
            "Choose one of these in the node's list."
        )


def check_range(node: str, knob: str, value: float, low: float, high: float | None = None) -> None:
    """Raises: ValueError when `value` lies outside low..high."""
    if value != value or value < low or (high is not None and value > high):
        wanted = f"at least {low:g}" if high is None else f"between {low:g} and {high:g}"
        raise ValueError(f"{node}: expected '{knob}' to be {wanted}, got {value:g}. Set it so.")


def check_draw(node: str, interval: int, key_frames: str, rule: str) -> None:
    """The settings that say which key frames are drawn.

    Raises: ValueError naming the node and the knob.
    """
    check_range(node, "interval", interval, 1)
    check_choice(node, "key_frames", key_frames, DRAWS)
    check_choice(node, "rule", rule, RULES)


def check_memory(node: str, what: str, planned: float, gigabytes: float, knob: str) -> str:
    """The plan in words.

    Args:
        planned: bytes.
        gigabytes: the node's max_gigabytes.
        knob: what else makes it smaller.

    Raises: ValueError with the plan when it is above the limit.
    """
    plan = f"{what} take {planned / 1e9:.3g} GB"
    if planned > gigabytes * 1e9:
        raise ValueError(
            f"{node}: {plan}, more than 'max_gigabytes' ({gigabytes:g}). {knob}, or raise "
            "'max_gigabytes'."
        )
    return plan


def region(node: str, mask: Tensor | None, frames: int) -> Tensor | None:
    """A usable mask [F or 1,H,W] in 0..1, or None where none was connected.

    Raises: ValueError for a wrong number of frames, NaN, or a mask that is black everywhere.
    """
    if mask is None:
        return None
    mask = mask[None] if mask.ndim == 2 else mask
    if mask.ndim != 3:
        raise ValueError(
            f"{node}: expected a MASK [frames,H,W], got {mask.ndim} dimensions. "
            "Convert the picture with Convert Image to Mask."
        )
    if len(mask) not in (1, frames):
        raise ValueError(
            f"{node}: expected a mask of 1 or {frames} frames (the inversion's), got {len(mask)}. "
            "Cut the mask like the clip, or connect one mask for all frames."
        )
    if not bool(torch.isfinite(mask).all()):
        raise ValueError(f"{node}: the mask holds NaN or infinity. Check the node that made it.")
    mask = mask.float().cpu().clamp(0, 1)
    if not bool((mask > 0).any()):
        raise ValueError(
            f"{node}: the mask is empty (black everywhere), so nothing may change. "
            "Paint what shall change in white, invert the mask, or disconnect 'mask'."
        )
    return mask


def chosen_sites(node: str, text: str, available: Sequence[Site]) -> tuple[Site, ...]:
    """The sites that an artist typed, in the model's order; empty for an empty text.

    Raises: ValueError for a name that cannot be read or that this model does not have.
    """
    names = text.replace(",", " ").replace(";", " ").split()
    try:
        wanted = {parse_site(name) for name in names}
    except ValueError as error:
        raise ValueError(_unknown(node, text, available)) from error
    if wanted - set(available):
        missing = ", ".join(str(site) for site in sorted(wanted - set(available)))
        raise ValueError(_unknown(node, missing, available))
    return tuple(site for site in available if site in wanted)


def _unknown(node: str, came: str, available: Sequence[Site]) -> str:
    names = ", ".join(str(site) for site in available)
    return (
        f"{node}: expected 'sites' to name self-attentions of this model, got {came!r}. "
        f"It has {names}. Leave 'sites' empty for the default."
    )


def check_extended_attention(edit: ExtendedAttention) -> ExtendedAttention:
    """The edit itself. Raises: ValueError naming the knob."""
    check_choice(edit.name, "mode", edit.mode, MODES)
    check_range(edit.name, "interval", edit.interval, 1)
    check_range(edit.name, "window", edit.window, 1)
    return edit


def check_anchor_attention(edit: AnchorAttention) -> AnchorAttention:
    """The edit with a usable mask. Raises: ValueError naming the knob."""
    check_choice(edit.name, "keys", edit.keys, KEYS)
    for knob in ("anchor", "refresh_every", "frames_per_pass"):
        check_range(edit.name, knob, getattr(edit, knob), 0)
    check_range(edit.name, "cross_fade", edit.cross_fade, 1)
    if edit.refresh_every and edit.cross_fade > edit.refresh_every:
        raise ValueError(
            f"{edit.name}: expected 'cross_fade' to be at most 'refresh_every' "
            f"({edit.refresh_every}), got {edit.cross_fade}: an anchor must have taken over "
            "before the next one comes. Lower 'cross_fade'."
        )
    if edit.mask is None:
        return edit
    if edit.inversion is None:
        raise mask_without_source(edit.name)
    return replace(edit, mask=region(edit.name, edit.mask, edit.inversion.frames))


def mask_without_source(node: str) -> ValueError:
    """A mask locks the background to the source, which must be there."""
    return ValueError(
        f"{node}: a mask keeps what lies outside as in the source, but no inversion is connected. "
        "Connect 'inversion', or disconnect 'mask'."
    )


def check_latent_guidance(edit: LatentGuidance) -> LatentGuidance:
    """The edit with a usable mask. Raises: ValueError naming the knob."""
    check_choice(edit.name, "target", edit.target, TARGETS)
    check_choice(edit.name, "mode", edit.mode, GUIDANCE_MODES)
    check_range(edit.name, "strength", edit.strength, 0)
    check_range(edit.name, "until", edit.until, 0, 1)
    check_range(edit.name, "anchor", edit.anchor, 0)
    check_range(edit.name, "target_step", edit.target_step, 0)
    frames = 1 if edit.region is None or edit.region.ndim == 2 else len(edit.region)
    return replace(edit, region=region(edit.name, edit.region, frames))


def check_plug_and_play(edit: PlugAndPlay) -> PlugAndPlay:
    """The edit with a usable mask. Raises: ValueError naming the knob."""
    check_range(edit.name, "inject_attention_until", edit.inject_attention_until, 0, 1)
    check_range(edit.name, "inject_features_until", edit.inject_features_until, 0, 1)
    return replace(edit, mask=region(edit.name, edit.mask, edit.inversion.frames))


def check_token_flow(edit: TokenFlow, sites: Sequence[Site]) -> TokenFlow:
    """The edit with a usable mask and, with a field connected, the field's own settings.

    Args:
        sites: every self-attention of the model, which a field must cover.

    Raises: ValueError naming the knob.
    """
    check_range(edit.name, "interval", edit.interval, 1)
    check_choice(edit.name, "rule", edit.rule, RULES)
    check_range(edit.name, "frames_per_pass", edit.frames_per_pass, 0)
    check_range(edit.name, "max_joint_key_frames", edit.max_joint_key_frames, 0)
    edit = replace(edit, mask=region(edit.name, edit.mask, edit.inversion.frames))
    if edit.nn_field is None:
        return edit
    field = edit.nn_field
    check_field(edit.name, field, edit.inversion, sites)
    return replace(
        edit, interval=field.interval, keyframe_seed=field.keyframe_seed, rule=field.rule
    )


def check_field(node: str, field: NNField, inversion: Inversion, sites: Sequence[Site]) -> None:
    """A field must belong to this inversion and hold every step and site.

    Raises: ValueError saying what does not fit and what to make again.
    """
    again = "Make it again with Nearest-Neighbour Field from this MODEL and INVERSION"
    if field.frames != inversion.frames:
        raise ValueError(
            f"{node}: the inversion has {inversion.frames} frames, the nearest-neighbour field "
            f"{field.frames}. {again}, or disconnect 'nn_field'."
        )
    if field.inversion_key != inversion.key:
        raise ValueError(
            f"{node}: the nearest-neighbour field was made from another inversion. {again}, "
            "or disconnect 'nn_field'."
        )
    steps = list(range(len(inversion.sigmas)))
    if len(field.key_frames) == len(steps) and field.covers(steps, list(sites)):
        return
    held = len({site for site, _ in field.index})
    raise ValueError(
        f"{node}: the nearest-neighbour field is partial: it holds {len(field.steps)} of "
        f"{len(steps)} steps and {held} of {len(sites)} self-attentions. {again} connected, not "
        "TOKENS (fields from tokens are for viewing), or disconnect 'nn_field'."
    )
