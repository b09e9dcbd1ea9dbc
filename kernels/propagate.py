# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false
"""Carry key-frame tokens to all frames through a nearest-neighbour field (TokenFlow, sec. 4.2)."""

import torch
import torch.nn.functional as F
from torch import Tensor

CHUNK_BYTES = 1 << 22


def propagate(
    tokens: Tensor,
    index: Tensor,
    neighbours: Tensor,
    weight: Tensor,
    chunk_bytes: int = CHUNK_BYTES,
) -> Tensor:
    """Blend, for every token of a frame, its matches in the frame's key frames.

    TokenFlow, section 4.2, eq. 3: ``sum_r weight[f, r] * tokens[:, neighbours[f, r], index[f, r]]``
    in float32; beside the result at most one chunk of tokens, never a weight per channel.

    Args:
        tokens: [N, K, M, C] self-attention outputs of the key frames per conditioning branch.
        index: [F, R, L] integers in [0, M), from `nn_field`.
        neighbours: [F, R] integers in [0, K).
        weight: [F, R] or [F, R, L]; the R weights of a token sum to 1 and may be 0. With R = 1 it
            is therefore 1 and is not read: the result is a plain gather.
        chunk_bytes: size of the working buffers; the result does not depend on it.

    Returns:
        [N, F, L, C] in the dtype of tokens.

    Raises:
        ValueError: shapes that do not fit together.
    """
    _check(tokens, index, neighbours, weight)
    n, _, m, c = tokens.shape
    f, r, length = index.shape
    table = tokens.reshape(n, -1, c)
    base = neighbours.to(index.device, torch.int64)[:, :, None] * m
    rows = (base + index).transpose(0, 1).reshape(r, f * length).to(tokens.device)
    if r == 1:
        return table.index_select(1, rows[0]).view(n, f, length, c)
    blend = _per_token(weight, length).transpose(0, 1).reshape(r, f * length, 1)
    blend = blend.to(tokens.device, _accumulator(tokens.dtype))
    if tokens.dtype == torch.float32 and tokens.device.type == "cpu":
        return _bags(tokens, rows, blend).view(n, f, length, c)
    out = tokens.new_empty(n, f * length, c)
    step = max(1, chunk_bytes // (4 * c))
    for branch in range(n):
        for start in range(0, f * length, step):
            part = slice(start, start + step)
            out[branch, part] = _blend(table[branch], rows[:, part], blend[:, part])
    return out.view(n, f, length, c)


def propagate_naive(tokens: Tensor, index: Tensor, neighbours: Tensor, weight: Tensor) -> Tensor:
    """The definition: gather every neighbour's matches, then the weighted sum in float32."""
    index, neighbours = index.long(), neighbours.long()
    matched = tokens[:, neighbours[:, :, None], index].to(_accumulator(tokens.dtype))
    blend = _per_token(weight, index.shape[2])[None, ..., None].to(matched.dtype)
    return (blend * matched).sum(dim=2).to(tokens.dtype)


def _bags(tokens: Tensor, rows: Tensor, blend: Tensor) -> Tensor:
    """Torch's fused gather and weighted sum: twice as fast on the CPU, and without buffers."""
    n, k, m, _ = tokens.shape
    branch = torch.arange(n, device=rows.device)[:, None, None] * (k * m)
    bags = (branch + rows.T).flatten(0, 1)
    shares = blend[..., 0].T.expand(n, -1, -1).flatten(0, 1)
    return F.embedding_bag(bags, tokens.flatten(0, 2), mode="sum", per_sample_weights=shares)


def _blend(table: Tensor, rows: Tensor, blend: Tensor) -> Tensor:
    """table [K*M, C], rows [R, T], blend [R, T, 1] -> [T, C] in the dtype of blend."""
    parts = [table.index_select(0, row).to(blend.dtype) for row in rows]
    if len(parts) == 2:
        return torch.lerp(parts[1], parts[0], blend[0])
    total = parts[0].mul_(blend[0])
    for part, share in zip(parts[1:], blend[1:], strict=True):
        total.addcmul_(part, share)
    return total


def _per_token(weight: Tensor, length: int) -> Tensor:
    """[F, R] or [F, R, L] -> [F, R, L]; a view."""
    return weight if weight.ndim == 3 else weight[:, :, None].expand(-1, -1, length)


def _accumulator(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def _check(tokens: Tensor, index: Tensor, neighbours: Tensor, weight: Tensor) -> None:
    fits = tokens.ndim == 4 and index.ndim == 3 and neighbours.shape == index.shape[:2]
    if not fits or weight.shape not in (index.shape[:2], index.shape):
        raise ValueError(
            "propagate: expected tokens [N, K, M, C], index [F, R, L], neighbours [F, R] and "
            f"weight [F, R] or [F, R, L], got {tuple(tokens.shape)}, {tuple(index.shape)}, "
            f"{tuple(neighbours.shape)} and {tuple(weight.shape)}."
        )
