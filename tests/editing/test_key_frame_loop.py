"""Edits carried over the texture of a clip whose atlas is exact."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from reweave.editing.atlas.aggregation import (
    METHODS,
    View,
    aggregate,
    combined,
    initial_weights,
    loss_curve,
    median,
    published_median,
    read_part,
    train,
)
from reweave.editing.atlas.key_frames import Box
from reweave.editing.atlas.propagation import (
    Carrying,
    KeyFrame,
    PartialTexture,
    Task,
    edit_in_turn,
    merged,
    partial_texture,
)
from reweave.editing.atlas.requests import Carriage
from reweave.editing.atlas.steps import Training, aggregate_key_frames, propagate
from reweave.kernels.layers import sample_texture
from reweave.tests.tolerances import assert_close, differ
from reweave.tests.turning_object import (
    BORDER,
    HEIGHT,
    SIDE,
    TURN,
    WIDTH,
    pictures,
    place,
    texture,
    turning_atlas,
    view,
)
from torch import Tensor

WHOLE = Box(0, 0, HEIGHT, WIDTH)


@pytest.fixture(scope="module")
def atlas():
    return turning_atlas()


@pytest.fixture(scope="module")
def clip(atlas) -> Tensor:
    return pictures(atlas, atlas.layers[0].texture)


@pytest.fixture(scope="module")
def edit(atlas) -> Tensor:
    """The clip with another texture: what a perfect model would draw."""
    return pictures(atlas, texture(3))


def keys(edited: Tensor, *frames: int) -> list[KeyFrame]:
    return [KeyFrame(f, WHOLE, edited[f].movedim(-1, 0)) for f in frames]


def carrying(atlas, **settings: Any) -> Carrying:
    return Carriage(**({"mapping": "exact"} | settings)).on(atlas.layers[0])


def known_columns(frame: int, *sources: int) -> Tensor:
    """Which of the object's columns in a frame earlier frames have seen."""
    columns = torch.arange(SIDE) + TURN * frame
    return torch.stack([(columns >= TURN * s) & (columns < TURN * s + SIDE) for s in sources]).any(
        0
    )


def object_of(image: Tensor, frame: int) -> Tensor:
    top, left = place(frame)
    return image[top : top + SIDE, left : left + SIDE]


@pytest.mark.parametrize(("sources", "target"), [((2,), 3), ((0, 3), 2), ((3, 6), 5)])
def test_an_edit_arrives_where_it_was_seen(atlas, edit, sources, target) -> None:
    layer, given = atlas.layers[0], keys(edit, *sources)
    found = propagate(atlas, layer, given, target, carrying(atlas), None)
    known = known_columns(target, *sources)
    assert found.picture.shape == (1, HEIGHT, WIDTH, 3) and 0 < float(known.float().mean())
    arrived, wanted = object_of(found.picture[0], target), object_of(edit[target], target)
    assert_close(arrived[:, known], wanted[:, known])
    assert differ(arrived[:, known], object_of(edit[target - 1], target - 1)[:, known])
    assert not arrived[:, ~known].any() and not found.mask[0][: place(target)[0]].any()
    assert abs(found.share - float(known.float().mean())) < 1e-6

    fast = propagate(atlas, layer, given, target, carrying(atlas, mapping="fast"), None)
    assert torch.equal(fast.mask, found.mask)
    assert float((fast.picture - found.picture).abs().mean()) < 0.01


def test_only_the_last_where_it_is_asked_for(atlas, edit) -> None:
    layer, given = atlas.layers[0], keys(edit, 0, 3)
    last = propagate(atlas, layer, given, 2, carrying(atlas, carried="previous key frame"), None)
    every = propagate(atlas, layer, given, 2, carrying(atlas), None)
    assert last.share < every.share == 1
    assert torch.equal(object_of(last.mask[0], 2) > 0, known_columns(2, 3).expand(SIDE, -1))


def test_the_source_shows_where_nothing_is_known(atlas, edit, clip) -> None:
    found = propagate(atlas, atlas.layers[0], keys(edit, 0), 2, carrying(atlas), clip)
    known = known_columns(2, 0)
    picture = object_of(found.picture[0], 2)
    assert_close(picture[:, known], object_of(edit[2], 2)[:, known])
    assert_close(picture[:, ~known], object_of(clip[2], 2)[:, ~known])
    outside = found.picture[0] * (1 - atlas.layers[0].alpha[2, 0])[..., None]
    assert not outside.any()


def test_what_cannot_be_carried(atlas, edit) -> None:
    layer, how = atlas.layers[0], carrying(atlas)
    with pytest.raises(ValueError, match="frame 7 shows nothing of what key frame 0, 1 showed"):
        propagate(atlas, layer, keys(edit, 0, 1), 7, how, None)
    for target in (-1, 8):
        with pytest.raises(ValueError, match=rf"'target_frame' between 0 and 7 .* got {target}"):
            propagate(atlas, layer, keys(edit, 0), target, how, None)
    with pytest.raises(ValueError, match="expected 8 pictures in 'source'"):
        propagate(atlas, layer, keys(edit, 0), 1, how, edit[:3])


