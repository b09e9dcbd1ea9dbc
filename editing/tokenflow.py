"""TokenFlow (Geyer et al. 2023): edit key frames together, propagate their tokens.

One step of algorithm 1: key frames attend to each other (section 4.1); every frame's
self-attention output is then gathered from its neighbouring key frames along the nearest
neighbour field of the *source's* tokens (section 4.2, equations 4 and 5).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..kernels.frame_attention import frame_attention
from ..kernels.nn_field import nn_field
from ..kernels.propagate import propagate
from .extended_attention import inject
from .keyframes import assign_groups, draw_key_frames, joint_groups, neighbours_and_weights
from .plug_and_play import RecordingPass, joined_features
from .protocol import Attention, Call, Edit, Pass, Site, StepSource, injection_sites, run_in_parts
from .types import compact

if TYPE_CHECKING:
    from .types import Inversion, NNField


@dataclass(frozen=True)
class TokenFlow(Edit):
    """Settings of one TokenFlow edit; see the node for what each knob does."""

    inversion: Inversion
    interval: int = 8
    keyframe_seed: int = 1
    fixed_key_frames: bool = False
    rule: str = "published code"
    frames_per_pass: int = 8
    max_joint_key_frames: int = 0
    """0 = all key frames attend together; otherwise overlapping runs of at most this many."""
    nn_field: NNField | None = None
    mask: Tensor | None = None
    """[F or 1,H,W] in 0..1: the region that may change."""

    @property
    def name(self) -> str:
        return "TokenFlow"

    @property
    def owns_attention(self) -> bool:
        return True

    def plan(self, step: int) -> StepPlan:
        """Key frames, neighbours and weights of step `step` of the inversion's schedule."""
        if self.nn_field is not None:
            table = self.nn_field
            return StepPlan(table.key_frames[step], table.neighbours[step], table.weights[step])
        frames, steps = self.inversion.frames, len(self.inversion.sigmas)
        draws = draw_key_frames(
            frames, self.interval, steps, self.keyframe_seed, self.fixed_key_frames
        )
        return StepPlan(
            draws[step], *neighbours_and_weights(draws[step], frames, self.interval, self.rule)
        )


@dataclass(frozen=True)
class StepPlan:
    """Who is edited and who is built from whom, at one step."""

    key_frames: Tensor
    """[K] int64 frame numbers."""
    neighbours: Tensor
    """[F,R] int64 indices into key_frames."""
    weights: Tensor
    """[F,R] float32."""


def tokenflow_step(edit: TokenFlow, plan: StepPlan, source: StepSource, call: Call) -> Tensor:
    """One evaluation of the model under TokenFlow, algorithm 1 without the sampler.

    Args:
        plan: this step's key frames.
        source: the source's field and injected features at this step.

    Returns: denoised latents [N,F,C,h,w].
    """
    groups = joint_groups(len(plan.key_frames), edit.max_joint_key_frames)
    parts: list[Tensor] = []
    order: list[Tensor] = []
    for group, frames in zip(groups, assign_groups(plan.neighbours, groups), strict=True):
        if not len(frames):
            continue
        key_pass = KeyFramePass(plan.key_frames, group, source)
        call.run(key_pass)
        make = partial(
            PropagationPass, plan=plan, group=group, source=source, outputs=key_pass.outputs
        )
        parts.append(run_in_parts(call, frames, edit.frames_per_pass, make)[1])
        order.append(frames)
    places = torch.argsort(torch.cat(order)).to(parts[0].device)
    return torch.cat(parts, 1).index_select(1, places)


