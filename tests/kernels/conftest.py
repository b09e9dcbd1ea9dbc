"""Stricter than production: unwritten memory is NaN, and the global generator is sealed."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

Draw = Callable[..., Tensor]


@pytest.fixture(autouse=True)
def strict() -> Iterator[None]:
    state = torch.get_rng_state()
    torch.use_deterministic_algorithms(True)  # also fills torch.empty with NaN
    yield
    torch.use_deterministic_algorithms(False)
    assert torch.equal(state, torch.get_rng_state()), "the kernel drew from the global generator"


@pytest.fixture
def draw() -> Draw:
    """draw(*shape, dtype=float32): the next normal numbers of a generator of this test's own."""
    generator = torch.Generator().manual_seed(7)

    def normal(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.randn(shape, generator=generator).to(dtype)

    return normal


@pytest.fixture(scope="session")
def tf_layer(root: Path) -> dict[str, Tensor]:
    return load_file(root / "tests" / "goldens" / "tf_layer.safetensors")
