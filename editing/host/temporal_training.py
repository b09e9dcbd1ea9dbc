"""Trains a temporal UNet beside a private copy of the MODEL's UNet: the MODEL is never touched."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import comfy.ldm.modules.attention as comfy_attention
import comfy.model_base
import comfy.model_management
import comfy.sampler_helpers
import comfy.samplers
import comfy.utils
import torch
from PIL import Image
from torch import Tensor, nn

from ..checks import check_memory, check_range
from ..temporal_unet.curve import loss_curve
from ..temporal_unet.memory import memory_plan
from ..temporal_unet.network import TemporalNetwork, adopt_queries, checkpointed, fresh_network
from ..temporal_unet.payload import TemporalUNet, at_rest
from ..temporal_unet.plan import Architecture, read_plan, transformer_blocks
from ..temporal_unet.snapshot import resume_from, save_snapshot, snapshot_key
from ..temporal_unet.training import Trainer, TrainingSettings
from .attach import edits_of
from .model import describe, fingerprint, require_supported, unet_of
from .notices import say
from .paths import cache_folder, cache_limit, trim_cache
from .temporal_unet import KEY

NODE = "Train Temporal UNet"
PREVIEW_SECONDS = 2.0
"""Between two pictures of the loss curve."""


@dataclass(frozen=True)
class TrainingRequest:
    """What Train Temporal UNet was asked for."""

    architecture: Architecture = field(default_factory=Architecture)
    settings: TrainingSettings = field(default_factory=TrainingSettings)
    snapshot_every: int = 25
    """Steps between two snapshots on disk; 0 = only when the training is stopped."""
    max_gigabytes: float = 24.0
    prompt: str = ""


def train_temporal(
    patcher: Any, positive: list, latent: dict[str, Any], request: TrainingRequest
) -> TemporalUNet:
    """Tunes a temporal UNet on one clip.

    Args:
        patcher: MODEL. positive: CONDITIONING, what the clip shows. latent: LATENT with samples
            [F,C,h,w].

    Raises: ValueError for what cannot be trained; what interrupts the queue passes through, with
        a snapshot from which the next run goes on.
    """
    check_request(patcher, latent["samples"], request)
    device = patcher.load_device
    # a node runs in inference mode, whose tensors cannot take part in a backward pass
    with torch.inference_mode(False), torch.enable_grad():
        latents = patcher.model.process_latent_in(latent["samples"].clone().float())
        told = conditioning_of(patcher, positive, latents)
        unet, half = private_unet(patcher, device)
        plan = read_plan(unet)
        net = fresh_network(plan, request.architecture, request.settings.training_seed)
        adopt_queries(net, unet)
        announce(net, unet, latents, request, half)
        if request.settings.checkpointing:
            checkpoint_blocks(unet)
        trainer = Trainer(
            net.to(device),
            unet,
            predictor(unet, told, device),
            latents.to(device),
            alphas_of(patcher),
            request.settings,
            predicts_v=patcher.model.model_type == comfy.model_base.ModelType.V_PREDICTION,
            half=half,
        )
        model = f"{fingerprint(patcher)}/{describe(patcher)}/{half}/{device.type}"
        key = snapshot_key(latents, told, model, plan, request.architecture, request.settings)
        run_training(trainer, cache_folder() / "training" / f"{key}.safetensors", request)
        weights = at_rest(trainer.net, own_queries(unet, request.architecture))
    return TemporalUNet(
        weights=weights,
        plan=plan,
        architecture=request.architecture,
        frames=len(latents),
        adds_to_queries=request.architecture.published,
        prompt=request.prompt,
        losses=tuple(trainer.losses),
        steps=trainer.done,
        learning_rate=request.settings.learning_rate,
        training_seed=request.settings.training_seed,
        fingerprint=fingerprint(patcher),
    )


def check_request(patcher: Any, samples: Tensor, request: TrainingRequest) -> None:
    """Raises: ValueError for what cannot be trained."""
    require_supported(patcher, NODE)
    names = [edit.name for edit in edits_of(patcher)]
    names += ["Apply Temporal UNet"] if patcher.get_attachment(KEY) else []
    if names:
        raise ValueError(
            f"{NODE}: this MODEL carries {' and '.join(names)}, which cannot act in training. "
            f"Connect the MODEL from before {names[0]}."
        )
    if samples.ndim != 4 or len(samples) < 2:
        raise ValueError(
            f"{NODE}: expected the latents of a clip [frames, channels, h, w] with 2 frames or "
            f"more, got {tuple(samples.shape)}. Connect the frames of one clip, encoded with VAE "
            "Encode."
        )
    if not bool(torch.isfinite(samples).all()):
        raise ValueError(f"{NODE}: the latents hold NaN or infinity. Try --fp32-vae.")
    check_range(NODE, "steps", request.settings.steps, 1)
    if not 0 < request.settings.learning_rate <= 1:
        raise ValueError(
            f"{NODE}: expected 'learning_rate' above 0 and at most 1, got "
            f"{request.settings.learning_rate:g}. 3e-05 is usual."
        )
    if request.architecture.published and request.architecture.down_units:
        raise ValueError(
            f"{NODE}: 'down_units' belongs to the architecture 'paper'; the published code builds "
            "them but never calls them. Switch it off, or choose 'paper'."
        )


def announce(
    net: TemporalNetwork,
    unet: nn.Module,
    latents: Tensor,
    request: TrainingRequest,
    half: torch.dtype | None,
) -> None:
    """Shows the memory plan, and what happens to an awkward frame count.

    Raises: ValueError when the plan is above the limit.
    """
    frames, multiple = len(latents), net.plan.multiple
    frozen = float(sum(weight.nbytes for weight in unet.parameters()))
    checkpointing = request.settings.checkpointing
    size = (frames, latents.shape[-2], latents.shape[-1])
    plan = memory_plan(net, frozen, size, checkpointing, half.itemsize if half else 4)
    knob = "Use fewer or smaller frames"
    if not checkpointing:
        knob = "Switch 'gradient_checkpointing' on, use fewer or smaller frames"
    text = check_memory(NODE, plan.text, plan.total, request.max_gigabytes, knob)
    if frames % multiple:
        text += f"; {frames} frames are padded by reflection to a multiple of {multiple}"
    say(text)


def conditioning_of(patcher: Any, positive: list, latents: Tensor) -> dict[str, Tensor]:
    """What the UNet is told: context [L,D], and y [D] where the model has pooled conditioning."""
    conds = comfy.sampler_helpers.convert_cond(positive[:1])
    device = patcher.load_device
    encoded = comfy.samplers.encode_model_conds(
        patcher.model.extra_conds, conds, latents, device, "positive", latent_image=latents
    )[0]["model_conds"]
    told = {"context": encoded["c_crossattn"].cond[0]}
    if "y" in encoded:
        told["y"] = encoded["y"].cond[0]
    return {name: value.detach().clone() for name, value in told.items()}


def private_unet(patcher: Any, device: torch.device) -> tuple[nn.Module, torch.dtype | None]:
    """A frozen copy of the UNet with its LoRAs, and the precision to compute in.

    Half precision where the device has bfloat16, else float32.
    """
    comfy.model_management.load_models_gpu([patcher], force_full_load=True)
    with torch.no_grad():
        unet = copy.deepcopy(unet_of(patcher)).requires_grad_(False).eval()
    comfy.model_management.unload_all_models()
    half = None
    if device.type == "cuda" and comfy.model_management.should_use_bf16(device):
        half = torch.bfloat16
    stored = next(unet.parameters()).dtype
    keep = half is not None and stored in (torch.float16, torch.bfloat16)
    return unet.to(device, stored if keep else half or torch.float32), half


def checkpoint_blocks(unet: nn.Module) -> None:
    """Lets the private copy's blocks compute their activations again in the backward pass."""
    for module in unet.modules():
        if type(module).__name__ in ("ResBlock", "SpatialTransformer"):
            plain = module.forward
            module.forward = _again(plain)


