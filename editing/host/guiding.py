"""Latent Guidance in ComfyUI: after guidance (CFG) has joined the branches, before the sampler.

A keyed PREDICT_NOISE wrapper shifts the prediction; for targets of a fixed step a SAMPLER_SAMPLE
wrapper finds them first.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import comfy.ldm.modules.attention as comfy_attention
import comfy.model_management
import torch
from torch import Tensor

from ..flow import LEAST_SIDE
from ..latent_guidance import (
    SETTLED,
    LatentGuidance,
    carried,
    pull,
    pull_through_network,
)
from ..session import Session
from ..types import NNField
from ..warping import FieldWarp, flow_between
from .memory import ran_out_of_memory
from .model import unet_of
from .notices import say
from .progress import progress

KEY = "reweave"
KEPT_PER_CHANNEL = {"ResBlock": 10, "SpatialTransformer": 32}
"""Values that autograd keeps per channel and position of such a module (measured)."""


def session_of(model_options: dict[str, Any]) -> Session | None:
    """The session of the running sampling call."""
    run = model_options.get("transformer_options", {}).get(KEY)
    return None if run is None else run.session


def predict_noise(
    executor: Any, x: Tensor, timestep: Tensor, model_options: dict[str, Any], seed: Any = None
) -> Tensor:
    """The prediction of one step, pulled where this step is guided."""
    session = session_of(model_options)
    if session is None:
        return executor(x, timestep, model_options, seed)
    guidance, sigma = session.guidance, float(timestep.flatten()[0])

    def predicted(point: Tensor, options: dict[str, Any]) -> Tensor:
        x0 = executor(point, timestep.clone(), options, seed)
        return session.locked(x0, point, sigma)

    if guidance is None or session.steps is None:
        return predicted(x, model_options)
    number, count = session.steps.step_of(sigma)
    sigma_next = session.steps.next_sigma(sigma)
    if not guidance.guides(number, count):
        x0 = predicted(x, model_options)
        session.observe(number, x0)
        return x0
    if guidance.mode == "gradient":
        options = with_plain_attention(model_options)
        x0, shift = _through_network(
            session, lambda point: predicted(point, options), x, sigma, sigma_next
        )
        shift = session.opened(shift)  # the network spreads a gradient over the whole frame
    else:
        x0 = predicted(x, model_options)
        targets, weight = session.aim(x0, sigma)
        shift = weight * pull(x0, targets, guidance.strength, sigma_next)
    session.observe(number, x0)
    return carried(x0, shift, sigma, sigma_next)


def _through_network(
    session: Session,
    predict: Callable[[Tensor], Tensor],
    x: Tensor,
    sigma: float,
    sigma_next: float,
) -> tuple[Tensor, Tensor]:
    guidance = session.guidance
    assert guidance is not None

    def aim(x0: Tensor) -> tuple[Tensor, Tensor]:
        targets, weight = session.aim(x0, sigma)
        return targets.clone(), weight.clone()

    try:
        with torch.inference_mode(False):
            return pull_through_network(
                predict, aim, x.clone(), guidance.strength, sigma, sigma_next
            )
    except RuntimeError as error:
        if not ran_out_of_memory(error):
            raise
        raise ValueError(
            f"{guidance.name}: mode 'gradient' ran out of memory: it keeps the network's "
            "activations of all frames. Use mode 'closed form', fewer frames or smaller pictures."
        ) from error


def with_plain_attention(model_options: dict[str, Any]) -> dict[str, Any]:
    """A copy of the options in which attention is PyTorch's own, which has a gradient."""
    plain = comfy_attention.attention_pytorch

    def override(_chosen: Callable, *args: Any, **kwargs: Any) -> Tensor:
        return plain(*args, **kwargs)

    inner = model_options.get("transformer_options", {})
    return model_options | {
        "transformer_options": inner | {"optimized_attention_override": override}
    }


def sampler_sample(
    executor: Any, model_wrap: Any, sigmas: Tensor, extra_args: dict, callback: Any, *rest: Any
) -> Tensor:
    """Finds the targets of a fixed step before the sampler starts.

    In the paper's order of work a frame is finished before the next one starts, so its prediction
    at a late step is there for the early steps of the next frame. With all frames in one call the
    targets are the fixed point of repeated short runs: after run r, frames 0 to r are exact.
    """
    session = session_of(extra_args["model_options"])
    guidance = session.guidance if session is not None else None
    if session is None or guidance is None or guidance.target != "fixed step":
        return executor(model_wrap, sigmas, extra_args, callback, *rest)
    frames = len(rest[0])
    short = sigmas[: guidance.target_step + 2]
    session.watched_step = guidance.target_step
    for number in range(frames - 1):
        executor(model_wrap, short, extra_args, None, *rest[:-1], True)
        change = session.settle()
        say(f"finding the fixed step's predictions: round {number + 1}, change {change:.1%}")
        if change < SETTLED:
            break
    session.watched_step = None
    return executor(model_wrap, sigmas, extra_args, callback, *rest)


