"""kernels/nn_field.py against its definition, and the properties that it promises."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from reweave.kernels import nn_field as module
from reweave.kernels.nn_field import nn_field, nn_field_naive
from reweave.tests.kernels.conftest import Draw
from reweave.tests.kernels.recorder import Recorder
from reweave.tests.tolerances import assert_close
from torch import Tensor

DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def neighbours_of(frames: int, keys: int, slots: int = 2) -> Tensor:
    generator = torch.Generator().manual_seed(frames * 10 + keys)
    return torch.randint(keys, (frames, slots), generator=generator)


def assert_same_field(query: Tensor, key: Tensor, neighbours: Tensor) -> None:
    """Similarities agree; indices are equal wherever best and second best differ visibly."""
    index, similarity = nn_field(query, key, neighbours)
    expected_index, expected = nn_field_naive(query, key, neighbours)
    assert similarity.dtype == torch.float32 and index.dtype == torch.int64
    assert_close(similarity, expected)
    q, k = (torch.nn.functional.normalize(x.double(), dim=-1) for x in (query, key))
    cosine = torch.einsum("flc,frmc->frlm", q, k[neighbours])
    if key.shape[1] > 1:
        best = cosine.topk(2, dim=-1).values
        clear = best[..., 0] - best[..., 1] > 1e-6
        assert clear.float().mean() > 0.99
        assert torch.equal(index[clear], expected_index[clear])
    chosen = cosine.gather(-1, index[..., None])[..., 0]
    assert (cosine.amax(dim=-1) - chosen).max() < 1e-6


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("keys", [1, 3])
@pytest.mark.parametrize("frames", [1, 2, 7])
def test_equals_the_definition(draw: Draw, frames: int, keys: int, dtype: torch.dtype) -> None:
    query, key = draw(frames, 63, 37, dtype=dtype), draw(keys, 41, 37, dtype=dtype)
    assert_same_field(query, key, neighbours_of(frames, keys))


@pytest.mark.parametrize("length, tokens, channels", [(1, 1, 1), (63, 1, 5), (1, 130, 40)])
def test_equals_the_definition_at_small_sizes(
    draw: Draw, length: int, tokens: int, channels: int
) -> None:
    assert_same_field(draw(2, length, channels), draw(2, tokens, channels), neighbours_of(2, 2, 1))


@pytest.mark.parametrize("tokens", [7, 58, 63, 200])
@pytest.mark.parametrize("length", [1, 63, 300])
def test_the_tile_size_changes_nothing_even_among_ties(
    draw: Draw, length: int, tokens: int
) -> None:
    query, key = draw(5, length, 52), draw(3, tokens, 52)
    key[:, tokens - tokens // 2 :] = key[:, : tokens // 2]
    neighbours = neighbours_of(5, 3)
    index, similarity = nn_field(query, key, neighbours)
    for tile_bytes in (1, 1 << 15, 1 << 17, 1 << 30):
        other_index, other_similarity = nn_field(query, key, neighbours, tile_bytes)
        assert torch.equal(index, other_index)
        assert torch.equal(similarity, other_similarity)


@pytest.mark.parametrize("tokens", [2, 7, 63, 129])
def test_the_lowest_index_wins_ties(draw: Draw, tokens: int) -> None:
    half = draw(1, tokens, 33)
    key = torch.cat([half, half, half.flip(1)], dim=1)
    index, _ = nn_field(draw(2, 63, 33), key, torch.zeros(2, 1, dtype=torch.int64))
    assert index.max() < tokens
    assert len(index.unique()) > 1
    same = nn_field(draw(2, 63, 33), half[:, :1].expand(1, tokens, 33), index[:, :, 0] * 0)[0]
    assert same.eq(0).all()


def test_a_signed_zero_does_not_tell_keys_apart() -> None:
    key = torch.tensor([[[0.0, 1.0], [-0.0, 1.0]]])
    assert module._first_equal(key[0]).tolist() == [0, 0]
    assert module._first_equal(key[0] * torch.tensor([1.0, 2.0])[:, None]).tolist() == [0, 1]


def test_zero_tokens_give_similarity_zero_and_no_nan(draw: Draw) -> None:
    query, key = draw(2, 63, 20), draw(1, 41, 20)
    query[0, 5], key[0, 3] = 0, 0
    index, similarity = nn_field(query, key, torch.zeros(2, 1, dtype=torch.int64))
    assert similarity.isfinite().all()
    assert index[0, 0, 5] == 0 and similarity[0, 0, 5] == 0
    _, none = nn_field(query, key * 0, torch.zeros(2, 1, dtype=torch.int64))
    assert none.eq(0).all()


@pytest.mark.parametrize("keys", [1, 3])
def test_a_frame_among_key_frames_finds_itself(draw: Draw, keys: int) -> None:
    key = draw(keys, 63, 40)
    index, similarity = nn_field(key, key, torch.arange(keys)[:, None])
    assert torch.equal(index[:, 0], torch.arange(63).expand(keys, 63))
    assert_close(similarity, torch.ones(keys, 1, 63))


def test_scales_of_tokens_change_nothing(draw: Draw) -> None:
    query, key, neighbours = draw(2, 63, 40), draw(3, 41, 40), neighbours_of(2, 3)
    index, similarity = nn_field(query, key, neighbours)
    scaled = nn_field(query * 2.0**12, key * 2.0**-9, neighbours)
    assert torch.equal(index, scaled[0]) and torch.equal(similarity, scaled[1])


def test_similarities_that_half_precision_cannot_tell_apart_are_told_apart() -> None:
    key = torch.tensor([[[32.0, 1.0], [32.0, 0.5], [32.0, 0.0]]], dtype=torch.float16)
    index, _ = nn_field(key, key, torch.zeros(1, 1, dtype=torch.int64))
    assert index.flatten().tolist() == [0, 1, 2]


def test_only_asked_pairs_are_computed_once_and_in_tiles(draw: Draw) -> None:
    query, key = draw(4, 512, 8), draw(3, 512, 8)
    neighbours = torch.tensor([[0, 0], [0, 2], [0, 2], [2, 2]])  # 6 different pairs of 12
    with Recorder() as seen:
        nn_field(query, key, neighbours, tile_bytes=128 * 512 * 4)
    assert seen.total("mm") == 6 * 512 * 512
    assert seen.largest(torch.float32) <= 128 * 512


def test_frames_in_any_order_and_gaps(draw: Draw) -> None:
    query, key = draw(5, 63, 20), draw(3, 41, 20)
    assert_same_field(query, key, torch.tensor([[2, 0], [1, 1], [0, 2], [1, 0], [2, 2]]))
    wide = draw(5, 63, 40)[..., ::2]
    assert_same_field(wide, key, torch.tensor([[2], [1], [0], [1], [2]]))


def test_errors_say_what_came(draw: Draw) -> None:
    query, key = draw(2, 63, 20), draw(3, 41, 20)
    with pytest.raises(ValueError, match=r"got \(2, 63, 20\), \(3, 41, 19\) and \(2, 1\)"):
        nn_field(query, key[..., 1:], neighbours_of(2, 3, 1))
    with pytest.raises(ValueError, match=r"got .* and \(3, 1\)"):
        nn_field(query, key, neighbours_of(3, 3, 1))
    with pytest.raises(ValueError, match=r"lie in \[0, 3\).* from -1 to 3"):
        nn_field(
            query, key, torch.tensor([[0], [-1]]).index_put((torch.tensor([0]),), torch.tensor(3))
        )


def test_without_triton_the_torch_search_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    module._triton.cache_clear()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert module._triton() is None
    module._triton.cache_clear()


NO_TRITON = importlib.util.find_spec("triton") is None


@pytest.mark.skipif(NO_TRITON, reason="triton is not installed")
def test_a_triton_that_cannot_compile_is_said_once_and_left_alone(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from reweave.kernels._triton import nn_field as kernel

    def no_compiler() -> None:
        raise RuntimeError("Failed to find C compiler")

    monkeypatch.setattr(kernel, "probe", no_compiler)
    module._triton.cache_clear()
    assert module._triton() is None and module._triton() is None
    module._triton.cache_clear()
    assert caplog.text.count("torch is used: Failed to find C compiler") == 1


@pytest.mark.skipif(NO_TRITON, reason="triton is not installed")
def test_the_triton_kernel_in_its_interpreter(root: Path) -> None:
    script = root / "tests" / "kernels" / "triton_interpreted.py"
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    run = subprocess.run(
        [sys.executable, str(script)], env=environment, capture_output=True, text=True, timeout=300
    )
    assert run.returncode == 0, run.stderr[-3000:]
    assert "checked 4 cases and ties" in run.stdout


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_triton_kernel_on_a_gpu(draw: Draw, dtype: torch.dtype) -> None:
    assert module._triton() is not None
    query, key = draw(7, 63, 80, dtype=dtype).cuda(), draw(3, 200, 80, dtype=dtype).cuda()
    key[:, 100:] = key[:, :100]
    index, _ = nn_field(query, key, neighbours_of(7, 3))
    assert index.max() < 100
    assert_same_field(query, key[:, :100], neighbours_of(7, 3))
