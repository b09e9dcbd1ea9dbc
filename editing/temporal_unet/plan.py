"""The shape of a temporal UNet: a mirror of the image UNet that it runs beside."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

from torch import nn

KINDS = ("paper", "published")
LAYOUTS = ("published code", "correct")


class Part(NamedTuple):
    """One part of the temporal UNet."""

    kind: str
    """"unit" (beside a ResBlock), "down" or "up" (beside a resampler)."""
    inputs: int
    outputs: int


class Transformer(NamedTuple):
    """One transformer block of the image UNet."""

    name: str
    """block_number_index, such as output_3_0."""
    width: int
    heads: int
    context: int
    """Width of the text tokens."""


@dataclass(frozen=True)
class Architecture:
    """What is trained and how it is joined."""

    kind: str = "paper"
    """"paper": temporal UNet and spatial-temporal units beside the untouched image UNet;
    "published": the published network, with its Tune-A-Video parts."""
    layout: str = "correct"
    """"published code" repeats its un-flattening of the temporal features with the wrong height."""
    down_units: bool = False
    """Spatial-temporal units after the encoder's stages too ("paper" only)."""

    def __post_init__(self) -> None:
        if self.kind not in KINDS or self.layout not in LAYOUTS:
            raise ValueError(f"unknown architecture {self.kind!r} with layout {self.layout!r}")

    @property
    def published(self) -> bool:
        return self.kind == "published"


@dataclass(frozen=True)
class Plan:
    """Channels of every part, in the order in which the image UNet runs."""

    latent: int
    """Channels of a latent."""
    width: int
    """Channels of the first convolution."""
    encoder: tuple[Part, ...]
    middle: int
    """Channels of the middle block."""
    decoder: tuple[Part, ...]
    groups: int
    """Groups of the image UNet's group norms."""
    transformers: tuple[Transformer, ...] = ()

    @property
    def multiple(self) -> int:
        """The frame count must be a multiple of this; other counts are padded."""
        return 2 ** sum(part.kind == "down" for part in self.encoder)

    def sites(self, architecture: Architecture) -> dict[str, int]:
        """Where features are fused, in order: name -> channels."""
        down = stages(self.encoder) if architecture.down_units else []
        found = {f"down{i}": part.outputs for i, part in enumerate(down)}
        found["middle"] = self.middle
        return found | {f"up{i}": part.outputs for i, part in enumerate(stages(self.decoder))}

    def as_json(self) -> dict[str, Any]:
        """For a file's metadata."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Plan:
        """Inverse of `as_json`. Raises: TypeError or KeyError when parts are missing."""
        lists: dict[str, Any] = {
            "encoder": tuple(Part(*part) for part in data["encoder"]),
            "decoder": tuple(Part(*part) for part in data["decoder"]),
            "transformers": tuple(Transformer(*part) for part in data["transformers"]),
        }
        return cls(**(data | lists))


def stages(parts: Iterable[Part]) -> list[Part]:
    """The last part of every stage: a stage ends with its resampler, the last one without."""
    parts = list(parts)
    ends = [part for part in parts if part.kind != "unit"]
    return ends if parts[-1].kind != "unit" else [*ends, parts[-1]]


def read_plan(unet: nn.Module) -> Plan:
    """The plan of a UNet with ComfyUI's block layout (input, middle and output blocks).

    Raises: ValueError for blocks that have no temporal counterpart.
    """
    blocks: Any = unet
    first = blocks.input_blocks[0][0]
    middle = [m for m in blocks.middle_block if type(m).__name__ == "ResBlock"]
    return Plan(
        latent=first.in_channels,
        width=first.out_channels,
        encoder=tuple(_parts(list(blocks.input_blocks)[1:])),
        middle=middle[-1].out_channels,
        decoder=tuple(_parts(blocks.output_blocks)),
        groups=middle[0].in_layers[0].num_groups,
        transformers=tuple(_transformers(unet)),
    )


def _parts(blocks: Iterable[Any]) -> Iterable[Part]:
    for block in blocks:
        for module in block:
            name = type(module).__name__
            if name == "ResBlock" and not module.updown:
                yield Part("unit", module.channels, module.out_channels)
            elif name == "Downsample":
                yield Part("down", module.channels, module.out_channels)
            elif name == "Upsample":
                yield Part("up", module.channels, module.out_channels)
            elif name != "SpatialTransformer":
                raise ValueError(
                    "Train and Apply Temporal UNet: expected a UNet of ResBlocks, spatial "
                    "transformers and resamplers (SD1.x, SD2.x, SDXL), found a "
                    f"{name}. Load another checkpoint."
                )


def _transformers(unet: nn.Module) -> Iterable[Transformer]:
    for name, block in transformer_blocks(unet):
        block_: Any = block
        width, context = block_.attn1.to_q.in_features, block_.attn2.to_k.in_features
        yield Transformer(name, width, block_.n_heads, context)


def transformer_blocks(unet: nn.Module) -> Iterable[tuple[str, nn.Module]]:
    """(name, module) of every transformer block, in the order in which they run."""
    blocks: Any = unet
    numbered = [("input", i, block) for i, block in enumerate(blocks.input_blocks)]
    numbered += [("middle", 0, blocks.middle_block)]
    numbered += [("output", i, block) for i, block in enumerate(blocks.output_blocks)]
    for kind, number, block in numbered:
        for module in block:
            if type(module).__name__ == "SpatialTransformer":
                for index, transformer in enumerate(module.transformer_blocks):
                    yield f"{kind}_{number}_{index}", transformer


def site_modules(unet: nn.Module, architecture: Architecture) -> dict[str, nn.Module]:
    """The module after which each site's features are fused: the last one of its stage."""
    blocks: Any = unet
    down = _stage_ends(blocks.input_blocks, "Downsample") if architecture.down_units else []
    found = {f"down{i}": module for i, module in enumerate(down)}
    found["middle"] = blocks.middle_block[-1]
    ends = _stage_ends(blocks.output_blocks, "Upsample")
    return found | {f"up{i}": module for i, module in enumerate(ends)}


def _stage_ends(blocks: Iterable[Any], resampler: str) -> list[nn.Module]:
    lasts = [block[-1] for block in blocks]
    ends = [module for module in lasts if type(module).__name__ == resampler]
    return ends if type(lasts[-1]).__name__ == resampler else [*ends, lasts[-1]]


def named_sites(
    node: str, text: str, plan: Plan, architecture: Architecture
) -> tuple[str, ...] | None:
    """The fusion sites that an artist typed, None for an empty text.

    Raises: ValueError for a name that this network does not have.
    """
    names = text.replace(",", " ").replace(";", " ").split()
    available = plan.sites(architecture)
    unknown = [name for name in names if name not in available]
    if unknown:
        raise ValueError(
            f"{node}: expected 'sites' to name fusion sites of this temporal UNet, got "
            f"{unknown[0]!r}. It has {', '.join(available)}. Leave 'sites' empty for all."
        )
    return tuple(name for name in available if name in names) or None
