"""Trains a temporal UNet beside a private copy of the MODEL's UNet: the MODEL is never touched."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import comfy.model_management
import comfy.model_sampling
import comfy.sampler_helpers
import comfy.samplers
import comfy.utils
import torch
from PIL import Image
from torch import Tensor, nn

from ..checks import check_memory, check_range
from ..storage import discard
from ..temporal_unet.curve import loss_curve
from ..temporal_unet.memory import memory_plan
from ..temporal_unet.network import TemporalNetwork, adopt_queries, fresh_network
from ..temporal_unet.payload import TemporalUNet, at_rest
from ..temporal_unet.plan import Architecture, read_plan, transformer_blocks
from ..temporal_unet.snapshot import resume_from, save_snapshot, snapshot_key
from ..temporal_unet.training import Trainer, TrainingSettings
from .attach import edits_of
from .memory import ran_out_of_memory
from .model import describe, fingerprint, require_supported, unet_of
from .notices import say
from .paths import cache_folder, cache_limit, trim_cache
from .temporal_copy import (
    checkpoint_blocks,
    precision_of,
    predictor,
    private_unet,
    resident_bytes,
    weights_key,
)
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
    samples = latent["samples"]
    check_request(patcher, samples, request)
    frozen, half = precision_of(patcher)
    plan = announce(patcher, samples, request, frozen, half)
    try:
        return trained(patcher, positive, samples, request, (frozen, half))
    except RuntimeError as error:
        if not ran_out_of_memory(error):
            raise
        raise ValueError(
            f"{NODE}: ran out of memory ({plan}). {memory_knob(request)}, or close what else uses "
            "the device."
        ) from error


def trained(
    patcher: Any,
    positive: list,
    samples: Tensor,
    request: TrainingRequest,
    dtypes: tuple[torch.dtype, torch.dtype | None],
) -> TemporalUNet:
    """The training itself, of a request that was checked; dtypes: see `precision_of`."""
    # a node runs in inference mode, whose tensors cannot take part in a backward pass
    with torch.inference_mode(False), torch.enable_grad():
        trainer, key = prepared(patcher, positive, samples, request, *dtypes)
        run_training(trainer, cache_folder() / "training" / f"{key}.safetensors", request)
        weights = at_rest(trainer.net, own_queries(trainer.unet, request.architecture))
    return TemporalUNet(
        weights=weights,
        plan=trainer.net.plan,
        architecture=request.architecture,
        frames=len(samples),
        adds_to_queries=request.architecture.published,
        prompt=request.prompt,
        losses=tuple(trainer.losses),
        steps=trainer.done,
        learning_rate=request.settings.learning_rate,
        training_seed=request.settings.training_seed,
        fingerprint=fingerprint(patcher),
    )


def prepared(
    patcher: Any,
    positive: list,
    samples: Tensor,
    request: TrainingRequest,
    frozen: torch.dtype,
    half: torch.dtype | None,
) -> tuple[Trainer, str]:
    """An untrained network beside the private copy, and the key of its training's snapshot."""
    device, settings = patcher.load_device, request.settings
    latents = patcher.model.process_latent_in(samples.clone().float())
    told = conditioning_of(patcher, positive, latents)
    alphas, predicts_v = schedule_of(patcher)
    unet = private_unet(patcher, frozen, NODE)
    net = fresh_network(read_plan(unet), request.architecture, settings.training_seed)
    adopt_queries(net, unet)
    computes = f"{describe(patcher)}/{frozen}/{half}/{device.type}/{predicts_v}"
    key = snapshot_key(
        latents,
        told | {"alphas": alphas},
        f"{weights_key(unet)}/{computes}",
        net.plan,
        request.architecture,
        settings,
    )
    if settings.checkpointing:
        checkpoint_blocks(unet)
    predict = predictor(unet, told, device)
    latents = latents.to(device)
    trainer = Trainer(net.to(device), unet, predict, latents, alphas, settings, predicts_v, half)
    return trainer, key


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
    check_channels(patcher, samples)
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


