"""Warp error, Pixel-MSE, Farneback distance, FF-alpha and FF-beta, computed once more by hand."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from reweave.editing import flow
from reweave.editing.evaluate import dense_flow, warping
from reweave.editing.evaluate.types import Evidence
from reweave.editing.flow import Footage, bytes_of
from reweave.tests.tolerances import assert_close

H, W = 40, 48


def texture(seed: int = 0, height: int = H, width: int = W) -> torch.Tensor:
    """A smooth random picture [H,W,3], as optical flow likes it."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(1, 3, height // 4, width // 4, generator=generator)
    return F.interpolate(coarse, (height, width), mode="bicubic").clamp(0, 1)[0].movedim(0, -1)


def shifted(frames: int = 3, by: int = 2, seed: int = 0) -> torch.Tensor:
    """A wide texture seen through a window that moves: everything goes `by` pixels left."""
    wide = texture(seed, H, W + by * frames)
    return torch.stack([wide[:, by * f : by * f + W] for f in range(frames)])


def noisy(clip: torch.Tensor, seed: int = 1, strength: float = 0.1) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (clip + strength * torch.randn(clip.shape, generator=generator)).clamp(0, 1)


def footage(clip: torch.Tensor) -> Footage:
    return Footage(bytes_of(clip))


def exact(clip: torch.Tensor, x: float) -> torch.Tensor:
    motion = torch.zeros(len(clip) - 1, H, W, 2)
    motion[..., 0] = x
    return motion


def bilinear(picture: np.ndarray, x: float, y: float) -> np.ndarray:
    """One pixel, by the definition; the place lies inside."""
    left, top = min(int(x), picture.shape[1] - 2), min(int(y), picture.shape[0] - 2)
    a, b = x - left, y - top
    low = picture[top, left] * (1 - a) + picture[top, left + 1] * a
    return low * (1 - b) + (picture[top + 1, left] * (1 - a) + picture[top + 1, left + 1] * a) * b


def test_look_up_reads_between_pixels():
    picture = texture().numpy()
    motion = np.random.default_rng(0).uniform(-9, 9, (H, W, 2)).astype(np.float32)
    seen, inside = flow.look_up(picture, motion)
    assert 0.3 < inside.mean() < 0.9
    for row in range(0, H, 7):
        for column in range(0, W, 5):
            x, y = column + motion[row, column, 0], row + motion[row, column, 1]
            within = 0 <= x <= W - 1 and 0 <= y <= H - 1
            assert inside[row, column] == within
            if within:
                assert np.allclose(seen[row, column], bilinear(picture, x, y), atol=1e-5)


def test_both_estimators_find_a_known_shift():
    clip = bytes_of(shifted(2, by=2))
    for estimate in (flow.dis_flow, flow.farneback_flow):
        middle = estimate(clip[0], clip[1])[8:-8, 8:-8]
        assert abs(float(np.median(middle[..., 0])) + 2) < 0.3
        assert abs(float(np.median(middle[..., 1]))) < 0.2


def test_occlusion_is_where_forth_and_back_disagree():
    forth = np.zeros((H, W, 2), np.float32)
    forth[..., 0] = 3
    back = -forth
    back[10:20, 20:30] = 0  # another thing has come here
    seen = flow.unoccluded(forth, back)
    assert not seen[:, W - 3 :].any(), "left the picture"
    assert not seen[10:20, 17:27].any(), "covered"
    rest = np.ones((H, W), bool)
    rest[:, W - 3 :] = rest[10:20, 17:27] = False
    assert seen[rest].all()


def test_occlusion_allows_what_lai_allows():
    """|f + f'|^2 <= 0.01 (|f|^2 + |f'|^2) + 0.5: with f = 10 and f' = -8.6, 1.96 <= 2.24."""
    forth = np.zeros((8, 64, 2), np.float32)
    forth[..., 0] = 10
    for back, agree in ((-8.6, True), (-8.51, True), (-8.5, False)):
        reverse = np.zeros_like(forth)
        reverse[..., 0] = back
        assert flow.unoccluded(forth, reverse)[4, 4] == agree


