"""The report as a whole: what is computed, what is named, how it is shown, and what is refused."""

from __future__ import annotations

import json
import re
from collections.abc import Callable

import pytest
import torch
from reweave.editing.evaluate import comparing, evidence, measure, perceptual, pictures, table
from reweave.editing.evaluate.types import HIGHER, LOWER, Evidence, Metric, Report
from reweave.tests.tolerances import assert_close

F, H, W = 3, 32, 40
NAMES = [
    *("warp error", "Pixel-MSE", "Farneback distance", "FF-alpha", "FF-beta"),
    *("background MSE", "background PSNR", "background SSIM", "LPIPS-P", "LPIPS-T"),
    *("point colour variation", "frame consistency", "CLIP-Image", "text alignment"),
]


def clip(seed: int = 0, frames: int = F, height: int = H, width: int = W) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(1, height, width, 3, generator=generator).expand(frames, -1, -1, -1).clone()


@pytest.fixture(scope="module")
def report() -> Report:
    mask = torch.zeros(1, H, W)
    mask[:, 8:20, 10:30] = 1
    return measure(Evidence(clip(0), clip(1), mask=mask))


def test_every_measure_is_there_computed_or_named(report: Report):
    assert [metric.name for metric in report.metrics] == NAMES
    for metric in report.metrics:
        assert (metric.value is None) == bool(metric.missing), metric.name
        assert metric.paper and metric.better
    assert {metric.name for metric in report.missing} == set(NAMES[8:])
    with pytest.raises(KeyError):
        report["unknown"]


def test_the_table_has_a_row_or_a_reason_for_each(report: Report):
    text = table.markdown(report)
    rows = [line.split(" | ")[0].removeprefix("| ") for line in text.splitlines() if "|" in line]
    assert rows[2:] == NAMES[:8]
    for name in NAMES[8:]:
        assert re.search(rf"^- {name}: .+\.$", text, re.M)
    assert "3 frames of 40x32 pixels." in text
    assert "\n\n\n" not in text
    line = table.summary(report)
    assert "warp error" in line and "6 of 14 measures not computed" in line


def test_json_says_the_same_and_has_null_for_what_is_missing(report: Report):
    content = json.loads(table.as_json(report))
    assert (content["frames"], content["height"], content["width"]) == (F, H, W)
    assert list(content["metrics"]) == NAMES
    psnr = content["metrics"]["background PSNR"]
    assert psnr["value"] == report["background PSNR"].value and len(psnr["series"]) == F
    assert psnr["unit"] == "dB" and psnr["better"] == "higher" and psnr["missing"] == ""
    text = content["metrics"]["text alignment"]
    assert text["value"] is None and text["series"] is None and text["missing"]


def test_undefined_values_are_null_in_json():
    metric = Metric("m", "", "p", LOWER, series=torch.tensor([1.0, torch.nan, 3.0]).double())
    assert metric.value == 2.0
    assert table.entry(metric)["series"] == [1.0, None, 3.0]
    total = Metric("m", "", "p", LOWER, series=torch.ones(2).double(), total=7.0)
    assert total.value == 7.0


def test_numbers_are_short_and_have_units():
    assert table.number(12.34567, "1e-4") == "12.35 x1e-4"
    assert table.number(21.0, "dB") == "21 dB"
    assert table.number(0.5, "") == "0.5"


def test_one_frame_has_no_motion_and_a_cut_at_every_frame_none_to_follow():
    found = measure(Evidence(clip(0, 1), clip(1, 1)))
    for name in NAMES[:5]:
        assert found[name].missing == "the clip has one frame only"
    assert found.heat.shape == (1, H, W) and bool(found.heat.isnan().all())
    small = measure(Evidence(clip(0, 3, 12), clip(1, 3, 12)))
    assert small["warp error"].missing == "the frames are smaller than 16 pixels"
    away = torch.full((F - 1, H, W, 2), 999.0)
    gone = measure(Evidence(clip(0), clip(1), flow=away))
    assert gone["warp error"].missing == "no pixel of the clip is seen in two frames"


