"""TokenFlow (Geyer et al. 2023): edit key frames together, propagate their tokens.

One step of algorithm 1: key frames attend to each other (section 4.1); every frame's
self-attention output is then gathered from its neighbouring key frames along the nearest
neighbour field of the *source's* tokens (section 4.2, equations 4 and 5).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..kernels.frame_attention import frame_attention
from ..kernels.propagate import propagate
from .extended_attention import inject
from .keyframes import (
    StepPlan,
    assign_groups,
    draw_key_frames,
    joint_groups,
    neighbours_and_weights,
)
from .protocol import (
    Attention,
    Call,
    Edit,
    Pass,
    Site,
    StepSource,
    all_or_nothing,
    require_several,
    run_in_parts,
)

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

    def check_clip(self, frames: int, size: tuple[int, ...], steps: int) -> None:
        require_several(self.name, frames)

    def too_many(self, key_frames: int) -> str:
        """What to say when so many key frames do not fit together: fewer change the result."""
        less = "Use smaller pictures"
        if key_frames > 2:
            most = max(key_frames // 2, 2)
            less = f"Set 'max_joint_key_frames' to {most}, raise 'interval' or use smaller pictures"
        return f"{self.name}: {key_frames} key frames edited together ran out of memory. {less}."

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
        with all_or_nothing(call, edit.too_many(len(key_pass.frames))):
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
