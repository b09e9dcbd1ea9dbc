"""kernels/propagate.py against its definition, and the properties that it promises."""

import pytest
import torch
from reweave.kernels.propagate import propagate, propagate_naive
from reweave.tests.kernels.conftest import Draw
from reweave.tests.kernels.recorder import Recorder
from reweave.tests.tolerances import assert_close
from torch import Tensor

DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


def field(frames: int, keys: int, slots: int, length: int, tokens: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(frames + keys + slots)
    index = torch.randint(tokens, (frames, slots, length), generator=generator)
    return index, torch.randint(keys, (frames, slots), generator=generator)


def shares(draw: Draw, *shape: int) -> Tensor:
    """Weights [F, R] or [F, R, L] that sum to 1 over r."""
    return draw(*shape).double().softmax(dim=1)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("slots", [1, 2, 3])
@pytest.mark.parametrize("frames, keys", [(1, 1), (2, 3), (7, 3)])
def test_equals_the_definition(
    draw: Draw, frames: int, keys: int, slots: int, dtype: torch.dtype
) -> None:
    tokens = draw(3, keys, 41, 37, dtype=dtype)
    index, neighbours = field(frames, keys, slots, 63, 41)
    for weight in (shares(draw, frames, slots), shares(draw, frames, slots, 63)):
        out = propagate(tokens, index, neighbours, weight)
        assert out.dtype == dtype
        assert_close(out, propagate_naive(tokens, index, neighbours, weight))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("slots", [2, 3])
def test_the_chunk_size_changes_nothing(draw: Draw, slots: int, dtype: torch.dtype) -> None:
    tokens, weight = draw(2, 3, 41, 37, dtype=dtype), shares(draw, 5, slots, 63)
    index, neighbours = field(5, 3, slots, 63, 41)
    whole = propagate(tokens, index, neighbours, weight, chunk_bytes=1 << 30)
    for chunk_bytes in (1, 1000, 10_000):
        assert torch.equal(whole, propagate(tokens, index, neighbours, weight, chunk_bytes))


def test_half_inputs_are_blended_in_float32(draw: Draw) -> None:
    tokens, weight = draw(2, 3, 41, 37, dtype=torch.float16), shares(draw, 5, 2, 63)
    index, neighbours = field(5, 3, 2, 63, 41)
    exact = propagate_naive(tokens.double(), index, neighbours, weight)
    wrong = propagate(tokens, index, neighbours, weight).double() - exact
    in_half = propagate_naive(tokens.double(), index, neighbours, weight.half()) - exact
    rounding = exact.half().double() - exact
    assert wrong.abs().max() <= rounding.abs().max() * 1.001
    assert in_half.abs().max() > wrong.abs().max() / 4  # weights in half would have been seen


@pytest.mark.parametrize("dtype", DTYPES)
def test_one_neighbour_is_a_gather(draw: Draw, dtype: torch.dtype) -> None:
    tokens = draw(2, 3, 41, 37, dtype=dtype)
    index, neighbours = field(5, 3, 1, 63, 41)
    out = propagate(tokens, index, neighbours, torch.ones(5, 1))
    assert torch.equal(out, tokens[:, neighbours, index[:, 0]])


@pytest.mark.parametrize("dtype", DTYPES)
def test_weights_of_zero_and_one_pick_one_neighbour_exactly(draw: Draw, dtype: torch.dtype) -> None:
    tokens = draw(2, 3, 41, 37, dtype=dtype)
    index, neighbours = field(5, 3, 2, 63, 41)
    weight = torch.tensor([[1.0, 0.0], [0.0, 1.0]] * 2 + [[1.0, 0.0]])
    slot = weight.argmax(dim=1)
    rows = torch.arange(5)
    expected = tokens[:, neighbours[rows, slot][:, None], index[rows, slot]]
    assert torch.equal(propagate(tokens, index, neighbours, weight), expected)


def test_blending_a_match_with_itself_gives_the_match(draw: Draw) -> None:
    tokens, index = draw(2, 1, 63, 37), torch.arange(63).expand(4, 2, 63)
    out = propagate(tokens, index, torch.zeros(4, 2, dtype=torch.int64), shares(draw, 4, 2))
    assert_close(out, tokens.expand(2, 4, 63, 37))


@pytest.mark.parametrize("stored", [torch.int16, torch.int32])
def test_indices_at_rest_are_accepted(draw: Draw, stored: torch.dtype) -> None:
    tokens, weight = draw(2, 3, 4099, 5), shares(draw, 5, 2)
    index, neighbours = field(5, 3, 2, 63, 4099)
    neighbours[:] = 2  # its first row lies at 8198, times C beyond int16
    out = propagate(tokens, index.to(stored), neighbours.to(stored), weight)
    assert torch.equal(out, propagate(tokens, index, neighbours, weight))


def test_tokens_may_be_a_strided_view(draw: Draw) -> None:
    tokens = draw(41, 2, 3, 74)[..., ::2].permute(1, 2, 0, 3)
    index, neighbours = field(5, 3, 2, 63, 41)
    weight = shares(draw, 5, 2)
    out = propagate(tokens, index, neighbours, weight)
    assert_close(out, propagate_naive(tokens, index, neighbours, weight))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_neither_indices_nor_weights_grow_to_the_size_of_tokens(
    draw: Draw, dtype: torch.dtype
) -> None:
    tokens, weight = draw(2, 3, 256, 64, dtype=dtype), shares(draw, 8, 2)
    index, neighbours = field(8, 3, 2, 256, 256)
    with Recorder() as seen:
        propagate(tokens, index, neighbours, weight, chunk_bytes=4 * 64 * 64)
    assert seen.largest(torch.int64) <= 2 * 8 * 256 * 2
    if dtype == torch.float16:
        assert seen.largest(torch.float32) <= max(64 * 64, 2 * 8 * 256)
        assert seen.largest(dtype) == 2 * 8 * 256 * 64


def test_errors_say_what_came(draw: Draw) -> None:
    index, neighbours = field(5, 3, 2, 63, 41)
    with pytest.raises(ValueError, match=r"got \(3, 41, 37\), \(5, 2, 63\), \(5, 2\) and \(5, 2\)"):
        propagate(draw(3, 41, 37), index, neighbours, torch.ones(5, 2))
    with pytest.raises(ValueError, match=r"and \(2,\)\.$"):
        propagate(draw(2, 3, 41, 37), index, neighbours, torch.ones(2))
