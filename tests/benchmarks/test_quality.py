"""The quality benchmark: its truth, its clips and its tables."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import av
import numpy as np
import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
SIZE = 64


@pytest.fixture(scope="module")
def clips(parts: SimpleNamespace) -> ModuleType:
    return parts.edit_clips


def test_forty_clips_of_all_kinds_with_eight_defaults(clips: Any):
    assert len(clips.CLIPS) == 40 == len({clip.name for clip in clips.CLIPS})
    assert {clip.kind for clip in clips.CLIPS} == set(clips.KINDS)
    default = clips.CLIPS[: clips.DEFAULT]
    assert {clip.kind for clip in default} == set(clips.KINDS)
    assert {clip.frames for clip in default} == {16, 24, 32, 48}
    assert sum(clip.passer is not None for clip in default) == 2
    for clip in clips.CLIPS:
        assert 16 <= clip.frames <= 48 and clip.source != clip.target
        assert clip.source.caption != clip.target.caption


def test_the_truth_of_every_clip_can_be_trusted(parts: SimpleNamespace):
    for clip in parts.edit_clips.CLIPS[:8]:
        assert parts.ground_truth.faults(clip, SIZE) == [], clip.name


def test_a_wrong_truth_is_noticed(parts: SimpleNamespace, monkeypatch: pytest.MonkeyPatch):
    truth, clip = parts.ground_truth, parts.edit_clips.CLIPS[0]
    monkeypatch.setattr(truth, "NEAR", -1.0)
    assert truth.faults(clip, SIZE) == ["coverage of the target is 0.00"]
    monkeypatch.setattr(truth, "NEAR", 9.0)
    assert truth.faults(clip, SIZE) == ["coverage without an edit is 1.00"]


def test_a_render_is_the_same_twice_and_moves_as_its_flow_says(clips: Any):
    clip = clips.CLIPS[5]  # two objects
    one, again = clips.render(clip, SIZE), clips.render(clip, SIZE)
    assert torch.equal(one.frames, again.frames) and torch.equal(one.flow, again.flow)
    assert float(one.passer.amax()) > 0.9 and float((one.mask * one.passer).amax()) < 0.26
    frame = 10
    motion = one.flow[frame]
    y, x = torch.meshgrid(torch.arange(SIZE), torch.arange(SIZE), indexing="ij")
    at = torch.stack([x, y], -1) + motion
    grid = (at + 0.5) / SIZE * 2 - 1
    later = torch.nn.functional.grid_sample(
        one.frames[frame + 1 :][:1], grid[None], align_corners=False
    )[0]
    inside = (grid.abs() < 0.95).all(-1)
    wrong = (later - one.frames[frame]).abs().amax(0)[inside] > 0.08
    assert float(wrong.float().mean()) < 0.06, "edges and what gets covered"


def test_the_background_hides_the_object_and_keeps_the_second(clips: Any):
    drawn = clips.render(clips.CLIPS[5], SIZE)
    outside = ((drawn.mask + drawn.passer) < 0.01).expand_as(drawn.frames)
    assert torch.allclose(drawn.frames[outside], drawn.background[outside], atol=0.01)
    passer = (drawn.passer > 0.999).expand_as(drawn.frames)
    assert torch.allclose(drawn.frames[passer], drawn.background[passer], atol=1e-3)
    solid = (drawn.mask > 0.99)[:, 0]
    assert float((drawn.frames - drawn.background).abs().amax(1)[solid].min()) > 0.2


def scores(parts: SimpleNamespace, number: int, edit: Any) -> dict[str, float]:
    clip = parts.edit_clips.CLIPS[number]
    source = parts.edit_clips.render(clip, SIZE)
    target = parts.edit_clips.render(clip, SIZE, clip.target)
    return parts.ground_truth.truth_scores(edit(source, target), source.frames, clip, source)


def test_a_half_done_recolouring_is_half_covered(parts: SimpleNamespace):
    def half(source: Any, target: Any) -> torch.Tensor:
        done = target.frames.clone()
        done[8:] = source.frames[8:]
        return done

    found = scores(parts, 0, half)
    assert found["target colour coverage"] == pytest.approx(0.5, abs=0.03)
    assert found["leak"] == pytest.approx(0, abs=0.2)
    assert 0 < found["distance to target"] < 20


def test_a_known_leak_is_its_size(parts: SimpleNamespace):
    found = scores(parts, 0, lambda source, target: (target.frames * 255 - 10) / 255)
    assert found["leak"] == pytest.approx(10, abs=0.1)
    assert found["distance to target"] == pytest.approx(10, abs=0.01)


def test_a_lost_object_keeps_no_structure(parts: SimpleNamespace):
    found = scores(parts, 0, lambda source, target: target.background)
    assert found["structure kept"] < 0.02
    moved = scores(parts, 0, lambda source, target: target.frames.roll(SIZE // 4, 3))
    assert 0.1 < moved["structure kept"] < 0.6


def test_what_an_edit_does_not_define_is_left_out(parts: SimpleNamespace):
    texture = scores(parts, 1, lambda source, target: target.frames)
    assert "target colour coverage" not in texture and "distance to target" not in texture
    style = scores(parts, 3, lambda source, target: target.frames)
    assert set(style) <= {"distance to target", "structure kept"}
    assert style["distance to target"] == 0
    background = scores(parts, 2, lambda source, target: target.frames)
    assert background["target colour coverage"] > 0.97 and background["leak"] < 0.5
    spoilt = scores(parts, 2, lambda source, target: target.background)
    assert spoilt["leak"] > 50, "the object was meant to stay"


def test_an_unchanged_background_is_no_loss_of_the_object(parts: SimpleNamespace):
    found = scores(parts, 2, lambda source, target: source.frames)
    assert found["target colour coverage"] < 0.05 and found["structure kept"] > 0.9


def write_video(file: Path, frames: int, value: int = 100) -> None:
    with av.open(str(file), "w") as container:
        stream = container.add_stream("h264", rate=8)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for _ in range(frames):
            picture = np.full((48, 64, 3), value, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())


def write_prompts(folder: Path, *entries: dict[str, Any]) -> None:
    (folder / "prompts.json").write_text(json.dumps(entries))


ENTRY = {"file": "dog.mp4", "source": "a dog", "target": "a fox"}


def test_real_clips_are_read_as_the_prompts_file_says(parts: SimpleNamespace, tmp_path: Path):
    write_video(tmp_path / "dog.mp4", 9)
    write_video(tmp_path / "mask.mp4", 9, 255)
    write_prompts(tmp_path, ENTRY, {**ENTRY, "mask": "mask.mp4", "start": 2, "frames": 5})
    plain, masked = parts.quality_clips.real_cases(tmp_path, 0)
    footage = parts.quality_clips.load(plain, (32, 32))
    assert footage.frames.shape == (9, 3, 32, 32) and footage.mask is None
    assert float(footage.frames.mean()) == pytest.approx(100 / 255, abs=0.02)
    footage = parts.quality_clips.load(masked, (32, 40))
    assert footage.frames.shape == (5, 3, 32, 40)
    assert footage.mask.shape == (5, 1, 32, 40) and float(footage.mask.min()) > 0.95
    assert plain.key != masked.key
    assert len(parts.quality_clips.real_cases(tmp_path, 1)) == 1


def test_a_key_changes_with_the_clip(parts: SimpleNamespace, tmp_path: Path):
    write_video(tmp_path / "dog.mp4", 4)
    write_prompts(tmp_path, ENTRY)
    (case,) = parts.quality_clips.real_cases(tmp_path, 0)
    before = case.key
    assert before == case.key
    parts.quality_clips.real_cases(tmp_path, 0)
    write_video(tmp_path / "dog.mp4", 4, 50)
    assert case.key != before
    keys = {entry.key for entry in parts.quality_clips.rendered_cases(True, 0)}
    assert len(keys) == 40


def test_another_shape_is_a_kind_of_its_own_and_no_part_of_the_key(parts: SimpleNamespace):
    cases = parts.quality_clips.rendered_cases(True, 0)
    shapes = [case for case in cases if case.kind == "another shape"]
    assert len(shapes) == 2 and not set(shapes) & set(cases[:8])
    for case in shapes:
        assert case.rendered.source.shape != case.rendered.target.shape
        assert replace(case, kind="several").key == case.key
    assert cases[0].key == "9eff6ac02bbd3f5a", "the cells that are kept on every machine"


def test_the_layers_of_an_edit_are_those_whose_words_change(parts: SimpleNamespace):
    layers_of, clip = parts.quality_clips.layers_of, parts.edit_clips.CLIPS[0]
    for changes, expected in (
        ({"colour": "purple"}, ("foreground",)),
        ({"pattern": "cloudy"}, ("background",)),
        ({"back": "white", "texture": "spotted"}, ("foreground", "background")),
        ({"style": "sepia"}, ("foreground", "background")),
    ):
        changed = replace(clip, target=replace(clip.source, **changes))
        assert layers_of(changed) == expected


@pytest.mark.parametrize(
    ("entries", "text"),
    [
        (None, r"expected prompts.json in .*: a list of file, source and target"),
        ([{"file": "dog.mp4", "source": "x"}], r"prompts.json, entry 0: target missing"),
        ([ENTRY, {**ENTRY, "mask": "no.png"}], r"prompts.json, entry 1: no file no.png in"),
        ([{**ENTRY, "file": "cat.mp4"}], r"entry 0: no file cat.mp4 in"),
        ([{**ENTRY, "layers": ["sky"]}], r"entry 0: layers are foreground and background"),
        ([{**ENTRY, "layers": ["foreground"]}], r"the foreground needs a mask"),
    ],
)
def test_what_is_missing_in_the_folder_is_named(parts, tmp_path: Path, entries, text):
    write_video(tmp_path / "dog.mp4", 4)
    if entries is not None:
        write_prompts(tmp_path, *entries)
    with pytest.raises(ValueError, match=text):
        parts.quality_clips.real_cases(tmp_path, 0)


def test_clips_and_masks_that_are_too_short_are_refused(parts: SimpleNamespace, tmp_path: Path):
    write_video(tmp_path / "dog.mp4", 6)
    write_video(tmp_path / "mask.mp4", 3)
    write_prompts(tmp_path, {**ENTRY, "start": 5}, {**ENTRY, "mask": "mask.mp4"})
    late, masked = parts.quality_clips.real_cases(tmp_path, 0)
    with pytest.raises(ValueError, match=r"dog.mp4: no two frames from frame 5 on"):
        parts.quality_clips.load(late, (32, 32))
    with pytest.raises(ValueError, match=r"mask.mp4: 3 frames for 6 of the clip"):
        parts.quality_clips.load(masked, (32, 32))


def cell(leak: float | None, warp: float) -> dict[str, Any]:
    known = {"value": leak, "missing": "" if leak is not None else "a style changes every pixel"}
    motion = {"value": warp, "unit": "1e-4", "better": "lower", "missing": ""}
    absent = {"value": None, "unit": "", "better": "higher", "missing": "no 'clip' connected"}
    scores = {"leak": known, "warp error": motion, "text alignment": absent}
    return {"scores": scores, "spent": 32.0, "clock": "CPU s", "frames": 16}


CELLS = {
    "one": {"plain": cell(4.0, 10.0), "TokenFlow": cell(2.0, 5.0)},
    "two": {"plain": cell(None, 20.0), "TokenFlow": {"not run": "no training data"}},
}
NAMES = ["plain", "TokenFlow"]


def test_rows_are_means_over_the_clips_that_define_them(parts: SimpleNamespace):
    rows = {row["metric"]: row["value"] for row in parts.quality_tables.rows_of(CELLS, NAMES)}
    assert rows["plain: leak (n=1)"] == 4.0
    assert rows["plain: warp error (n=2)"] == 15.0
    assert rows["TokenFlow: warp error (n=1)"] == 5.0
    assert rows["plain: time per frame (n=2)"] == 2.0
    assert rows["plain: text alignment"] is None


def test_tables_name_what_is_missing(parts: SimpleNamespace):
    text = parts.quality_tables.table(parts.quality_tables.rows_of(CELLS, NAMES))
    assert "| measure | plain | TokenFlow (1 of 2 clips) |" in text
    assert "| leak (/255) \u2193, 1 clips | 4 | 2 |" in text
    assert "text alignment" not in text
    assert "| time per frame (CPU s) \u2193, 2 clips | 2 | 2 |" in text
    kinds = {"one": "object colour", "two": "style"}
    by_kind = parts.quality_tables.by_kind(CELLS, NAMES, kinds)
    assert "| object colour (1) | leak | 4 | 2 |" in by_kind and "style" not in by_kind
    missing = parts.quality_tables.missing(CELLS, NAMES)
    assert "- TokenFlow was not run: no training data." in missing
    assert "- text alignment: no 'clip' connected." in missing


def test_a_method_that_was_run_on_no_clip_yet_is_no_error(parts: SimpleNamespace):
    cells = {"one": {"plain": cell(4.0, 10.0)}, "two": {}}
    assert "was not run" not in parts.quality_tables.missing(cells, NAMES)


def test_the_short_table_has_the_methods_below_each_other(parts: SimpleNamespace):
    lines = parts.quality_tables.short_table(parts.quality_tables.rows_of(CELLS, NAMES))
    head, _, plain, flow = lines.splitlines()
    assert head.count(" | ") == 5 and "| leak (/255) \u2193 | structure kept \u2191 |" in head
    assert plain == "| plain | \u2013 | 4 | \u2013 | \u2013 | 15 |"
    assert flow.startswith("| TokenFlow (1 of 2 clips) | \u2013 | 2 |")


RECORD = {"command": "c", "commit": "x", "device": "d", "torch": "t", "date": "y"}


def test_the_pages_are_filled_between_their_marks_only(
    parts: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    tables, kinds = parts.quality_tables, {"one": "style", "two": "style"}
    page, readme = tmp_path / "quality.md", tmp_path / "README.md"
    page.write_text("before\n<!-- quality -->\nold\n<!-- /quality -->\nafter\n")
    readme.write_text("a\n<!-- quality_short -->\n<!-- /quality_short -->\nb\n")
    content = {**RECORD, "notes": ["2 of 40 clips."], "rows": tables.rows_of(CELLS, NAMES)}
    for name in ("quality", "quality_real"):
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    monkeypatch.setattr(tables, "PAGE", page)
    monkeypatch.setattr(tables, "README", readme)
    tables.fill_page(tmp_path / "quality_real.json", CELLS, NAMES, kinds)
    assert "old" in page.read_text() and "measure" not in readme.read_text()
    tables.fill_page(tmp_path / "quality.json", CELLS, NAMES, kinds)
    text, short = (file.read_text(encoding="utf-8") for file in (page, readme))
    assert text.startswith("before\n<!-- quality -->\nMeasured by `c` at commit x on d")
    assert text.endswith("<!-- /quality -->\nafter\n") and "old" not in text
    assert "2 of 40 clips." in text and "2 of 40 clips." in short
    assert short.startswith("a\n<!-- quality_short -->\n| method |") and short.endswith("-->\nb\n")
    tables.fill_page(tmp_path / "quality.json", CELLS, NAMES, kinds)
    assert [file.read_text(encoding="utf-8") for file in (page, readme)] == [text, short]


def test_the_pages_have_the_marks_and_show_the_result_file(parts: SimpleNamespace):
    tables = parts.quality_tables
    page, readme = (file.read_text(encoding="utf-8") for file in (tables.PAGE, tables.README))
    for name, text in (("quality", page), ("quality_real", page), ("quality_short", readme)):
        assert text.count(f"<!-- {name} -->\n") == 1 == text.count(f"<!-- /{name} -->")
    result = ROOT / "benchmarks" / "results" / "quality.json"
    record = json.loads(result.read_text(encoding="utf-8"))
    assert f"{tables.measured(record)}\n\n{tables.table(record['rows'])}\n" in page
    assert f"<!-- quality_short -->\n{tables.short_text(record)}\n<!--" in readme