def looped(atlas, clip: Tensor, frames: list[int], how: Carrying) -> list[Task]:
    """The tasks of a run in which every key frame comes out green."""
    tasks = []

    def answer(task: Task) -> Tensor:
        tasks.append(task)
        green = torch.zeros_like(task.crop)
        green[1] = 0.1 + 0.2 * task.number
        return green

    made = edit_in_turn(
        clip.movedim(-1, 1), atlas.layers[0], [(f, WHOLE) for f in frames], how, answer
    )
    assert [key.frame for key in made] == frames
    return tasks


def test_every_key_frame_starts_from_the_ones_before_it(atlas, clip) -> None:
    tasks = looped(atlas, clip, [0, 2, 3], carrying(atlas))
    assert tasks[0].start is None
    third = object_of(tasks[2].start.movedim(0, -1), 3)
    by_first, by_second = known_columns(3, 0), known_columns(3, 2)
    green = third[..., 1].mean(0)
    assert_close(green[by_second & ~by_first], torch.full_like(green[by_second & ~by_first], 0.3))
    assert_close(green[by_first], torch.full_like(green[by_first], 0.2))  # the mean of both
    new = ~(by_first | by_second)
    assert_close(third[:, new], object_of(clip[3], 3)[:, new])


def test_published_settings_start_from_the_previous_one_on_black(atlas, clip) -> None:
    how = carrying(atlas, carried="previous key frame", uncovered="black")
    start = looped(atlas, clip, [0, 2, 3], how)[2].start
    third = object_of(start.movedim(0, -1), 3)
    by_second = known_columns(3, 2)
    assert_close(third[:, by_second, 1], torch.full_like(third[:, by_second, 1], 0.3))
    assert not third[:, ~by_second].any()


def test_the_backdrop_is_black_or_the_clips_own(atlas, clip) -> None:
    black = looped(atlas, clip, [0, 2], carrying(atlas))
    own = looped(atlas, clip, [0, 2], carrying(atlas, backdrop="source pixels"))
    outside = atlas.layers[0].alpha[2, 0] == 0
    source = clip[2].movedim(-1, 0)
    for dark, real in ((black[1].crop, own[1].crop), (black[1].start, own[1].start)):
        assert not dark[:, outside].any() and dark[:, ~outside].any()
        assert torch.equal(real[:, outside], source[:, outside])
        assert torch.equal(real[:, ~outside], dark[:, ~outside])


def test_a_key_frame_is_given_out_before_the_next_begins(atlas, clip) -> None:
    started = []

    def answer(task: Task) -> Tensor:
        started.append(task.frame)
        return task.crop

    made = edit_in_turn(
        clip.movedim(-1, 1), atlas.layers[0], [(0, WHOLE), (1, WHOLE)], carrying(atlas), answer
    )
    assert next(made).frame == 0 and started == [0]


def partials(*values: tuple[float, float]) -> list[PartialTexture]:
    """One texel per key frame, (colour, coverage)."""
    return [
        PartialTexture(torch.full((3, 1, 1), colour), torch.full((1, 1, 1), coverage))
        for colour, coverage in values
    ]


@pytest.mark.parametrize(
    ("values", "mean", "middle", "published"),
    [
        (((0.2, 1.0), (0.8, 3.0)), 0.65, 0.5, 0.2),
        (((0.2, 1.0), (0.8, 1.0), (0.6, 2.0)), 0.55, 0.6, 0.6),
        (((0.0, 0.0), (0.8, 1.0), (0.0, 0.0)), 0.8, 0.8, 0.0),
        (((0.0, 0.0), (0.8, 1.0), (0.6, 1.0), (0.0, 0.0)), 0.7, 0.7, 0.0),
        (((0.0, 0.0), (0.0, 0.0)), 0.0, 0.0, 0.0),
        (((0.4, 2.0),), 0.4, 0.4, 0.4),
    ],
)
def test_aggregates_by_hand(values, mean, middle, published) -> None:
    given = partials(*values)
    for found, value in ((merged, mean), (median, middle), (published_median, published)):
        assert_close(found(given).colours, torch.full((3, 1, 1), value))
        assert float(found(given).coverage) == sum(coverage for _, coverage in values)


@pytest.mark.parametrize("method", METHODS)
def test_methods_have_their_function(method) -> None:
    given = partials((0.2, 1.0), (0.8, 3.0))
    wanted = {"mean": 0.65, "published median": 0.2}.get(method, 0.5)
    assert abs(float(combined(given, method).colours[0]) - wanted) < 1e-6


