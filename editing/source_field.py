"""The source's side of TokenFlow: from which token of which key frame every token is built.

A pass of its own over the source, in the published code's two passes: the key frames with
ordinary attention, then all frames, which look for their tokens among those of the key frames.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from ..kernels.nn_field import nn_field
from ..kernels.propagate import propagate
from .keyframes import StepPlan
from .plug_and_play import RecordingPass, joined_features
from .protocol import Attention, Call, Pass, Site, StepSource, injection_sites, run_in_parts
from .types import compact


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
    make = partial(SourceKeyPass, recorded=recorded, conv=features)
    result, parts, order = StepSource(), [], []
    for start, key_pass, frames in _source_runs(plan, call, frames_per_pass, make):
        _append_key_frames(result, key_pass, start)
        if grids is not None:
            grids.update(key_pass.grids)
        if field and len(frames):
            shifted = replace(plan, neighbours=plan.neighbours - start)
            parts += _found_along(shifted, call, key_pass, frames, frames_per_pass, similarity)
            order.append(frames)
        del key_pass  # its tokens are large: gone before the next run
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


def _source_runs(
    plan: StepPlan, call: Call, frames_per_pass: int, make: Callable[[Tensor], SourceKeyPass]
) -> Iterator[tuple[int, SourceKeyPass, Tensor]]:
    """Runs of key frames: (number of the first, their finished pass, frames built from them).

    A run shares one key frame with the next, so that consecutive key frames lie in one run.
    When memory runs out, what is left goes on in shorter runs.
    """
    count, start, left = len(plan.key_frames), 0, torch.arange(len(plan.neighbours))
    while len(left):  # the last frame is built from the last key frame
        most = max(call.frames_that_fit(frames_per_pass) or count, 2)
        end = min(start + most, count)
        key_pass = make(plan.key_frames[start:end])
        try:
            call.run(key_pass)
        except RuntimeError as error:
            if end - start <= 2 or not call.ran_out_of_memory(error):
                raise
            call.make_room(max((end - start) // 2, 2))
            continue
        inside = plan.neighbours[left].max(1).values < end
        yield start, key_pass, left[inside]
        start, left = end - 1, left[~inside]


def _found_along(
    plan: StepPlan,
    call: Call,
    key_pass: SourceKeyPass,
    frames: Tensor,
    frames_per_pass: int,
    similarity: bool,
) -> list[SourceFieldPass]:
    """The finished passes of the frames that are built from one run of key frames."""
    make = partial(SourceFieldPass, plan=plan, key_pass=key_pass, conv=key_pass.conv)
    passes, _ = run_in_parts(call, frames, frames_per_pass, make)
    for done in passes:  # the key frames' tokens are large, what was found in them is small
        done.forget_key_frames(similarity)
    return passes


def _append_key_frames(result: StepSource, key_pass: SourceKeyPass, start: int) -> None:
    """Adds what a run recorded; its first key frame is known from the run before."""
    new = slice(1 if start else 0, None)
    for kept, found in ((result.queries, key_pass.queries), (result.keys, key_pass.keys)):
        for site, value in found.items():
            kept[site] = torch.cat([kept[site], value[new]]) if start else value
    if key_pass.recorded is not None:
        known = [result.key_features] if result.key_features is not None else []
        result.key_features = torch.cat([*known, key_pass.recorded[new]])
