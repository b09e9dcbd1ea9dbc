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
        print(f"   {title(self.graph, self.node)[:58]:58} {text:28}", end=end, flush=True)


def source_of(graph: Graph) -> list[Any]:
    """Return the link that carries the frames which the graph edits."""
    links = [n["inputs"]["pixels"] for n in graph.values() if n["class_type"] == "VAEEncode"]
    if len(links) != 1:
        raise ValueError(f"the demo's graph needs one VAE Encode, it has {len(links)}")
    return links[0]


def with_source_saved(graph: Graph) -> tuple[Graph, str, str]:
    """Return a graph that also saves the frames it edits, and the ids of both Save Video nodes."""
    (edited,) = [i for i, node in graph.items() if node["class_type"] == "SaveVideo"]
    (create,) = [node for node in graph.values() if node["class_type"] == "CreateVideo"]
    graph = copy.deepcopy(graph)
    inputs = {"images": source_of(graph), "fps": create["inputs"]["fps"]}
    graph["source_video"] = {"class_type": "CreateVideo", "inputs": inputs}
    save = {"filename_prefix": "reweave/source", "format": "auto", "codec": "auto"}
    inputs = {"video": ["source_video", 0], **save}
    graph["source_save"] = {"class_type": "SaveVideo", "inputs": inputs}
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


def flow(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Return the optical flow [H, W, 2] from `first` to `second` (uint8 RGB), in pixels."""
    grey = [cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in (first, second)]
    search = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    return search.calc(grey[0], grey[1], np.zeros((*grey[0].shape, 2), np.float32))


def follow(image: np.ndarray, motion: np.ndarray) -> np.ndarray:
    """Return `image` [H, W, C] float32 looked up at each pixel's place after `motion` [H, W, 2].

    Places outside the image give NaN.
    """
    height, width = motion.shape[:2]
    x, y = np.meshgrid(np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32))
    x, y = x + motion[..., 0], y + motion[..., 1]
    found = cv2.remap(image.astype(np.float32), x, y, cv2.INTER_LINEAR)
    outside = (x < 0) | (x > width - 1) | (y < 0) | (y > height - 1)
    found[outside] = np.nan
    return found


def warp_error(source: np.ndarray, clip: np.ndarray) -> float:
    """Return how far `clip` changes along the motion of `source`: mean absolute, of 255.

    Frame f is compared with frame f+1 looked up along the source's flow, where the flow forth and
    back agree within one pixel (elsewhere something was covered or uncovered).
    """
    total, count = 0.0, 0
    for f in range(len(source) - 1):
        forth, back = flow(source[f], source[f + 1]), flow(source[f + 1], source[f])
        seen = np.linalg.norm(forth + follow(back, forth), axis=-1) < 1.0
        change = np.abs(follow(clip[f + 1], forth) - clip[f])
        total, count = total + float(change[seen].sum()), count + int(seen.sum()) * 3
    return total / max(count, 1)


def temporal_change(clip: np.ndarray) -> float:
    """Return the mean absolute change from frame to frame, of 255."""
    return float(np.abs(np.diff(clip.astype(np.float32), axis=0)).mean())


def measure(source: np.ndarray, edited: np.ndarray) -> dict[str, float]:
    """Return the consistency numbers of an edit beside its source's own."""
    difference = np.abs(edited.astype(np.float32) - source).mean()
    return {
        "frames": len(edited),
        "mean change by the edit (of 255)": float(difference),
        "change from frame to frame, source": temporal_change(source),
        "change from frame to frame, edited": temporal_change(edited),
        "warp error along the source's motion, source": warp_error(source, source),
        "warp error along the source's motion, edited": warp_error(source, edited),
    }


def prompts(graph: Graph) -> list[str]:
    """Return every prompt text of the graph."""
    return [n["inputs"]["text"] for n in graph.values() if n["class_type"] == "CLIPTextEncode"]


def edit(server: HostServer, graph: Graph, out: Path) -> dict[str, Any]:
    """Run the graph and write edited.mp4, side_by_side.mp4 and report.json to `out`."""
    queued, source_node, edited_node = with_source_saved(graph)
    result = server.run(queued, Progress(queued))
    files = [server.path_of(result.files(node)[0]) for node in (source_node, edited_node)]
    (source, rate), (edited, _) = (read_clip(file) for file in files)
    if source.shape != edited.shape:
        raise HostError(f"the edit has shape {edited.shape}, its source {source.shape}")
    out.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(files[1], out / "edited.mp4")
    write_clip(out / "side_by_side.mp4", side_by_side(source, edited), rate)
    report = {"prompts": prompts(graph), **measure(source, edited), "seconds": result.seconds}
    (out / "report.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    return report


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
    for name, value in report.items():
        print(f"   {name}: {f'{value:.2f}' if isinstance(value, float) else value}")
    for name in ("edited.mp4", "side_by_side.mp4", "report.json"):
        print(f"wrote {options.out / name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
