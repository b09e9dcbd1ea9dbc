"""Scenes: their captions, and that the ground truth is the truth."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from demo import motion, quality_clips, scenes, styles
from demo.vocabulary import words


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_a_full_caption_names_everything():
    text = scenes.caption("red", "spotted", "ball", "blue", "striped", "neon night")
    assert text == "a red spotted ball on a blue striped background, neon night"
    assert scenes.caption("", "plain", "box", "", "") == "a plain box"


def test_some_attributes_are_left_out_and_some_captions_are_empty():
    batch = scenes.random_scenes(400, generator())
    full, thinned = scenes.scene_captions(batch), scenes.scene_captions(batch, generator(1))
    known = {word for text in words() for word in text.replace(",", " ").split()}
    for whole, text in zip(full, thinned, strict=True):
        assert set(text.replace(",", " ").split()) <= known & set(whole.replace(",", " ").split())
    assert 15 < thinned.count("") < 75
    assert sum(a != b for a, b in zip(full, thinned, strict=True)) > 150


def test_the_same_seed_draws_the_same_scene_and_any_size():
    one, two = (scenes.draw(scenes.random_scenes(3, generator(5)), 48, 80) for _ in range(2))
    assert one.image.shape == (3, 3, 48, 80)
    assert torch.equal(one.image, two.image)
    assert 0 <= float(one.image.min()) and float(one.image.max()) <= 1


def test_object_and_background_differ_in_colour():
    batch = scenes.random_scenes(200, generator())
    assert bool((batch.colour != batch.back).all())


def test_points_and_uv_are_inverse():
    batch = scenes.random_scenes(5, generator(2))
    uv = torch.rand(5, 2, 40, generator=generator(3)) * 2 - 1
    at = scenes.object_points(batch, uv)
    assert torch.allclose(scenes.object_uv(batch, at[:, 0], at[:, 1]), uv, atol=1e-5)


@pytest.mark.parametrize("size", [64, (48, 80)])
def test_flow_carries_every_point_to_its_uv(size: int | tuple[int, int]):
    made = motion.random_clip(4, size, seed=7)
    height, width = made.frames.shape[-2:]
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    for frame in range(3):
        at = torch.stack([x + made.flow[frame, 0], y + made.flow[frame, 1]], -1) + 0.5
        grid = at / torch.tensor([width, height]) * 2 - 1
        seen = (grid.abs() < 0.95).all(-1)
        solid = made.mask[frame, 0] > 0.5
        layers = ((made.object_uv, solid & seen), (made.back_uv, ~solid & seen))
        for uv, where in layers:
            there = F.grid_sample(uv[frame + 1][None], grid[None], align_corners=False)[0]
            assert float((there - uv[frame]).abs().amax(0)[where].max()) < 2e-3
    assert float(made.flow.abs().max()) > 0.3


def test_the_picture_follows_the_flow():
    made = motion.random_clip(2, 128, seed=11)
    y, x = torch.meshgrid(torch.arange(128), torch.arange(128), indexing="ij")
    inner = -F.max_pool2d(-made.mask[0], 7, 1, 3)[0] > 0.99

    def error(flow: torch.Tensor) -> float:
        at = torch.stack([x + flow[0], y + flow[1]], -1) + 0.5
        moved = F.grid_sample(made.frames[1:], at[None] / 64 - 1, align_corners=False)[0]
        return float((moved - made.frames[0]).abs().mean(0)[inner].mean())

    assert error(made.flow[0]) < 0.01


def test_the_mask_covers_the_object_only():
    scene = scenes.random_scenes(1, generator(4), 0.0)
    drawn = scenes.draw(scene, 96)
    empty = scenes.draw(scene.replace(centre=scene.centre + 9), 96).image
    changed = (drawn.image - empty).abs().amax(1, keepdim=True) > 0.05
    assert not bool(changed[drawn.mask < 0.01].any())
    assert 0.02 < float(drawn.mask.mean()) < 0.5


def test_clips_refuse_a_batch():
    with pytest.raises(ValueError, match="one scene"):
        motion.clip(scenes.random_scenes(2, generator()), 4)


@pytest.mark.parametrize("style", [name for name in styles.STYLES if name != "none"])
def test_styles_change_the_picture_and_stay_in_range(style: str):
    picture = scenes.draw(scenes.random_scenes(2, generator(8), 0.0), 64).image
    changed = styles.apply_style(picture, style)
    assert changed.shape == picture.shape
    assert 0 <= float(changed.min()) and float(changed.max()) <= 1
    assert float((changed - picture).abs().mean()) > 0.03


def test_an_unknown_style_is_named():
    with pytest.raises(ValueError, match="pencil sketch"):
        styles.apply_style(torch.zeros(1, 3, 8, 8), "oil")


def test_quality_clips_are_twenty_and_distinct():
    clips = quality_clips.CLIPS
    assert len({clip.name for clip in clips}) == len(clips) == 20
    assert sum(clip.target_colour is None for clip in clips) == 10
    assert all(clip.source_caption != clip.target_caption for clip in clips)
    rows = quality_clips.moving_scene(clips[0], 3)
    assert scenes.scene_captions(rows)[0] == clips[0].source_caption


@pytest.mark.parametrize("clip", quality_clips.CLIPS[::3], ids=lambda clip: clip.name)
def test_the_perfect_edit_moves_as_the_source_does(clip):
    source, target = (quality_clips.moving_scene(c, 3) for c in (clip, clip.edited))
    said = scenes.scene_captions(target)[0]
    if clip.new_colour:
        assert said == clip.target_caption
    else:
        assert clip.colour in said and clip.new_texture in said
    one, other = scenes.draw(source, 32), scenes.draw(target, 32)
    assert torch.equal(one.mask, other.mask)
    changed = (one.image - other.image).abs().amax(1)
    assert float(changed[one.mask[:, 0] < 0.02].max()) < 0.03
    if said != clip.source_caption:
        assert float(changed[one.mask[:, 0] > 0.9].mean()) > 0.02
