"""Edits on a MODEL: frozen in the clone's attachments, brought to life for one sampling call.

Nothing of ours enters model_options. Three keyed wrappers create the session, declare the rows
of a pass, and hand every evaluation to the session.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import comfy.patcher_extension
import torch
from torch import Tensor

from ..anchor_attention import AnchorAttention
from ..latent_guidance import LatentGuidance
from ..plug_and_play import PlugAndPlay
from ..protocol import Edit
from ..session import Schedule, Session, Steps, combine
from ..tokenflow import TokenFlow
from ..types import Inversion
from ..warping import FieldWarp
from .call import WHOLE_CLIP, ModelCall, Room
from .feature_cache import step_cache
from .guiding import KEY, differentiable, predict_noise, sampler_sample
from .model import (
    feature_layers,
    fingerprint,
    latent_format,
    require_supported,
    sites_of,
    with_own_weights,
)
from .notices import warn
from .validate import check_sampling

UNCHANGED = 0.02
"""Relative RMS change of the latents below which an edit counts as having done nothing."""
W = comfy.patcher_extension.WrappersMP


def edits_of(patcher: Any) -> tuple[Edit, ...]:
    """The edits on a MODEL, in the order in which they were attached."""
    return patcher.get_attachment(KEY) or ()


def attach(patcher: Any, edit: Edit) -> Any:
    """A clone of the MODEL with one more edit; the MODEL itself is left as it is.

    Raises: ValueError when the model is not supported or the edits cannot act together.
    """
    require_supported(patcher, edit.name)
    edits = combine(edits_of(patcher), edit)
    graded = isinstance(edit, LatentGuidance) and edit.mode == "gradient"
    clone = with_own_weights(patcher, edit.name) if graded else patcher.clone()
    clone.set_attachments(KEY, edits)
    for kind, wrapper in (
        (W.OUTER_SAMPLE, outer_sample),
        (W.PREPARE_SAMPLING, prepare_sampling),
        (W.APPLY_MODEL, apply_model),
        (W.PREDICT_NOISE, predict_noise),
        (W.SAMPLER_SAMPLE, sampler_sample),
    ):
        clone.remove_wrappers_with_key(kind, KEY)
        clone.add_wrapper_with_key(kind, KEY, wrapper)
    if graded:
        differentiable(clone)
    return clone


class Run:
    """What one sampling call needs from the host; lives in that call's own options."""

    def __init__(self, patcher: Any, session: Session, inversion: Inversion | None) -> None:
        self.session, self.inversion = session, inversion
        self.sites = sites_of(patcher)
        self.room = Room()
        self.layers = feature_layers(patcher) if session.injection else None


def outer_sample(
    executor: Any,
    noise: Tensor,
    latent_image: Tensor,
    sampler: Any,
    sigmas: Tensor,
    *args: Any,
    **kwargs: Any,
) -> Tensor:
    """Creates the session of one sampling call and drops it at the end, error or not."""
    guider = executor.class_obj
    edits = edits_of(guider.model_patcher)
    denoise_mask = args[0] if args else kwargs.get("denoise_mask")
    inversion = check_sampling(guider, edits, noise, latent_image, sampler, sigmas, denoise_mask)
    notice_foreign_field(guider.model_patcher, edits, inversion)
    schedule = Schedule(sigmas.cpu(), inversion) if inversion else None
    cache = step_cache(guider.model_patcher, edits, latent_image)
    options = guider.model_options["transformer_options"]
    session = Session(edits, schedule, cache, Steps(sigmas.cpu()))
    options[KEY] = Run(guider.model_patcher, session, inversion)
    try:
        out = executor(noise, latent_image, sampler, sigmas, *args, **kwargs)
    finally:
        options.pop(KEY, None)
    if inversion is not None:
        notice_unchanged(out, inversion, edits)
    return out