def test_one_texture_of_all_key_frames(atlas, edit) -> None:
    layer = atlas.layers[0]
    found = aggregate_key_frames(
        layer, keys(edit, 0, 2, 4), carrying(atlas), "mean", "original texture", Training()
    )
    seen = BORDER + TURN * 4 + SIDE
    for frame in (0, 2, 4):
        assert_close(view(found.texture, frame), view(texture(3), frame))
        assert float(view(found.coverage, frame).min()) > 0.99
    assert torch.equal(found.texture[..., seen:], layer.texture[..., seen:])
    assert not found.coverage[..., seen:].any()
    black = aggregate_key_frames(
        layer, keys(edit, 0, 2, 4), carrying(atlas), "mean", "black", Training()
    )
    assert not black.texture[..., seen:].any() and len(black.losses) == 0
    larger = aggregate_key_frames(
        layer, keys(edit, 0), carrying(atlas, texture_size=88), "mean", "original texture",
        Training(),
    )  # fmt: skip
    assert larger.texture.shape == (3, 37, 88)


@pytest.mark.parametrize(
    "settings", [{"mapping": "fast", "texture_size": 20}, {"mapping": "published"}]
)
def test_the_network_learns_what_the_median_misses(atlas, edit, settings) -> None:
    """Ours: that a coarse texture blurs. Published: that its median takes the darker one."""
    other = edit.clone()
    if settings["mapping"] == "published":
        other[2] = edit[2] * 0.5
    steps: list[int] = []
    how, given = carrying(atlas, **settings), keys(other, 0, 2)
    found = aggregate_key_frames(
        atlas.layers[0], given, how, "network", "black", Training(60, 3),
        lambda number, _: steps.append(number),
    )  # fmt: skip
    assert steps == list(range(60)) and len(found.losses) == 60
    assert float(found.losses[-5:].mean()) < 0.97 * float(found.losses[:5].mean())
    assert 0 <= float(found.texture.min()) and float(found.texture.max()) <= 1
    again = aggregate_key_frames(atlas.layers[0], given, how, "network", "black", Training(60, 3))
    assert torch.equal(again.texture, found.texture)


def test_the_network_begins_as_the_identity() -> None:
    texture_ = torch.rand(3, 9, 8, generator=torch.Generator().manual_seed(1))
    ours, published = initial_weights(1), initial_weights(1, published=True)
    assert torch.equal(aggregate(ours, texture_[None])[0], texture_)
    assert differ(aggregate(published, texture_[None])[0], texture_)
    assert torch.equal(ours[0], published[0]) and float(ours[0].abs().max()) <= 27**-0.5
    assert 0.9 * 27**-0.5 < float(published[1].abs().max()) <= 27**-0.5


def test_training_on_a_part_is_training_on_the_whole(atlas, edit) -> None:
    wide = torch.rand(3, 40, 60, generator=torch.Generator().manual_seed(1))
    uv = torch.rand(1, 9, 7, 2, generator=torch.Generator().manual_seed(2)) * 0.3 - 0.5
    view = View(uv, torch.full((3, 9, 7), 0.5), torch.ones(1, 9, 7))
    part, (moved,) = read_part(wide, [view])
    assert part.shape[1] < 20 and part.shape[2] < 25
    assert_close(sample_texture(part, moved.uv), sample_texture(wide, uv))
    everything = replace(view, uv=torch.full_like(uv, 1.0), weight=torch.zeros_like(view.weight))
    corner = replace(everything, uv=-everything.uv)
    small = train(wide, [view], initial_weights(1), 5)
    large = train(wide, [view, everything, corner], initial_weights(1), 5)
    assert_close(small.losses, large.losses)
    assert_close(small.texture, large.texture)
    assert differ(train(wide, [view], initial_weights(2), 5).losses, small.losses)


def test_the_loss_curve_is_a_picture() -> None:
    falling = loss_curve(torch.tensor([1.0, 0.5, 0.2]))
    assert falling.shape == (1, 400, 800, 3) and 0 <= float(falling.min()) < 0.5
    assert not torch.equal(falling, loss_curve(torch.tensor([0.2, 0.5, 1.0])))
    assert loss_curve(torch.zeros(0)).shape == (1, 400, 800, 3)


def test_published_mapping_darkens_soft_edges_and_ours_does_not(atlas, edit) -> None:
    layer = replace(atlas.layers[0], alpha=atlas.layers[0].alpha * 0.5)
    key = keys(edit, 0)[0]
    size = layer.texture.shape[1:]
    ours = partial_texture(layer, key, size, "exact").colours
    published = partial_texture(layer, key, size, "published").colours
    inner = (..., slice(2, -2), slice(2, -2))
    assert_close(view(ours, 0)[inner], view(texture(3), 0)[inner])
    assert float(view(published, 0)[inner].mean()) < 0.6 * float(view(ours, 0)[inner].mean())
