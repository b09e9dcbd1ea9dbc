"""Key-frame editing against recordings of the published StableVideo code (tests/goldens/README.md).

Every test holds a mutation: what the recording must not agree with.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from reweave.editing.atlas.aggregation import (
    View,
    aggregate,
    median,
    published_median,
    train,
)
from reweave.editing.atlas.key_frames import Box, crop_box
from reweave.editing.atlas.propagation import (
    Carrying,
    PartialTexture,
    Task,
    edit_in_turn,
    partial_texture,
)
from reweave.editing.atlas.requests import drawing_size, resized
from reweave.editing.atlas.sdedit import Schedule, from_noise, from_picture
from reweave.editing.atlas.types import Layer
from reweave.kernels.schedule import ddim_step, vp_from_sigma_space
from reweave.tests.tolerances import assert_close, differ
from safetensors.torch import load_file
from torch import Tensor

GOLDENS = Path(__file__).resolve().parents[1] / "goldens"
Golden = dict[str, Tensor]
RESOLUTION = 160
SIZE = (RESOLUTION, RESOLUTION)
# the published code draws a random part of each box from two unseeded sources: these came out
PLACES = [(0, Box(15, 30, 9, 12)), (2, Box(8, 18, 19, 29)), (5, Box(10, 14, 18, 32))]
PUBLISHED = Carrying(SIZE, "previous key frame", "published", "black")


@pytest.fixture(scope="module")
def loop() -> Golden:
    return load_file(GOLDENS / "sv_key_frames.safetensors")


@pytest.fixture(scope="module")
def net() -> Golden:
    return load_file(GOLDENS / "sv_aggnet.safetensors")


@pytest.fixture(scope="module")
def sdedit() -> Golden:
    return load_file(GOLDENS / "sv_ddim_sdedit.safetensors")


def layer(g: Golden) -> Layer:
    uv = g["uv_texels"] / RESOLUTION * 2 - 1
    return Layer(uv, torch.zeros(3, *SIZE), g["alpha"], torch.ones(1, *SIZE))


def on_whole(part: Tensor, place: Tensor) -> Tensor:
    """A recorded part of the texture, 0 elsewhere (as the recording was, checked on the cut)."""
    return Box(*place.tolist()).paste(part, SIZE)


def pillow(picture: Tensor, size: tuple[int, int]) -> Tensor:
    """[3,h,w] 0..1 through 8 bit and Pillow's bicubic, as the published code does it."""
    image = Image.fromarray((picture.clamp(0, 1) * 255).byte().movedim(0, -1).numpy())
    scaled = np.array(image.resize((size[1], size[0]), Image.Resampling.BICUBIC))
    return torch.from_numpy(scaled).movedim(-1, 0).float() / 255


def run(g: Golden, carrying: Carrying) -> tuple[list[Task], list[PartialTexture]]:
    """The loop, with the recorded answers of the model."""
    tasks = []

    def answer(task: Task) -> Tensor:
        tasks.append(task)
        recorded = (g[f"kf{task.number}.edited_model_output"][0] + 1) / 2
        return pillow(recorded, (task.box.height, task.box.width))

    frames = g["frames_u8"].movedim(-1, 1).float() / 255
    keys = list(edit_in_turn(frames, layer(g), PLACES, carrying, answer))
    return tasks, [partial_texture(layer(g), key, SIZE, carrying.mapping) for key in keys]


def test_crop_boxes(loop: Golden) -> None:
    def boxes(margin: int, least: int) -> list[list[int]]:
        return [list(crop_box(alpha[0], margin, least)) for alpha in loop["alpha"]]

    assert boxes(4, 9) == loop["mask_boundaries"].tolist()
    assert boxes(3, 9) != loop["mask_boundaries"].tolist()
    assert boxes(4, 1) != loop["mask_boundaries"].tolist()


def test_what_the_model_sees(loop: Golden) -> None:
    tasks, _ = run(loop, PUBLISHED)
    assert tasks[0].start is None
    for task in tasks:
        assert torch.equal(task.crop, loop[f"kf{task.number}.crop"][0])
    for task in tasks[1:]:
        recorded = loop[f"kf{task.number}.propagated_input_m11"][0]
        assert task.start is not None
        assert drawing_size(task.box, 64) == recorded.shape[1:]
        size = (recorded.shape[1], recorded.shape[2])
        assert torch.equal(pillow(task.start, size) * 2 - 1, recorded)

    everything, _ = run(loop, Carrying(SIZE, "all finished key frames", "published", "black"))
    assert torch.equal(everything[1].start, tasks[1].start)
    assert differ(everything[2].start, tasks[2].start)


def test_our_resizing_is_pillows_within_two_levels(loop: Golden) -> None:
    def error(task: Task, mode: Callable[[Tensor, tuple[int, int]], Tensor]) -> float:
        assert task.start is not None
        size = drawing_size(task.box, 64)
        return float((mode(task.start, size) - pillow(task.start, size)).abs().max())

    def bilinear(picture: Tensor, size: tuple[int, int]) -> Tensor:
        return F.interpolate(picture[None], size, mode="bilinear")[0]

    for task in run(loop, PUBLISHED)[0][1:]:
        # one level is Pillow's truncation to 8 bit before, one its rounding after
        assert error(task, resized) <= 2 / 255 < error(task, bilinear)


