"""Pix2Video's self-attention (Ceylan et al. 2023, section 3.1): an anchor and the frame before.

The paper edits frame after frame and injects features that earlier frames left behind. But frame
f at a layer only reads the tokens of its anchor and of frame f-1 at the same layer and step, and
one call of the UNet on all frames makes exactly these: all frames run together, the result is the
same. Runs of frames hand the few tokens that later frames read from one run to the next.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..kernels.frame_attention import frame_attention
from .extended_attention import inject
from .protocol import (
    Attention,
    Call,
    Edit,
    Pass,
    Site,
    StepSource,
    decoder_sites,
    require_several,
    run_in_parts,
)

if TYPE_CHECKING:
    from .types import Inversion

KEYS = ("anchor and previous", "anchor only", "previous only")


@dataclass(frozen=True)
class AnchorAttention(Edit):
    """Queries of a frame attend to tokens of an anchor frame and of the frame before it."""

    anchor: int = 0
    """Frame number of the (first) anchor; it attends to itself."""
    keys: str = "anchor and previous"
    own_tokens: bool = False
    """Whether a frame's own tokens are among the keys (published: no)."""
    refresh_every: int = 0
    """Frames after which a later frame becomes the anchor (0 = never, as published)."""
    cross_fade: int = 4
    """Frames over which a new anchor takes over from the old one."""
    frames_per_pass: int = 0
    """Frames per call of the UNet, 0 = all. Changes memory, never the result."""
    sites: tuple[Site, ...] = ()
    """Where; empty = every self-attention of the decoder, as published."""
    edited_anchor: Tensor | None = None
    """[1,C,h,w] clean latent of an anchor edited elsewhere, in the model's latent space."""
    inversion: Inversion | None = None
    """The source, only needed to lock what lies outside the mask."""
    mask: Tensor | None = None
    """[F or 1,H,W] in 0..1: the region that may change."""

    @property
    def name(self) -> str:
        return "Anchor Attention"

    @property
    def owns_attention(self) -> bool:
        return True

    def check_clip(self, frames: int, size: tuple[int, ...], steps: int) -> None:
        require_several(self.name, frames)
        if self.anchor >= frames:
            raise ValueError(
                f"{self.name}: expected 'anchor' to be a frame of the clip (0 to {frames - 1}), "
                f"got {self.anchor}. Lower 'anchor'."
            )
        if self.edited_anchor is not None and tuple(self.edited_anchor.shape) != (1, *size):
            raise ValueError(
                f"{self.name}: expected 'edited_anchor' to be one latent of size "
                f"{'x'.join(map(str, size))}, got {'x'.join(map(str, self.edited_anchor.shape))}. "
                "Encode one picture of the clip's size, or cut it out with Latent From Batch."
            )

    def chosen(self, sites: Sequence[Site]) -> list[Site]:
        """The sites of a model at which this edit acts, in the model's order."""
        return [site for site in sites if site in (self.sites or decoder_sites(sites))]

    def plan(self, frames: int) -> AnchorPlan:
        """Who attends to whom in a clip of `frames` frames."""
        own = torch.arange(frames)
        anchors = torch.full((frames,), self.anchor)
        if self.refresh_every:
            passed = (own - 1 - self.anchor).clamp(min=0) // self.refresh_every
            anchors = self.anchor + passed * self.refresh_every
        rows = [self._row(f, int(anchors[f])) for f in range(frames)]
        first = [] if self.keys == "previous only" else [self.anchor]
        order = first + [f for f in range(frames) if f not in first]
        return AnchorPlan(torch.tensor(order), rows, self._fades(anchors.tolist()))

    def _row(self, frame: int, anchor: int) -> tuple[int, ...]:
        """The frames that `frame` attends to, none twice (a repeated key would weigh double)."""
        follows = self.keys != "anchor only" and frame > 0
        anchored = self.keys != "previous only"
        if anchored and frame == self.anchor:
            return (frame,)
        row = ([anchor] if anchored else []) + ([frame - 1] if follows else [])
        row += [frame] if self.own_tokens or not row else []
        return tuple(dict.fromkeys(row))

    def _fades(self, anchors: list[int]) -> dict[int, tuple[tuple[int, ...], float]]:
        if self.keys == "previous only":
            return {}
        found = {}
        for frame, anchor in enumerate(anchors):
            into = frame - anchor
            if anchor > self.anchor and into < self.cross_fade:
                old = self._row(frame, anchor - self.refresh_every)
                found[frame] = (old, into / self.cross_fade)
        return found


@dataclass(frozen=True)
class AnchorPlan:
    """Which frames each frame reads, and an order in which they are there in time."""

    order: Tensor
    """[F] int64 frame numbers: the anchor first, then the others as they come."""
    rows: list[tuple[int, ...]]
    """Per frame: the frames that it attends to."""
    fades: dict[int, tuple[tuple[int, ...], float]] = field(default_factory=dict)
    """Frame -> (row with the old anchor, weight of the new one)."""

    def reads(self, frames: Sequence[int]) -> set[int]:
        """Every frame whose tokens these frames read."""
        old = [self.fades[f][0] for f in frames if f in self.fades]
        return {g for row in [*(self.rows[f] for f in frames), *old] for g in row}

    def handed_on(self, frames: Sequence[int]) -> list[int]:
        """What the frames after the run `frames` read of this run and those before it."""
        order: list[int] = self.order.tolist()
        later = order[order.index(frames[-1]) + 1 :]
        return sorted(self.reads(later) - set(later))


