"""The trained network: temporal UNet, spatial-temporal units and, published, Tune-A-Video parts."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.utils.checkpoint
from torch import Tensor, nn

from .plan import Architecture, Part, Plan, transformer_blocks
from .units import FrameAttention, SpatialTemporalUnit, TemporalDown, TemporalUnit, TemporalUp

Runner = Callable[..., Tensor]


class TunedAttention(nn.Module):
    """What the published network changes in one transformer block (Tune-A-Video)."""

    def __init__(self, width: int, heads: int, layers: Any = nn) -> None:
        super().__init__()
        self.self_query = layers.Linear(width, width, bias=False)
        self.cross_query = layers.Linear(width, width, bias=False)
        self.norm_frames = layers.LayerNorm(width)
        self.attention = FrameAttention(width, heads, layers)

    def change(self, tokens: Tensor) -> Tensor:
        """What attention over the frames adds after the feed-forward; [N,F,L,C] -> [N,F,L,C]."""
        rows = tokens.transpose(1, 2)
        out = self.attention(self.norm_frames(rows.flatten(0, 1)))
        return out.unflatten(0, rows.shape[:2]).transpose(1, 2)


class TemporalNetwork(nn.Module):
    """Everything that training changes. The image UNet itself is not part of it.

    `layers` supplies Linear, Conv1d, Conv3d, GroupNorm and LayerNorm; ComfyUI's own classes cast
    weights where they are used.
    """

    def __init__(self, plan: Plan, architecture: Architecture, layers: Any = nn) -> None:
        super().__init__()
        self.plan, self.architecture = plan, architecture
        self.adds_to_queries = False
        """Whether the tuned query weights are added to the image UNet's, or replace them."""
        self.conv_in = layers.Conv1d(plan.latent, plan.width, 7, padding=3)
        self.encoder = nn.ModuleList(_modules(plan.encoder, plan.groups, layers))
        unit = Part("unit", plan.middle, plan.middle)
        self.middle = nn.ModuleList(_modules([unit, unit], plan.groups, layers))
        self.decoder = nn.ModuleList(_modules(plan.decoder, plan.groups, layers))
        sites = plan.sites(architecture)
        self.fusion = nn.ModuleDict({s: SpatialTemporalUnit(c, layers) for s, c in sites.items()})
        tuned = plan.transformers if architecture.published else ()
        self.tuned = nn.ModuleDict(
            {t.name: TunedAttention(t.width, t.heads, layers) for t in tuned}
        )

    def unit_at(self, site: str) -> SpatialTemporalUnit:
        """The spatial-temporal unit of a site."""
        unit = self.fusion[site]
        assert isinstance(unit, SpatialTemporalUnit)
        return unit

    def trainable(self) -> dict[str, nn.Parameter]:
        """All parameters but the norms before the frame attention of Tune-A-Video, as published."""
        named = dict(self.named_parameters())
        return {n: p for n, p in named.items() if not _frozen(n)}

    def features(self, clip: Tensor, run: Runner | None = None) -> dict[str, Tensor]:
        """The temporal branch on noisy latents: never sees timestep, text or image features.

        Args:
            clip: [B,F,C,h,w] latents in variance-preserving space; F a multiple of
                `plan.multiple`.
            run: how a part is called (gradient checkpointing), default: plainly.

        Returns: site -> [B*h*w,C,F'], F' = F divided by the resampling so far.
        """
        call = run or (lambda part, *inputs: part(*inputs))
        rows = clip.permute(0, 3, 4, 2, 1).flatten(0, 2)
        y = self.conv_in(rows)
        skips, found = [y], {}
        ends = {id(m): s for s, m in self._ends()}
        for part in self.encoder:
            y = call(part, y)
            skips.append(y)
            if id(part) in ends:
                found[ends[id(part)]] = y
        for part in self.middle:
            y = call(part, y)
        found["middle"] = y
        for part in self.decoder:
            y = call(part, torch.cat([y, skips.pop()], 1) if isinstance(part, TemporalUnit) else y)
            if id(part) in ends:
                found[ends[id(part)]] = y
        return found

    def _ends(self) -> Iterable[tuple[str, nn.Module]]:
        """(site, last part of the stage)."""
        groups = (("up", self.decoder, TemporalUp), ("down", self.encoder, TemporalDown))
        for prefix, parts, resampler in groups:
            ends: list[nn.Module] = [part for part in parts if isinstance(part, resampler)]
            if not isinstance(parts[-1], resampler):
                ends.append(parts[-1])
            for number, part in enumerate(ends):
                if f"{prefix}{number}" in self.fusion:
                    yield f"{prefix}{number}", part


def _modules(parts: Iterable[Part], groups: int, layers: Any) -> Iterable[nn.Module]:
    for part in parts:
        if part.kind == "unit":
            yield TemporalUnit(part.inputs, part.outputs, groups, layers)
        else:
            yield (TemporalDown if part.kind == "down" else TemporalUp)(part.outputs, layers)


def _frozen(name: str) -> bool:
    return name.startswith("tuned.") and ".norm_frames." in name


def checkpointed(part: Callable[..., Tensor], *inputs: Any) -> Tensor:
    """Calls a part without keeping what its backward pass needs: it is computed again."""
    result = torch.utils.checkpoint.checkpoint(
        part, *inputs, use_reentrant=False, preserve_rng_state=False
    )
    assert isinstance(result, Tensor)
    return result


def fresh_network(plan: Plan, architecture: Architecture, training_seed: int) -> TemporalNetwork:
    """An untrained network on the CPU, float32; the same for the same seed.

    Weights are uniform in +-1/sqrt(inputs of a neuron), as torch's layers begin; the units'
    convolutions and the frame attentions' output weights are zero, as published.
    """
    with torch.device("meta"):  # torch's own initialisation draws from the global generator
        net = TemporalNetwork(plan, architecture)
    net = net.to_empty(device="cpu")
    generator = torch.Generator().manual_seed(training_seed)
    with torch.no_grad():
        for module in net.modules():
            _initialise(module, generator)
        for module in net.modules():
            if isinstance(module, SpatialTemporalUnit):
                module.conv.weight.zero_()
                module.conv.bias.zero_()
            if isinstance(module, FrameAttention):
                module.to_out.weight.zero_()
    return net


def _initialise(module: nn.Module, generator: torch.Generator) -> None:
    weight, bias = getattr(module, "weight", None), getattr(module, "bias", None)
    if isinstance(module, nn.GroupNorm | nn.LayerNorm):
        module.weight.fill_(1.0)
        module.bias.zero_()
    elif isinstance(weight, Tensor):
        bound = weight[0].numel() ** -0.5
        weight.uniform_(-bound, bound, generator=generator)
        if isinstance(bias, Tensor):
            bias.uniform_(-bound, bound, generator=generator)


def adopt_queries(net: TemporalNetwork, unet: nn.Module) -> None:
    """Lets the tuned query projections begin as the image UNet's own."""
    if not net.architecture.published:
        return
    with torch.no_grad():
        for name, block in transformer_blocks(unet):
            block_: Any = block
            tuned = net.tuned[name]
            assert isinstance(tuned, TunedAttention)
            tuned.self_query.weight.copy_(block_.attn1.to_q.weight)
            tuned.cross_query.weight.copy_(block_.attn2.to_q.weight)
