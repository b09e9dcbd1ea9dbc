"""What a loaded model is: its self-attentions, family, latent space and fingerprint."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import comfy.latent_formats
import comfy.model_base
import torch
from torch import Tensor

from ..protocol import Site, feature_block
from ..types import Fingerprint

PROBED = ("time_embed.0.bias", "time_embed.2.bias", "input_blocks.0.0.weight", "out.2.weight")
"""Small weights that tell one checkpoint from another."""


def unet_of(patcher: Any) -> Any:
    """The UNet, unwrapped if it was compiled."""
    unet = patcher.get_model_object("diffusion_model")
    return getattr(unet, "_orig_mod", unet)


def with_own_weights(patcher: Any, node: str) -> Any:
    """A clone of the MODEL whose modules hold their weights as parameters, LoRAs merged.

    Newer ComfyUI pages the weights of a MODEL in and out behind the modules ("dynamic VRAM"), where
    they can be neither copied nor have a gradient; there the clone is of the plain kind.

    Raises: ValueError where ComfyUI cannot make such a clone.
    """
    if not getattr(patcher, "is_dynamic", lambda: False)():
        return patcher.clone()
    try:
        return patcher.clone(disable_dynamic=True)
    except RuntimeError as error:
        raise ValueError(
            f"{node}: expected a MODEL that ComfyUI can load without dynamic VRAM, got one that it "
            f"cannot ({error}). Load it with Load Checkpoint, or start ComfyUI with "
            "--disable-dynamic-vram."
        ) from error


def describe(patcher: Any) -> str:
    """Name of the model family as ComfyUI knows it."""
    config = getattr(patcher.model, "model_config", None)
    return type(config).__name__ if config is not None else type(patcher.model).__name__


def require_supported(patcher: Any, node: str) -> None:
    """Raises: ValueError for anything but an eps or v UNet (SD1.x, SD2.x, SDXL)."""
    kinds = comfy.model_base.ModelType
    kind = getattr(patcher.model, "model_type", None)
    unet = unet_of(patcher)
    if kind in (kinds.EPS, kinds.V_PREDICTION) and hasattr(unet, "output_blocks"):
        return
    came = f"{describe(patcher)} ({getattr(kind, 'name', 'unknown')} prediction)"
    raise ValueError(
        f"{node}: expected an eps or v model with a UNet (SD1.x, SD2.x or SDXL), got {came}. "
        "Flow models (Flux, SD3, Wan) are not supported: load another checkpoint."
    )


def sites_of(patcher: Any) -> list[Site]:
    """Every self-attention of the UNet, in the order in which it runs."""
    unet = unet_of(patcher)
    blocks = [("input", number, block) for number, block in enumerate(unet.input_blocks)]
    if unet.middle_block is not None:
        blocks.append(("middle", 0, unet.middle_block))
    blocks += [("output", number, block) for number, block in enumerate(unet.output_blocks)]
    return [
        Site(kind, number, index)
        for kind, number, block in blocks
        for module in block
        if type(module).__name__ == "SpatialTransformer"
        for index, transformer in enumerate(module.transformer_blocks)
        if not transformer.disable_self_attn
    ]


def supported_sites(patcher: Any, node: str) -> list[Site]:
    """`sites_of` a model that this pack can edit.

    Raises: ValueError for any other model.
    """
    require_supported(patcher, node)
    return sites_of(patcher)


def feature_layers(patcher: Any) -> torch.nn.Module | None:
    """`out_layers` of the ResBlock beside the second decoder self-attention module."""
    number = feature_block(sites_of(patcher))
    if number is None:
        return None
    resblock = unet_of(patcher).output_blocks[number][0]
    return getattr(resblock, "out_layers", None)


def is_compiled(patcher: Any) -> bool:
    """Whether torch.compile nodes have touched the UNet (hooks would be ignored there)."""
    if "diffusion_model" in patcher.object_patches:
        return True
    keys = [str(key) for table in patcher.wrappers.values() for key in table]
    return any("compile" in key for key in keys)


def latent_format(name: str) -> Any:
    """ComfyUI's latent format of that class name.

    Raises: ValueError when this ComfyUI does not know it.
    """
    found = getattr(comfy.latent_formats, name, None)
    if found is None:
        raise ValueError(
            f"Reweave: the inversion's latent format {name!r} is not known to this ComfyUI. "
            "Update ComfyUI, or run Invert Video again."
        )
    return found()


def format_name(patcher: Any) -> str:
    """Class name of the model's latent format."""
    return type(patcher.get_model_object("latent_format")).__name__