@dataclass(frozen=True)
class Carried:
    """Keys and values of a few earlier frames at one site."""

    frames: tuple[int, ...]
    key: Tensor
    """[N,len(frames),L,C]"""
    value: Tensor


class AnchorPass(Pass):
    """A run of frames that reads its own tokens and those that earlier runs handed on."""

    def __init__(
        self,
        frames: Tensor,
        plan: AnchorPlan,
        covers: Sequence[Site],
        carried: dict[Site, Carried],
        source: StepSource,
    ) -> None:
        super().__init__(frames)
        self.plan, self.covers, self.carried = plan, frozenset(covers), carried
        self.injected = source
        self.numbers: list[int] = frames.tolist()
        self.handed_on: dict[Site, Carried] = {}
        self._wanted = plan.handed_on(self.numbers)

    def owns(self, site: Site) -> bool:
        return site in self.covers or site in self.injected.queries

    def projects(self, site: Site) -> tuple[bool, bool]:
        return site not in self.injected.queries, True

    def attend(
        self, site: Site, q: Tensor, k: Tensor, v: Tensor, heads: int, attention: Attention
    ) -> Tensor:
        if site in self.injected.queries:
            rows = self.frames.to(v.device)
            q = inject(self.injected.queries[site].to(v)[rows], len(v))
            k = inject(self.injected.keys[site].to(v)[rows], len(v))
        if site not in self.covers:
            out = attention(q.flatten(0, 1), k.flatten(0, 1), v.flatten(0, 1), heads)
            return out.unflatten(0, v.shape[:2])
        bank = self._bank(site, k, v)
        out = self._attend_rows(q, bank, self.numbers, self.plan.rows, heads, attention)
        fading = [f for f in self.numbers if f in self.plan.fades]
        if not fading:
            return out
        at = torch.tensor([self.numbers.index(f) for f in fading], device=q.device)
        old_rows = {f: self.plan.fades[f][0] for f in fading}
        old = self._attend_rows(q[:, at], bank, fading, old_rows, heads, attention)
        weight = torch.tensor([self.plan.fades[f][1] for f in fading]).to(old).view(1, -1, 1, 1)
        return out.index_copy(1, at, torch.lerp(old, out[:, at], weight))

    def _bank(self, site: Site, k: Tensor, v: Tensor) -> Carried:
        """Keys and values of all frames that this run can read; keeps what later runs read."""
        earlier = self.carried.get(site)
        bank = Carried(tuple(self.numbers), k, v)
        if earlier is not None:
            keys, values = torch.cat([earlier.key, k], 1), torch.cat([earlier.value, v], 1)
            bank = Carried((*earlier.frames, *self.numbers), keys, values)
        if self._wanted:
            at = torch.tensor([bank.frames.index(f) for f in self._wanted], device=k.device)
            self.handed_on[site] = Carried(tuple(self._wanted), bank.key[:, at], bank.value[:, at])
        return bank

    def _attend_rows(
        self,
        q: Tensor,
        bank: Carried,
        frames: list[int],
        rows: Sequence[tuple[int, ...]] | dict[int, tuple[int, ...]],
        heads: int,
        attention: Attention,
    ) -> Tensor:
        table = torch.full((len(frames), max(len(rows[f]) for f in frames)), -1)
        for line, f in enumerate(frames):
            for column, g in enumerate(rows[f]):
                table[line, column] = bank.frames.index(g)
        if not torch.is_grad_enabled():
            return frame_attention(q, bank.key, bank.value, heads, table, attention)
        # the paper's gradient takes the other frames as given: only own tokens carry it
        own = torch.tensor([[f] for f in frames]) == torch.tensor(bank.frames)[table.clamp(min=0)]
        table = torch.where(own & (table >= 0), table + len(bank.frames), table)
        key = torch.cat([bank.key.detach(), bank.key], 1)
        value = torch.cat([bank.value.detach(), bank.value], 1)
        return frame_attention(q, key, value, heads, table, attention)

    def wants_features(self) -> bool:
        return self.injected.features is not None

    def features(self, h: Tensor) -> Tensor:
        if self.injected.features is None:
            return h
        return self.injected.features.to(h)[self.frames.to(h.device)].expand_as(h)


def anchor_step(edit: AnchorAttention, source: StepSource, call: Call) -> Tensor:
    """One evaluation of all frames -> denoised latents [N,F,C,h,w]."""
    plan = edit.plan(call.frames)
    covers = edit.chosen(call.sites)
    carried: dict[Site, Carried] = {}

    def make(frames: Tensor) -> AnchorPass:
        return AnchorPass(frames, plan, covers, dict(carried), source)

    def finished(done: AnchorPass) -> None:
        carried.clear()
        carried.update(done.handed_on)

    _, out = run_in_parts(call, plan.order, edit.frames_per_pass, make, finished)
    out = out[:, torch.argsort(plan.order).to(out.device)]
    if edit.edited_anchor is None:
        return out
    # a model that always predicts the given latent walks there in a straight line
    given = edit.edited_anchor.to(out).expand(len(out), -1, -1, -1)
    return out.index_copy(1, torch.tensor([edit.anchor], device=out.device), given[:, None])
