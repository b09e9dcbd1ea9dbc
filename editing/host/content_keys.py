"""Keys of what a result depends on, so that it can be found again instead of computed again."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..types import digest
from .attach import edits_of
from .model import describe, fingerprint, sampling_parts

PROBED = 64
"""Values of every weight that go into a key."""


def model_key(patcher: Any, *conditionings: list) -> str | None:
    """Of a MODEL and the CONDITIONING it is told; None where something acts that has no content
    hash (edits, hooks, other packs' functions, a ControlNet on the conditioning)."""
    found = fingerprint(patcher)
    told = [_conditioning_parts(conditioning) for conditioning in conditionings]
    if not found.base or _has_functions(patcher):
        return None
    parts: list[Tensor | str] = [str(found), describe(patcher), *sampling_parts(patcher)]
    for entry in told:
        if entry is None:
            return None
        parts += entry
    return digest(*parts, str(patcher.model_dtype()), patcher.load_device.type)


def _has_functions(patcher: Any) -> bool:
    """Whether anything acts on a MODEL that is code, which cannot be told apart by content."""
    inside = patcher.model_options.get("transformer_options", {})
    return bool(
        edits_of(patcher)
        or set(patcher.model_options) - {"transformer_options"}
        or any(value not in ({}, [], None) for value in inside.values())
        or set(patcher.object_patches) - {"model_sampling"}
        or patcher.wrappers
        or patcher.injections
        or patcher.hook_patches
        or patcher.weight_wrapper_patches
    )


def _conditioning_parts(conditioning: list) -> list[Tensor | str] | None:
    """Content of a CONDITIONING; None where it holds more than tensors and plain values."""
    parts: list[Tensor | str] = [f"{len(conditioning)} entries"]
    for embedding, settings in conditioning:
        parts.append(embedding)
        for name, value in sorted(settings.items()):
            if isinstance(value, Tensor):
                parts += [name, value]
            elif _is_plain(value):
                parts.append(f"{name}={value}")
            else:
                return None
    return parts


def _is_plain(value: Any) -> bool:
    if isinstance(value, tuple):
        return all(_is_plain(part) for part in value)
    return value is None or isinstance(value, str | int | float | bool)


def vae_key(vae: Any) -> str | None:
    """Of a VAE; None for one without weights of the usual name."""
    return _weights_key(getattr(vae, "first_stage_model", None))


def control_key(control_net: Any) -> str | None:
    """Of a CONTROL_NET; "" for none, None for one whose weights are not known here."""
    if control_net is None:
        return ""
    for name in ("control_model", "t2i_model"):
        if getattr(control_net, name, None) is not None:
            return _weights_key(getattr(control_net, name))
    return None


def _weights_key(module: torch.nn.Module | None) -> str | None:
    if not isinstance(module, torch.nn.Module):
        return None
    parts: list[Tensor | str] = []
    for name, weight in module.state_dict().items():
        if weight.is_meta:
            return None
        parts += [f"{name}{tuple(weight.shape)}", weight.flatten()[:PROBED].float()]
    return digest(*parts)
