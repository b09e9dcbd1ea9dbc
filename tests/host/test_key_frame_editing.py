"""The key-frame loop through ComfyUI's own samplers: a small network, an exact atlas."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import comfy.model_base
import pytest
import torch
from clips import SMALL
from reweave.editing.atlas.key_frames import crop_box
from reweave.editing.atlas.propagation import CARRIED
from reweave.editing.atlas.requests import Sampling, resized
from reweave.editing.atlas.sdedit import from_noise, from_picture
from reweave.editing.host import keyframe_editing
from reweave.editing.host.drawing import Tools, controlled, outlines, sample
from reweave.kernels.schedule import vp_from_sigma_space
from reweave.tests.tolerances import assert_close, differ
from reweave.tests.turning_object import HEIGHT, WIDTH, place
from safetensors.torch import load_file
from small_edit import (
    ATLAS,
    CLIP,
    REQUEST,
    ControlStub,
    SmallVAE,
    changed,
    edited,
    small_tools,
    spy_on_drawing,
)
from torch import Tensor
from toy import GOLDENS, conditioning, patcher


@pytest.fixture(scope="module")
def tools() -> Tools:
    return small_tools()


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    return spy_on_drawing(monkeypatch)


def recorded_model(model: Any, g: dict[str, Tensor]) -> Any:
    """The recording's stand-in for a network, as what ComfyUI calls in its place."""
    table = model.get_model_object("model_sampling").sigmas

    def answer(_: Callable, call: dict[str, Any]) -> Tensor:
        x, sigma = call["input"], float(call["timestep"][0])
        time = int((table - sigma).abs().argmin())
        mixed = torch.einsum("ij,bjhw->bihw", g["mix"], vp_from_sigma_space(x, sigma))
        eps = torch.tanh(mixed) * (0.5 + 0.5 * time / 1000)
        shift = [-0.1 if branch else 0.3 for branch in call["cond_or_uncond"]]
        return x - sigma * (eps + torch.tensor(shift).repeat_interleave(1)[:, None, None, None])

    clone = model.clone()
    clone.set_model_unet_function_wrapper(answer)
    return clone


def test_the_recorded_sdedit_through_comfyui(tools: Tools) -> None:
    g = load_file(GOLDENS / "sv_ddim_sdedit.safetensors")
    stand_in = Tools(recorded_model(tools.model, g), None, conditioning(1), conditioning(2))
    table = tools.model.get_model_object("model_sampling").sigmas

    def result(schedule: Any, clean: Tensor | None, **asked: Any) -> Tensor:
        settings = Sampling(cfg=9.0) if not asked else replace(Sampling(cfg=9.0), **asked)
        x = schedule.start(clean, g["noise"])
        return sample(stand_in, schedule, x, settings, None, lambda _: None)

    published = from_picture(table, 20, 0.8, "published")
    found = result(published, g["x0"])
    # chained float32 steps on values up to 81, as recommended for this recording
    torch.testing.assert_close(found, g["decoded_s0.8"], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(
        result(from_noise(table, 20, "published"), None), g["sampled_full"], rtol=1e-4, atol=1e-4
    )
    assert torch.equal(result(published, g["x0"], sampler="ddim"), found)

    clean = result(from_picture(table, 20, 0.8, "clean"), g["x0"])
    assert float((clean - g["decoded_s0.8"]).abs().max()) > 0.01
    assert float((result(published, g["x0"], cfg=8.0) - g["decoded_s0.8"]).abs().max()) > 0.1


def test_key_frames_come_out_whole_and_in_order(tools: Tools, drawn: list) -> None:
    found = edited(tools)
    assert found.image.shape == (3, HEIGHT, WIDTH, 3) == found.preview.shape
    assert found.mask.shape == (3, HEIGHT, WIDTH) and found.key_frames == "0, 2, 3"
    assert len(drawn) == 3 and bool(torch.isfinite(found.image).all())
    for number, frame in enumerate((0, 2, 3)):
        assert torch.equal(found.mask[number], ATLAS.layers[0].alpha[frame, 0])
        outside = found.mask[number] == 0
        assert torch.equal(found.preview[number][outside], CLIP[frame][outside])
    top, left = place(0)
    box = found.image[0, top - 4 : top + 19, left - 4 : left + 19]
    assert box.any() and int((box > 0).sum()) == int((found.image[0] > 0).sum()), (
        "black outside the box"
    )


def test_the_same_seed_gives_the_same_and_the_global_one_is_not_drawn(tools: Tools) -> None:
    before = torch.random.get_rng_state()
    first = edited(tools).image
    keyframe_editing.cache_folder().rename(keyframe_editing.cache_folder().with_name("away"))
    assert torch.equal(edited(tools).image, first)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert differ(edited(tools, changed("sampling", edit_seed=2)).image, first)


def test_where_the_first_key_frame_starts(tools: Tools, drawn: list) -> None:
    only = changed("choice", key_frames="0")
    edited(tools, only)
    table = tools.model.get_model_object("model_sampling").sigmas
    alpha = ATLAS.layers[0].alpha[0]
    crop = crop_box(alpha[0], 4, 1).cut(CLIP[0].movedim(-1, 0) * alpha)
    clean = SmallVAE().encode(resized(crop, (64, 64)).movedim(0, -1)[None]) * 0.18215
    noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(1))
    # half of the four levels 1, 251, 501, 751
    assert_close(drawn[0], clean + float(table[251]) * noise)

    strong = replace(only.sampling, first_strength=0.75, noise_strength=0.25)
    edited(tools, replace(only, sampling=strong))
    assert_close(drawn[1], clean + float(table[501]) * noise)
    edited(tools, replace(only, sampling=replace(only.sampling, first="noise")))
    assert_close(drawn[2], float(1 + table[751] ** 2) ** 0.5 * noise)


