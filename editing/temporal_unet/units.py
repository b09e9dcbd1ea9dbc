"""The building blocks: temporal residual unit, attention over frames, spatial-temporal unit.

Letters: R rows (one per image position), C channels, F frames, P channels of a head.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

HEADS = 8
GROUPS = 8
SHARE = 0.1
"""How much of the temporal features is added before the 3D convolution: constant, not learned."""
ROWS_AT_ONCE = 4096
"""Rows that attend together: CUDA's attention refuses more than 65535 rows times heads."""


class TemporalUnit(nn.Module):
    """Temporal residual block: y = shortcut(x) + conv(silu(norm(x))), along the frames."""

    def __init__(self, inputs: int, outputs: int, groups: int, layers: Any = nn) -> None:
        super().__init__()
        self.norm = layers.GroupNorm(groups, inputs)
        self.conv = layers.Conv1d(inputs, outputs, 3, padding=1)
        self.shortcut = layers.Conv1d(inputs, outputs, 1) if inputs != outputs else None

    def forward(self, x: Tensor) -> Tensor:
        """[R,C,F] -> [R,C',F]."""
        straight = x if self.shortcut is None else self.shortcut(x)
        return straight + self.conv(F.silu(self.norm(x)))


class TemporalDown(nn.Module):
    """Half the frames."""

    def __init__(self, channels: int, layers: Any = nn) -> None:
        super().__init__()
        self.conv = layers.Conv1d(channels, channels, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """[R,C,F] -> [R,C,F/2]."""
        return self.conv(x)


class TemporalUp(nn.Module):
    """Twice the frames."""

    def __init__(self, channels: int, layers: Any = nn) -> None:
        super().__init__()
        self.conv = layers.Conv1d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """[R,C,F] -> [R,C,2F]."""
        return self.conv(x.repeat_interleave(2, -1))


class FrameAttention(nn.Module):
    """Self-attention over the frames of one position; no position encoding."""

    def __init__(self, width: int, heads: int, layers: Any = nn) -> None:
        super().__init__()
        self.heads = heads
        self.to_q = layers.Linear(width, width, bias=False)
        self.to_k = layers.Linear(width, width, bias=False)
        self.to_v = layers.Linear(width, width, bias=False)
        self.to_out = layers.Linear(width, width)

    def forward(self, tokens: Tensor) -> Tensor:
        """[R,F,C] -> [R,F,C]."""
        return torch.cat([self._attend(part) for part in tokens.split(ROWS_AT_ONCE)])

    def _attend(self, tokens: Tensor) -> Tensor:
        def split(part: Tensor) -> Tensor:
            return part.unflatten(-1, (self.heads, -1)).transpose(1, 2)

        q, k, v = split(self.to_q(tokens)), split(self.to_k(tokens)), split(self.to_v(tokens))
        out = F.scaled_dot_product_attention(q, k, v)
        return self.to_out(out.transpose(1, 2).flatten(2))


class SpatialTemporalUnit(nn.Module):
    """Fuses temporal features into image features (paper: STU; published code: STB).

    tmp' = tmp + attention(norm(tmp)) over the frames; y = x + silu(conv3d(norm(x + 0.1 tmp'))).
    The convolution starts at zero, so an untrained unit changes nothing.
    """

    def __init__(self, channels: int, layers: Any = nn) -> None:
        super().__init__()
        self.norm_frames = layers.LayerNorm(channels)
        self.attention = FrameAttention(channels, HEADS, layers)
        self.norm = layers.GroupNorm(GROUPS, channels)
        self.conv = layers.Conv3d(channels, channels, 3, padding=1)

    def attended(self, temporal: Tensor) -> Tensor:
        """tmp' of [B,C,F,h,w], the same shape: does not depend on the image features."""
        tokens = temporal.movedim((1, 2), (4, 3))  # [B,h,w,F,C]
        flat = tokens.flatten(0, 2)
        flat = flat + self.attention(self.norm_frames(flat))
        return flat.unflatten(0, tokens.shape[:3]).movedim((4, 3), (1, 2))

    def change(self, x: Tensor, attended: Tensor) -> Tensor:
        """What is added to x [N,C,F,h,w]; attended [N or 1,C,F,h,w]."""
        return F.silu(self.conv(self.norm(x + SHARE * attended)))
