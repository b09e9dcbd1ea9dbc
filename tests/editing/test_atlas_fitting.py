"""Fitting: exact motions on rendered scenes, resuming, seeds, masks, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from reweave.demo.atlas_truth import point_errors
from reweave.editing import storage
from reweave.editing.atlas import flow as flows
from reweave.editing.atlas.fitting import FitSettings, Progress, fit
from reweave.editing.atlas.layered_flow import affine_flow, layer_motions
from reweave.editing.atlas.masks import spread_masks
from reweave.editing.atlas.motion import chained, robust_affine
from reweave.editing.atlas.objective import Problem
from reweave.editing.atlas.preparing import LAYERS, FitRequest, fit_key, prepare
from reweave.editing.atlas.registration import registered
from reweave.editing.atlas.rendering import render
from reweave.editing.atlas.types import Atlas
from reweave.tests.editing.atlas_scenes import textured_scene
from reweave.tests.tolerances import assert_close, differ
from torch import Tensor

QUICK = FitSettings(steps=60, patches=6, frames_per_step=3, final_passes=2)


def quiet(progress: Progress) -> None:
    assert progress.psnr > 0


def image_of(clip: Tensor) -> Tensor:
    return clip.movedim(1, -1)


def fitted(image: Tensor, mask: Tensor | None) -> Atlas:
    request = FitRequest(settings=QUICK)
    return fit(prepare(image, mask, request), QUICK, quiet)


def likeness(atlas: Atlas, clip: Tensor) -> float:
    return float(-10 * (render(atlas, {}, None) - clip).square().mean().log10())


def same(first: Atlas, second: Atlas) -> bool:
    return all(
        torch.equal(value, getattr(theirs, name))
        for ours, theirs in zip(first.layers, second.layers, strict=True)
        for name, value in vars(ours).items()
    )


def test_points_stay_in_place_on_a_rendered_scene() -> None:
    scene = textured_scene(7, 80)
    atlas = fitted(image_of(scene.frames), scene.mask[:, 0])
    assert atlas.names == ("foreground", "background") and atlas.size == (80, 80)
    assert likeness(atlas, scene.frames) > 35
    member = scene.mask[:, 0] > 0.9
    for layer, truth, seen in (
        (atlas.layers[0], scene.object_uv, member),
        (atlas.layers[1], scene.back_uv, scene.mask[:, 0] < 0.1),
    ):
        errors = point_errors(layer.uv, truth, seen, [0, 4])
        assert len(errors) > 1000 and float(errors.mean()) < 0.5
        still = layer.uv[:1].expand_as(layer.uv)
        assert float(point_errors(still, truth, seen, [0, 4]).mean()) > 1


def test_registration_is_more_exact_than_flow() -> None:
    scene = textured_scene(8, 96)
    flow = flows.estimate(scene.frames, flows.METHODS[0])
    member = scene.mask[:, 0] > 0.9
    by_flow = chained(flow, member)
    exact = registered(scene.frames, by_flow, member)

    def error(motions: Tensor) -> float:
        places = [affine_flow(m[:2].float(), member.shape[1:]) for m in motions]
        y, x = torch.meshgrid(torch.arange(96), torch.arange(96), indexing="ij")
        uv = torch.stack(places).movedim(1, -1) + torch.stack([x, y], -1)
        return float(point_errors(uv, scene.object_uv, member, [0]).mean())

    assert error(exact) < 0.15
    assert error(exact) < 0.5 * error(by_flow)


def test_a_resumed_fit_equals_one_that_was_not_interrupted(tmp_path: Path) -> None:
    scene = textured_scene(3, 32)
    problem = prepare(image_of(scene.frames), scene.mask[:, 0], FitRequest())
    whole = fit(problem, QUICK, quiet)
    path = tmp_path / "snapshot.safetensors"
    for stop in (0, 33, 52):

        class Cancelled(BaseException):
            """As the host's interrupt: no Exception."""

        calls = 0

        def alive(stop: int = stop, error: type[BaseException] = Cancelled) -> None:
            nonlocal calls
            calls += 1
            if calls > stop:
                raise error

        with pytest.raises(Cancelled):
            fit(problem, QUICK, quiet, alive, path)
        assert path.is_file()
        assert same(fit(problem, QUICK, quiet, snapshot=path), whole), stop
        assert same(fit(problem, QUICK, quiet, snapshot=path), whole), "from the finished state"
        path.unlink()
    path.write_bytes(b"cut short")
    assert same(fit(problem, QUICK, quiet, snapshot=path), whole)