def test_work_is_told_and_can_be_stopped():
    seen: list[int] = []

    def progress(total: int):
        assert total == 5
        return seen.append

    measure(Evidence(clip(0), clip(1)), progress)
    assert [done for done in seen if done] == [1, 2, 3, 4, 5]
    assert seen.count(0) == 5 * (F - 1), "before every flow: three of DIS, two of Farneback"

    with pytest.raises(Stop):
        measure(Evidence(clip(0), clip(1)), lambda total: stop)


class Stop(Exception):
    pass


def stop(done: int) -> None:
    raise Stop


def stopped_at(stages: int) -> Callable[[int], Callable[[int], None]]:
    """Stops at the first look at Cancel after so many stages."""

    def progress(total: int) -> Callable[[int], None]:
        reached = [0]

        def tick(done: int) -> None:
            reached[0] = max(done, reached[0])
            if not done and reached[0] >= stages:
                raise Stop

        return tick

    return progress


@pytest.mark.parametrize(("stages", "family"), [(2, "SSIM"), (3, "LPIPS"), (4, "points")])
def test_a_long_family_can_be_stopped_inside(
    monkeypatch: pytest.MonkeyPatch, stages: int, family: str
):
    def found(one: torch.Tensor, other: torch.Tensor, check: Callable[[], None]) -> torch.Tensor:
        check()
        return torch.zeros(len(one), dtype=torch.float64)

    monkeypatch.setattr(perceptual, "why_not", lambda evidence: "")
    monkeypatch.setattr(perceptual, "lpips", found)
    x, y = (torch.arange(n) / n * 2 - 1 for n in (W, H))
    uv = torch.stack(torch.meshgrid(x, y, indexing="xy"), -1).expand(F, -1, -1, -1)
    given = Evidence(clip(0), clip(1), mask=torch.zeros(1, H, W), uv=uv)
    assert not {m.name for m in measure(given).missing} & set(NAMES[:11]), family
    with pytest.raises(Stop):
        measure(given, stopped_at(stages))


def test_a_plot_per_measure(report: Report):
    shown = pictures.plots(report)
    assert shown.shape == (8, 320, 640, 3)
    assert 0 <= float(shown.min()) and float(shown.max()) <= 1
    assert len(shown.flatten(1).unique(dim=0)) == 8
    nothing = Report((Metric("m", "", "p", HIGHER, missing="x"),), 1, (H, W), torch.zeros(1, H, W))
    assert pictures.plots(nothing).shape == (1, 320, 640, 3)


def test_the_heat_map_is_hot_where_the_edit_changes():
    edited = clip(0)
    edited[1, 10:20, 10:20] = 1 - edited[1, 10:20, 10:20]
    found = measure(Evidence(clip(0), edited, flow=torch.zeros(F - 1, H, W, 2)))
    heat = pictures.heat_map(found, edited)
    assert heat.shape == (F, H, W, 3)
    assert_close(heat[-1], torch.tensor(pictures.UNKNOWN).expand(H, W, 3))
    hot, cold = heat[0, 10:20, 10:20].mean(), heat[0, 22:, :].mean()
    assert float(hot) > 2 * float(cold)
    change = (edited[0] - edited[1]).double().square().mean(-1).sqrt()
    assert_close(found.heat[0].float(), change.float())