def sampling_parts(patcher: Any) -> list[Tensor | str]:
    """What decides how the network is asked and its answers are read: for `digest`.

    ModelSampling nodes exchange it; their classes all have one name and differ in their bases.
    """
    sampling = patcher.get_model_object("model_sampling")
    bases = [f"{base.__module__}.{base.__qualname__}" for base in type(sampling).__mro__]
    plain = {
        name: value
        for name, value in sorted(vars(sampling).items())
        if isinstance(value, bool | int | float | str) and name != "training"
    }
    return [str(bases), str(plain), sampling.sigmas.float()]


def fingerprint(patcher: Any) -> Fingerprint:
    """Identity of the base weights and of the patches on them.

    Base weights are read from the patcher's backup where a LoRA is applied in place.
    """
    weights = dict(unet_of(patcher).named_parameters())
    backups = getattr(patcher, "backup", {})
    for name in PROBED:
        backup = backups.get(f"diffusion_model.{name}")
        if backup is not None:
            weights[name] = backup.weight
    return weights_fingerprint(weights, _patches_hash(patcher))


def weights_fingerprint(weights: Mapping[str, Tensor], patches: str = "") -> Fingerprint:
    """Identity of a checkpoint, from its UNet's weights."""
    dtypes = {str(weights[name].dtype) for name in PROBED if name in weights}
    precision = "/".join(sorted(dtype.removeprefix("torch.") for dtype in dtypes))
    return Fingerprint(base_hash(weights), patches, precision)


def base_hash(weights: Mapping[str, Tensor]) -> str:
    """Hash of a checkpoint, from its UNet's weights; empty when they cannot be read."""
    value = hashlib.sha256()
    for name in PROBED:
        weight = weights.get(name)
        if weight is None or weight.is_meta:
            return ""
        value.update(_bytes(weight))
    return value.hexdigest()[:16]


def _patches_hash(patcher: Any) -> str:
    if not patcher.patches:
        return ""
    value = hashlib.sha256()
    for key in sorted(patcher.patches):
        value.update(str(key).encode())
        _feed(value, patcher.patches[key])
    return value.hexdigest()[:16]


def _feed(value: Any, part: Any) -> None:
    """Adds a part of a weight patch to a hash: strengths, kinds and tensors, however deep they lie.

    A LoRA is an adapter with factors and a scale, a LoCon diff ("diff", (weight,)), and a merge
    [(weight, function), *that model's own patches].
    """
    if isinstance(part, Tensor):
        value.update(str(tuple(part.shape)).encode())
        value.update(b"" if part.is_meta else _bytes(part.flatten()[:64]))
    elif isinstance(part, list | tuple):
        value.update(f"{len(part)}(".encode())
        for inner in part:
            _feed(value, inner)
    elif isinstance(part, dict):
        _feed(value, sorted(part.items()))
    elif part is None or isinstance(part, bool | int | float | str):
        value.update(f"{part!r},".encode())
    else:  # an adapter, or a function, which has no content of its own that could be read
        value.update(type(part).__name__.encode())
        _feed(value, getattr(part, "weights", None))


def _bytes(weight: Tensor) -> bytes:
    return weight.detach().to("cpu", torch.float16).contiguous().numpy().tobytes()
