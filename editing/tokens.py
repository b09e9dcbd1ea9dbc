"""The source's self-attention tokens, and correspondence fields made from the source alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from ..kernels.nn_field import nn_field
from .keyframes import StepPlan, draw_key_frames, neighbours_and_weights
from .protocol import Attention, Call, Pass, Site, decoder_sites, run_in_parts
from .source_field import source_step
from .types import Inversion, NNField, TokenStore, compact

Walk = Callable[[Sequence[int], Callable[[int, Call], None]], None]
"""walk(steps, visit): calls visit(step, call) at each step of the inversion."""


class TokenPass(Pass):
    """Source pass with ordinary attention that keeps the tokens of some sites."""

    source = True

    def __init__(self, frames: Tensor, sites: Sequence[Site]) -> None:
        super().__init__(frames)
        self.sites = frozenset(sites)
        self.tokens: dict[Site, Tensor] = {}

    def owns(self, site: Site) -> bool:
        return site in self.sites

    def see_tokens(self, site: Site, tokens: Tensor) -> None:
        self.tokens[site] = tokens[0].to("cpu", torch.float16)

    def attend(
        self, site: Site, q: Tensor, k: Tensor, v: Tensor, heads: int, attention: Attention
    ) -> Tensor:
        return attention(q[0], k[0], v[0], heads)[None]


def default_sites(sites: Sequence[Site]) -> list[Site]:
    """One site for viewing: the middle of the decoder's self-attentions."""
    decoder = decoder_sites(sites)
    return [decoder[len(decoder) // 2]]


def spread_steps(steps: int, count: int) -> list[int]:
    """`count` step numbers evenly spread over a schedule of `steps`."""
    count = max(1, min(count, steps))
    return sorted({round(i * (steps - 1) / max(count - 1, 1)) for i in range(count)})


def extract_tokens(
    walk: Walk,
    inversion: Inversion,
    sites: Sequence[Site],
    steps: Sequence[int],
    frames_per_pass: int = 8,
) -> TokenStore:
    """Tokens (norm1 output) of the source at `sites` and `steps`, float16 on the CPU."""
    tokens: dict[tuple[Site, int], Tensor] = {}
    grids: dict[Site, tuple[int, int]] = {}

    def visit(step: int, call: Call) -> None:
        make = partial(TokenPass, sites=sites)
        passes, _ = run_in_parts(call, torch.arange(call.frames), frames_per_pass, make)
        for site in sites:
            tokens[site, step] = torch.cat([part.tokens[site] for part in passes])
        grids.update(passes[0].grids)

    walk(steps, visit)
    return TokenStore(tokens, grids, inversion.sigmas, inversion.key)


def propagated_field(
    walk: Walk,
    inversion: Inversion,
    steps: Sequence[int],
    interval: int,
    keyframe_seed: int,
    rule: str,
    fixed: bool = False,
    frames_per_pass: int = 8,
) -> NNField:
    """The exact field that TokenFlow uses, from a source-only run of its two passes."""
    plans = _plans(inversion.frames, len(inversion.sigmas), interval, keyframe_seed, rule, fixed)
    index: dict[tuple[Site, int], Tensor] = {}
    similarity: dict[tuple[Site, int], Tensor] = {}
    grids: dict[Site, tuple[int, int]] = {}

    def visit(step: int, call: Call) -> None:
        found = source_step(
            plans[step], call, False, False, frames_per_pass, similarity=True, grids=grids
        )
        for site, value in found.index.items():
            index[site, step] = compact(value.cpu())
            similarity[site, step] = found.similarity[site].to("cpu", torch.float16)

    walk(steps, visit)
    return _field(plans, index, similarity, grids, "propagated", rule, interval, keyframe_seed,
                  inversion.key)  # fmt: skip


def clean_field(
    store: TokenStore, interval: int, keyframe_seed: int, rule: str, fixed: bool = False
) -> NNField:
    """The field between clean tokens, for viewing: near TokenFlow's own, not equal to it."""
    frames = next(iter(store.tokens.values())).shape[0]
    plans = _plans(frames, len(store.sigmas), interval, keyframe_seed, rule, fixed)
    index: dict[tuple[Site, int], Tensor] = {}
    similarity: dict[tuple[Site, int], Tensor] = {}
    for (site, step), tokens in store.tokens.items():
        plan = plans[step]
        key = tokens[plan.key_frames].float()
        found, cosine = nn_field(tokens.float(), key, plan.neighbours)
        index[site, step], similarity[site, step] = compact(found), cosine.half()
    made = _field(plans, index, similarity, store.grids, "clean", rule, interval, keyframe_seed,
                  store.inversion_key)  # fmt: skip
    return replace(made, fingerprint=store.fingerprint)


def _plans(
    frames: int, steps: int, interval: int, seed: int, rule: str, fixed: bool
) -> list[StepPlan]:
    draws = draw_key_frames(frames, interval, steps, seed, fixed)
    return [StepPlan(draw, *neighbours_and_weights(draw, frames, interval, rule)) for draw in draws]


def _field(
    plans: list[StepPlan],
    index: dict[tuple[Site, int], Tensor],
    similarity: dict[tuple[Site, int], Tensor],
    grids: dict[Site, tuple[int, int]],
    origin: str,
    rule: str,
    interval: int,
    keyframe_seed: int,
    inversion_key: str,
) -> NNField:
    return NNField(
        key_frames=torch.stack([plan.key_frames for plan in plans]),
        neighbours=torch.stack([plan.neighbours for plan in plans]),
        weights=torch.stack([plan.weights for plan in plans]),
        index=index,
        grids=grids,
        similarity=similarity,
        origin=origin,
        rule=rule,
        interval=interval,
        keyframe_seed=keyframe_seed,
        inversion_key=inversion_key,
    )