def test_later_key_frames_depend_on_earlier_ones(tools: Tools) -> None:
    whole = edited(tools).image
    assert differ(edited(tools, changed("choice", key_frames="2, 3")).image[1], whole[2])
    for part, values in (
        ("carriage", {"carried": CARRIED[1]}),
        ("carriage", {"uncovered": "black"}),
        ("carriage", {"mapping": "published"}),
        ("carriage", {"backdrop": "source pixels"}),
        ("sampling", {"schedule": "published"}),
        ("sampling", {"noise_strength": 0.75}),
    ):
        other = edited(tools, changed(part, **values)).image
        assert differ(other[2], whole[2]), values


def test_progress_and_previews(tools: Tools, monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[tuple[int, Any]] = []

    def hook(value: int, total: int, preview: Any, node_id: Any = None) -> None:
        assert total == 12
        shown.append((value, preview))

    monkeypatch.setattr("comfy.utils.PROGRESS_BAR_HOOK", hook)
    edited(tools)
    assert [value for value, _ in shown] == sorted(value for value, _ in shown)
    pictures_ = [(value, preview) for value, preview in shown if preview is not None]
    assert [value for value, _ in pictures_] == [4, 8, 12]
    kind, picture, _ = pictures_[0][1]
    assert kind == "JPEG" and picture.size == (23, 23)


def test_the_control_net_gets_outlines_or_the_hint(tools: Tools, drawn: list) -> None:
    seen: list = []
    with_control = replace(tools, control_net=ControlStub(seen))
    plain = edited(tools).image
    found = edited(with_control, changed("sampling", control_strength=0.7, first="source pixels"))
    assert differ(found.image, plain)
    hint, strength, rows = seen[0]
    assert strength == 0.7 and rows == 2, "one picture for both branches"
    assert hint.shape == (1, 3, 64, 64) and set(hint.unique().tolist()) == {0.0, 1.0}
    seen.clear()
    grey = torch.full_like(CLIP, 0.25)
    edited(with_control, hint=grey)
    assert torch.equal(seen[0][0], torch.full((1, 3, 64, 64), 0.25))
    seen.clear()
    edited(with_control, changed("sampling", control_strength=0.0))
    assert not seen


def test_automatic_starts_from_noise_with_a_control_net_only(tools: Tools, drawn: list) -> None:
    only = changed("choice", key_frames="0")
    edited(tools, only)
    edited(replace(tools, control_net=ControlStub([])), only)
    assert float(drawn[1].std()) > 3 * float(drawn[0].std())


def test_a_control_net_before_ours_stays(tools: Tools) -> None:
    before, after = ControlStub([]), ControlStub([])
    settings = {"control": before, "control_apply_to_uncond": True}
    chained = [[tools.positive[0][0], settings]]
    given = replace(tools, positive=chained, negative=chained, control_net=after)
    positive, negative = controlled(given, torch.zeros(3, 8, 8), 1.0)
    own = positive[0][1]["control"]
    assert own.previous_controlnet is before and own is not after
    assert negative[0][1]["control"] is own and settings["control"] is before


def test_outlines_are_kornias() -> None:
    picture = torch.zeros(3, 32, 32)
    picture[:, 8:24, 8:24] = 1
    lines = outlines(picture)
    assert lines.shape == (3, 32, 32) and set(lines.unique().tolist()) == {0.0, 1.0}
    assert not lines[:, 12:20, 12:20].any() and lines[:, 7:9].any()


@pytest.mark.parametrize(
    ("request_", "inputs", "text"),
    [
        (changed("choice", layer="fox"), {}, "expected 'layer' to be one of"),
        (changed("choice", key_frames="0, 9"), {}, "between 0 and 7 .* got 9"),
        (changed("choice", key_frames="0, 7"), {}, "key frame 7 shares 0%"),
        (REQUEST, {"image": CLIP[:3]}, "expected 8 pictures in 'image' .* got 3"),
        (REQUEST, {"image": CLIP[:, :16]}, "clip is 48x32, 'image' 48x16"),
        (REQUEST, {"hint": CLIP[:, :16]}, "clip is 48x32, 'hint' 48x16"),
        (changed("sampling", steps=0), {}, "expected 'steps' to be between 1 and 1000, got 0"),
        (changed("sampling", sampler="dpmpp_sde"), {}, "'sampler' to be one of euler, ddim; got"),
        (changed("carriage", mapping="best"), {}, "'mapping' to be one of fast, exact, published"),
        (changed("sampling", noise_strength=0.1), {}, "leaves none of 4 steps. Raise 'noise_str"),
        (changed("sampling", first_strength=0.1), {}, "leaves none of 4 steps. Raise 'first_str"),
        (changed("carriage", backdrop="red"), {}, "'backdrop' to be one of black, source pixels"),
        (changed("sampling", noise_strength=1.0, schedule="published"), {}, "highest of 4 levels"),
    ],
)
def test_what_is_said_before_anything_is_drawn(tools, drawn, request_, inputs, text) -> None:
    with pytest.raises(ValueError, match=f"Edit Key Frames: .*{text}"):
        edited(tools, request_, **inputs)
    assert not drawn


def test_flow_models_are_refused(tools: Tools) -> None:
    flow = patcher(SMALL, kind=comfy.model_base.ModelType.FLOW)
    with pytest.raises(ValueError, match="Edit Key Frames: expected an eps or v model"):
        edited(replace(tools, model=flow))
