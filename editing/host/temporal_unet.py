"""A trained temporal UNet on a MODEL: keyed wrappers on the clone, nothing patched in place."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

import comfy.model_patcher
import comfy.ops
import comfy.patcher_extension
import torch
from torch import Tensor

from ...kernels.schedule import vp_from_sigma_space
from ..temporal_unet.features import Features
from ..temporal_unet.joining import Joint, joined
from ..temporal_unet.network import TemporalNetwork
from ..temporal_unet.payload import TemporalUNet
from ..temporal_unet.plan import Part, Plan, read_plan
from .call import CLIP, WHOLE_CLIP
from .memory import ran_out_of_memory
from .model import describe, fingerprint, is_compiled, require_supported, unet_of
from .notices import say
from .validate import check_conditioning

KEY = WHOLE_CLIP
NODE = "Apply Temporal UNet"
W = comfy.patcher_extension.WrappersMP


@dataclass(frozen=True)
class TemporalEdit:
    """What is applied, and how."""

    payload: TemporalUNet
    strength: float = 1.0
    sites: tuple[str, ...] | None = None
    """Where features are fused; None = at every unit that was trained."""
    overlap: int = 4
    """Frames that two windows share in clips longer than trained."""


def apply_temporal(patcher: Any, edit: TemporalEdit) -> Any:
    """A clone of the MODEL that samples with the temporal UNet; the MODEL is left as it is.

    Raises: ValueError when it was trained beside another model, or one is applied already.
    """
    require_supported(patcher, NODE)
    check_fit(patcher, edit.payload)
    clone = patcher.clone()
    if edit.strength == 0:
        return clone
    if patcher.get_attachment(KEY) is not None:
        raise ValueError(
            f"{NODE}: this MODEL already has a temporal UNet. Use one {NODE} per model: connect "
            "the MODEL from before the other one."
        )
    clone.set_attachments(KEY, edit)
    clone.set_additional_models(KEY, [own_patcher(patcher, edit.payload)])
    clone.add_wrapper_with_key(W.OUTER_SAMPLE, KEY, outer_sample)
    clone.add_wrapper_with_key(W.DIFFUSION_MODEL, KEY, diffusion_model)
    return clone


def temporal_key(patcher: Any) -> str:
    """Content key of the temporal UNet on a MODEL; empty where there is none."""
    edit: TemporalEdit | None = patcher.get_attachment(KEY)
    if edit is None:
        return ""
    return f"{edit.payload.key}/{edit.strength}/{edit.sites}/{edit.overlap}"


def own_patcher(patcher: Any, payload: TemporalUNet) -> Any:
    """The network as a model of its own, which ComfyUI counts, loads and offloads."""
    with torch.inference_mode(False):  # ordinary weights, so that guidance by gradients works
        net = payload.network(comfy.ops.manual_cast)
    return comfy.model_patcher.ModelPatcher(net, patcher.load_device, patcher.offload_device)


def check_fit(patcher: Any, payload: TemporalUNet) -> None:
    """Raises: ValueError when the image model is not the one of the training."""
    other = difference(payload.plan, read_plan(unet_of(patcher)), payload.architecture.published)
    if other is not None:
        part, trained, here = other
        raise ValueError(
            f"{NODE}: the temporal UNet was trained beside a UNet with other {part} ({trained}) "
            f"than this {describe(patcher)} model's ({here}). Load the checkpoint that it was "
            "trained with."
        )
    base, now = payload.fingerprint, fingerprint(patcher)
    if now.other_base(base) and now.other_rounding(base):
        say(
            f"{NODE}: trained beside {base.dtype} weights, this MODEL's are {now.dtype}; whether "
            "they are one checkpoint cannot be told"
        )
    elif now.other_base(base):
        raise ValueError(
            f"{NODE}: the temporal UNet was trained beside another checkpoint of the same kind "
            f"(base weights {base.base[:8]}, this MODEL {now.base[:8]}). Load the checkpoint that "
            "it was trained with, or train again with Train Temporal UNet."
        )
    if base.base and base.patches != now.patches:
        say(f"{NODE}: trained with other LoRAs than this MODEL has; expect small differences")


PARTS = {
    "latent": "input channels",
    "width": "channels of the first convolution",
    "encoder": "channels of the encoder",
    "middle": "channels of the middle block",
    "decoder": "channels of the decoder",
}


def difference(
    trained: Plan, here: Plan, with_transformers: bool
) -> tuple[str, str | int, str | int] | None:
    """The first part in which two UNets differ, as each has it; None = the network fits both."""
    for name, part in PARTS.items():
        one, other = getattr(trained, name), getattr(here, name)
        if one != other and isinstance(one, tuple):
            return part, channels(one), channels(other)
        if one != other:
            return part, one, other
    pairs = zip_longest(trained.transformers, here.transformers) if with_transformers else ()
    for one, other in pairs:
        texts = ["none" if t is None else f"{t.name}: {t.width}" for t in (one, other)]
        if texts[0] != texts[1]:
            return "transformer blocks", texts[0], texts[1]
    return None


def channels(parts: tuple[Part, ...]) -> str:
    """For messages: channels of the blocks and places of the resamplers, in order."""
    return "-".join(str(part.outputs) if part.kind == "unit" else part.kind for part in parts)


class TemporalRun:
    """What one sampling call keeps: the features of this step, at most of clip and source."""

    def __init__(self, edit: TemporalEdit, net: TemporalNetwork) -> None:
        self.edit, self.net = edit, net
        self.computed = 0
        """How often the temporal UNet ran."""
        self._sigma = 0.0
        self._known: list[tuple[Tensor, Features]] = []

    def joint(self, x: Tensor, options: dict[str, Any]) -> Joint:
        """What is fused in a call of the UNet on rows x [n*f,C,h,w], already scaled for it."""
        branches, sigma = len(options["cond_or_uncond"]), float(options["sigmas"][0])
        clip: Tensor | None = options.get(CLIP)
        frames = None
        if clip is None:
            clip = x[: len(x) // branches]
        else:
            chosen = options["ad_params"]["sub_idxs"]
            whole = list(range(len(clip)))
            frames = None if chosen == whole else torch.tensor(chosen)
            clip = vp_from_sigma_space(clip, sigma).to(x)
        return Joint(
            self._features(clip, sigma), branches, frames, self.edit.strength, self.edit.sites
        )

    def _features(self, clip: Tensor, sigma: float) -> Features:
        """Once per step and clip, whatever calls the step is split into."""
        if sigma != self._sigma:
            self._sigma, self._known = sigma, []
        guided = torch.is_grad_enabled() and clip.requires_grad
        for known, features in [] if guided else self._known:
            if known.shape == clip.shape and torch.equal(known, clip):
                return features
        self.computed += 1
        features = Features(self.net, clip[None], self.edit.payload.frames, self.edit.overlap)
        if not guided:  # a gradient's features belong to its own graph
            self._known.append((clip, features))
        return features


def outer_sample(executor: Any, *args: Any, **kwargs: Any) -> Tensor:
    """Creates the state of one sampling call and drops it at the end, error or not."""
    guider = executor.class_obj
    patcher = guider.model_patcher
    check_conditioning(NODE, guider.conds, guider.model_options)
    if is_compiled(patcher):
        raise ValueError(
            f"{NODE}: the UNet is compiled (torch.compile), which hides the features that are "
            "fused. Remove the compile node."
        )
    (own,) = patcher.get_additional_models_with_key(KEY)
    options = guider.model_options["transformer_options"]
    options[KEY] = TemporalRun(patcher.get_attachment(KEY), own.model)
    try:
        return executor(*args, **kwargs)
    finally:
        options.pop(KEY, None)


def diffusion_model(
    executor: Any,
    x: Tensor,
    timesteps: Tensor,
    context: Tensor | None = None,
    y: Tensor | None = None,
    control: dict | None = None,
    transformer_options: dict[str, Any] | None = None,
    **extra: Any,
) -> Tensor:
    """One call of the UNet with the temporal features; outside of sampling nothing is changed."""
    options = transformer_options or {}
    run: TemporalRun | None = options.get(KEY)
    if run is None:
        return executor(x, timesteps, context, y, control, options, **extra)
    try:
        with joined(executor.class_obj, run.joint(x, options)):
            return executor(x, timesteps, context, y, control, options, **extra)
    except RuntimeError as error:
        # Latent Guidance's gradient needs the room itself, and says so
        if torch.is_grad_enabled() or not ran_out_of_memory(error):
            raise
        branches = len(options["cond_or_uncond"])
        raise ValueError(
            f"{NODE}: {len(x) // branches} frames in one call ran out of memory. A temporal UNet "
            "looks along all frames, so the call cannot be cut. Use fewer or smaller frames."
        ) from error
