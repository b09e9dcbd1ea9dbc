"""Which key frames are edited, what of them is seen, and what an artist is told when it fails."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
import torch
from reweave.editing.atlas.key_frames import (
    Box,
    check_key_frames,
    choose_key_frames,
    coverage_of,
    crop_box,
    jittered,
    known_share,
    parse_key_frames,
    views,
)
from reweave.editing.atlas.requests import (
    Carriage,
    Choice,
    Cropping,
    EditRequest,
    GivenKeyFrames,
    check_masks,
    check_pictures,
    choose_places,
    drawing_size,
    find_layer,
    named,
    read_key_frames,
    texture_size,
    visible_layer,
)
from reweave.editing.atlas.sdedit import ddim_timesteps, from_noise, from_picture
from reweave.editing.atlas.types import Layer
from reweave.tests.turning_object import HEIGHT, WIDTH, pictures, texture, turning_atlas

TABLE = torch.linspace(0.03, 14.6, 1000)


@pytest.fixture(scope="module")
def atlas():
    return turning_atlas()


@pytest.fixture(scope="module")
def front(atlas) -> Layer:
    return atlas.layers[0]


def without_object(layer: Layer, *frames: int) -> Layer:
    alpha = layer.alpha.clone()
    alpha[list(frames)] = 0
    return replace(layer, alpha=alpha)


def test_what_artists_type() -> None:
    assert parse_key_frames(" 20, 4;7\n0 ", 21) == [20, 4, 7, 0]
    assert parse_key_frames("  ", 21) == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("0, x", "expected 'key_frames' to be frame numbers with commas between them, got 'x'"),
        ("-1", "got '-1'"),
        ("0, 8", r"expected 'key_frames' between 0 and 7 \(the clip has 8 frames.*, got 8"),
        ("3, 1, 3", "'key_frames' names frame 3 twice"),
    ],
)
def test_what_artists_mistype(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_key_frames(text, 8)


def test_the_box_around_the_object(front: Layer) -> None:
    alpha = front.alpha[0, 0]  # 16 pixels from row 6 and column 8
    # the last pixel is counted as the end (as published), so a box is a pixel short
    assert crop_box(alpha, 2, 1) == Box(4, 6, 19, 19)
    assert crop_box(alpha, 100, 1) == Box(0, 0, HEIGHT, WIDTH)
    assert crop_box(alpha, 0, 20) == Box(6, 8, 20, 20)
    assert crop_box(alpha, 0, 30) == Box(2, 8, 30, 30)
    assert crop_box(alpha, 0, 500) == Box(0, 0, HEIGHT, WIDTH)


def test_an_alpha_that_never_saturates(front: Layer) -> None:
    soft = front.alpha[0, 0] * 0.9
    assert crop_box(soft, 2, 1) == Box(4, 6, 19, 19)
    soft[0, 0] = 0.99
    assert crop_box(soft, 2, 1) == Box(0, 0, 2, 2)
    with pytest.raises(ValueError, match="alpha is below 0.5 everywhere: it is not in this frame"):
        crop_box(front.alpha[0, 0] * 0.4)


def test_jitter_takes_nearly_the_whole_box() -> None:
    box, generator = Box(10, 20, 200, 100), torch.Generator().manual_seed(3)
    parts = [jittered(box, generator) for _ in range(50)]
    assert len(set(parts)) > 20
    for part in parts:
        assert 190 <= part.height <= 200 and 95 <= part.width <= 100
        assert 10 <= part.top and part.top + part.height <= 210
        assert 20 <= part.left and part.left + part.width <= 120
    again = torch.Generator().manual_seed(3)
    assert [jittered(box, again) for _ in range(50)] == parts


def test_boxes_cut_and_paste() -> None:
    whole = torch.arange(2 * 5 * 6.0).view(2, 5, 6)
    box = Box(1, 2, 3, 4)
    assert torch.equal(box.cut(whole), whole[:, 1:4, 2:6])
    back = box.paste(box.cut(whole), (5, 6))
    assert torch.equal(box.cut(back), box.cut(whole)) and float(back[:, 0].sum()) == 0


def test_views_tell_how_much_frames_share(front: Layer) -> None:
    seen = views(front)
    # each frame sees 16 columns and moves on by 4
    for distance, share in enumerate([1.0, 0.75, 0.5, 0.25, 0.0]):
        assert abs(known_share(seen, [0], distance, True) - share) <= 0.13, distance
    assert known_share(seen, [0, 2], 3, False) > known_share(seen, [2, 0], 3, True)
    assert coverage_of(seen, range(8)) == 1 and coverage_of(seen, [0]) < 0.5


def test_the_automatic_choice_reaches_everything_in_steps_that_overlap(front: Layer) -> None:
    seen = views(front)
    chosen = choose_key_frames(seen, 8, 0.4)
    assert coverage_of(seen, chosen) >= 0.95 and len(chosen) < 6
    shares = [known_share(seen, chosen[:n], frame, False) for n, frame in enumerate(chosen)]
    assert min(shares[1:]) >= 0.4
    assert choose_key_frames(seen, 2, 0.4) == chosen[:2]
    assert len(choose_key_frames(seen, 8, 0.7)) > len(chosen)
    assert choose_key_frames(seen[:1], 3) == [0]


def test_an_unreachable_part_is_left_out(front: Layer) -> None:
    seen = views(without_object(front, 1, 2, 3, 4, 5))
    chosen = choose_key_frames(seen, 8, 0.4)
    assert set(chosen) <= {0} or set(chosen) <= {6, 7}


def test_nothing_to_choose_from(front: Layer) -> None:
    with pytest.raises(ValueError, match=r"the layer is empty: .* fit the atlas with a mask"):
        choose_key_frames(views(without_object(front, *range(8))), 3)


def test_key_frames_that_cannot_be_edited_in_turn(front: Layer) -> None:
    seen = views(front)
    check_key_frames(seen, [0, 2, 4, 6], True)
    check_key_frames(seen, [3, 0, 6], False)
    with pytest.raises(ValueError, match="key frame 6 shares 0% of what it shows with frame 0;"):
        check_key_frames(seen, [3, 0, 6], True)
    with pytest.raises(ValueError, match=r"key frame 6 shares 0% .*those before it; at least 5%"):
        check_key_frames(seen, [0, 6], False)
    with pytest.raises(ValueError, match="key frame 2 does not show the layer"):
        check_key_frames(views(without_object(front, 2)), [0, 2], False)


def test_places_are_chosen_or_given(front: Layer) -> None:
    def places(text: str, seed: int | None = None) -> list[tuple[int, Box]]:
        request = EditRequest(Choice("foreground", text, 2), Carriage(), cropping=cropping(seed))
        return choose_places(front, request)[0]

    def cropping(seed: int | None) -> Cropping:
        return Cropping(2, 1, seed)

    assert [frame for frame, _ in places("4, 2")] == [4, 2]
    assert len(places("")) == 2
    assert places("4, 2", 1) == places("4, 2", 1) != places("4, 2")
    with pytest.raises(ValueError, match="key frame 6 shares"):
        places("0, 6")


def test_one_frame_is_enough() -> None:
    layer = turning_atlas(1).layers[0]
    places, coverage = choose_places(layer, EditRequest())
    assert [frame for frame, _ in places] == [0] and coverage == 1


def test_layers_by_name(atlas) -> None:
    assert find_layer(atlas, " Background ") is atlas.layers[1]
    with pytest.raises(ValueError, match=r"'layer' to be one of .*\(foreground, background\), got"):
        find_layer(atlas, "fox")


def test_what_is_seen_of_a_layer_behind_another(atlas) -> None:
    front, back = (visible_layer(atlas, name).alpha for name in ("foreground", "background"))
    assert torch.equal(front, atlas.layers[0].alpha) and torch.equal(back, 1 - front)
    alone = type(atlas)(atlas.layers[1:], ("background",))
    assert visible_layer(alone, "background") is alone.layers[0]


@pytest.mark.parametrize(
    ("frames", "size", "message"),
    [
        (7, (HEIGHT, WIDTH), r"expected 8 pictures in 'image' \(one per frame\), got 7"),
        (8, (HEIGHT, WIDTH * 2), "the atlas's clip is 48x32, 'image' 96x32"),
    ],
)
def test_pictures_of_another_clip(atlas, frames: int, size: tuple[int, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_pictures(atlas, torch.zeros(frames, *size, 3), 8, "one per frame")
    spoilt = torch.full((8, HEIGHT, WIDTH, 3), float("nan"))
    with pytest.raises(ValueError, match="'hint' holds NaN or infinity"):
        check_pictures(atlas, spoilt, 8, "one per frame", "hint")


@pytest.mark.parametrize(
    ("shape", "value", "message"),
    [
        ((1, 32, 48), 1.0, "one mask per key frame, 2x32x48 .*, got 1x32x48"),
        ((2, 32, 47), 1.0, "got 2x32x47"),
        ((2, 32, 48), 0.0, "the mask of key frame number 1 is empty"),
    ],
)
def test_masks_that_do_not_fit(shape: tuple[int, ...], value: float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_masks(torch.full(shape, value), torch.zeros(2, 3, 32, 48))


def test_given_key_frames_are_read(atlas) -> None:
    image = pictures(atlas, texture(3))[[4, 2]]
    layer, keys = read_key_frames(atlas, GivenKeyFrames(image, None, "4, 2"))
    assert torch.equal(layer.alpha, atlas.layers[0].alpha) and [k.frame for k in keys] == [4, 2]
    mask = torch.zeros(2, HEIGHT, WIDTH)
    mask[:, 8:12, 20:26] = 0.5
    masked = read_key_frames(atlas, GivenKeyFrames(image, mask, "4, 2"))[1]
    assert masked[0].box == Box(8, 20, 4, 6)
    assert torch.equal(masked[1].picture, image[1, 8:12, 20:26].movedim(-1, 0))
    assert float(masked[0].alpha.max()) == 0.5, "the mask limits the alpha"
    with pytest.raises(ValueError, match="to say which frames of the clip the pictures are"):
        read_key_frames(atlas, GivenKeyFrames(image, None, ""))
    with pytest.raises(ValueError, match="expected 3 pictures in 'image' .*, got 2"):
        read_key_frames(atlas, GivenKeyFrames(image, None, "4, 2, 0"))


def test_sizes(front: Layer) -> None:
    assert texture_size(front, 0) == (20, 48) and texture_size(front, 96) == (40, 96)
    assert drawing_size(Box(0, 0, 19, 29), 64) == (64, 128)  # as published
    assert drawing_size(Box(0, 0, 300, 290), 512) == (512, 512)
    assert drawing_size(Box(0, 0, 3, 400), 64) == (64, 8512)


def test_schedules_that_do_not_exist() -> None:
    with pytest.raises(ValueError, match="strength of 0.04 leaves none of 20 steps. Raise .*0.05"):
        from_picture(TABLE, 20, 0.04, "clean")
    with pytest.raises(ValueError, match="strength of 1 starts above the highest of 20 levels"):
        from_picture(TABLE, 20, 1.0, "published")
    whole, noise = from_picture(TABLE, 20, 1.0, "clean"), from_noise(TABLE, 20, "clean")
    assert torch.equal(whole.sigmas, noise.sigmas) and len(whole.sigmas) == 21


def test_levels_are_those_of_ddim_uniform() -> None:
    assert ddim_timesteps(20) == list(range(1, 1000, 50))
    assert len(ddim_timesteps(30)) == 31 and ddim_timesteps(30)[-1] == 991
    assert len(ddim_timesteps(1000)) == 999
    clean = from_picture(TABLE, 20, 0.8, "clean")
    assert torch.equal(clean.sigmas[:-1], TABLE[list(range(751, 0, -50))])
    assert float(clean.sigmas[-1]) == 0 and (clean.signal, clean.noise) == (1, clean.sigmas[0])


def test_errors_name_the_node() -> None:
    with (
        pytest.raises(ValueError, match=re.escape("Edit Key Frames: no")),
        named("Edit Key Frames"),
    ):
        raise ValueError("no")
