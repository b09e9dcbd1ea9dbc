"""What `dev.py demo` queues, writes and says, with a graph of a few small frames."""

from __future__ import annotations

import copy
import importlib
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from reweave.demo.host_server import HostServer, Run

ROOT = Path(__file__).resolve().parents[2]
CLIP = ROOT / "demo" / "clips" / "big_buck_bunny.mp4"
FRAMES, WIDTH, HEIGHT = 3, 96, 64


@pytest.fixture(scope="module")
def demo() -> ModuleType:
    """The demo's script, found as a script finds its parts: by the root folder."""
    kept = list(sys.path)
    sys.path.insert(0, str(ROOT))
    try:
        return importlib.import_module("demo.run_demo")
    finally:
        sys.path[:] = kept


@pytest.fixture
def graph(demo: Any) -> dict[str, Any]:
    """The demo's own graph: three small frames, two steps."""
    graph = json.loads(demo.WORKFLOW.read_text(encoding="utf-8"))
    small = {"length": FRAMES, "width": WIDTH, "height": HEIGHT, "steps": 2, "saved_steps": 2}
    for node in graph.values():
        node["inputs"] |= {name: small[name] for name in small.keys() & node["inputs"].keys()}
    return graph


def half(both: np.ndarray, side: int) -> np.ndarray:
    """One half of a side-by-side clip [F,H,2W,3], at the size of its frames."""
    width, scale = both.shape[2] // 2, both.shape[1] // HEIGHT
    part = both[:, :, side * width : (side + 1) * width].astype(float)
    return part.reshape(len(both), HEIGHT, scale, WIDTH, scale, 3).mean((2, 4))


def difference(one: np.ndarray, other: np.ndarray) -> float:
    """Mean difference of two clips, 0 to 255."""
    return float(np.abs(one.astype(float) - other).mean())


@pytest.mark.server
def test_the_demo_writes_the_edit_the_comparison_and_the_numbers(
    demo: Any, graph: dict[str, Any], host_server: HostServer, tmp_path: Path, capsys: Any
) -> None:
    before, out = copy.deepcopy(graph), tmp_path / "made" / "here"
    said = demo.edit(host_server, graph, out)
    assert graph == before, "the artist's graph was changed"
    assert {file.name for file in out.iterdir()} == {
        "edited.mp4",
        "side_by_side.mp4",
        "report.json",
    }

    edited, rate = demo.read_clip(out / "edited.mp4")
    both, rate_of_both = demo.read_clip(out / "side_by_side.mp4")
    scale = demo.SHOWN_WIDTH // WIDTH
    assert edited.shape == (FRAMES, HEIGHT, WIDTH, 3)
    assert both.shape == (FRAMES, HEIGHT * scale, 2 * WIDTH * scale, 3)
    assert rate == rate_of_both == demo.read_clip(CLIP)[1]

    saved = sorted((host_server.base / "output" / "reweave").glob("source_*.mp4"))
    source, _ = demo.read_clip(max(saved, key=lambda file: file.stat().st_mtime))
    assert source.shape == edited.shape and difference(source, edited) > 5
    for side, clip, other in ((0, source, edited), (1, edited, source)):
        assert difference(half(both, side), clip) < 0.5 * difference(half(both, side), other)

    report = json.loads((out / "report.json").read_text(encoding="utf-8"))
    assert report["prompts"] == [graph["7"]["inputs"]["text"], graph["8"]["inputs"]["text"]]
    assert report["seconds"] > 0 and report["measures"]
    assert said.splitlines()[-1].startswith(f"{FRAMES} frames, ")
    shown = capsys.readouterr().out
    assert all(f"(node {node}, {kind['class_type']})" in shown for node, kind in graph.items())


def test_the_graph_is_measured_without_losing_a_node(demo: Any, graph: dict[str, Any]) -> None:
    queued, source, edited = demo.measured(graph)
    assert {name: queued[name] for name in graph} == graph
    made = queued["source_video"]["inputs"]
    assert made["images"] == graph["6"]["inputs"]["pixels"] == ["5", 0]
    assert made["fps"] == graph["23"]["inputs"]["fps"]
    assert queued[source]["inputs"]["video"] == ["source_video", 0] and edited == "24"
    both = queued[demo.REPORT]["inputs"]
    assert (both["source"], both["edited"]) == (["5", 0], ["22", 0])


def test_a_graph_with_two_clips_is_refused(demo: Any, graph: dict[str, Any]) -> None:
    graph["other"] = copy.deepcopy(graph["6"])
    with pytest.raises(ValueError, match="needs one VAE Encode, it has 2"):
        demo.measured(graph)


class Short:
    """A server that drops the edit's last frame."""

    def __init__(self, demo: Any, folder: Path) -> None:
        self.folder = folder
        frames = np.zeros((FRAMES, HEIGHT, WIDTH, 3), dtype=np.uint8)
        for name, clip in (("source_save", frames), ("24", frames[1:])):
            demo.write_clip(folder / f"{name}.mp4", clip, 24)

    def run(self, graph: dict[str, Any], listener: Any) -> Run:
        return Run("", {name: {"images": [{"filename": f"{name}.mp4"}]} for name in graph})

    def path_of(self, entry: dict[str, str]) -> Path:
        return self.folder / entry["filename"]


def test_a_dropped_frame_is_an_error_and_nothing_is_written(
    demo: Any, graph: dict[str, Any], tmp_path: Path
) -> None:
    with pytest.raises(demo.HostError, match=r"the edit has shape \(2, 64, 96, 3\), its source"):
        demo.edit(Short(demo, tmp_path), graph, tmp_path / "out")
    assert not (tmp_path / "out").exists()
