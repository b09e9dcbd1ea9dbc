"""kernels/layers.py: the texel convention, reading, writing and compositing."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reweave.kernels.layers import (
    composite,
    composite_naive,
    sample_texture,
    sample_texture_naive,
    splat_to_texture,
    splat_to_texture_naive,
)
from reweave.tests.kernels.conftest import Draw
from reweave.tests.tolerances import assert_close, differ
from torch import Tensor


def texel_centres(rows: int, columns: int) -> Tensor:
    """The uv [1, V, U, 2] of every texel: (i + 0.5) / n * 2 - 1."""
    y, x = ((torch.arange(n) + 0.5) / n * 2 - 1 for n in (rows, columns))
    return torch.stack(torch.meshgrid(y, x, indexing="ij")[::-1], dim=-1)[None]


def uv_of(draw: Draw, frames: int, height: int, width: int) -> Tensor:
    return draw(frames, height, width, 2) * 0.7  # about 15 % lie outside


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("size", [(1, 1), (1, 9), (13, 7)])
def test_sampling_equals_the_definition(
    draw: Draw, size: tuple[int, int], dtype: torch.dtype
) -> None:
    texture, uv = draw(3, *size, dtype=dtype), uv_of(draw, 2, 11, 5)
    out = sample_texture(texture, uv)
    assert out.shape == (2, 3, 11, 5)
    assert_close(out, sample_texture_naive(texture, uv))


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (13, 7)])
def test_splatting_equals_the_definition(draw: Draw, size: tuple[int, int]) -> None:
    frames, uv = draw(2, 3, 11, 5), uv_of(draw, 2, 11, 5)
    weight = draw(2, 1, 11, 5).abs()
    for ours, truth in zip(
        splat_to_texture(frames, uv, size, weight),
        splat_to_texture_naive(frames, uv, size, weight),
        strict=True,
    ):
        assert_close(ours, truth)


def test_the_texel_convention_by_hand() -> None:
    texture = torch.tensor([[[0.0, 1.0]]])
    uv = torch.tensor([[[[-1.0, 0], [-0.5, 0], [0.0, 0], [0.25, 0], [0.5, 0], [1.0, 0], [3.0, 0]]]])
    expected = torch.tensor([0.0, 0.0, 0.5, 0.75, 1.0, 1.0, 1.0])
    assert_close(sample_texture(texture, uv).flatten(), expected)


def test_the_published_border_is_black() -> None:
    texture = torch.ones(1, 2, 4)
    uv = torch.tensor([[[[-1.0, -1.0], [-1.0, 0.0], [0.0, 0.0], [1.25, 0.0], [2.0, 0.0]]]])
    out = sample_texture(texture, uv, published_border=True).flatten()
    assert_close(out, torch.tensor([0.25, 0.5, 1.0, 0.0, 0.0]))
    assert_close(sample_texture(texture, uv).flatten(), torch.ones(5))


def test_x_runs_along_columns() -> None:
    texture = torch.arange(6.0).view(1, 2, 3)
    upper_right = torch.tensor([[[[2 / 3, -0.5]]]])
    assert sample_texture(texture, upper_right).item() == pytest.approx(2)


def test_identity_uv_reads_and_writes_the_texture(draw: Draw) -> None:
    texture, uv = draw(3, 13, 7), texel_centres(13, 7)
    frame = sample_texture(texture, uv)
    assert_close(frame[0], texture)
    back, coverage = splat_to_texture(frame, uv, (13, 7))
    assert_close(back, texture)
    assert_close(coverage, torch.ones(1, 13, 7))


def test_texels_that_were_read_come_back_and_the_others_are_empty(draw: Draw) -> None:
    texture = draw(3, 13, 7)
    uv = texel_centres(13, 7)[:, 2:9, 1:6]
    back, coverage = splat_to_texture(sample_texture(texture, uv), uv, (13, 7))
    assert_close(back[:, 2:9, 1:6], texture[:, 2:9, 1:6])
    inside = torch.zeros(1, 13, 7)
    inside[:, 2:9, 1:6] = 1
    assert_close(coverage, inside)
    assert differ(back, texture)
    assert_close(back * (coverage == 0), torch.zeros(3, 13, 7))


def test_a_constant_comes_back_wherever_it_was_written(draw: Draw) -> None:
    uv = uv_of(draw, 3, 11, 5)
    back, coverage = splat_to_texture(torch.full((3, 3, 11, 5), 0.3), uv, (16, 29))
    assert_close(back, torch.where(coverage > 0, 0.3, 0.0).expand_as(back))
    assert 0 < coverage.count_nonzero() < coverage.numel()
    assert coverage.sum().item() == pytest.approx(3 * 11 * 5, rel=1e-5)


def test_a_weight_of_zero_writes_nothing_and_larger_weights_count_more() -> None:
    uv = torch.zeros(2, 1, 1, 2)
    frames = torch.tensor([1.0, 5.0]).view(2, 1, 1, 1)
    weight = torch.tensor([3.0, 1.0]).view(2, 1, 1, 1)
    texture, coverage = splat_to_texture(frames, uv, (1, 1), weight)
    assert texture.item() == pytest.approx(2) and coverage.item() == 4
    texture, coverage = splat_to_texture(frames, uv, (1, 1), weight * 0)
    assert texture.item() == 0 and coverage.item() == 0


def test_the_published_shift_is_half_a_texel(draw: Draw) -> None:
    frames, uv = draw(1, 3, 5, 4), texel_centres(13, 7)[:, 3:8, 1:5]
    shifted, _ = splat_to_texture(frames, uv - 1 / torch.tensor([7, 13]), (13, 7), None, True)
    straight, _ = splat_to_texture(frames, uv, (13, 7))
    assert_close(shifted, straight)
    assert differ(splat_to_texture(frames, uv, (13, 7), None, True)[0], straight)


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 9), st.integers(1, 9), st.integers(1, 3), st.integers(0, 99))
def test_writing_is_the_adjoint_of_reading(rows: int, columns: int, frames: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    texture = torch.randn(3, rows, columns, generator=generator)
    images = torch.randn(frames, 3, 5, 4, generator=generator)
    uv = torch.randn(frames, 5, 4, 2, generator=generator)
    written, coverage = splat_to_texture(images, uv, (rows, columns))
    there = (written * coverage * texture).double().sum()
    here = (images * sample_texture(texture, uv)).double().sum()
    assert abs(there - here) < 1e-3


def test_gradients_reach_every_input(draw: Draw) -> None:
    frames, uv = draw(2, 3, 5, 4).requires_grad_(), uv_of(draw, 2, 5, 4).requires_grad_()
    weight = draw(2, 1, 5, 4).abs().requires_grad_()
    texture, _ = splat_to_texture(frames, uv, (6, 9), weight)
    (texture**2).sum().backward()
    for x in (frames, uv, weight):
        assert x.grad is not None and x.grad.isfinite().all() and x.grad.abs().sum() > 0


def test_compositing(draw: Draw) -> None:
    front, back, alpha = draw(2, 3, 5, 4), draw(2, 3, 5, 4), draw(2, 1, 5, 4).sigmoid()
    assert_close(composite(front, back, alpha), composite_naive(front, back, alpha))
    assert torch.equal(composite(front, back, torch.ones(2, 1, 5, 4)), front)
    assert torch.equal(composite(front, back, torch.zeros(2, 1, 5, 4)), back)


def test_errors_say_what_came(draw: Draw) -> None:
    with pytest.raises(ValueError, match=r"got \(2, 3, 5, 4\) and \(2, 5, 3, 2\)"):
        splat_to_texture(draw(2, 3, 5, 4), draw(2, 5, 3, 2), (6, 9))
    with pytest.raises(ValueError, match=r"weight \[F, 1, H, W\].* got \(2, 5, 4\)"):
        splat_to_texture(draw(2, 3, 5, 4), draw(2, 5, 4, 2), (6, 9), draw(2, 5, 4))
    with pytest.raises(ValueError, match=r"texture \[3, V, U\].* got \(1, 3, 5, 4\)"):
        sample_texture(draw(1, 3, 5, 4), draw(2, 5, 4, 2))
