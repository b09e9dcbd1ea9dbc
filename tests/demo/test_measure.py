"""The pixel measures are right on rendered scenes, and wrong pictures are found out."""

from __future__ import annotations

import pytest
import torch

from demo import measure, scenes


@pytest.fixture(scope="module")
def truth() -> tuple[scenes.Scene, scenes.Drawn, measure.Reading]:
    scene = scenes.random_scenes(72, torch.Generator().manual_seed(31), styled=0.0)
    drawn = scenes.draw(scene, 128)
    return scene, drawn, measure.read(drawn.image)


def share(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found == expected).float().mean())


def test_rendered_scenes_are_read_right(truth):
    scene, _, reading = truth
    assert share(reading.back, scene.back) == 1
    assert share(reading.colour, scene.colour) >= 0.95
    assert share(reading.shape, scene.shape) >= 0.95


def test_other_scenes_are_not_read_as_these(truth):
    scene, _, reading = truth
    for name in ("back", "colour", "shape"):
        assert share(getattr(reading, name), getattr(scene, name).roll(1)) < 0.5


def test_silhouettes_match_the_masks(truth):
    scene, drawn, reading = truth
    plain = scene.texture == 0
    solid = drawn.mask[plain, 0] > 0.5
    found = reading.silhouette[plain]
    overlap = (found & solid).flatten(1).sum(1) / (found | solid).flatten(1).sum(1)
    assert float(overlap.min()) > 0.85


def test_an_empty_picture_shows_nothing():
    reading = measure.read(torch.full((1, 3, 64, 64), 0.9))
    assert int(reading.colour) == int(reading.shape) == -1
    assert measure.shape_name(-1) == "nothing"


def test_a_blob_fits_no_star(truth):
    x, y = scenes.pixel_grid(64, 64)
    scores = measure.fit_scores((x.square() + y.square()) < 0.25)
    assert measure.shape_name(int(scores.argmax())) == "ball"
    assert float(scores[scenes.SHAPES.index("star")]) < 0.85


def test_every_shade_keeps_its_name():
    base = torch.tensor(list(scenes.PALETTE.values()))
    for light in (0.65, 0.85, 1.1):
        assert measure.nearest_colours((base * light).clamp(0, 1)).tolist() == list(range(8))
