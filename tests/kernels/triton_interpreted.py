"""Run by test_nn_field.py with TRITON_INTERPRET=1: the Triton kernel, on the CPU.

bfloat16 is left to the GPU test: the interpreter computes in numpy, which has no bfloat16.
"""

import importlib
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
importlib.import_module("conftest")  # names the pack "reweave"

import torch  # noqa: E402
from reweave.kernels._triton.nn_field import search  # noqa: E402
from reweave.kernels.nn_field import nn_field  # noqa: E402


def check(length: int, tokens: int, channels: int, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(length)
    query = torch.randn(3, length, channels, generator=generator).to(dtype)
    key = torch.randn(2, tokens, channels, generator=generator).to(dtype)
    query[0, 0], key[0, 0] = 0, 0
    index, similarity = search(query, key, {0: [0, 1, 2], 1: [1]})
    expected = nn_field(query, key, torch.tensor([[0, 0], [0, 1], [0, 0]]))
    for ours, truth in zip((index, similarity), expected, strict=True):
        same = torch.cat([truth[:, 0], truth[1:2, 1]])
        torch.testing.assert_close(ours, same, rtol=0, atol=1e-6)


def check_ties() -> None:
    """Of equal keys the first wins, within a block and across blocks (small integers: exact)."""
    generator = torch.Generator().manual_seed(0)
    once = torch.randint(-3, 4, (1, 65, 40), generator=generator).float()
    index, _ = search(once, torch.cat([once, once, once.flip(1)], dim=1), {0: [0]})
    torch.testing.assert_close(index, torch.arange(65)[None])


CASES = (
    (71, 65, 40, torch.float32),
    (63, 3, 8, torch.float32),
    (130, 64, 32, torch.float32),
    (71, 65, 40, torch.float16),
)
for case in CASES:
    check(*case)
check_ties()
print(f"checked {len(CASES)} cases and ties")  # noqa: T201
