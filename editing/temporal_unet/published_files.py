"""Names of the published network's weights, and folders that its training script wrote."""

from __future__ import annotations

import json
import pickle
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from .network import TemporalNetwork
from .plan import Architecture, Part, Plan, Transformer, stages

NAMES = ("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin")
_UNIT = {"norm": "norm1_TempUnet", "conv": "conv1_TempUnet", "shortcut": "conv_shortcut_TempUnet"}
_STU = {
    "norm_frames": "norm_temp",
    "norm": "norm",
    "conv": "conv_3d",
    "attention.to_out": "attn_temp.to_out.0",
    "attention": "attn_temp",
}
_TUNED = {
    "self_query": "attn1.to_q",
    "cross_query": "attn2.to_q",
    "norm_frames": "norm_temp",
    "attention.to_out": "attn_temp.to_out.0",
    "attention": "attn_temp",
}


def published_names(plan: Plan) -> dict[str, str]:
    """Weight of our network -> weight of the published one, for every weight."""
    with torch.device("meta"):
        own = TemporalNetwork(plan, Architecture("published")).state_dict()
    modules = _modules(plan)
    found = {}
    for name in own:
        module, kind = name.rsplit(".", 1)
        if module not in modules:  # a projection inside a frame attention
            module, part = module.rsplit(".", 1)
            kind = f"{part}.{kind}"
        found[name] = f"{modules[module]}.{kind}"
    return found


def _modules(plan: Plan) -> dict[str, str]:
    """Module of our network -> module of the published one."""
    found = {"conv_in": "conv_in_TempUnet"}
    for ours, theirs, part in (
        *_located("encoder", "down_blocks", plan.encoder),
        *_located("decoder", "up_blocks", plan.decoder),
        *[(f"middle.{i}", f"mid_block.resnets.{i}", Part("unit", 0, 0)) for i in range(2)],
    ):
        if part.kind == "unit":
            found |= {f"{ours}.{k}": f"{theirs}.{v}" for k, v in _UNIT.items()}
        else:
            last = "conv_TempUnet" if part.kind == "down" else "upsample_TempUnet.1"
            found[f"{ours}.conv"] = f"{theirs}.{last}"
    sites = {"middle": "mid_stb_TempUnet"}
    sites |= {f"up{i}": f"up_stb_TempUnet.{i}" for i in range(len(stages(plan.decoder)))}
    for ours, theirs in sites.items():
        found |= {f"fusion.{ours}.{k}": f"{theirs}.{v}" for k, v in _STU.items()}
    for name, theirs in _attentions(plan).items():
        found |= {f"tuned.{name}.{k}": f"{theirs}.{v}" for k, v in _TUNED.items()}
    return found


def _located(ours: str, theirs: str, parts: Iterable[Part]) -> Iterable[tuple[str, str, Part]]:
    level = number = 0
    for place, part in enumerate(parts):
        if part.kind == "unit":
            yield f"{ours}.{place}", f"{theirs}.{level}.resnets.{number}", part
            number += 1
        else:
            kind = "downsamplers" if part.kind == "down" else "upsamplers"
            yield f"{ours}.{place}", f"{theirs}.{level}.{kind}.0", part
            level, number = level + 1, 0


def _attentions(plan: Plan) -> dict[str, str]:
    """Transformer of the plan -> published module path."""
    places: dict[tuple[str, int], str] = {}
    for kind, blocks, parts in (
        ("input", "down_blocks", plan.encoder),
        ("output", "up_blocks", plan.decoder),
    ):
        number = 1 if kind == "input" else 0
        for _, theirs, part in _located("", blocks, parts):
            if part.kind == "unit":
                places[kind, number] = theirs.replace("resnets", "attentions")
                number += 1
            elif kind == "input":  # a down-sampler is a block of its own
                number += 1
    places["middle", 0] = "mid_block.attentions.0"
    found = {}
    for transformer in plan.transformers:
        kind, number, index = transformer.name.split("_")
        path = places[kind, int(number)]
        found[transformer.name] = f"{path}.transformer_blocks.{index}"
    return found