class KeyFramePass(Pass):
    """Joint editing of a run of key frames (section 4.1): extended attention everywhere."""

    def __init__(self, key_frames: Tensor, group: tuple[int, int], source: StepSource) -> None:
        run = slice(*group)
        super().__init__(key_frames[run])
        self.run, self.source_step = run, source
        self.outputs: dict[Site, Tensor] = {}

    def owns(self, site: Site) -> bool:
        return True

    def projects(self, site: Site) -> tuple[bool, bool]:
        return site not in self.source_step.queries, True

    def attend(
        self, site: Site, q: Tensor, k: Tensor, v: Tensor, heads: int, attention: Attention
    ) -> Tensor:
        if site in self.source_step.queries:
            q = inject(self.source_step.queries[site][self.run], len(v))
            k = inject(self.source_step.keys[site][self.run], len(v))
        table = torch.arange(v.shape[1]).expand(v.shape[1], -1)
        self.outputs[site] = frame_attention(q, k, v, heads, table, attention)
        return self.outputs[site]

    def wants_features(self) -> bool:
        return self.source_step.key_features is not None

    def features(self, h: Tensor) -> Tensor:
        source = self.source_step.key_features
        return h if source is None else source[self.run].to(h).expand_as(h)


class PropagationPass(Pass):
    """Frames built from key frames along the field (section 4.2): attention is not computed."""

    def __init__(
        self,
        frames: Tensor,
        plan: StepPlan,
        group: tuple[int, int],
        source: StepSource,
        outputs: dict[Site, Tensor],
    ) -> None:
        super().__init__(frames)
        self.neighbours = plan.neighbours[frames] - group[0]
        self.weights = plan.weights[frames]
        self.source_step, self.outputs = source, outputs

    def owns(self, site: Site) -> bool:
        return True

    def projects(self, site: Site) -> tuple[bool, bool]:
        return False, False

    def attend(
        self, site: Site, q: Tensor, k: Tensor, v: Tensor, heads: int, attention: Attention
    ) -> Tensor:
        tokens = self.outputs[site]
        index = self.source_step.index[site][self.frames].to(tokens.device, torch.int64)
        return propagate(tokens, index, self.neighbours, self.weights)

    def wants_features(self) -> bool:
        return self.source_step.features is not None

    def features(self, h: Tensor) -> Tensor:
        source = self.source_step.features
        return h if source is None else source[self.frames].to(h).expand_as(h)


class SourceKeyPass(RecordingPass):
    """The source's key frames with ordinary attention: what the field points to."""

    def __init__(self, frames: Tensor, recorded: list[Site], conv: bool) -> None:
        super().__init__(frames, recorded, conv)
        self.tokens: dict[Site, Tensor] = {}
        self.outputs: dict[Site, Tensor] = {}

    def owns(self, site: Site) -> bool:
        return True

    def see_tokens(self, site: Site, tokens: Tensor) -> None:
        self.tokens[site] = tokens[0]

    def attend(
        self, site: Site, q: Tensor, k: Tensor, v: Tensor, heads: int, attention: Attention
    ) -> Tensor:
        if site in self.sites:
            self.queries[site], self.keys[site] = q[0], k[0]
        self.outputs[site] = attention(q[0], k[0], v[0], heads)[None]
        return self.outputs[site]


class SourceFieldPass(Pass):
    """The source's other frames: finds the field and propagates the source along it.

    In the published code the source stream is propagated as well, so deeper layers match
    tokens that depend on the key frames; a field from clean features is another one.
    """

    source = True

    def __init__(
        self,
        frames: Tensor,
        plan: StepPlan,
        key_pass: SourceKeyPass,
        conv: bool,
    ) -> None:
        super().__init__(frames)
        self.neighbours, self.weights = plan.neighbours[frames], plan.weights[frames]
        self.key_pass, self.conv = key_pass, conv
        self.index: dict[Site, Tensor] = {}
        self.similarity: dict[Site, Tensor] = {}
        self.recorded: Tensor | None = None

    def owns(self, site: Site) -> bool:
        return True

    def projects(self, site: Site) -> tuple[bool, bool]:
        return False, False

    def see_tokens(self, site: Site, tokens: Tensor) -> None:
        found = nn_field(tokens[0], self.key_pass.tokens[site], self.neighbours)
        self.index[site], self.similarity[site] = found

    def attend(
        self, site: Site, q: Tensor, k: Tensor, v: Tensor, heads: int, attention: Attention
    ) -> Tensor:
        return propagate(
            self.key_pass.outputs[site], self.index[site], self.neighbours, self.weights
        )

    def wants_features(self) -> bool:
        return self.conv

    def features(self, h: Tensor) -> Tensor:
        self.recorded = h[0]
        return h

    def forget_key_frames(self, similarity: bool) -> None:
        """Keeps what was found, as small as it can be; the pass cannot run again."""
        del self.key_pass
        self.index = {site: compact(index) for site, index in self.index.items()}
        if not similarity:
            self.similarity = {}


