"""Keys of what a result depends on, so that it can be found again instead of computed again."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..types import digest
from .inverting import InversionRequest, cache_key

PROBED = 64
"""Values of every weight that go into a key."""


def model_key(patcher: Any, *conditionings: list) -> str | None:
    """Of a MODEL and the CONDITIONING it is told; None where something acts that has no content
    hash (edits, hooks, a ControlNet on the conditioning)."""
    keys = [cache_key(patcher, c, torch.zeros(1), InversionRequest()) for c in conditionings]
    return None if None in keys else digest(*[key or "" for key in keys])


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
