"""Folders that the published training script wrote: read safely, checked as a whole."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from ..storage import require_safe_pickles
from .payload import shapes
from .plan import Architecture, Plan
from .published_names import from_published, plan_from_weights, published_names

NAMES = ("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin")


@dataclass(frozen=True)
class PublishedFolder:
    """What a folder of the published training script holds."""

    plan: Plan
    weights: dict[str, Tensor]
    """State dict of our network."""
    probes: dict[str, Tensor]
    """The image UNet's weights that tell one checkpoint from another, by ComfyUI's names."""


PROBES = {
    "time_embed.0.bias": "time_embedding.linear_1.bias",
    "time_embed.2.bias": "time_embedding.linear_2.bias",
    "input_blocks.0.0.weight": "conv_in.weight",
    "out.2.weight": "conv_out.weight",
}


def load_published(folder: Path) -> PublishedFolder:
    """Reads a diffusers-format folder: <folder>/unet/ or <folder>/ itself.

    Raises: ValueError when it holds no such network, or a file that cannot be read safely.
    """
    places = [place / name for place in (folder / "unet", folder) for name in NAMES]
    path = next((place for place in places if place.is_file()), None)
    if path is None:
        raise ValueError(
            f"expected unet/{NAMES[1]} (or .safetensors) in the folder {folder.name}, found none. "
            "Choose the output folder of a TCVE training."
        )
    name = path.relative_to(folder.parent).as_posix()
    settings = _settings(path.parent / "config.json", name.replace(path.name, "config.json"))
    weights = _read(path, name)
    try:
        plan = plan_from_weights(weights, **settings)
        own = from_published(plan, weights)
        probes = {ours: weights[theirs] for ours, theirs in PROBES.items()}
        _check_shapes(plan, own)
    except KeyError as error:
        raise ValueError(
            f"{folder.name} lacks {error.args[0]}: it holds no TCVE network. Choose the output "
            "folder of a TCVE training."
        ) from error
    except ValueError as error:
        raise ValueError(
            f"{name}: {error}. It is damaged or holds no TCVE network: copy the folder again, "
            "with its config.json."
        ) from error
    return PublishedFolder(plan, own, probes)


def _read(path: Path, name: str) -> dict[str, Tensor]:
    if path.suffix != ".safetensors":
        require_safe_pickles(name)
    try:
        found = (
            load_file(path)
            if path.suffix == ".safetensors"
            else torch.load(path, map_location="cpu", weights_only=True)
        )
    except Exception as error:  # what a broken pickle raises is up to its bytes
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(
            f"{name} cannot be read safely ({reason}). It may be cut short, or hold more than "
            "weights: copy it again, or convert it to safetensors."
        ) from error
    if not isinstance(found, dict) or not all(isinstance(v, Tensor) for v in found.values()):
        raise ValueError(
            f"{name} holds a {type(found).__name__}, expected weights by their names only. Choose "
            "the output folder of a TCVE training, or save the UNet's state_dict() there."
        )
    return found


def _check_shapes(plan: Plan, own: dict[str, Tensor]) -> None:
    """Raises: ValueError naming the published weight that has another shape than the plan's."""
    theirs = published_names(plan)
    for name, shape in shapes(plan, Architecture("published")).items():
        if tuple(own[name].shape) != shape:
            came = tuple(own[name].shape)
            raise ValueError(f"{theirs[name]} has the shape {came}, expected {shape}")


def _settings(config: Path, name: str) -> dict[str, int]:
    """What shapes do not tell, from the folder's config.json; SD1.x's where there is none."""
    try:
        data = json.loads(config.read_text(encoding="utf-8")) if config.is_file() else {}
    except (OSError, ValueError) as error:
        raise ValueError(f"{name} cannot be read ({error}). Copy it again.") from error
    if not isinstance(data, dict):
        raise ValueError(f"{name} holds no settings by name. Copy it again from a TCVE training.")
    return {
        "heads": _one_number(data.get("attention_head_dim", 8), "attention_head_dim", name),
        "groups": _one_number(data.get("norm_num_groups", 32), "norm_num_groups", name),
    }


def _one_number(value: Any, key: str, name: str) -> int:
    """A setting that may be written once, or as often as there are stages."""
    values = value if isinstance(value, list) and value else [value]
    found = values[0]
    if not isinstance(found, int) or found < 1 or values.count(found) < len(values):
        raise ValueError(
            f"{name}: expected {key} to be one number above 0 for all stages (as in SD1.x), got "
            f"{value}. Copy it again from a TCVE training."
        )
    return found