def check_channels(patcher: Any, samples: Tensor) -> None:
    """Raises: ValueError when the UNet takes more or other channels than the clip has."""
    came = samples.shape[1]
    own = patcher.get_model_object("latent_format").latent_channels
    takes = unet_of(patcher).in_channels
    if came != own:
        raise ValueError(
            f"{NODE}: expected latents of {own} channels, which this {describe(patcher)} model "
            f"has, got {came}. Encode the clip with the VAE of this checkpoint."
        )
    if takes != own:
        raise ValueError(
            f"{NODE}: expected a UNet that takes the {own} channels of the latents, this "
            f"{describe(patcher)} model's takes {takes} (an inpainting model, or one that is "
            "given a picture). Load the plain checkpoint of the same family."
        )


def announce(
    patcher: Any,
    samples: Tensor,
    request: TrainingRequest,
    frozen: torch.dtype,
    half: torch.dtype | None,
) -> str:
    """Shows the memory plan, and what happens to an awkward frame count; loads nothing.

    Returns: the plan in words.

    Raises: ValueError when the plan is above the limit, or above what the device has.
    """
    with torch.device("meta"):
        net = TemporalNetwork(read_plan(unet_of(patcher)), request.architecture)
    frames, multiple = len(samples), net.plan.multiple
    checkpointing = request.settings.checkpointing
    plan = memory_plan(
        net,
        resident_bytes(patcher, frozen),
        (frames, samples.shape[-2], samples.shape[-1]),
        checkpointing,
        half.itemsize if half else 4,
    )
    knob = memory_knob(request)
    text = check_memory(NODE, plan.text, plan.total, request.max_gigabytes, knob)
    has = float(comfy.model_management.get_total_memory(patcher.load_device))  # pyright: ignore[reportArgumentType]
    if plan.total > has:
        raise ValueError(
            f"{NODE}: {text}, {patcher.load_device} has {has / 1e9:.3g} GB in all. {knob}."
        )
    if frames % multiple:
        text += f"; {frames} frames are padded by reflection to a multiple of {multiple}"
    say(text)
    return text


def memory_knob(request: TrainingRequest) -> str:
    """What makes a training smaller."""
    if request.settings.checkpointing:
        return "Use fewer or smaller frames"
    return "Switch 'gradient_checkpointing' on, use fewer or smaller frames"


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


def schedule_of(patcher: Any) -> tuple[Tensor, bool]:
    """[T] signal power of every timestep, 1 / (1 + sigma^2), and whether v is predicted."""
    sampling = patcher.get_model_object("model_sampling")
    sigmas = sampling.sigmas.cpu().double()  # on the CPU: Apple's GPUs have no float64
    alphas = (1 / (1 + sigmas**2)).float().clone()
    return alphas, isinstance(sampling, comfy.model_sampling.V_PREDICTION)


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
    tried = trainer.done
    try:
        while trainer.done < steps:
            comfy.model_management.throw_exception_if_processing_interrupted()
            trainer.step()
            preview = None
            if time.monotonic() - shown > PREVIEW_SECONDS or trainer.done == steps:
                preview, shown = picture_of(trainer.losses, steps), time.monotonic()
            bar.update_absolute(trainer.done, steps, preview)
            if request.snapshot_every and trainer.done % request.snapshot_every == 0:
                tried = trainer.done
                put_on_disk(trainer, path)
    finally:
        if tried < trainer.done:
            put_on_disk(trainer, path)
        keep_snapshot(path)


def put_on_disk(trainer: Trainer, path: Path) -> None:
    """Saves a snapshot; a full disk costs the snapshot, not the training."""
    try:
        save_snapshot(path, trainer)
    except ValueError as error:
        say(str(error))


def picture_of(losses: list[float], steps: int) -> tuple[str, Image.Image, int]:
    """The loss curve as ComfyUI's progress bar takes pictures."""
    pixels = (loss_curve(losses, steps)[0] * 255).round().byte().numpy()
    return "JPEG", Image.fromarray(pixels), 800


def keep_snapshot(path: Path) -> None:
    """Leaves room in the cache: a snapshot that would fill it is dropped, the oldest parts too."""
    if path.is_file() and path.stat().st_size > cache_limit():
        discard(path)
    trim_cache(keep=path)
