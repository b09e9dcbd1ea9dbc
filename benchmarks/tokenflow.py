"""TokenFlow with Plug-and-Play against plain sampling: CPU seconds per step and peak memory.

cold = first edit of a clip, warm = the next one (field, conv features, key frames' queries and
keys in the cache). CPU time of one thread, all ways back to back in one process with ComfyUI's
attention, medians of alternating repeats. The published order of work must give our result
before anything is timed.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from inprocess import HOST, load_pack

load_pack()
import torch
from common import write_result
from published_order import PublishedOrder
from reweave.editing import host
from reweave.editing.plug_and_play import PlugAndPlay
from reweave.editing.tokenflow import TokenFlow
from small_nets import DEMO, MIDDLE, clip, edit_once, network

FRAMES, INTERVAL, REPEATS, TIMED_STEPS = 16, 8, 3, 2
JOINT = 4
"""max_joint_key_frames where memory is measured with a limit."""
LENGTHS = (16, 64, 128)
Ways = dict[str, Callable[[], Any]]
Row = dict[str, Any]


def row(metric: str, value: float | None, unit: str, goal: str = "") -> Row:
    """One line of the result; goal such as "<= 0.85", empty where there is none."""
    reached = None
    if goal and value is not None:
        sign, number = goal.split()[:2]
        reached = value <= float(number) if sign == "<=" else value >= float(number)
    return {"metric": metric, "value": value, "unit": unit, "goal": goal, "reached": reached}


def seconds_per_step(way: Callable[[], Any]) -> float:
    """CPU seconds of this process."""
    start = time.process_time()
    way()
    return (time.process_time() - start) / TIMED_STEPS


def alternate(ways: Ways, repeats: int = REPEATS) -> dict[str, float]:
    """Medians; every repeat runs all ways once, so that a busy machine disturbs all alike."""
    taken: dict[str, list[float]] = {name: [] for name in ways}
    for repeat in range(repeats):
        for name, way in ways.items():
            taken[name].append(seconds_per_step(way))
            print(f"  {repeat + 1}/{repeats} {name}: {taken[name][-1]:.3f} s/step", flush=True)
    return {name: statistics.median(values) for name, values in taken.items()}


class Edits:
    """The ways of sampling one clip that are compared."""

    def __init__(self, model: Any, size: int) -> None:
        self.model, self.clip = model, clip(model, FRAMES, size)
        self.sigmas = self.clip.sigmas[: TIMED_STEPS + 1]
        flow = TokenFlow(self.clip, interval=INTERVAL, frames_per_pass=INTERVAL)
        injection = PlugAndPlay(self.clip, 1.0, 1.0)
        self.edited = host.attach(host.attach(model, flow), injection)
        self.injected = host.attach(model, injection)
        draws = torch.stack([flow.plan(step).key_frames for step in range(len(self.clip.sigmas))])
        self.published = PublishedOrder(model, self.clip, draws, INTERVAL).on(model)

    def run(self, model: Any) -> torch.Tensor:
        return edit_once(model, self.clip, self.sigmas)

    def cold(self) -> torch.Tensor:
        shutil.rmtree(host.cache_folder(), ignore_errors=True)
        return self.run(self.edited)

    def check(self) -> float:
        """Largest difference to the published order; also that a warm run equals a cold one.

        Raises: RuntimeError when they differ by more than rounding.
        """
        cold, warm, published = self.cold(), self.run(self.edited), self.run(self.published)
        plain = self.run(self.model)
        error = float((cold - published).abs().max() / cold.std())
        effect = float((cold - plain).abs().max() / cold.std())
        if not torch.equal(cold, warm) or error > 1e-3 or effect < 0.05:
            raise RuntimeError(
                f"not timed: warm equals cold {torch.equal(cold, warm)}, difference to the "
                f"published order {error:.2g}, effect of the edit {effect:.2g} (of the std)"
            )
        return error


def mid_size() -> tuple[list[Row], list[str]]:
    """(a) the mid-size network: 16 frames of 32x32 latents, interval 8."""
    edits = Edits(network(MIDDLE), 32)
    error = edits.check()
    found = alternate(
        {
            "plain": lambda: edits.run(edits.model),
            "cold": edits.cold,
            "warm": lambda: edits.run(edits.edited),
            "published": lambda: edits.run(edits.published),
        }
    )
    plain, warm = found["plain"], found["warm"]
    name = "mid-size net"
    rows = [row(f"{name}: {way}", value, "CPU s/step") for way, value in found.items()]
    rows += [
        row(f"{name}: warm / plain", warm / plain, "x", "<= 0.85"),
        row(f"{name}: cold / plain", found["cold"] / plain, "x", "<= 1.3"),
        row(f"{name}: published / warm", found["published"] / warm, "x", ">= 1.5"),
    ]
    return rows, [f"{name}: largest difference to the published order {error:.1g} of the std"]


def demo_size() -> tuple[list[Row], list[str]]:
    """(b) the demo checkpoint: 16 frames of 16x16 latents."""
    path = HOST / "models" / "checkpoints" / "reweave_demo.safetensors"
    if path.is_file():
        from inprocess import load_demo_checkpoint

        model, name, notes = load_demo_checkpoint()[0], "demo checkpoint", []
    else:
        model, name = network(DEMO), "demo-shaped net"
        notes = ["no demo checkpoint was built here: a random network of its shape instead"]
    edits = Edits(model, 16)
    edits.check()
    found = alternate(
        {
            "plain": lambda: edits.run(edits.model),
            "cold": edits.cold,
            "warm": lambda: edits.run(edits.edited),
            "Plug-and-Play per frame": lambda: edits.run(edits.injected),
        }
    )
    plain, warm = found["plain"], found["warm"]
    per_frame = found["Plug-and-Play per frame"]
    rows = [row(f"{name}: {way}", value, "CPU s/step") for way, value in found.items()]
    rows += [
        row(f"{name}: warm / plain", warm / plain, "x", "<= 1.1"),
        row(f"{name}: warm / Plug-and-Play per frame", warm / per_frame, "x", "<= 0.75"),
        row(f"{name}: cold / plain", found["cold"] / plain, "x", "<= 1.6"),
    ]
    return rows, notes


def memory() -> tuple[list[Row], list[str]]:
    """Peak memory of a process of its own for every length of clip."""
    if platform.system() == "Windows":
        return [row("peak memory", None, "MB")], ["peak memory: not measured on Windows"]
    script = Path(__file__).with_name("memory_growth.py")
    rows: list[Row] = []
    for joint, words in ((JOINT, f"{JOINT} key frames joint at most"), (0, "all key frames joint")):
        found = []
        for frames in LENGTHS:
            command = [sys.executable, str(script), str(frames), str(joint)]
            out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            found.append(json.loads(out.strip().splitlines()[-1]))
            peak = found[-1]["peak"] / 1e6
            print(f"  {words}, {frames} frames: {peak:.0f} MB", flush=True)
            rows.append(row(f"peak memory, {words}, {frames} frames", peak, "MB"))
        grown = found[-1]["peak"] - found[0]["peak"]
        allowed = found[-1]["clip"] - found[0]["clip"]
        goal = "<= 1" if joint else ""
        metric = f"growth from {LENGTHS[0]} to {LENGTHS[-1]} frames / latents and images, {words}"
        rows.append(row(metric, grown / allowed, "x", goal))
    return rows, ["peak memory: mid-size network, 32x32 latents, images of 256x256, 1 step"]


def main() -> None:
    """Measures everything and writes the result."""
    torch.set_num_threads(1)
    rows: list[Row] = []
    notes = [
        f"{FRAMES} frames, interval {INTERVAL}, Plug-and-Play in every step, guidance 7.5, "
        f"{TIMED_STEPS} steps per run, medians of {REPEATS} alternating runs, one thread"
    ]
    with torch.inference_mode():
        for part in (mid_size, demo_size, memory):
            print(part.__name__, flush=True)
            new_rows, new_notes = part()
            rows, notes = rows + new_rows, notes + new_notes
    rows.append(row("SD1.5 at 512x512, warm / plain", None, "x"))
    notes.append("SD1.5 at 512x512 is a measurement for a GPU; there was none")
    write_result("tokenflow", rows, notes)


if __name__ == "__main__":
    main()
