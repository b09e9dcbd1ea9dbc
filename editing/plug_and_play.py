"""Plug-and-Play diffusion features (Tumanyan et al. 2023), as TokenFlow uses them.

In the first part of sampling the source's queries and keys replace the edit's own in the
decoder's self-attentions, and the source's conv features replace the edit's in one ResBlock:
the edit keeps the source's layout.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .protocol import Attention, Call, Edit, Pass, Site, StepSource, injection_sites, run_in_parts

if TYPE_CHECKING:
    from .types import Inversion


@dataclass(frozen=True)
class PlugAndPlay(Edit):
    """Injection of source features, TokenFlow section 4.3 / published pnp_attn_t and pnp_f_t."""

    inversion: Inversion
    inject_attention_until: float = 0.5
    """Fraction of the steps in which queries and keys are injected (0 = never, 1 = always)."""
    inject_features_until: float = 0.8
    """Fraction of the steps in which conv features are injected."""
    mask: Tensor | None = None
    """[F or 1,H,W] in 0..1: the region that may change."""

    @property
    def name(self) -> str:
        return "Plug-and-Play"

    def injects_attention(self, position: int, steps: int) -> bool:
        """`position` counts the steps of this sampling call from 0."""
        return position < int(steps * self.inject_attention_until)

    def injects_features(self, position: int, steps: int) -> bool:
        return position < int(steps * self.inject_features_until)


class RecordingPass(Pass):
    """Source pass with ordinary attention that keeps queries, keys and conv features."""

    source = True

    def __init__(self, frames: Tensor, sites: list[Site], conv: bool) -> None:
        super().__init__(frames)
        self.sites, self.conv = frozenset(sites), conv
        self.queries: dict[Site, Tensor] = {}
        self.keys: dict[Site, Tensor] = {}
        self.recorded: Tensor | None = None

    def owns(self, site: Site) -> bool:
        return site in self.sites

    def attend(
        self, site: Site, q: Tensor, k: Tensor, v: Tensor, heads: int, attention: Attention
    ) -> Tensor:
        self.queries[site], self.keys[site] = q[0], k[0]
        return attention(q[0], k[0], v[0], heads)[None]

    def wants_features(self) -> bool:
        return self.conv

    def features(self, h: Tensor) -> Tensor:
        self.recorded = h[0]
        return h


def record_source(
    call: Call, frames: Tensor, attention: bool, features: bool, frames_per_pass: int
) -> StepSource:
    """Source queries, keys and conv features of `frames` at this step, in runs of frames."""
    sites = injection_sites(call.sites) if attention else []
    if not sites and not features:
        return StepSource()
    make = partial(RecordingPass, sites=sites, conv=features)
    passes, _ = run_in_parts(call, frames, frames_per_pass, make)
    return StepSource(
        queries={site: torch.cat([p.queries[site] for p in passes]) for site in sites},
        keys={site: torch.cat([p.keys[site] for p in passes]) for site in sites},
        features=joined_features(passes) if features else None,
    )


def joined_features(passes: Sequence[Any]) -> Tensor:
    """Recorded conv features of several passes, joined along frames [F,C,h,w]."""
    return torch.cat([part.recorded for part in passes])
