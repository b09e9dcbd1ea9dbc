"""Every workflow on the real server, and what the server shows of the pack."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from reweave.demo.host_server import PACK_NAME, HostError, HostServer

pytestmark = pytest.mark.server

ROOT = Path(__file__).resolve().parent.parent.parent
FRAMES = 9
GRAPHS = sorted((ROOT / "tests" / "api").glob("*.json"))
STOCK: dict[str, dict[str, Any]] = {
    "1": {"class_type": "LoadVideo", "inputs": {"file": "stock.mp4"}},
    "2": {"class_type": "GetVideoComponents", "inputs": {"video": ["1", 0]}},
    "3": {"class_type": "CreateVideo", "inputs": {"images": ["2", 0], "fps": ["2", 2]}},
    "4": {
        "class_type": "SaveVideo",
        "inputs": {
            "video": ["3", 0],
            "filename_prefix": "stock",
            "format": "auto",
            "codec": "auto",
        },
    },
}


@pytest.fixture(scope="module")
def object_info(host_server: HostServer) -> dict[str, Any]:
    return host_server.get_json("/object_info")


def declared_ids() -> set[str]:
    """Read the node ids from the help pages; test_architecture asserts that these are all."""
    return {p.stem for p in (ROOT / "js" / "docs").glob("Reweave_*.md")}


def decode(file: Path) -> tuple[int, int, int]:
    """Return (frames, height, width) of a video that decodes to its end."""
    with av.open(str(file)) as container:
        shapes = [(frame.height, frame.width) for frame in container.decode(video=0)]
    assert len(set(shapes)) == 1, f"{file.name}: frames of several sizes: {set(shapes)}"
    return len(shapes), *shapes[0]


def test_the_pack_loads_without_a_complaint(host_server: HostServer) -> None:
    log = host_server.log.read_text(encoding="utf-8", errors="replace")
    loaded = [line for line in log.splitlines() if f"custom_nodes/{PACK_NAME}" in line]
    assert loaded, f"the host did not look at the pack:\n{host_server.log_tail()}"
    assert not [line for line in loaded if "IMPORT FAILED" in line], "\n".join(loaded)
    assert "Error while calling comfy_entrypoint" not in log, host_server.log_tail()


def test_the_server_knows_exactly_the_declared_nodes(object_info: dict[str, Any]) -> None:
    assert {name for name in object_info if name.startswith("Reweave_")} == declared_ids()


def test_every_node_explains_itself(host_server: HostServer, object_info: dict[str, Any]) -> None:
    """A category, a description, a tooltip on every input, and a help page that is served."""
    faults = []
    for name in sorted(declared_ids() & set(object_info)):
        info = object_info[name]
        if not info["category"].startswith("Reweave/") or not info["description"]:
            faults.append(f"{name}: category or description missing")
        inputs = {**info["input"].get("required", {}), **info["input"].get("optional", {})}
        bare = [k for k, v in inputs.items() if not (len(v) > 1 and v[1].get("tooltip"))]
        if bare:
            faults.append(f"{name}: no tooltip on {', '.join(bare)}")
        seeds = {"seed", "noise_seed"} & set(inputs)
        if seeds:
            faults.append(f"{name}: {seeds} gets a randomize button, which defeats every cache")
        page = host_server.get(f"/extensions/{PACK_NAME}/docs/{name}.md").decode("utf-8")
        if not page.startswith("# "):
            faults.append(f"{name}: its help page has no title")
    assert not faults, "\n".join(faults)


def test_the_templates_are_offered(host_server: HostServer) -> None:
    names = sorted(p.stem for p in (ROOT / "workflows").glob("*.json"))
    assert sorted(host_server.get_json("/workflow_templates").get(PACK_NAME, [])) == names


@pytest.fixture(scope="module")
def stock_clip(host_server: HostServer) -> tuple[int, int, int]:
    """Write stock.mp4 to the server's input folder; return its (frames, height, width)."""
    with av.open(str(host_server.base / "input" / "stock.mp4"), "w") as container:
        stream = container.add_stream("h264", rate=8)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for i in range(9):
            picture = np.full((48, 64, 3), 20 * i, dtype=np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    return 9, 48, 64


def test_a_stock_graph_gives_the_clip_back(
    host_server: HostServer, stock_clip: tuple[int, int, int]
) -> None:
    run = host_server.run(STOCK, timeout=300)
    (entry,) = [e for e in run.files("4") if "filename" in e]
    assert decode(host_server.path_of(entry)) == stock_clip
    assert not run.cached()
    assert host_server.run(STOCK, timeout=60).cached() == set(STOCK)


@pytest.mark.usefixtures("stock_clip")
def test_a_graph_with_one_broken_branch_fails(host_server: HostServer) -> None:
    """The server answers 200 and drops the broken output; the harness must not call that passed."""
    broken = {**STOCK, "5": {"class_type": "SaveVideo", "inputs": {"filename_prefix": "x"}}}
    with pytest.raises(HostError, match=r"node 5, SaveVideo.*input is missing"):
        host_server.run(broken)


def test_a_failing_node_fails_with_its_name(host_server: HostServer) -> None:
    (host_server.base / "input" / "broken.mp4").write_bytes(b"this is no video")
    graph = {**STOCK, "1": {"class_type": "LoadVideo", "inputs": {"file": "broken.mp4"}}}
    with pytest.raises(HostError, match=r"GetVideoComponents\) failed: .*[Ii]nvalid"):
        host_server.run(graph)


def shortened(graph: dict[str, Any]) -> dict[str, Any]:
    """Return the graph with a fifth of its steps and 9 frames: the same nodes, in minutes.

    9 is odd and no multiple of the interval, so that a dropped last frame is seen.
    """
    graph = copy.deepcopy(graph)
    for inputs in (node["inputs"] for node in graph.values()):
        for name in {"steps", "saved_steps", "start_at_step", "step"} & set(inputs):
            if inputs[name] > 0:  # -1: the node's own choice
                inputs[name] = max(1, round(inputs[name] / 5))
        if "length" in inputs:
            inputs["length"] = FRAMES
    return graph


@pytest.mark.slow
@pytest.mark.parametrize("path", GRAPHS, ids=lambda p: p.stem)
def test_every_workflow_runs_to_its_end(host_server: HostServer, path: Path) -> None:
    graph = shortened(json.loads(path.read_text(encoding="utf-8")))
    run = host_server.run(graph)
    outputs = {node for node in graph if graph[node]["class_type"].startswith(("Save", "Preview"))}
    assert outputs <= set(run.outputs), f"no output of {outputs - set(run.outputs)}"
    files = [host_server.path_of(e) for n in run.outputs for e in run.files(n) if "filename" in e]
    assert files, f"{path.name} wrote nothing"
    assert all(file.stat().st_size > 0 for file in files)
    frames = {file.name: decode(file)[0] for file in files if file.suffix == ".mp4"}
    assert set(frames.values()) <= {FRAMES}, f"frames were dropped: {frames}"