def _again(plain: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def forward(*inputs: Any) -> Tensor:
        return checkpointed(plain, *inputs)

    return forward


def predictor(
    unet: nn.Module, told: dict[str, Tensor], device: torch.device
) -> Callable[[Tensor, int], Tensor]:
    """Calls the private UNet on all frames with the clip's own prompt."""

    def attention(_chosen: Callable, *args: Any, **options: Any) -> Tensor:
        # kernels for inference may have no gradient
        return comfy_attention.attention_pytorch(*args, **options)

    def predict(noisy: Tensor, timestep: int) -> Tensor:
        frames = len(noisy)
        rows = {n: value.to(noisy).expand(frames, *value.shape) for n, value in told.items()}
        steps = torch.full((frames,), float(timestep), device=device)
        options = {"optimized_attention_override": attention}
        return unet(noisy, steps, transformer_options=options, **rows)

    return predict


def alphas_of(patcher: Any) -> Tensor:
    """[T] signal power of every timestep: 1 / (1 + sigma^2)."""
    sigmas = patcher.get_model_object("model_sampling").sigmas
    return (1 / (1 + sigmas.double() ** 2)).float().cpu().clone()


def own_queries(unet: nn.Module, architecture: Architecture) -> dict[str, Tensor]:
    """The image UNet's query weights by our names: tuned ones are stored as changes to them."""
    found: dict[str, Tensor] = {}
    for name, block in transformer_blocks(unet) if architecture.published else ():
        block_: Any = block
        found[f"tuned.{name}.self_query.weight"] = block_.attn1.to_q.weight
        found[f"tuned.{name}.cross_query.weight"] = block_.attn2.to_q.weight
    return found


def run_training(trainer: Trainer, path: Path, request: TrainingRequest) -> None:
    """Steps, progress, loss curve, snapshots; whatever stops it leaves a snapshot."""
    steps = request.settings.steps
    if resume_from(path, trainer):
        say(f"{NODE}: goes on from step {trainer.done} of an earlier run")
    bar, shown = comfy.utils.ProgressBar(steps), 0.0
    saved = trainer.done
    try:
        while trainer.done < steps:
            comfy.model_management.throw_exception_if_processing_interrupted()
            trainer.step()
            preview = None
            if time.monotonic() - shown > PREVIEW_SECONDS or trainer.done == steps:
                preview, shown = picture_of(trainer.losses, steps), time.monotonic()
            bar.update_absolute(trainer.done, steps, preview)
            if request.snapshot_every and trainer.done % request.snapshot_every == 0:
                save_snapshot(path, trainer)
                saved = trainer.done
    finally:
        if saved < trainer.done:
            with suppress(ValueError):  # a full disk must not hide what stopped the training
                save_snapshot(path, trainer)
        keep_snapshot(path)


def picture_of(losses: list[float], steps: int) -> tuple[str, Image.Image, int]:
    """The loss curve as ComfyUI's progress bar takes pictures."""
    pixels = (loss_curve(losses, steps)[0] * 255).round().byte().numpy()
    return "JPEG", Image.fromarray(pixels), 800


def keep_snapshot(path: Path) -> None:
    """Leaves room in the cache: a snapshot that would fill it is dropped, the oldest parts too."""
    if path.is_file() and path.stat().st_size > cache_limit():
        path.unlink()
    trim_cache(keep=path)
