# pyright: reportArgumentType=false
"""Cosine search fused with its maximum: the similarities never leave the chip."""

import subprocess

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.errors import TritonError

EPS = 1e-12

UNUSABLE = (RuntimeError, OSError, subprocess.CalledProcessError, TritonError)
"""What Triton raises where it cannot build or launch a kernel."""


def probe() -> None:
    """Build and run the kernel once on the current CUDA device; raises one of UNUSABLE."""
    tokens = torch.eye(3, device="cuda")[None]
    index, _ = search(tokens, tokens, {0: [0]})
    if index.flatten().tolist() != [0, 1, 2]:
        raise RuntimeError(f"the probe gave {index.flatten().tolist()} instead of [0, 1, 2]")


def search(query: Tensor, key: Tensor, asked: dict[int, list[int]]) -> tuple[Tensor, Tensor]:
    """See kernels/nn_field.py, `_search`: query [F, L, C], key [K, M, C] -> index, cosine [P, L].

    Products of float16 or bfloat16 tokens are exact in float32 and are summed there, so half
    inputs use the tensor cores and lose nothing against an upcast search.
    """
    pairs = [(frame, k) for k, frames in asked.items() for frame in frames]
    table = torch.tensor(pairs, dtype=torch.int64, device=query.device)
    query, key = query.contiguous(), key.contiguous()
    (_, length, channels), tokens = query.shape, key.shape[1]
    scale = 1 / torch.linalg.vector_norm(key, dim=-1, dtype=torch.float32).clamp_min(EPS)
    index = torch.empty(len(pairs), length, dtype=torch.int64, device=query.device)
    best = torch.empty(len(pairs), length, dtype=torch.float32, device=query.device)
    grid = (triton.cdiv(length, 64), len(pairs))
    _kernel[grid](query, key, scale, table, index, best, length, tokens, channels, 64, 64, 32)
    norms = torch.linalg.vector_norm(query, dim=-1, dtype=torch.float32).clamp_min(EPS)
    return index, best / norms[table[:, 0]]


@triton.jit
def _kernel(
    query,
    key,
    scale,
    pairs,
    index,
    best,
    length,
    tokens: tl.constexpr,
    channels: tl.constexpr,
    BLOCK_L: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    pair = tl.program_id(1).to(tl.int64)
    frame = tl.load(pairs + 2 * pair)
    source = tl.load(pairs + 2 * pair + 1)
    rows = tl.program_id(0) * BLOCK_L + tl.arange(0, BLOCK_L)
    queries = query + (frame * length + rows) * channels
    top = tl.full([BLOCK_L], float("-inf"), tl.float32)
    top_at = tl.zeros([BLOCK_L], tl.int32)
    for start in range(0, tokens, BLOCK_M):
        columns = start + tl.arange(0, BLOCK_M)
        keys = key + (source * tokens + columns) * channels
        scores = tl.zeros([BLOCK_L, BLOCK_M], tl.float32)
        for first in range(0, channels, BLOCK_C):
            c = first + tl.arange(0, BLOCK_C)
            q_mask = (rows[:, None] < length) & (c[None, :] < channels)
            k_mask = (c[:, None] < channels) & (columns[None, :] < tokens)
            q = tl.load(queries[:, None] + c[None, :], mask=q_mask, other=0.0)
            k = tl.load(keys[None, :] + c[:, None], mask=k_mask, other=0.0)
            scores = tl.dot(q, k, scores, input_precision="ieee")
        unit = tl.load(scale + source * tokens + columns, mask=columns < tokens, other=0.0)
        scores = tl.where(columns[None, :] < tokens, scores * unit[None, :], float("-inf"))
        here, at = tl.max(scores, axis=1, return_indices=True, return_indices_tie_break_left=True)
        # Strictly better: of equals in different blocks the earlier, lower index stays.
        better = here > top
        top = tl.where(better, here, top)
        top_at = tl.where(better, start + at, top_at)
    out = pair * length + rows
    tl.store(index + out, top_at.to(tl.int64), mask=rows < length)
    tl.store(best + out, top, mask=rows < length)