def test_warp_error_of_an_exact_shift_is_zero_and_of_noise_its_variance():
    clip = shifted(4, by=2)
    still = warping.warp_error(Evidence(clip, clip, flow=exact(clip, -2.0)), footage(clip))[0]
    assert still.value == pytest.approx(0, abs=1e-6) and still.estimator == "exact"
    grey = torch.full_like(clip, 0.5)
    flicker = noisy(grey, strength=0.05)
    metric, maps = warping.warp_error(
        Evidence(clip, flicker, flow=exact(clip, -2.0)), footage(clip)
    )
    assert metric.value == pytest.approx(2 * 0.05**2 * 1e4, rel=0.05)
    by_hand = (flicker[1:, :, :-2] - flicker[:-1, :, 2:]).double().square().mean(-1)
    assert_close(maps[:, :, 2:].float(), by_hand.float())
    assert bool(maps[:, :, :2].isnan().all()), "what left the picture does not count"
    assert metric.source_value == pytest.approx(0, abs=1e-6)


def test_warp_error_on_random_motion_equals_its_definition():
    clip, edited = shifted(2), noisy(shifted(2, seed=5))
    motion = (torch.rand(1, H, W, 2, generator=torch.Generator().manual_seed(3)) - 0.5) * 6
    followed = warping.seen_in_both(footage(clip), motion)
    maps = warping.error_maps(edited, followed)[0].numpy()
    now, later = edited[0].double().numpy(), edited[1].double().numpy()
    source = bytes_of(clip).astype(np.float64)
    for row in range(H):
        for column in range(W):
            x, y = (np.array([column, row], np.float32) + motion[0, row, column].numpy()).tolist()
            if not (0 <= x <= W - 1 and 0 <= y <= H - 1):
                assert np.isnan(maps[row, column])
                continue
            steady = np.abs(bilinear(source[1], x, y) - source[0, row, column]).max()
            if abs(steady - warping.STEADY) < 1e-3:
                continue
            if steady > warping.STEADY:
                assert np.isnan(maps[row, column])
                continue
            wanted = np.square(bilinear(later, x, y) - now[row, column]).mean()
            assert maps[row, column] == pytest.approx(wanted, abs=1e-6)
    assert np.isfinite(maps).any()


def test_warp_error_without_exact_motion_takes_dis_of_the_source():
    clip, edited = shifted(3), noisy(shifted(3))
    metric, _ = warping.warp_error(Evidence(clip, edited), footage(clip))
    frames = bytes_of(clip)
    values = []
    for f in range(2):
        forth, back = (
            flow.dis_flow(frames[f], frames[f + 1]),
            flow.dis_flow(frames[f + 1], frames[f]),
        )
        there, _ = flow.look_up(edited[f + 1].numpy(), forth)
        holds = flow.unoccluded(forth, back)
        values.append(float(np.square(there - edited[f].numpy()).mean(-1)[holds].mean()) * 1e4)
    assert metric.estimator == "DIS (medium)"
    assert metric.value == pytest.approx(np.mean(values), rel=1e-5)
    assert metric.value != pytest.approx(
        warping.warp_error(Evidence(edited, edited), footage(edited))[0].value, rel=1e-3
    ), "the motion is the source's"


def test_identical_and_black_clips():
    clip = shifted(3)
    black = torch.zeros_like(clip)
    for edited in (clip, black):
        source, edit = footage(clip), footage(edited)
        warp = warping.warp_error(Evidence(clip, edited), source)[0]
        alpha = dense_flow.ff_alpha(source, edit)[0]
        if edited is clip:
            assert warp.value == pytest.approx(warp.source_value)
            assert float(dense_flow.farneback_distance(source, edit).max()) == 0
            assert float(dense_flow.ff_beta(source, edit).abs().max()) < 1e-3
        else:
            assert warp.value == 0 and float(alpha.max()) == 0
            assert float(warping.pixel_mse(edit).max()) == 0
            lengths = np.stack([np.linalg.norm(f, axis=-1).mean() for f in source.farneback])
            distance = dense_flow.farneback_distance(source, edit)
            assert_close(distance.float(), torch.from_numpy(lengths).float())
            assert_close(dense_flow.ff_beta(source, edit), torch.ones(2, dtype=torch.float64))