def test_partial_textures_and_their_median(loop: Golden) -> None:
    _, partials = run(loop, PUBLISHED)
    for number, partial in enumerate(partials):
        assert_close(partial.colours, on_whole(loop[f"kf{number}.partial"], loop["part"]))
        valid = on_whole(loop[f"kf{number}.valid"][None], loop["part"])
        assert torch.equal(partial.coverage > 0, valid)
    recorded = on_whole(loop["median"], loop["part"])
    assert_close(published_median(partials).colours, recorded)

    assert differ(median(partials).colours, recorded)
    _, unshifted = run(loop, Carrying(SIZE, "previous key frame", "exact", "black"))
    assert differ(unshifted[0].colours, on_whole(loop["kf0.partial"], loop["part"]))


def recorded_weights(net: Golden, when: str) -> tuple[Tensor, Tensor]:
    return net[f"{when}.stage1.0.weight"], net[f"{when}.stage2.0.weight"]


def test_aggregation_network(net: Golden) -> None:
    weights = recorded_weights(net, "w0")
    assert_close(aggregate(weights, net["forward_batch_in"]), net["forward_batch_out"])
    texture = on_whole(net["input"], net["part"])
    assert_close(aggregate(weights, texture[None])[0], on_whole(net["forward_w0"], net["part"]))
    turned = weights[0], weights[1].flip(-1)
    assert differ(aggregate(turned, net["forward_batch_in"]), net["forward_batch_out"])


def test_training_of_the_network(net: Golden) -> None:
    texture = on_whole(net["input"], net["part"])
    targets = [net[f"target.kf{i}"] for i in range(3)]
    views = [View(net[f"uvs.kf{i}"], t, torch.ones_like(t[:1])) for i, t in enumerate(targets)]
    found = train(texture, views, recorded_weights(net, "w0"), 5)
    assert_close(found.losses, net["loss_sum"].float())
    for trained, recorded in zip(found.weights, recorded_weights(net, "after_step5"), strict=True):
        assert_close(trained, recorded)
    assert_close(found.texture, on_whole(net["out_final"], net["part"]).clamp(0, 1))

    plain = train(texture, views, recorded_weights(net, "w0"), 5, momentum=0.0)
    assert differ(plain.losses, net["loss_sum"].float())


def test_it_trains_where_the_published_code_cannot(net: Golden) -> None:
    texture = on_whole(net["input"], net["part"])
    target = net["target.kf0"]
    with torch.inference_mode():
        view = View(net["uvs.kf0"] * 1, target * 1, torch.ones_like(target[:1]))
        found = train(texture * 1, [view], recorded_weights(net, "w0"), 2)
    assert found.losses[1] < found.losses[0]


Predict = Callable[[Tensor, float], Tensor]


def guided(g: Golden) -> tuple[Tensor, Predict]:
    """The model's sigmas, and the recorded stand-in for it under guidance 9."""
    table = ((1 - g["alphas_cumprod"].double()) / g["alphas_cumprod"]).sqrt()

    def eps(x: Tensor, sigma: float) -> Tensor:
        time = int((table - sigma).abs().argmin())
        mixed = torch.einsum("ij,bjhw->bihw", g["mix"], vp_from_sigma_space(x, sigma))
        one = torch.tanh(mixed) * (0.5 + 0.5 * time / 1000)
        positive, negative = one + 0.3, one - 0.1
        return negative + 9 * (positive - negative)

    return table, eps


def sampled(eps: Predict, schedule: Schedule, clean: Tensor | None, noise: Tensor) -> Tensor:
    x = schedule.start(clean, noise)
    levels = schedule.sigmas.tolist()
    for start, end in itertools.pairwise(levels):
        x = ddim_step(x, eps(x, start), start, end)
    return schedule.finish(x)


def test_sdedit(sdedit: Golden) -> None:
    table, eps = guided(sdedit)
    x0, noise = sdedit["x0"], sdedit["noise"]
    published = from_picture(table, 20, 0.8, "published")
    start = vp_from_sigma_space(published.start(x0, noise), float(published.sigmas[0]))
    assert_close(start, sdedit["encoded_s0.8"])
    assert_close(sampled(eps, published, x0, noise), sdedit["decoded_s0.8"])
    clean = from_picture(table, 20, 0.8, "clean")
    assert differ(sampled(eps, clean, x0, noise), sdedit["decoded_s0.8"])

    whole = from_noise(table, 20, "published")
    assert_close(sampled(eps, whole, None, noise), sdedit["sampled_full"])
    fewer = from_noise(table, 10, "published")
    assert differ(sampled(eps, fewer, None, noise), sdedit["sampled_full"])