def test_a_snapshot_that_cannot_be_used_is_no_obstacle(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene = textured_scene(2, 32)
    problem = prepare(image_of(scene.frames), scene.mask[:, 0], FitRequest())
    short = FitSettings(steps=3, patches=4, final_passes=1)
    whole = fit(problem, short, quiet)
    path = tmp_path / "snapshot.safetensors"
    alone = prepare(image_of(scene.frames), None, FitRequest())
    fit(alone, short, quiet, snapshot=path)
    assert same(fit(problem, short, quiet, snapshot=path), whole), "another fit's file"

    def full(*_: object) -> None:
        raise ValueError("the disk is full")

    monkeypatch.setattr(storage, "save", full)
    assert same(fit(problem, short, quiet, snapshot=tmp_path / "new.safetensors"), whole)
    assert "cannot go on later" in caplog.text and "the disk is full" in caplog.text


def test_the_same_seed_gives_the_same_atlas_and_another_one_does_not() -> None:
    scene = textured_scene(3, 32)
    problem = prepare(image_of(scene.frames), scene.mask[:, 0], FitRequest())
    first, again = (fit(problem, QUICK, quiet) for _ in range(2))
    assert same(first, again)
    other = FitSettings(**(vars(QUICK) | {"fit_seed": 2}))
    assert not same(first, fit(problem, other, quiet))


def test_no_gradient_step_is_rigid_motion_and_a_goal_ends_early() -> None:
    scene = textured_scene(3, 32)
    problem = prepare(image_of(scene.frames), scene.mask[:, 0], FitRequest())
    seen: list[int] = []
    fit(problem, FitSettings(steps=0, final_passes=1), lambda p: seen.append(p.step))
    assert seen == [0]
    seen.clear()
    goal = FitSettings(**(vars(QUICK) | {"steps": 500, "stop_at": 20.0}))
    fit(problem, goal, lambda p: seen.append(p.step))
    assert max(seen) < 100


def test_without_a_mask_the_whole_picture_is_one_layer() -> None:
    scene = textured_scene(5, 48)
    atlas = fitted(image_of(scene.frames), None)
    assert atlas.names == ("background",)
    assert bool((atlas.layers[0].alpha == 1).all())
    assert likeness(atlas, scene.frames) > 18


def test_background_only_leaves_the_object_out() -> None:
    scene = textured_scene(8, 64)
    request = FitRequest(layers=LAYERS[1], settings=QUICK)
    problem = prepare(image_of(scene.frames), scene.mask[:, 0], request)
    assert problem.considered is not None and not problem.masks
    atlas = fit(problem, QUICK, quiet)
    outside = (problem.considered > 0).expand_as(scene.frames)
    drawn = render(atlas, {}, None)
    error = (drawn - scene.frames).square()
    assert float(-10 * error[outside].mean().log10()) > 30
    # green spots of the object are nowhere on the clean plate, which is orange
    seen = atlas.layers[0].texture[:, atlas.layers[0].coverage[0] > 0.5]
    assert float((seen[1] - seen[0]).max()) < 0


def test_one_frame_and_two_frames() -> None:
    scene = textured_scene(2, 48)
    for count in (1, 2):
        atlas = fitted(image_of(scene.frames[:count]), scene.mask[:count, 0])
        assert atlas.frames == count and likeness(atlas, scene.frames[:count]) > 30


def test_empty_masks_in_some_frames_take_the_neighbouring_motion() -> None:
    scene = textured_scene(6, 64)
    mask = scene.mask[:, 0].clone()
    mask[2] = mask[5] = 0
    flow = flows.estimate(scene.frames, flows.METHODS[0])
    motions = registered(scene.frames, chained(flow, mask > 0.6), mask > 0.6)
    assert_close(motions[5], motions[4])
    assert differ(motions[4], motions[3])
    atlas = fitted(image_of(scene.frames), mask)
    assert atlas.layers[0].alpha[2].mean() < 0.05 < atlas.layers[0].alpha[3].mean()


def test_masks_of_some_frames_are_carried_to_the_others() -> None:
    scene = textured_scene(8, 96)
    flow = flows.estimate(scene.frames, flows.METHODS[0])
    for at in ([0], [7], [1, 6]):
        spread = spread_masks(scene.mask[at], at, scene.frames, flow) > 0.5
        truth = scene.mask > 0.5
        overlap = (spread & truth).flatten(1).sum(1) / (spread | truth).flatten(1).sum(1)
        assert float(overlap.min()) > 0.85, at
    still = scene.mask[:1].expand_as(scene.mask) > 0.5
    assert float((still & truth)[-1].sum() / (still | truth)[-1].sum()) < 0.7


@pytest.mark.parametrize(("method", "pixels"), [(flows.METHODS[0], 0.25), (flows.METHODS[1], 0.4)])
def test_flow_finds_a_known_motion(method: str, pixels: float) -> None:
    scene = textured_scene(3, 96)
    flow = flows.estimate(scene.frames, method)
    inside = (scene.mask[:-1, 0] < 0.01) & flow.forward_ok
    assert float(inside.float().mean()) > 0.3  # Lucas-Kanade guesses where all is one colour
    error = (flow.forward - scene.flow).norm(dim=1)[inside].mean()
    assert float(error) < pixels < float(scene.flow.norm(dim=1)[inside].mean())
    back = (flow.backward + scene.flow).norm(dim=1)[inside].mean()
    assert float(back) < pixels * 1.2


def test_a_given_flow_is_turned_round_for_the_way_back() -> None:
    scene = textured_scene(3, 64)
    flow = flows.given(scene.flow, scene.frames)
    assert torch.equal(flow.forward, scene.flow)
    inside = flow.backward_ok & (scene.mask[1:, 0] < 0.01)
    lost = (flow.backward + scene.flow).norm(dim=1)[inside]
    assert float(inside.float().mean()) > 0.5 and float(lost.mean()) < 0.1
    with pytest.raises(ValueError, match=r"expected a flow \(2, 2, 64, 64\) of these frames"):
        flows.given(scene.flow[:1], scene.frames)


def test_flow_is_believed_where_it_explains_more_than_the_affine_motion() -> None:
    scene = textured_scene(3, 64)
    flow = flows.given(scene.flow, scene.frames)
    still = torch.eye(3).double().repeat(3, 1, 1)
    (ahead, _) = layer_motions(scene.frames, flow, still)
    object_moves = (scene.mask[:-1] > 0.9) & ahead.believed
    assert float(object_moves.sum() / (scene.mask[:-1] > 0.9).sum()) > 0.3
    exact = registered(
        scene.frames, chained(flow, scene.mask[:, 0] < 0.05), scene.mask[:, 0] < 0.05
    )
    (ahead, _) = layer_motions(scene.frames, flow, exact)
    around = scene.mask[:-1] < 0.01
    assert float((ahead.believed & around).sum() / around.sum()) < 0.05


def test_a_robust_affine_fit_ignores_outliers() -> None:
    generator = torch.Generator().manual_seed(5)
    source = torch.rand(400, 2, generator=generator).double() * 100
    truth = torch.tensor([[1.1, 0.1, 3.0], [-0.05, 0.9, -2.0], [0, 0, 1]]).double()
    target = source @ truth[:2, :2].T + truth[:2, 2]
    target[:80] += 30
    found = robust_affine(source, target)
    assert (found - truth).abs().max() < 0.05
    plain = torch.linalg.lstsq(torch.cat([source, torch.ones(400, 1)], 1), target).solution
    assert (plain[2] - truth[:2, 2]).abs().max() > 3


def test_a_fit_has_a_key_of_its_inputs() -> None:
    scene = textured_scene(2, 32)
    image, mask = image_of(scene.frames), scene.mask[:, 0]
    keys = {
        fit_key(image, mask, FitRequest(), None),
        fit_key(image, None, FitRequest(), None),
        fit_key(image, mask, FitRequest(), scene.flow),
        fit_key(image * 0.9, mask, FitRequest(), None),
        fit_key(image, mask, FitRequest(settings=QUICK), None),
    }
    assert len(keys) == 5


IMAGE, MASK = torch.zeros(4, 32, 48, 3), torch.zeros(4, 32, 48)
MASK[:, 8:20, 8:20] = 1
REFUSED: dict[str, Callable[[], Problem]] = {
    "expected frames of at least 16x16 pixels .* got 4x32x8x3": lambda: prepare(
        IMAGE[:, :, :8], None, FitRequest()
    ),
    "the frames hold NaN": lambda: prepare(IMAGE + float("nan"), None, FitRequest()),
    "the mask is empty": lambda: prepare(IMAGE, MASK * 0, FitRequest()),
    "the mask is white everywhere": lambda: prepare(IMAGE, MASK * 0 + 1, FitRequest()),
    "the mask holds NaN": lambda: prepare(IMAGE, MASK * float("nan"), FitRequest()),
    "the mask is 32x32, the clip 48x32": lambda: prepare(IMAGE, MASK[..., :32], FitRequest()),
    r"expected a MASK \[frames,H,W\], got 4": lambda: prepare(IMAGE, MASK[None], FitRequest()),
    "got 3 masks for 4 frames and 'mask_frames' ''": lambda: prepare(IMAGE, MASK[:3], FitRequest()),
    "got 2 masks for 4 frames and 'mask_frames' '0, 4'": lambda: prepare(
        IMAGE, MASK[:2], FitRequest(mask_frames="0, 4")
    ),
    "got 2 masks for 4 frames and 'mask_frames' '3, 1'": lambda: prepare(
        IMAGE, MASK[:2], FitRequest(mask_frames="3, 1")
    ),
    "'mask_frames' 'first'": lambda: prepare(IMAGE, MASK[:1], FitRequest(mask_frames="first")),
    "expected 'layers' to be one of": lambda: prepare(IMAGE, MASK, FitRequest(layers="all")),
    "expected 'flow' to be one of": lambda: prepare(IMAGE, MASK, FitRequest(flow_method="RAFT")),
    "expected 'texture_detail' to be between": lambda: prepare(
        IMAGE, MASK, FitRequest(settings=FitSettings(texture_detail=9))
    ),
    "'flow_field' cannot be used: expected a flow .3, 2, 32, 48.": lambda: prepare(
        IMAGE, MASK, FitRequest(), torch.zeros(4, 32, 48, 2)
    ),
}


@pytest.mark.parametrize("message", REFUSED)
def test_what_cannot_be_fitted_is_refused_before_any_work(message: str) -> None:
    with pytest.raises(ValueError, match=f"^Fit Atlas: .*{message}"):
        REFUSED[message]()


def test_masks_of_another_size_are_scaled() -> None:
    problem = prepare(IMAGE, MASK[:, ::2, ::2], FitRequest())
    assert problem.masks[0].shape == (4, 1, 32, 48)
    assert problem.masks[0][0, 0, 12, 12] == 1 and problem.masks[0][0, 0, 28, 28] == 0