def source_step(
    plan: StepPlan,
    call: Call,
    attention: bool,
    features: bool,
    frames_per_pass: int,
    field: bool = True,
    similarity: bool = False,
    grids: dict[Site, tuple[int, int]] | None = None,
) -> StepSource:
    """The source-only run of the two-pass scheme at one step.

    Args:
        attention: keep the key frames' queries and keys at the injection sites.
        features: keep the conv features of every frame.
        field: False when the field (and, if wanted, the features) are known already.
        similarity: keep the cosine similarities as well.
        grids: filled with the token grid of every site.

    Returns: what `tokenflow_step` needs. The same for every prompt and every edit latent.
    """
    recorded = injection_sites(call.sites) if attention else []
    runs = _source_runs(plan, call, frames_per_pass)
    result, parts, order = StepSource(), [], []
    for start, end, frames in runs:
        key_pass = SourceKeyPass(plan.key_frames[start:end], recorded, features)
        call.run(key_pass)
        _append_key_frames(result, key_pass, start)
        if grids is not None:
            grids.update(key_pass.grids)
        if not field or not len(frames):
            continue
        shifted = replace(plan, neighbours=plan.neighbours - start)
        make = partial(SourceFieldPass, plan=shifted, key_pass=key_pass, conv=features)
        passes, _ = run_in_parts(call, frames, frames_per_pass, make)
        for done in passes:  # the key frames' tokens are large, what was found in them is small
            done.forget_key_frames(similarity)
        parts += passes
        order.append(frames)
    if not field:
        return result
    places = torch.argsort(torch.cat(order))

    def joined(values: list[Tensor]) -> Tensor:
        return torch.cat(values)[places.to(values[0].device)]

    result.index = {site: joined([p.index[site] for p in parts]) for site in call.sites}
    if similarity:
        result.similarity = {s: joined([p.similarity[s] for p in parts]) for s in call.sites}
    if features:
        result.features = joined([joined_features([p]) for p in parts])
    return result


def _source_runs(plan: StepPlan, call: Call, frames_per_pass: int) -> list[tuple[int, int, Tensor]]:
    """Runs of key frames and the frames built from them: (first, end, frames).

    A run shares one key frame with the next, so that consecutive key frames lie in one run.
    """
    count = len(plan.key_frames)
    most = max(call.frames_that_fit(frames_per_pass) or count, 2)
    starts = range(0, max(count - 1, 1), most - 1)
    groups = [(start, min(start + most, count)) for start in starts]
    served = assign_groups(plan.neighbours, groups)
    return [(*group, frames) for group, frames in zip(groups, served, strict=True)]


def _append_key_frames(result: StepSource, key_pass: SourceKeyPass, start: int) -> None:
    """Adds what a run recorded; its first key frame is known from the run before."""
    new = slice(1 if start else 0, None)
    for kept, found in ((result.queries, key_pass.queries), (result.keys, key_pass.keys)):
        for site, value in found.items():
            kept[site] = torch.cat([kept[site], value[new]]) if start else value
    if key_pass.recorded is not None:
        known = [result.key_features] if result.key_features is not None else []
        result.key_features = torch.cat([*known, key_pass.recorded[new]])
