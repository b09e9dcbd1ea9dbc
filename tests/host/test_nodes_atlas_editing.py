"""The key-frame nodes, run in this process on a small network and a clip whose atlas is exact."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from clips import SMALL
from reweave.editing.atlas.types import Atlas
from reweave.nodes import AggregateKeyframes, EditKeyframes, PropagateKeyframe
from reweave.tests.tolerances import assert_close, differ
from reweave.tests.turning_object import HEIGHT, WIDTH, pictures, texture, turning_atlas, view
from small_edit import SmallVAE
from torch import Tensor
from toy import conditioning, patcher

ATLAS = turning_atlas()
CLIP = pictures(ATLAS, ATLAS.layers[0].texture)
EDIT = pictures(ATLAS, texture(3))


def defaults(node: Any) -> dict[str, Any]:
    return {e.id: e.default for e in node.GET_SCHEMA().inputs if hasattr(e, "default")}


def run(node: Any, **inputs: Any) -> Any:
    given = {name: value for name, value in defaults(node).items() if value is not None}
    return node.execute(**(given | inputs))


@pytest.fixture(scope="module")
def model() -> Any:
    return patcher(SMALL)


def edited(model: Any, **inputs: Any) -> Any:
    small = {"steps": 2, "resolution": 64, "margin": 2, "minimum_side": 8, "noise_strength": 0.5}
    given = {
        "model": model, "vae": SmallVAE(), "positive": conditioning(1),
        "negative": conditioning(2), "image": CLIP, "atlas": ATLAS,
    }  # fmt: skip
    return run(EditKeyframes, **(given | small | inputs))


def shown(out: Any) -> list:
    return out.ui.as_dict()["images"]


def test_propagate_key_frame() -> None:
    given = {"atlas": ATLAS, "image": EDIT[[0]], "key_frames": "0", "mapping": "exact"}
    out = run(PropagateKeyframe, target_frame=1, source=CLIP, **given)
    picture, mask = out.args
    assert picture.shape == (1, HEIGHT, WIDTH, 3) and mask.shape == (1, HEIGHT, WIDTH)
    seen = mask[0] == 1
    assert_close(picture[0][seen], EDIT[1][seen])
    assert 0.7 < float(mask.sum() / ATLAS.layers[0].alpha[1].sum()) < 0.8 and len(shown(out)) == 1
    black = run(PropagateKeyframe, target_frame=1, **given).args[0]
    assert not black[0][~seen].any() and picture[0][~seen].any()


def test_a_wired_loop_covers_what_one_key_frame_cannot() -> None:
    given = {"atlas": ATLAS, "image": EDIT[[0, 3]], "key_frames": "0, 3", "target_frame": 2}
    every = run(PropagateKeyframe, **given).args[1]
    last = run(PropagateKeyframe, carried="previous key frame", **given).args[1]
    assert float(every.sum()) > float(last.sum()) > 0


@pytest.mark.parametrize(
    ("inputs", "text"),
    [
        ({"target_frame": 5}, "frame 5 shows nothing of what key frame 0 showed"),
        ({"target_frame": 8}, "'target_frame' between 0 and 7"),
        ({"key_frames": "0, 1"}, "expected 2 pictures in 'image' .*, got 1"),
        ({"image": EDIT[:1, :, :40]}, "the atlas's clip is 48x32, 'image' 40x32"),
        ({"mask": torch.ones(1, 30, WIDTH)}, "1x32x48 .*, got 1x30x48"),
        ({"mask": torch.zeros(1, HEIGHT, WIDTH)}, "mask of key frame number 1 is empty"),
        ({"layer": "sky"}, "expected 'layer' to be one of"),
        ({"texture_size": -1}, "expected 'texture_size' to be at least 0, got -1"),
        ({"carried": "none"}, "expected 'carried' to be one of"),
    ],
)
def test_propagate_says_what_is_wrong(inputs: dict[str, Any], text: str) -> None:
    given = {"atlas": ATLAS, "image": EDIT[:1], "key_frames": "0", "target_frame": 1}
    with pytest.raises(ValueError, match=f"Propagate Key Frame: .*{text}"):
        run(PropagateKeyframe, **(given | inputs))


def test_edit_key_frames_chooses_edits_and_shows(model: Any) -> None:
    out = edited(model)
    image, mask, numbers = out.args
    count = len(numbers.split(", "))
    assert 1 < count <= 3 and image.shape == (count, HEIGHT, WIDTH, 3)
    assert mask.shape == (count, HEIGHT, WIDTH) and len(shown(out)) == count
    assert edited(model, key_frames="5, 4").args[2] == "5, 4"


def test_the_outputs_of_edit_fit_aggregate(model: Any) -> None:
    image, mask, numbers = edited(model).args
    found, coverage, plot = run(
        AggregateKeyframes, atlas=ATLAS, image=image, mask=mask, key_frames=numbers
    ).args
    high, wide = ATLAS.layers[0].texture.shape[1:]
    assert found.shape == (1, high, wide, 3) and coverage.shape == (1, high, wide)
    assert plot.shape == (1, 400, 800, 3) and float(coverage.max()) == 1
    assert differ(found[0].movedim(-1, 0), ATLAS.layers[0].texture)


def aggregated(**inputs: Any) -> tuple[Tensor, Tensor, Tensor]:
    given = {"atlas": ATLAS, "image": EDIT[[0, 2]], "key_frames": "0, 2", "mapping": "exact"}
    return run(AggregateKeyframes, **(given | inputs)).args


@pytest.mark.parametrize("method", ["mean", "median", "network"])
def test_aggregate_gives_the_texture_back(method: str) -> None:
    found, _, plot = aggregated(method=method, iterations=10)
    if method != "network":
        for frame in (0, 2):
            assert_close(view(found[0].movedim(-1, 0), frame), view(texture(3), frame))
        return
    assert differ(plot, aggregated(method="network", iterations=20)[2])
    assert torch.equal(found, aggregated(method="network", iterations=10)[0])
    assert differ(found, aggregated(method="network", iterations=10, training_seed=2)[0])


def test_published_median_darkens_and_unseen_is_filled() -> None:
    published = aggregated(method="published median", unseen="black")[0]
    mean = aggregated(method="mean", unseen="black")[0]
    filled = aggregated(method="mean")[0]
    assert float(published.mean()) < float(mean.mean()) < float(filled.mean())


@pytest.mark.parametrize(
    ("inputs", "text"),
    [
        ({"key_frames": ""}, "to say which frames of the clip the pictures are"),
        ({"key_frames": "0, 8"}, "between 0 and 7"),
        ({"method": "max"}, "expected 'method' to be one of mean, median"),
        ({"unseen": "red"}, "expected 'unseen' to be one of"),
        ({"iterations": 0}, "expected 'iterations' to be at least 1, got 0"),
        ({"mask": torch.ones(1, HEIGHT, WIDTH)}, "one mask per key frame, 2x32x48 .*, got 1x32x48"),
    ],
)
def test_aggregate_says_what_is_wrong(inputs: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=f"Aggregate Key Frames: .*{text}"):
        aggregated(**inputs)


def test_a_clip_of_one_frame(model: Any) -> None:
    atlas = turning_atlas(1)
    clip = pictures(atlas, atlas.layers[0].texture)
    image, mask, numbers = edited(model, atlas=atlas, image=clip).args
    assert numbers == "0" and len(image) == 1
    found = run(AggregateKeyframes, atlas=atlas, image=image, mask=mask, key_frames=numbers).args[0]
    assert bool(torch.isfinite(found).all())


def test_an_empty_layer(model: Any) -> None:
    front = ATLAS.layers[0]
    hidden = type(front)(front.uv, front.texture, front.alpha * 0, front.coverage)
    atlas = Atlas((hidden, ATLAS.layers[1]), ATLAS.names)
    with pytest.raises(ValueError, match="Edit Key Frames: the layer is empty"):
        edited(model, atlas=atlas)
    with pytest.raises(ValueError, match="Aggregate Key Frames: key frame 0 does not show"):
        aggregated(atlas=atlas)


def test_the_background_without_what_is_in_front_of_it(model: Any) -> None:
    image, mask, numbers = edited(model, layer="background", margin=48).args
    frame = int(numbers.split(", ")[0])
    assert torch.equal(mask[0], 1 - ATLAS.layers[0].alpha[frame, 0])
    found = run(
        AggregateKeyframes, atlas=ATLAS, image=image * 0, mask=mask, key_frames=numbers,
        layer="background", mapping="exact",
    ).args[0]  # fmt: skip
    hidden = (mask == 0).all(0)
    own = ATLAS.layers[1].texture.movedim(0, -1)
    assert torch.equal(found[0][hidden], own[hidden]) and not found[0][~hidden].any()


def test_a_mask_leaves_parts_of_a_picture_out() -> None:
    mask = ATLAS.layers[0].alpha[[0, 2], 0].clone()
    mask[1] = 0
    mask[1, :, 14:20] = 1  # a part of the second key frame only
    both, some = aggregated(), aggregated(mask=mask)
    assert torch.equal(view(both[1], 0), view(some[1], 0))
    left_out = (both[1] > 0.99) & (some[1] == 0)
    assert left_out.any()
    own = ATLAS.layers[0].texture.movedim(0, -1)[None]
    assert torch.equal(some[0][left_out], own[left_out])
