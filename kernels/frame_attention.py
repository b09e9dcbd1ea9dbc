# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false
"""Attention of frames to the tokens of other frames (extended and anchor attention)."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

Attend = Callable[[Tensor, Tensor, Tensor, int], Tensor]
"""(q [B, T, C], k [B, S, C], v [B, S, C], heads) -> [B, T, C], scale 1/sqrt(C/heads)."""


def frame_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    heads: int,
    frames: Tensor,
    attend: Attend | None = None,
    max_tokens: int | None = None,
) -> Tensor:
    """Let frame f attend to the concatenated tokens of the key/value frames ``frames[f]``.

    Extended attention is every row equal to all key frames (TokenFlow, section 4.1, eq. 1);
    anchor attention is ``(anchor, f - 1)`` (Pix2Video, section 3.2); plain attention is ``(f,)``.
    Frames with equal rows share one call and one set of keys, which are views where the row is
    consecutive: extended attention copies nothing. Frames with rows of their own share a call
    where the rows are equally long.

    Args:
        q: [N, F, L, C] queries.
        k: [N, G, M, C] keys.
        v: [N, G, M, C] values.
        heads: attention heads; C is divided by it.
        frames: [F, R] integers in [0, G), or -1 for an absent entry; every row has one entry at
            least. An entry that is repeated counts twice in the softmax.
        attend: the host's attention; None: torch's scaled_dot_product_attention.
        max_tokens: query tokens per call at most, to bound the memory of backends that store
            scores. None: no limit.

    Returns:
        [N, F, L, C], before the output projection.

    Raises:
        ValueError: shapes that do not fit together, an entry outside [-1, G), an empty row.
    """
    rows = _check(q, k, v, heads, frames)
    attend = attend or _sdpa
    groups = _groups(rows)
    if len(groups) == 1:
        (sources,) = groups
        out = _joint(q, _take(k, list(sources)), _take(v, list(sources)), heads, attend, max_tokens)
        return out.view(q.shape)
    out = torch.empty_like(q)
    for members in _batches(groups):
        sources = [g for f in members for g in rows[f]]
        shared = tuple(rows[members[0]])
        if groups[shared] == members and len(shared) > 1:
            keys, values = _take(k, list(shared)), _take(v, list(shared))
            part = _joint(_take(q, members), keys, values, heads, attend, max_tokens)
        else:
            part = _separate(_take(q, members), k, v, sources, heads, attend, max_tokens)
        out[:, members] = part.view(len(q), len(members), *q.shape[2:])
    return out


def frame_attention_naive(q: Tensor, k: Tensor, v: Tensor, heads: int, frames: Tensor) -> Tensor:
    """The definition: softmax(q k^T / sqrt(C/heads)) v per frame and head, in float32."""
    n, _, length, c = q.shape
    out = torch.empty_like(q)
    for f, row in enumerate(frames.tolist()):
        sources = [g for g in row if g >= 0]
        queries = q[:, f].float().view(n, length, heads, -1)
        keys = k[:, sources].float().reshape(n, -1, heads, c // heads)
        values = v[:, sources].float().reshape(n, -1, heads, c // heads)
        scores = torch.einsum("nlhd,nmhd->nhlm", queries, keys) * (c / heads) ** -0.5
        mixed = torch.einsum("nhlm,nmhd->nlhd", scores.softmax(dim=-1), values)
        out[:, f] = mixed.reshape(n, length, c).to(q.dtype)
    return out


def _joint(
    q: Tensor, k: Tensor, v: Tensor, heads: int, attend: Attend, max_tokens: int | None
) -> Tensor:
    """All frames of q [N, F', L, C] over all tokens of k, v [N, R, M, C] -> [N, F'*L, C]."""
    keys, values = k.flatten(1, 2), v.flatten(1, 2)
    return _chunked(q.flatten(1, 2), keys, values, heads, attend, max_tokens)


def _separate(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    sources: list[int],
    heads: int,
    attend: Attend,
    max_tokens: int | None,
) -> Tensor:
    """Every frame of q attends to frames of its own, equally many: one call of N*F' entries.

    `sources` lists them frame after frame. Returns [N*F', L, C].
    """
    frames = q.shape[1]
    keys, values = (
        _take(x, sources).unflatten(1, (frames, -1)).flatten(2, 3).flatten(0, 1) for x in (k, v)
    )
    return _chunked(q.flatten(0, 1), keys, values, heads, attend, max_tokens)


def _chunked(
    q: Tensor, k: Tensor, v: Tensor, heads: int, attend: Attend, max_tokens: int | None
) -> Tensor:
    tokens = q.shape[1]
    if max_tokens is None or max_tokens >= tokens:
        return attend(q, k, v, heads)
    parts = (q[:, s : s + max_tokens] for s in range(0, tokens, max_tokens))
    return torch.cat([attend(part, k, v, heads) for part in parts], dim=1)


def _sdpa(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    queries, keys, values = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (q, k, v))
    out = F.scaled_dot_product_attention(queries, keys, values)
    return out.transpose(1, 2).flatten(2)


def _take(x: Tensor, frames: list[int]) -> Tensor:
    """x[:, frames]; a view where the frames are consecutive."""
    first, last = frames[0], frames[-1]
    if frames == list(range(first, last + 1)):
        return x[:, first : last + 1]
    return x.index_select(1, torch.tensor(frames, device=x.device))


def _groups(rows: list[list[int]]) -> dict[tuple[int, ...], list[int]]:
    """row of source frames -> the frames that have it."""
    groups: dict[tuple[int, ...], list[int]] = {}
    for f, row in enumerate(rows):
        groups.setdefault(tuple(row), []).append(f)
    return groups


def _batches(groups: dict[tuple[int, ...], list[int]]) -> list[list[int]]:
    """Frames that share one call: those with equal rows; the others with rows of one length."""
    shared: list[list[int]] = []
    alone: dict[int, list[int]] = {}
    for row, members in groups.items():
        if len(members) > 1 and len(row) > 1:
            shared.append(members)
        else:
            alone.setdefault(len(row), []).extend(members)
    return shared + [sorted(members) for members in alone.values()]


def _check(q: Tensor, k: Tensor, v: Tensor, heads: int, frames: Tensor) -> list[list[int]]:
    fits = q.ndim == k.ndim == 4 and k.shape == v.shape
    fits = fits and q.shape[0] == k.shape[0] and q.shape[3] == k.shape[3]
    if not fits or frames.ndim != 2 or len(frames) != q.shape[1] or q.shape[3] % heads:
        raise ValueError(
            "frame_attention: expected q [N, F, L, C], k and v [N, G, M, C], frames [F, R] and C "
            f"divisible by heads, got {tuple(q.shape)}, {tuple(k.shape)}, {tuple(v.shape)}, "
            f"{tuple(frames.shape)} and {heads} heads."
        )
    rows: list[list[int]] = frames.tolist()
    if any(not -1 <= g < k.shape[1] for row in rows for g in row):
        raise ValueError(f"frame_attention: frames must lie in [-1, {k.shape[1]}), got {rows}.")
    valid = [[g for g in row if g >= 0] for row in rows]
    if not all(valid):
        raise ValueError(
            f"frame_attention: frame {valid.index([])} has no frame to attend to (all entries -1)."
        )
    return valid