def prepare_sampling(
    executor: Callable, model: Any, noise_shape: Any, *args: Any, **kwargs: Any
) -> Any:
    """Declares the rows of one pass, not of the clip, so that the model is not evicted."""
    if not cuts_its_passes(model, args, kwargs):
        return executor(model, noise_shape, *args, **kwargs)
    flow = next((edit for edit in edits_of(model) if isinstance(edit, TokenFlow)), None)
    if flow is not None:
        joint = -(-noise_shape[0] // flow.interval)
        joint = min(joint, flow.max_joint_key_frames or joint)
        rows = max(flow.frames_per_pass or noise_shape[0], joint)
        noise_shape = [min(rows, noise_shape[0]), *noise_shape[1:]]
    anchored = next((edit for edit in edits_of(model) if isinstance(edit, AnchorAttention)), None)
    if anchored is not None and anchored.frames_per_pass:
        noise_shape = [min(anchored.frames_per_pass, noise_shape[0]), *noise_shape[1:]]
    return executor(model, noise_shape, *args, **kwargs)


def cuts_its_passes(model: Any, args: tuple, kwargs: dict[str, Any]) -> bool:
    """Whether no more than one pass is on the device at a time.

    A temporal UNet looks along the clip, and ComfyUI runs a ControlNet on all frames at once.

    Args:
        args, kwargs: of PREPARE_SAMPLING behind the model and the shape: the conds come first.
    """
    conds: dict[str, list] = (args[0] if args else kwargs.get("conds")) or {}
    controlled = any("control" in cond for group in conds.values() for cond in group or [])
    return model.get_attachment(WHOLE_CLIP) is None and not controlled


def declared_rows(frames_per_pass: int) -> Callable:
    """A PREPARE_SAMPLING wrapper for passes of so many frames (0 = all in one)."""

    def prepare_sampling(
        executor: Callable, model: Any, noise_shape: Any, *args: Any, **kwargs: Any
    ) -> Any:
        if frames_per_pass and cuts_its_passes(model, args, kwargs):
            noise_shape = [min(frames_per_pass, noise_shape[0]), *noise_shape[1:]]
        return executor(model, noise_shape, *args, **kwargs)

    return prepare_sampling


def apply_model(
    executor: Callable,
    x: Tensor,
    t: Tensor,
    c_concat: Tensor | None = None,
    c_crossattn: Tensor | None = None,
    control: dict | None = None,
    transformer_options: dict[str, Any] | None = None,
    **extra: Any,
) -> Tensor:
    """Hands one evaluation to the session; without a session nothing is changed."""
    options = transformer_options or {}
    run: Run | None = options.get(KEY)
    if run is None:
        return executor(x, t, c_concat, c_crossattn, control, options, **extra)
    call = ModelCall(
        executor, x, t, c_concat, c_crossattn, control, options, extra,
        run.sites, run.layers, run.inversion, run.room,
    )  # fmt: skip
    return run.session.evaluate(call).flatten(0, 1)


def notice_foreign_field(
    patcher: Any, edits: tuple[Edit, ...], inversion: Inversion | None
) -> None:
    """Says which connected field was made with another model, or along another inversion."""
    for edit in edits:
        warp = getattr(edit, "warp", None)
        field = warp.field if isinstance(warp, FieldWarp) else getattr(edit, "nn_field", None)
        if field is None:
            continue
        now, then, other = fingerprint(patcher), field.fingerprint, ""
        if now.other_base(then) and not now.other_rounding(then):
            other = "with another checkpoint"
        elif then.base and now.patches != then.patches:
            other = "with another LoRA"
        elif inversion is not None and field.inversion_key != inversion.key:
            other = "from another inversion"
        if other:
            warn(
                f"{edit.name}: the nearest-neighbour field was made {other}, its matches may not "
                "fit. Make it again from this MODEL, or disconnect 'nn_field'"
            )


def notice_unchanged(out: Tensor, inversion: Inversion, edits: tuple[Edit, ...]) -> None:
    """Says which knob to turn when the clip came back as it was."""
    clean = latent_format(inversion.latent_format).process_out(inversion.clean.float())
    change = (out.cpu().float() - clean).square().mean().sqrt() / clean.std().clamp(min=1e-6)
    if float(change) >= UNCHANGED or not bool(torch.isfinite(change)):
        return
    injection = next((e for e in edits if isinstance(e, PlugAndPlay)), None)
    knob = "raise cfg or change the prompt"
    if injection and injection.inject_attention_until > 0.5:
        knob = "lower 'inject_attention_until' of Plug-and-Play, or raise cfg"
    warn(f"output = input: the edit left the clip as it was; {knob}")
