"""The one comparison of the suite: what "equal" means for a dtype is decided here alone."""

import torch
from torch import Tensor

TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}
"""Relative and absolute; float16 and bfloat16: two units in the last place of 1."""


def assert_close(actual: Tensor, expected: Tensor) -> None:
    """Same shape and dtype, no NaN, equal within the tolerance of the dtype; integers: exact."""
    tolerance = TOLERANCE[actual.dtype] if actual.is_floating_point() else 0
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


def differ(actual: Tensor, expected: Tensor) -> bool:
    """For the mutation of a golden test: would `assert_close` fail?"""
    try:
        assert_close(actual, expected)
    except AssertionError:
        return True
    return False