def test_pixel_mse_follows_the_edits_own_motion():
    clip = shifted(3, by=2)
    other = noisy(clip, strength=0.02)
    frames, values = bytes_of(other), []
    for f in range(2):
        back = flow.dis_flow(frames[f + 1], frames[f])
        there, inside = flow.look_up(frames[f].astype(np.float32), back)
        values.append(np.square(there - frames[f + 1].astype(np.float32)).mean(-1)[inside].mean())
    found = warping.pixel_mse(footage(other))
    assert_close(found.float(), torch.tensor(values, dtype=torch.float32))
    unmoved = np.square(np.diff(frames.astype(np.float64), axis=0)).mean()
    assert float(found.mean()) < unmoved / 3, "the motion explains most of the change"


def test_farneback_distance_is_a_length_in_pixels():
    source, edited = footage(shifted(2, by=1)), footage(shifted(2, by=3))
    a, b = source.farneback[0], edited.farneback[0]
    by_hand = sum(float(np.hypot(*(a[y, x] - b[y, x]))) for y in range(H) for x in range(W)) / (
        H * W
    )
    assert dense_flow.farneback_distance(source, edited).tolist() == [pytest.approx(by_hand, 1e-5)]


def test_ff_alpha_pixel_by_pixel():
    source, edited = footage(shifted(2)), footage(noisy(shifted(2)))
    grey = [cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in source.frames]
    opencv: Any = cv2  # its stubs know no None
    motion = opencv.calcOpticalFlowFarneback(grey[0], grey[1], None, 0.5, 3, 15, 3, 5, 1.2, 0)
    places = np.stack(np.meshgrid(np.arange(W), np.arange(H)), -1).astype(np.float32) - motion
    carried = [
        opencv.remap(clip.frames[0], places, None, cv2.INTER_LINEAR) for clip in (source, edited)
    ]
    total, valid = 0, 0
    for y in range(H):
        for x in range(W):
            r, g, b = np.abs(carried[0][y, x].astype(int) - source.frames[1][y, x])
            if round(0.299 * r + 0.587 * g + 0.114 * b) <= 5:
                valid += 1
                total += np.abs(carried[1][y, x].astype(int) - edited.frames[1][y, x]).max()
    found, share = dense_flow.ff_alpha(source, edited)
    assert 0.2 < share < 1
    assert share == pytest.approx(valid / (H * W)), "of the clip's own pixels, not of 512x512"
    assert found.tolist() == [pytest.approx(total / valid)]


def test_ff_beta_pixel_by_pixel():
    source, edited = footage(shifted(2)), footage(noisy(shifted(2)))
    a, b = (clip.farneback[0].astype(np.float64) for clip in (source, edited))
    total = 0.0
    for y in range(H):
        for x in range(W):
            lengths = (np.hypot(*a[y, x]) + 1e-7) * (np.hypot(*b[y, x]) + 1e-7)
            total += 1 - float(a[y, x] @ b[y, x]) / lengths
    assert dense_flow.ff_beta(source, edited).tolist() == [pytest.approx(total / (H * W))]


def test_opposite_motion_has_ff_beta_two():
    clip = shifted(2, by=3)
    source, edited = footage(clip), footage(clip.flip(0))
    middle = float(dense_flow.ff_beta(source, edited)[0])
    assert 1.5 < middle <= 2.0


def test_ff_alpha_without_a_steady_pixel_is_missing_and_says_why():
    generator = torch.Generator().manual_seed(0)
    clip = torch.stack([torch.zeros(H, W, 3), torch.rand(H, W, 3, generator=generator) * 0.5 + 0.5])
    alpha = next(
        m
        for m in dense_flow.dense_flow_metrics(footage(clip), footage(clip))
        if m.name == "FF-alpha"
    )
    assert alpha.value is None
    assert alpha.missing == "along its motion, no pixel of the source changes by 5 of 255 or less"


def test_a_clip_that_editboard_drops_is_named():
    source = footage(noisy(shifted(3), strength=0.08))
    alpha = dense_flow.dense_flow_metrics(source, source)[1]
    assert alpha.value is not None
    assert "below 70%: the published code gives such a clip 0" in alpha.note
