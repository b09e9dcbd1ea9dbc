"""Self-attention across frames: which frames a frame attends to.

TokenFlow section 4.1 (all frames), Tune-A-Video and Text2Video-Zero (first and previous),
and a sliding window, all as one table of frame numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from ..kernels.frame_attention import frame_attention
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

MODES = ("all frames", "key frames", "first and previous", "sliding window")
LESS = {
    "all frames": "Choose 'mode' first and previous",
    "key frames": "Raise 'interval'",
    "first and previous": "Name fewer 'sites'",
    "sliding window": "Lower 'window'",
}
"""What makes a mode smaller."""


@dataclass(frozen=True)
class ExtendedAttention(Edit):
    """Every frame attends to the tokens of several frames at the chosen sites."""

    mode: str = "all frames"
    interval: int = 8
    """Frames between two key frames (mode "key frames")."""
    window: int = 3
    """Frames in the sliding window, the frame itself in the middle."""
    sites: tuple[Site, ...] = ()
    """Where; empty = every self-attention."""

    @property
    def name(self) -> str:
        return "Extended Attention"

    @property
    def owns_attention(self) -> bool:
        return True

    def check_clip(self, frames: int, size: tuple[int, ...], steps: int) -> None:
        require_several(self.name, frames)

    def table(self, frames: int) -> Tensor:
        """-> [F,R] int64: the frames that each frame attends to (-1 = none)."""
        return attended_frames(self.mode, frames, self.interval, self.window)

    def covers(self, site: Site) -> bool:
        return not self.sites or site in self.sites


def attended_frames(mode: str, frames: int, interval: int = 8, window: int = 3) -> Tensor:
    """Which frames each of `frames` frames attends to.

    Returns: [F,R] int64, -1 where a row has fewer than R.
    Raises: ValueError for an unknown mode.
    """
    own = torch.arange(frames)
    if mode == "all frames":
        return own.expand(frames, frames)
    if mode == "key frames":
        keys = torch.arange(0, frames, max(interval, 1))
        return keys.expand(frames, len(keys))
    if mode == "first and previous":
        previous = (own - 1).clamp(min=0)
        return torch.stack([torch.zeros_like(own), torch.where(previous == 0, -1, previous)], 1)
    if mode == "sliding window":
        offsets = torch.arange(window) - window // 2
        table = own[:, None] + offsets
        return torch.where((table < 0) | (table >= frames), -1, table)
    raise ValueError(
        f"Extended Attention: expected 'mode' to be one of {', '.join(MODES)}; got {mode!r}. "
        "Choose one of these in the node's mode list."
    )


def inject(source: Tensor, branches: int) -> Tensor:
    """Source queries or keys [f,L,C] for every branch -> [N,f,L,C], not copied."""
    return source.expand(branches, *source.shape)


def extended_step(edit: ExtendedAttention, source: StepSource, call: Call) -> Tensor:
    """One evaluation of all frames together -> denoised latents [N,F,C,h,w].

    Raises: ValueError when they do not fit: in parts the frames would not see each other.
    """
    covered = [site for site in call.sites if edit.covers(site)]
    whole = AttentionPass(torch.arange(call.frames), source, edit.table(call.frames), covered)
    message = (
        f"{edit.name}: {call.frames} frames that look at each other ran out of memory (mode "
        f"{edit.mode}). {LESS[edit.mode]}, use fewer frames or smaller pictures, or TokenFlow, "
        "which edits clips in parts."
    )
    with all_or_nothing(call, message):
        return call.run(whole)


def injected_step(source: StepSource, call: Call) -> Tensor:
    """One evaluation in which no frame looks at another -> denoised latents [N,F,C,h,w]."""
    make = partial(AttentionPass, source=source)
    return run_in_parts(call, torch.arange(call.frames), 0, make)[1]


class AttentionPass(Pass):
    """A run of frames, with extended attention and / or injected source features."""

    def __init__(
        self,
        frames: Tensor,
        source: StepSource,
        table: Tensor | None = None,
        covers: Sequence[Site] = (),
    ) -> None:
        """frames follow each other; table [f,R] int64 indexes the frames of this pass."""
        super().__init__(frames)
        self.table, self.covers = table, frozenset(covers)
        self.run = slice(int(frames[0]), int(frames[-1]) + 1)  # views of the source, no copies
        self.injected = source

    def owns(self, site: Site) -> bool:
        return site in self.covers or site in self.injected.queries

    def projects(self, site: Site) -> tuple[bool, bool]:
        return site not in self.injected.queries, True

    def attend(
        self, site: Site, q: Tensor, k: Tensor, v: Tensor, heads: int, attention: Attention
    ) -> Tensor:
        if site in self.injected.queries:
            q = inject(self.injected.queries[site][self.run], len(v))
            k = inject(self.injected.keys[site][self.run], len(v))
        if site in self.covers and self.table is not None:
            return frame_attention(q, k, v, heads, self.table.to(q.device), attention)
        out = attention(q.flatten(0, 1), k.flatten(0, 1), v.flatten(0, 1), heads)
        return out.unflatten(0, v.shape[:2])

    def wants_features(self) -> bool:
        return self.injected.features is not None

    def features(self, h: Tensor) -> Tensor:
        source = self.injected.features
        return h if source is None else source[self.run].to(h).expand_as(h)
