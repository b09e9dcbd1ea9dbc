"""Edit the bundled clip with the demo's workflow in a real ComfyUI, and measure the result.

Writes the edited clip, source and edit side by side, and the numbers. `dev.py demo` starts it.
"""

from __future__ import annotations

import argparse
import copy
import json
import shutil
import signal
import sys
import time
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT))

from demo.host_server import FINAL, Graph, HostError, HostServer, device_arguments, title

WORKFLOW = ROOT / "tests" / "api" / "tokenflow_plug_and_play.json"
REPORT, NUMBERS = "report", "numbers"
"""Ids of the nodes that measure the edit, and show its numbers as text."""
SHOWN_WIDTH = 480  # of each half of the side-by-side clip: the demo's frames are small


class Progress:
    """Prints one line per node: how far it is, how long it will take, how long it took."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.node: str | None = None
        self.started = self.shown = time.monotonic()

    def __call__(self, kind: str, data: dict[str, Any]) -> None:
        if kind == "execution_cached" and data["nodes"]:
            print(f"   {len(data['nodes'])} nodes answered from the cache", flush=True)
        elif kind == "executing":
            self._begin(data.get("node"))
        elif kind == "progress" and data.get("node") == self.node:
            self._advance(data["value"], data["max"])
        elif kind in FINAL:
            self._begin(None)

    def _begin(self, node: str | None) -> None:
        now = time.monotonic()
        if self.node is not None:
            self._print(f"{now - self.started:6.1f} s", end="\n")
        self.node, self.started, self.shown = node, now, now

    def _advance(self, value: float, most: float) -> None:
        now = time.monotonic()
        pause = 0.5 if sys.stdout.isatty() else 15.0  # a log file has no line to write over
        if value and value < most and now - self.shown >= pause:
            self.shown = now
            left = (now - self.started) / value * (most - value)
            done = f"{value:.0f}/{most:.0f}, about {left:.0f} s left"
            self._print(done, end="\r" if sys.stdout.isatty() else "\n")

    def _print(self, text: str, end: str) -> None:
        print(f"   {title(self.graph, self.node)[:66]:66} {text:28}", end=end, flush=True)


def source_of(graph: Graph) -> list[Any]:
    """Return the link that carries the frames which the graph edits."""
    links = [n["inputs"]["pixels"] for n in graph.values() if n["class_type"] == "VAEEncode"]
    if len(links) != 1:
        raise ValueError(f"the demo's graph needs one VAE Encode, it has {len(links)}")
    return links[0]


def measured(graph: Graph) -> tuple[Graph, str, str]:
    """Return a graph that also saves the frames it edits, and measures the edit; with the ids of
    both Save Video nodes."""
    (edited,) = [i for i, node in graph.items() if node["class_type"] == "SaveVideo"]
    (create,) = [node for node in graph.values() if node["class_type"] == "CreateVideo"]
    graph, source = copy.deepcopy(graph), source_of(graph)
    clip = {"images": source, "fps": create["inputs"]["fps"]}
    save = {"video": ["source_video", 0], "filename_prefix": "reweave/source"}
    save |= {"format": "auto", "codec": "auto"}
    both = {"source": source, "edited": create["inputs"]["images"], "slice_at": 0.5, "prompt": ""}
    graph |= {
        "source_video": {"class_type": "CreateVideo", "inputs": clip},
        "source_save": {
            "class_type": "SaveVideo",
            "inputs": {"video": ["source_video", 0], **save},
        },
        REPORT: {"class_type": "Reweave_ConsistencyReport", "inputs": both},
        NUMBERS: {"class_type": "PreviewAny", "inputs": {"source": [REPORT, 1]}},
    }
    return graph, "source_save", edited


def read_clip(file: Path) -> tuple[np.ndarray, float]:
    """Return the frames [F, H, W, 3] uint8 RGB of a clip, and its frames per second."""
    with av.open(str(file)) as container:
        rate = float(container.streams.video[0].average_rate or 24)
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    return np.stack(frames), rate


def write_clip(file: Path, frames: np.ndarray, rate: float) -> None:
    """Write frames [F, H, W, 3] uint8 RGB, H and W even, as h264."""
    part = file.with_name(file.name + ".part")
    with av.open(str(part), "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=round(rate), options={"crf": "16"})
        stream.height, stream.width, stream.pix_fmt = *frames.shape[1:3], "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    part.replace(file)


def side_by_side(source: np.ndarray, edited: np.ndarray) -> np.ndarray:
    """Return both clips beside each other, [F, H, 2W, 3], enlarged to be seen."""
    scale = max(1, round(SHOWN_WIDTH / source.shape[2]))
    pairs = np.concatenate([source, edited], axis=2)
    size = (pairs.shape[2] * scale // 2 * 2, pairs.shape[1] * scale // 2 * 2)
    large = [cv2.resize(pair, size, interpolation=cv2.INTER_CUBIC) for pair in pairs]
    return np.stack(large)


def prompts(graph: Graph) -> list[str]:
    """Return every prompt text of the graph."""
    return [n["inputs"]["text"] for n in graph.values() if n["class_type"] == "CLIPTextEncode"]


def edit(server: HostServer, graph: Graph, out: Path) -> str:
    """Run the graph; write edited.mp4, side_by_side.mp4 and report.json to `out` -> the report."""
    queued, source_node, edited_node = measured(graph)
    result = server.run(queued, Progress(queued))
    files = [server.path_of(result.files(node)[0]) for node in (source_node, edited_node)]
    (source, rate), (edited, _) = (read_clip(file) for file in files)
    if source.shape != edited.shape:
        raise HostError(f"the edit has shape {edited.shape}, its source {source.shape}")
    out.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(files[1], out / "edited.mp4")
    write_clip(out / "side_by_side.mp4", side_by_side(source, edited), rate)
    numbers = json.loads(result.outputs[NUMBERS]["text"][0])
    report = {"prompts": prompts(graph), "seconds": result.seconds, "measures": numbers}
    (out / "report.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    return f"{result.outputs[REPORT]['text'][0]}\n\n{len(edited)} frames, {result.seconds:.0f} s"


def main() -> int:
    """Run the demo."""
    parser = argparse.ArgumentParser(description="edit the bundled clip in a real ComfyUI")
    parser.add_argument("--comfyui", type=Path, required=True)
    parser.add_argument("--port", type=int)
    parser.add_argument("--graph", type=Path, default=WORKFLOW, help="an API-format graph")
    parser.add_argument("--out", type=Path, default=ROOT / "output")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # the server is stopped on the way out
    graph = json.loads(options.graph.read_text(encoding="utf-8"))
    device = device_arguments(sys.executable)
    print(f"starting ComfyUI on the {'CPU' if device else 'GPU'}", flush=True)
    base = ROOT / ".host" / "demo"
    server = HostServer(options.comfyui, base, port=options.port, extra=device)
    try:
        with server:
            for clip in sorted((ROOT / "demo" / "clips").glob("*.mp4")):
                server.add_input(clip)
            print(f"ComfyUI with Reweave: {server.url}; {options.graph.stem}:", flush=True)
            report = edit(server, graph, options.out)
    except HostError as error:
        print(f"{error}\n(the server's log: {server.log})", file=sys.stderr)
        return 1
    print(report)
    for name in ("edited.mp4", "side_by_side.mp4", "report.json"):
        print(f"wrote {options.out / name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
