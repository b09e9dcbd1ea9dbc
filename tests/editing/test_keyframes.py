"""Key frames, neighbours and weights against arithmetic by hand and against their properties."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reweave.editing.keyframes import (
    RULES,
    assign_groups,
    draw_key_frames,
    joint_groups,
    neighbours_and_weights,
)


@given(st.integers(1, 40), st.integers(1, 12), st.integers(0, 9))
@settings(max_examples=60, deadline=None)
def test_one_key_frame_lies_in_every_interval(frames, interval, seed):
    drawn = draw_key_frames(frames, interval, 3, seed)
    expected = torch.arange(-(-frames // interval))
    assert torch.equal(drawn // interval, expected.expand(3, -1))
    assert int(drawn.max()) < frames


def test_the_seed_decides_the_draw_and_the_global_generator_is_not_touched():
    torch.manual_seed(3)
    before = torch.random.get_rng_state()
    first, again = draw_key_frames(40, 8, 5, 1), draw_key_frames(40, 8, 5, 1)
    assert torch.equal(first, again)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert not torch.equal(first, draw_key_frames(40, 8, 5, 2))


def test_fixed_key_frames_are_the_middles():
    drawn = draw_key_frames(11, 4, 2, 1, fixed=True)
    assert drawn.tolist() == [[2, 6, 9]] * 2


def test_published_weights_of_eight_frames():
    _, weights = neighbours_and_weights(torch.tensor([3, 12]), 16, 8, "published code")
    measured = [0.62246, 0.65135, 0.67918, 0.70579, 0.73106, 0.71095, 0.69706, 0.68691]
    assert torch.allclose(weights[8:, 0], torch.tensor(measured), atol=1e-5)
    assert torch.equal(weights[:8], torch.tensor([[1.0, 0.0]]).expand(8, 2))


def test_paper_weights_follow_the_distances():
    neighbours, weights = neighbours_and_weights(torch.tensor([2, 6]), 8, 4, "paper")
    # frame 3: 1 from the past key frame, 3 from the future one
    assert neighbours[3].tolist() == [1, 0]
    assert weights[3, 0] == pytest.approx(float(torch.sigmoid(torch.tensor(0.25))))
    # a key frame, and frames outside of all key frames, have one neighbour
    for frame, only in ((2, 0), (0, 0), (6, 1), (7, 1)):
        assert neighbours[frame].tolist() == [only, only]
        assert weights[frame].tolist() == [1.0, 0.0]


@pytest.mark.parametrize("rule", RULES)
@given(frames=st.integers(1, 40), interval=st.integers(1, 12))
@settings(max_examples=40, deadline=None)
def test_weights_sum_to_one_and_neighbours_exist(rule, frames, interval):
    key_frames = draw_key_frames(frames, interval, 1, 1)[0]
    neighbours, weights = neighbours_and_weights(key_frames, frames, interval, rule)
    assert torch.allclose(weights.sum(1), torch.ones(frames))
    assert neighbours.shape == weights.shape == (frames, 2)
    assert 0 <= int(neighbours.min()) and int(neighbours.max()) < len(key_frames)


def test_unknown_rule_is_named():
    with pytest.raises(ValueError, match=r"TokenFlow: expected 'rule'.*got 'nearest'"):
        neighbours_and_weights(torch.tensor([0]), 1, 1, "nearest")


@given(st.integers(1, 30), st.integers(0, 9), st.sampled_from(RULES))
@settings(max_examples=80, deadline=None)
def test_groups_serve_every_frame_once_with_both_its_key_frames(count, most, rule):
    interval = 4
    frames = count * interval
    key_frames = draw_key_frames(frames, interval, 1, 1)[0]
    neighbours, _ = neighbours_and_weights(key_frames, frames, interval, rule)
    groups = joint_groups(count, most)
    served = assign_groups(neighbours, groups)
    assert sorted(torch.cat(served).tolist()) == list(range(frames))
    for (start, end), group in zip(groups, served, strict=True):
        assert most == 0 or end - start <= max(most, 2)
        if len(group):
            assert int(neighbours[group].min()) >= start
            assert int(neighbours[group].max()) < end
