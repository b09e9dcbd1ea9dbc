"""kernels/schedule.py against its definitions in VP space."""

from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from reweave.kernels import schedule
from reweave.tests.kernels.conftest import Draw
from reweave.tests.tolerances import assert_close
from torch import Tensor

LEVELS = [0.03, 1.0, 14.6, torch.tensor(2.5), torch.tensor([0.5]), torch.tensor([0.1, 2.0, 9.0])]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.float64])
@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("name", ["vp_from_sigma_space", "sigma_space_from_vp"])
def test_spaces_equal_their_definition(
    draw: Draw, name: str, level: float | Tensor, dtype: torch.dtype
) -> None:
    x = draw(3, 4, 5, 7, dtype=dtype)
    fast: Callable[..., Tensor] = getattr(schedule, name)
    assert_close(fast(x, level), getattr(schedule, f"{name}_naive")(x, level))


@pytest.mark.parametrize("start", LEVELS)
@pytest.mark.parametrize("end", [0.0, *LEVELS])
def test_a_step_is_ddim_in_vp_space(draw: Draw, start: float | Tensor, end: float | Tensor) -> None:
    x, eps = draw(3, 4, 5, 7).double(), draw(3, 4, 5, 7).double()
    step = schedule.ddim_step(x, eps, start, end)
    assert_close(step, schedule.ddim_step_naive(x, eps, start, end))


def test_a_step_by_hand() -> None:
    x, eps = torch.full((1, 1, 1, 1), 3.0), torch.full((1, 1, 1, 1), 0.5)
    assert schedule.ddim_step(x, eps, 4.0, 2.0).item() == 2.0  # 3 + (2 - 4) * 0.5
    assert schedule.vp_from_sigma_space(x, 0.75).item() == pytest.approx(2.4)  # 3 / 1.25
    assert schedule.sigma_space_from_vp(x, 0.75).item() == pytest.approx(3.75)


def test_one_sigma_per_frame_is_each_frame_alone(draw: Draw) -> None:
    x, eps, sigmas = draw(3, 4, 5, 7), draw(3, 4, 5, 7), torch.tensor([0.1, 2.0, 9.0])
    together = schedule.ddim_step(x, eps, sigmas, sigmas * 2)
    for i, sigma in enumerate(sigmas.tolist()):
        alone = schedule.ddim_step(x[i : i + 1], eps[i : i + 1], sigma, sigma * 2)
        assert_close(together[i : i + 1], alone)


def test_up_and_down_with_the_same_noise_returns(draw: Draw) -> None:
    x, eps = draw(3, 4, 5, 7), draw(3, 4, 5, 7)
    sigmas = [0.03, 0.5, 2.0, 14.6]
    y = x
    for a, b in pairwise(sigmas):
        y = schedule.ddim_step(y, eps, a, b)
    for a, b in pairwise(sigmas[::-1]):
        y = schedule.ddim_step(y, eps, a, b)
    assert_close(y, x)


@pytest.mark.parametrize("level", LEVELS)
def test_noise_and_clean_latent_are_two_views_of_one_prediction(
    draw: Draw, level: float | Tensor
) -> None:
    x, eps = draw(3, 4, 5, 7).double(), draw(3, 4, 5, 7).double()
    denoised = schedule.denoised_from_eps(x, eps, level)
    assert_close(schedule.ddim_step(x, eps, level, 0.0), denoised)
    assert_close(schedule.eps_from_denoised(x, denoised, level), eps)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_dtype_is_kept(draw: Draw, dtype: torch.dtype) -> None:
    x = draw(2, 4, 5, 7, dtype=dtype)
    sigma = torch.tensor([0.5, 2.0])
    assert schedule.ddim_step(x, x, sigma, 0.1).dtype == dtype
    assert schedule.eps_from_denoised(x, x, sigma).dtype == dtype
    assert schedule.denoised_from_eps(x, x, sigma).dtype == dtype


def test_errors_say_what_came(draw: Draw) -> None:
    x = draw(3, 4, 5, 7)
    for zero in (0.0, torch.tensor([1.0, 0.0, 1.0])):
        with pytest.raises(ValueError, match="sigma_from must be > 0"):
            schedule.ddim_step(x, x, zero, 1.0)
        with pytest.raises(ValueError, match="sigma must be > 0"):
            schedule.eps_from_denoised(x, x, zero)
    with pytest.raises(ValueError, match=r"expected shape \(\) or \(3,\), got \(2,\)"):
        schedule.ddim_step(x, x, torch.ones(2), 0.5)