def from_published(plan: Plan, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """State dict of our network from the published UNet's.

    Units after the encoder's stages, which the published code builds and never calls, are left.

    Raises: KeyError naming a weight that is missing.
    """
    return {ours: weights[theirs] for ours, theirs in published_names(plan).items()}


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
    weights = _read(path)
    try:
        plan = plan_from_weights(weights, **_settings(path.parent / "config.json"))
        own = from_published(plan, weights)
        probes = {ours: weights[theirs] for ours, theirs in PROBES.items()}
    except KeyError as error:
        raise ValueError(
            f"{folder.name} lacks {error.args[0]}: it holds no TCVE network. Choose the output "
            "folder of a TCVE training."
        ) from error
    return PublishedFolder(plan, own, probes)


def _read(path: Path) -> dict[str, Tensor]:
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, SafetensorError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise ValueError(
            f"{path.name} cannot be read safely ({str(error).splitlines()[0]}). It may be cut "
            "short, or hold more than weights: copy it again, or convert it to safetensors."
        ) from error


def _settings(config: Path) -> dict[str, int]:
    """What shapes do not tell, from the folder's config.json; SD1.x's where there is none."""
    data = json.loads(config.read_text(encoding="utf-8")) if config.is_file() else {}
    heads = data.get("attention_head_dim", 8)
    return {
        "heads": heads[0] if isinstance(heads, list) else heads,
        "groups": data.get("norm_num_groups", 32),
    }


def plan_from_weights(weights: Mapping[str, Tensor], heads: int = 8, groups: int = 32) -> Plan:
    """The plan of a published network, from its weights' names and shapes.

    Args:
        heads: of every attention. groups: of every group norm of the image UNet.

    Raises: KeyError when they are not those of a published network.
    """
    first = weights["conv_in_TempUnet.weight"]
    encoder, inputs = _stage_parts(weights, "down_blocks", heads, 1)
    decoder, outputs = _stage_parts(weights, "up_blocks", heads, 0)
    middle = "mid_block.attentions.0.transformer_blocks.0"
    between = (_transformer(weights, middle, "middle_0_0", heads),)
    return Plan(
        latent=first.shape[1],
        width=first.shape[0],
        encoder=tuple(encoder),
        middle=weights["mid_block.resnets.0.conv1_TempUnet.weight"].shape[0],
        decoder=tuple(decoder),
        groups=groups,
        transformers=(*inputs, *between, *outputs),
    )


def _stage_parts(
    weights: Mapping[str, Tensor], blocks: str, heads: int, number: int
) -> tuple[list[Part], list[Transformer]]:
    kind, sampler = ("input", "downsamplers.0.conv_TempUnet")
    if blocks == "up_blocks":
        kind, sampler = ("output", "upsamplers.0.upsample_TempUnet.1")
    parts: list[Part] = []
    transformers: list[Transformer] = []
    for level in range(_count(weights, rf"{blocks}\.(\d+)\.")):
        for i in range(_count(weights, rf"{blocks}\.{level}\.resnets\.(\d+)\.")):
            shape = weights[f"{blocks}.{level}.resnets.{i}.conv1_TempUnet.weight"].shape
            parts.append(Part("unit", shape[1], shape[0]))
            path = f"{blocks}.{level}.attentions.{i}.transformer_blocks.0"
            if f"{path}.attn1.to_q.weight" in weights:
                transformers.append(_transformer(weights, path, f"{kind}_{number}_0", heads))
            number += 1
        resampling = weights.get(f"{blocks}.{level}.{sampler}.weight")
        if resampling is not None:
            parts.append(Part("down" if kind == "input" else "up", *resampling.shape[:2]))
            number += kind == "input"
    return parts, transformers


def _count(weights: Mapping[str, Any], pattern: str) -> int:
    found = {int(m[1]) for name in weights if (m := re.match(pattern, name))}
    return len(found)


def _transformer(weights: Mapping[str, Tensor], path: str, name: str, heads: int) -> Transformer:
    width = weights[f"{path}.attn1.to_q.weight"].shape[1]
    return Transformer(name, width, heads, weights[f"{path}.attn2.to_k.weight"].shape[1])
