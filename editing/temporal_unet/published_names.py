"""Names and shapes of the published network's weights, against those of ours."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from .network import TemporalNetwork
from .plan import Architecture, Part, Plan, Transformer, stages

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


def plan_from_weights(weights: Mapping[str, Tensor], heads: int = 8, groups: int = 32) -> Plan:
    """The plan of a published network, from its weights' names and shapes.

    Args:
        heads: of every attention. groups: of every group norm of the image UNet.

    Raises: KeyError or ValueError when they are not those of a published network.
    """
    width, latent, _ = _shape(weights, "conv_in_TempUnet.weight", 3)
    encoder, inputs = _stage_parts(weights, "down_blocks", heads, 1)
    decoder, outputs = _stage_parts(weights, "up_blocks", heads, 0)
    middle = "mid_block.attentions.0.transformer_blocks.0"
    between = (_transformer(weights, middle, "middle_0_0", heads),)
    plan = Plan(
        latent=latent,
        width=width,
        encoder=tuple(encoder),
        middle=_shape(weights, "mid_block.resnets.0.conv1_TempUnet.weight", 3)[0],
        decoder=tuple(decoder),
        groups=groups,
        transformers=(*inputs, *between, *outputs),
    )
    _check_divisions(plan, heads)
    return plan


def _check_divisions(plan: Plan, heads: int) -> None:
    """Raises: ValueError for heads or groups that belong to another network."""
    for part in (*plan.encoder, *plan.decoder):
        if part.inputs % plan.groups:
            raise ValueError(f"{part.inputs} channels do not divide into {plan.groups} groups")
    for transformer in plan.transformers:
        if transformer.width % heads:
            raise ValueError(f"{transformer.width} channels do not divide into {heads} heads")


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
            name = f"{blocks}.{level}.resnets.{i}.conv1_TempUnet.weight"
            outputs, inputs, _ = _shape(weights, name, 3)
            parts.append(Part("unit", inputs, outputs))
            path = f"{blocks}.{level}.attentions.{i}.transformer_blocks.0"
            if f"{path}.attn1.to_q.weight" in weights:
                transformers.append(_transformer(weights, path, f"{kind}_{number}_0", heads))
            number += 1
        name = f"{blocks}.{level}.{sampler}.weight"
        if name in weights:
            outputs, inputs, _ = _shape(weights, name, 3)
            parts.append(Part("down" if kind == "input" else "up", inputs, outputs))
            number += kind == "input"
    if not parts:
        raise KeyError(f"{blocks}.0.resnets.0.conv1_TempUnet.weight")
    return parts, transformers


def _count(weights: Mapping[str, Any], pattern: str) -> int:
    found = {int(m[1]) for name in weights if (m := re.match(pattern, name))}
    return len(found)


def _transformer(weights: Mapping[str, Tensor], path: str, name: str, heads: int) -> Transformer:
    _, width = _shape(weights, f"{path}.attn1.to_q.weight", 2)
    _, context = _shape(weights, f"{path}.attn2.to_k.weight", 2)
    return Transformer(name, width, heads, context)


def _shape(weights: Mapping[str, Tensor], name: str, axes: int) -> tuple[int, ...]:
    found = tuple(weights[name].shape)
    if len(found) != axes:
        raise ValueError(f"{name} has the shape {found}, expected {axes} dimensions")
    return found
