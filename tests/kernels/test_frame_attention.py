"""kernels/frame_attention.py against its definition, and the properties that it promises."""

import pytest
import torch
import torch.nn.functional as F
from reweave.kernels.frame_attention import frame_attention, frame_attention_naive
from reweave.tests.kernels.conftest import Draw
from reweave.tests.tolerances import assert_close, differ
from torch import Tensor

FRAMES = {
    "extended": lambda f: [[0, 1, 2]] * f,
    "key frames in another order": lambda f: [[2, 0]] * f,
    "itself or one other": lambda f: [[i % 3] for i in range(f)],
    "first and previous": lambda f: [[0, max(i - 1, 0) % 3] for i in range(f)],
    "a window with absent ends": lambda f: [[i % 3 - 1, i % 3, -1] for i in range(f)],
    "one and several": lambda f: [[i % 3, 1 if i % 2 else -1] for i in range(f)],
}


class Counting:
    """Attention that notes what it is given."""

    def __init__(self) -> None:
        self.calls: list[tuple[Tensor, Tensor, Tensor, int]] = []

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
        self.calls.append((q, k, v, heads))
        one = (q[:, None], k[:, None], v[:, None])
        return frame_attention_naive(*one, heads, torch.zeros(1, 1, dtype=torch.int64))[:, 0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("mode", FRAMES)
@pytest.mark.parametrize("frames", [1, 2, 7])
def test_equals_the_definition(draw: Draw, frames: int, mode: str, dtype: torch.dtype) -> None:
    q, k, v = (draw(2, f, t, 24, dtype=dtype) for f, t in ((frames, 63), (3, 41), (3, 41)))
    rows = torch.tensor(FRAMES[mode](frames))
    for heads in (1, 3):
        expected = frame_attention_naive(q, k, v, heads, rows)
        assert_close(frame_attention(q, k, v, heads, rows), expected)
        assert_close(frame_attention(q, k, v, heads, rows, max_tokens=10), expected)
        assert_close(frame_attention(q, k, v, heads, rows, attend=Counting()), expected)


@pytest.mark.parametrize("mode", FRAMES)
def test_max_tokens_bounds_the_queries_of_a_call(draw: Draw, mode: str) -> None:
    q, k, v = draw(2, 4, 63, 24), draw(2, 3, 41, 24), draw(2, 3, 41, 24)
    rows, attend = torch.tensor(FRAMES[mode](4)), Counting()
    frame_attention(q, k, v, 3, rows, attend, max_tokens=10)
    assert max(call[0].shape[1] for call in attend.calls) <= 10


def test_only_the_frame_itself_is_plain_attention(draw: Draw) -> None:
    q, k, v = (draw(2, 7, 63, 24) for _ in range(3))
    out = frame_attention(q, k, v, 3, torch.arange(7)[:, None])
    heads = [x.unflatten(-1, (3, 8)).flatten(0, 1).transpose(1, 2) for x in (q, k, v)]
    plain = F.scaled_dot_product_attention(*heads).transpose(1, 2).reshape(2, 7, 63, 24)
    assert_close(out, plain)


def test_a_repeated_frame_counts_twice(draw: Draw) -> None:
    q, k, v = draw(1, 1, 63, 24), draw(1, 2, 41, 24), draw(1, 2, 41, 24)
    one = frame_attention(q, k, v, 3, torch.tensor([[0, 1]]))
    two = frame_attention(q, k, v, 3, torch.tensor([[0, 0, 1]]))
    assert differ(one, two)
    alone = frame_attention(q, k, v, 3, torch.tensor([[0]]))
    assert_close(frame_attention(q, k, v, 3, torch.tensor([[0, 0]])), alone)


@pytest.mark.parametrize("sources", [[0, 1, 2], [1, 2]])
def test_equal_rows_share_uncopied_keys_in_one_call(draw: Draw, sources: list[int]) -> None:
    q, k, v = draw(2, 7, 63, 24), draw(2, 3, 41, 24), draw(2, 3, 41, 24)
    attend = Counting()
    frame_attention(q, k, v, 3, torch.tensor([[*sources, -1]] * 7), attend)
    ((queries, keys, values, heads),) = attend.calls
    assert heads == 3
    assert queries.shape == (2, 7 * 63, 24) and keys.shape == (2, 41 * len(sources), 24)
    for given, whole in ((queries, q), (keys, k), (values, v)):
        assert given.untyped_storage().data_ptr() == whole.untyped_storage().data_ptr()


def test_rows_that_are_equal_or_equally_long_share_a_call(draw: Draw) -> None:
    q, k, v = draw(2, 6, 63, 24), draw(2, 3, 41, 24), draw(2, 3, 41, 24)
    attend = Counting()
    table = torch.tensor([[0, 1], [0, -1], [0, 1], [2, 0], [0, 2], [1, -1]])
    frame_attention(q, k, v, 3, table, attend)
    # frames 0 and 2 share keys; 3 and 4 have two frames each, 1 and 5 one each
    assert [call[0].shape[:2] for call in attend.calls] == [(2, 2 * 63), (4, 63), (4, 63)]
    assert [call[1].shape[1] // 41 for call in attend.calls] == [2, 1, 2]
    attend = Counting()
    frame_attention(q[:, :5], k, v, 3, torch.tensor([[0], [1], [2], [0], [1]]), attend)
    assert [call[0].shape[0] for call in attend.calls] == [10]


def test_errors_say_what_came(draw: Draw) -> None:
    q, k = draw(2, 4, 63, 24), draw(2, 3, 41, 24)
    rows = torch.zeros(4, 2, dtype=torch.int64)
    with pytest.raises(ValueError, match=r"\(3, 2\) and 3 heads"):
        frame_attention(q, k, k, 3, rows[:3])
    with pytest.raises(ValueError, match=r"divisible by heads.* and 5 heads"):
        frame_attention(q, k, k, 5, rows)
    with pytest.raises(ValueError, match=r"lie in \[-1, 3\)"):
        frame_attention(q, k, k, 3, rows + 3)
    with pytest.raises(ValueError, match="frame 2 has no frame to attend to"):
        frame_attention(q, k, k, 3, rows.index_fill(0, torch.tensor([2]), -1))