def check_sampler(guidance: LatentGuidance, sampler: Any) -> None:
    """Raises: ValueError for a sampler whose step is not an Euler step."""
    function = getattr(sampler, "sampler_function", None)
    name = getattr(function, "__name__", type(sampler).__name__).removeprefix("sample_")
    churn = float(getattr(sampler, "extra_options", {}).get("s_churn", 0) or 0)
    if name != "euler" or churn:
        came = f"{name} with churn" if churn else name
        raise ValueError(
            f"{guidance.name}: expected the sampler euler or ddim (one evaluation per step, no "
            f"noise of its own), got {came}. Choose euler in KSamplerSelect."
        )


def check_gradient(guidance: LatentGuidance, patcher: Any, shape: tuple[int, ...]) -> None:
    """Says what mode 'gradient' will keep in memory.

    Raises: ValueError for quantised weights, or a plan above the free memory.
    """
    kinds = {weight.dtype for weight in unet_of(patcher).parameters()}
    odd = sorted(str(kind) for kind in kinds - {torch.float32, torch.float16, torch.bfloat16})
    if odd:
        raise ValueError(
            f"{guidance.name}: mode 'gradient' needs float weights, this model's are "
            f"{', '.join(odd)}, which have no gradient. Load the model in fp16 or bf16, or use "
            "mode 'closed form'."
        )
    planned = gradient_bytes(patcher, shape)
    device = patcher.load_device
    # what ComfyUI still holds of other models makes room first; this one has to be there too
    missing = patcher.model_size() - patcher.loaded_size()
    comfy.model_management.free_memory(planned + missing, device)
    missing = patcher.model_size() - patcher.loaded_size()
    free = float(comfy.model_management.get_free_memory(device)) - missing  # pyright: ignore[reportArgumentType]
    plan = f"mode 'gradient' keeps about {planned / 1e9:.2g} GB in memory"
    say(plan)
    if planned > free:
        raise ValueError(
            f"{guidance.name}: {plan}, {max(free, 0) / 1e9:.2g} GB are free beside the model. Use "
            "mode 'closed form', fewer frames or smaller pictures."
        )


def gradient_bytes(patcher: Any, shape: tuple[int, ...]) -> float:
    """Memory that mode 'gradient' needs for latents [F,C,h,w]: activations of both branches, and
    copies of the weights."""
    unet = unet_of(patcher)
    size, kept = 1.0, 0.0
    for block in (*unet.input_blocks, unet.middle_block, *unet.output_blocks):
        for module in block or ():
            kind = type(module).__name__
            size *= {"Downsample": 0.25, "Upsample": 4.0}.get(kind, 1.0)
            channels = getattr(module, "out_channels", None) or getattr(module, "in_channels", 0)
            depth = len(getattr(module, "transformer_blocks", ())) or 1
            kept += KEPT_PER_CHANNEL.get(kind, 0) * channels * depth * size
    weight = next(unet.parameters())
    positions = 2 * shape[0] * shape[-2] * shape[-1]
    return kept * positions * weight.element_size() + sum(w.nbytes for w in unet.parameters())


def differentiable(clone: Any) -> None:
    """Lets gradients pass through a model whose weights were loaded in inference mode.

    ComfyUI's weight wrappers copy a weight when a gradient is being computed, and only then.
    """
    for name, module in clone.model.named_modules():
        for kind in ("weight", "bias"):
            if hasattr(module, f"{kind}_function") and getattr(module, kind, None) is not None:
                clone.add_weight_wrapper(f"{name}.{kind}", _copied_for_gradient)


def _copied_for_gradient(weight: Tensor) -> Tensor:
    graded = torch.is_grad_enabled() and not torch.is_inference_mode_enabled()
    return weight.clone() if graded else weight


def warped(
    guidance: LatentGuidance, source_frames: Tensor | None, nn_field: NNField | None
) -> LatentGuidance:
    """The edit, with targets that are moved along the source's flow or field.

    Raises: ValueError where both are connected, or the field cannot serve this target.
    """
    if source_frames is not None and nn_field is not None:
        raise ValueError(
            f"{guidance.name}: expected one of 'source_frames' and 'nn_field', got both. "
            "Disconnect one of them."
        )
    if nn_field is not None:
        if guidance.target == "anchor frame":
            raise ValueError(
                f"{guidance.name}: a nearest-neighbour field leads to the frame before, not to "
                "'anchor frame'. Choose target 'previous frame', or connect 'source_frames'."
            )
        return replace(guidance, warp=FieldWarp(nn_field))
    if source_frames is None:
        return guidance
    guidance.check_anchor(len(source_frames))
    if not bool(torch.isfinite(source_frames).all()):
        raise ValueError(
            f"{guidance.name}: 'source_frames' hold NaN or infinity. Check the node that made them."
        )
    if min(source_frames.shape[1:3]) < LEAST_SIDE:
        raise ValueError(
            f"{guidance.name}: expected 'source_frames' of at least {LEAST_SIDE} pixels a side, "
            f"got {source_frames.shape[2]}x{source_frames.shape[1]}. Connect the clip's pictures."
        )
    tick = progress(len(source_frames))
    done = iter(range(1, len(source_frames) + 1))
    targets = guidance.sources(len(source_frames))
    flow = flow_between(source_frames, targets, lambda: tick(next(done)))
    return replace(guidance, warp=flow)


def model_latents(patcher: Any, latent: dict[str, Any] | None) -> Tensor | None:
    """A LATENT's samples in the model's own latent space, or None."""
    if latent is None:
        return None
    return patcher.get_model_object("latent_format").process_in(latent["samples"].float())
