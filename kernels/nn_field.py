# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false
"""Nearest-neighbour fields between the tokens of frames and of key frames (TokenFlow, sec. 4.2)."""

import functools
import importlib.util
import logging
from types import ModuleType

import torch
import torch.nn.functional as F
from torch import Tensor

EPS = 1e-12
"""Norms are clamped to this, so a zero token has similarity 0 with everything, never NaN."""

HASH = 0x5851F42D4C957F2D
"""An odd multiplier (Knuth's, of MMIX) whose powers mix the bits of a key."""

MIN_ROWS = 64
"""Query rows per tile are a multiple of this: a matmul of fewer rows may round differently."""


@torch.no_grad()
def nn_field(
    query: Tensor, key: Tensor, neighbours: Tensor, tile_bytes: int | None = None
) -> tuple[Tensor, Tensor]:
    """For every token of a frame, the most similar token of each of its key frames.

    TokenFlow, section 4.2, eq. 2: argmin of the cosine distance. Searched in float32 whatever the
    input dtype; never more than one tile of the similarity matrix exists. Frames that ask for the
    same key frame are searched together and a repeated pair is searched once.

    Args:
        query: [F, L, C] tokens of the frames.
        key: [K, M, C] tokens of the key frames, same device and dtype as query.
        neighbours: [F, R] integers in [0, K): the key frames that each frame asks for. On the CPU
            it costs no device synchronisation.
        tile_bytes: upper limit of the tile of similarities, in bytes; the result does not depend
            on it. None: 8 MB on the CPU (stays in its cache), 256 MB elsewhere.

    Returns:
        index [F, R, L] int64 into M, the lowest of equals; similarity [F, R, L] float32 cosine.

    Raises:
        ValueError: shapes that do not fit together, or a neighbour outside [0, K).
    """
    pairs = _check(query, key, neighbours)
    asked: dict[int, list[int]] = {}
    for frame, k in sorted({(f, k) for f, row in enumerate(pairs) for k in row}):
        asked.setdefault(k, []).append(frame)
    fused = _triton() if query.is_cuda and tile_bytes is None else None
    search = fused.search if fused else functools.partial(_search, tile_bytes)
    index, similarity = search(query, key, asked)  # [P, L], one row per pair in asked's order
    first = [_first_equal(key[k]).expand(len(frames), -1) for k, frames in asked.items()]
    index = torch.cat(first).gather(1, index)

    order = {(f, k): i for i, (k, f) in enumerate((k, f) for k, fs in asked.items() for f in fs)}
    place = [[order[f, k] for k in row] for f, row in enumerate(pairs)]
    place = torch.tensor(place, dtype=torch.int64, device=query.device)
    return index[place], similarity[place]


def nn_field_naive(query: Tensor, key: Tensor, neighbours: Tensor) -> tuple[Tensor, Tensor]:
    """The definition: the whole matrix of cosine similarities, then its maximum over key tokens."""
    neighbours = neighbours.to(key.device)
    q = F.normalize(query.float(), dim=-1, eps=EPS)
    k = F.normalize(key.float(), dim=-1, eps=EPS)
    cosine = torch.einsum("flc,frmc->frlm", q, k[neighbours.long()])
    similarity, index = cosine.max(dim=-1)
    return index, similarity


def _search(
    tile_bytes: int | None, query: Tensor, key: Tensor, asked: dict[int, list[int]]
) -> tuple[Tensor, Tensor]:
    """Key frame -> the frames that ask for it; returns index, cosine [P, L], P pairs in order."""
    budget = tile_bytes or (8 << 20 if query.device.type == "cpu" else 256 << 20)
    found: list[Tensor] = []
    cosines: list[Tensor] = []
    for k, frames in asked.items():
        # A positive scale of a query cannot change its argmax: only the keys are normalised.
        unit = F.normalize(key[k].float(), dim=-1, eps=EPS)
        rows = _take(query, frames).flatten(0, 1)
        for tile in rows.split(_tile_rows(len(unit), budget)):
            tokens = tile.float()
            index = _argmax(tokens @ unit.T)
            # The cosine of the chosen pair alone: it cannot depend on the shape of the tile.
            dots = unit[index].mul_(tokens).sum(dim=-1)
            found.append(index)
            cosines.append(dots / torch.linalg.vector_norm(tokens, dim=-1).clamp_min(EPS))
    shape = (-1, query.shape[1])
    return torch.cat(found).view(shape), torch.cat(cosines).view(shape)


def _argmax(scores: Tensor) -> Tensor:
    """The first of the largest per row. Numpy's is vectorised on the CPU, torch's is not."""
    if scores.device.type == "cpu":
        return torch.from_numpy(scores.numpy().argmax(axis=-1))
    return scores.argmax(dim=-1)


def _first_equal(key: Tensor) -> Tensor:
    """[M, C] -> [M]: the lowest row equal to each row.

    A matmul may round equal columns differently at its edges, so equal keys are made one here.
    """
    bits = (key.float() + 0.0).view(torch.int32).long()  # + 0.0: -0.0 becomes 0.0
    # Integer sums do not depend on their order; modulo 2^64 a chance collision is out of reach.
    factors = torch.full((key.shape[1],), HASH, device=key.device).cumprod(dim=0)
    marks, order = (bits * factors).sum(dim=-1).sort(stable=True)
    start = torch.arange(1, len(key), device=key.device) * (marks[1:] != marks[:-1])
    start = F.pad(start, (1, 0)).cummax(dim=0).values
    return torch.empty_like(order).scatter_(0, order, order[start])


def _tile_rows(columns: int, budget: int) -> int:
    return max(1, budget // (4 * columns * MIN_ROWS)) * MIN_ROWS


def _take(x: Tensor, frames: list[int]) -> Tensor:
    """x[frames]; a view where the frames are consecutive."""
    first, last = frames[0], frames[-1]
    if frames == list(range(first, last + 1)):
        return x[first : last + 1]
    return x[torch.tensor(frames, device=x.device)]


def _check(query: Tensor, key: Tensor, neighbours: Tensor) -> list[list[int]]:
    fits = query.ndim == key.ndim == 3 and query.shape[2] == key.shape[2] and key.shape[1] > 0
    if not fits or neighbours.ndim != 2 or len(neighbours) != len(query):
        raise ValueError(
            "nn_field: expected query [F, L, C], key [K, M, C] and neighbours [F, R], got "
            f"{tuple(query.shape)}, {tuple(key.shape)} and {tuple(neighbours.shape)}."
        )
    pairs: list[list[int]] = neighbours.tolist()
    if any(not 0 <= k < len(key) for row in pairs for k in row):
        raise ValueError(
            f"nn_field: neighbours must lie in [0, {len(key)}), the number of key frames, got "
            f"values from {min(map(min, pairs))} to {max(map(max, pairs))}."
        )
    return pairs


@functools.cache
def _triton() -> ModuleType | None:
    # Not at import: CPU, Mac and most Windows hosts have no Triton. find_spec, not
    # `except ImportError`: an error in our own file must not look like "no Triton".
    if importlib.util.find_spec("triton") is None:
        return None
    from ._triton import nn_field as module

    try:
        module.probe()
    except module.UNUSABLE as error:  # most often: the host has no C compiler
        logging.getLogger(__name__).warning(
            "Reweave: Triton is installed but does not work here, torch is used: %s", error
        )
        return None
    return module