def test_the_slice_shows_one_row_over_time():
    source, edited = clip(0), clip(1)
    shown = pictures.slice_through_time(source, edited, 0.5)
    tall = 43  # three frames make a half of at least 128 rows
    assert shown.shape == (1, 2 * 3 * tall + pictures.GAP, W, 3)
    for f in range(F):
        assert torch.equal(shown[0, f * tall], source[f, H // 2])
        assert torch.equal(shown[0, 3 * tall + pictures.GAP + f * tall + 1], edited[f, H // 2])
    assert torch.equal(pictures.slice_through_time(source, edited, 0.0)[0, 0], source[0, 0])
    assert torch.equal(pictures.slice_through_time(source, edited, 1.0)[0, 0], source[0, -1])


NAN = torch.full((F, H, W, 3), torch.nan)
BLUE = torch.ones(F, H, W, 3)
WIDE = torch.full((F, H, W, 3), 2.0)
REFUSED = [
    ({"edited": clip(0, 2)}, r"'source' has 3 frames, 'edited' 2\. .*cut both alike"),
    ({"edited": clip(0, F, 24)}, r"'source' is 40x32, 'edited' 40x24\. .*VAE Encode"),
    ({"edited": NAN}, r"'edited' holds NaN or infinity.*half precision"),
    ({"source": NAN}, r"'source' holds NaN or infinity"),
    ({"mask": torch.ones(2, H, W)}, r"expected a mask of 1 or 3 frames, got 2\. Cut the mask"),
    ({"mask": torch.full((1, H, W), torch.nan)}, r"the mask holds NaN or infinity"),
    (
        {"flow": clip(0, 5)},
        r"expected 'flow' to hold 2 pictures of 40x32 .*got 5 of 40x32.*disconn",
    ),
    ({"flow": clip(0, 2, 24)}, r"got 2 of 40x24"),
    ({"flow": NAN}, r"'flow' holds NaN or infinity\. Fill the empty places"),
    ({"uv": clip(0, 2)}, r"expected 'uv' to hold 3 pictures of 40x32, got 2 of 40x32"),
    ({"uv": BLUE * torch.tensor([1.0, 1.0, 0.0])}, r"blue channel of 'uv' is 0 everywhere"),
    ({"uv": WIDE}, r"red and green of 'uv' between 0 and 1 .*got 2 to 2\. Load the pass"),
    ({"uv": torch.where(BLUE.cumsum(-1) > 2, 1.0, torch.nan)}, r"red and green of 'uv' between"),
]


@pytest.mark.parametrize(("given", "text"), REFUSED)
def test_what_does_not_belong_together_is_refused(given, text):
    with pytest.raises(ValueError, match=f"^Consistency Report: .*{text}"):
        evidence.gather(**{"source": clip(0), "edited": clip(1), **given})


def test_what_renderers_write_is_understood():
    flow = torch.zeros(F, H, W, 3)
    flow[..., 0], flow[..., 1] = 2.0, -1.0
    uv = torch.rand(F, H, W, 3, generator=torch.Generator().manual_seed(0))
    given = evidence.gather(clip(0), clip(1), torch.ones(H, W), flow, uv)
    assert given.flow is not None and given.uv is not None and given.on_surface is not None
    assert given.flow.shape == (F - 1, H, W, 2)
    assert torch.equal(given.flow[0, 0, 0], torch.tensor([2.0, -1.0]))
    shown = uv[..., 2] > 0.5
    assert torch.equal(given.on_surface > 0, shown)
    assert_close(given.uv[shown], uv[..., :2][shown] * 2 - 1)
    assert given.mask is not None and given.mask.shape == (1, H, W)
    empty = uv.clone()
    empty[~shown] = torch.nan  # outside of the object a pass may hold anything
    assert bool(evidence.gather(clip(0), clip(1), uv=empty).uv.isfinite().all())


def test_clips_to_compare_have_the_same_length_and_names():
    clips = comparing.together(clip(0), clip(1), None, clip(2, F, 16))
    assert len(clips) == 3
    with pytest.raises(
        ValueError,
        match=r"^Compare Videos: expected clips of the same number of frames, got 'clip_a' 3, "
        r"'clip_c' 2\. Cut them alike",
    ):
        comparing.together(clip(0), None, clip(0, 2))
    assert comparing.names_of("source, edit", 2) == ["source", "edit"]
    assert comparing.names_of(" one ,", 3) == ["one", "clip b", "clip c"]
    assert comparing.names_of("a,b,c,d,e", 2) == ["a", "b"]
    files = [{"filename": f"{x}.mp4", "subfolder": "", "type": "temp"} for x in "abc"]
    shown = comparing.shown(files, ["x", "y", "z"], clips, 8.0)
    assert [entry["label"] for entry in shown] == ["x", "y", "z"]
    assert shown[2]["height"] == 16 and shown[0]["frames"] == F and shown[1]["fps"] == 8.0
