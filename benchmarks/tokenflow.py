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

from inprocess import DEMO, load_demo_checkpoint, load_pack

load_pack()
import torch
from common import row, write_result
from published_order import PublishedOrder
from reweave.editing import host
from reweave.editing.keyframes import DRAWS
from reweave.editing.plug_and_play import PlugAndPlay
from reweave.editing.tokenflow import TokenFlow
from small_nets import DEMO as DEMO_SHAPE
from small_nets import MIDDLE, STEPS, clip, edit_once, network

FRAMES, INTERVAL, TIMED_STEPS = 16, 8, 1
JOINT = 2
"""max_joint_key_frames where memory is measured with a limit."""
LENGTHS = (16, 64, 128)
Ways = dict[str, Callable[[], Any]]
Row = dict[str, Any]


def alternate(ways: Ways, repeats: int) -> tuple[dict[str, float], dict[str, torch.Tensor]]:
    """Medians of CPU seconds per step, and what each way gave.

    Every repeat runs all ways once, so that a busy machine disturbs all alike.
    """
    taken: dict[str, list[float]] = {name: [] for name in ways}
    results: dict[str, torch.Tensor] = {}
    for repeat in range(repeats):
        for name, way in ways.items():
            start = time.process_time()
            results[name] = way()
            taken[name].append((time.process_time() - start) / TIMED_STEPS)
            print(f"  {repeat + 1}/{repeats} {name}: {taken[name][-1]:.3f} s/step", flush=True)
        if repeat == 0:
            check(results)
    return {name: statistics.median(values) for name, values in taken.items()}, results


def check(results: dict[str, torch.Tensor], allowed: float = 0.05) -> None:
    """Cold, warm and published runs must agree against what the edit changes.

    Matches that are equal but for rounding may be chosen differently (`exact` shows that nothing
    else is), and a random network amplifies that: `allowed` is a share of the edit's effect, root
    mean square.

    Raises: RuntimeError otherwise; nothing is reported then.
    """
    cold, warm, plain = results["cold"], results["warm"], results["plain"]
    error = difference(results.get("published", cold), cold, plain)
    if not torch.equal(cold, warm) or not error < allowed:
        raise RuntimeError(
            f"not reported: warm equals cold: {torch.equal(cold, warm)}, difference to the "
            f"published order {error:.2g} of the edit's effect"
        )


def difference(one: torch.Tensor, other: torch.Tensor, plain: torch.Tensor) -> float:
    """Root mean square of the difference, as a share of what `other` differs from `plain`."""
    return float((one - other).norm() / (plain - other).norm())


class Edits:
    """The ways of sampling one clip that are compared."""

    def __init__(self, model: Any, size: int, steps: int = STEPS) -> None:
        self.model, self.clip = model, clip(model, FRAMES, size, steps)
        self.sigmas = self.clip.sigmas[: TIMED_STEPS + 1]
        self.flow = flow = TokenFlow(self.clip, interval=INTERVAL, frames_per_pass=INTERVAL)
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


def exact(model: Any, size: int) -> str:
    """With our matches the published order is ours but for rounding, and no match is worse than
    the one that it finds itself by more than rounding.

    Raises: RuntimeError otherwise; nothing is reported then.
    """
    edits = Edits(model, size, steps=2)
    flow = edits.flow
    settings = (INTERVAL, flow.keyframe_seed, DRAWS[0], flow.rule, INTERVAL, 4.0)
    field = host.field_of(model, edits.clip, None, *settings)
    draws = field.key_frames
    published = PublishedOrder(model, edits.clip, draws, INTERVAL, field)
    expected, plain = edits.cold(), edits.run(model)
    error = difference(edits.run(published.on(model)), expected, plain)
    worst = published.worst_choice
    if not error < 1e-3 or not worst < 1e-5:
        raise RuntimeError(f"not reported: differs by {error:.2g}, a match is worse by {worst:.2g}")
    return (
        f"with our matches the published order differs by {error:.1g} of the edit's effect (root "
        f"mean square); no match is less similar than its own by more than {worst:.1g}"
    )


def mid_size(repeats: int) -> tuple[list[Row], list[str]]:
    """(a) the mid-size network: 16 frames of 32x32 latents, interval 8."""
    model = network(MIDDLE)
    note = exact(model, 32)
    rows, notes = _mid_size("mid-size net", Edits(model, 32), repeats)
    return rows, [*notes, note]


def mid_size_pytorch(repeats: int) -> tuple[list[Row], list[str]]:
    """The same with PyTorch's attention in place of the one that ComfyUI takes on a CPU."""
    from comfy.ldm.modules.attention import attention_pytorch

    model = network(MIDDLE)
    options = model.model_options["transformer_options"]
    options["optimized_attention_override"] = lambda _func, *a, **k: attention_pytorch(*a, **k)
    return _mid_size("mid-size net, PyTorch's attention", Edits(model, 32), repeats)


def _mid_size(name: str, edits: Edits, repeats: int) -> tuple[list[Row], list[str]]:
    found, results = alternate(
        {
            "plain": lambda: edits.run(edits.model),
            "cold": edits.cold,
            "warm": lambda: edits.run(edits.edited),
            "published": lambda: edits.run(edits.published),
        },
        repeats,
    )
    plain, warm = found["plain"], found["warm"]
    rows = [row(f"{name}: {way}", value, "CPU s/step") for way, value in found.items()]
    rows += [
        row(f"{name}: warm / plain", warm / plain, "x", "<= 0.85"),
        row(f"{name}: cold / plain", found["cold"] / plain, "x", "<= 1.3"),
        row(f"{name}: published / warm", found["published"] / warm, "x", ">= 1.5"),
    ]
    error = difference(results["published"], results["cold"], results["plain"])
    return rows, [f"{name}: the published order differs by {error:.1g} of the edit's effect"]


def demo_size(repeats: int) -> tuple[list[Row], list[str]]:
    """(b) the demo checkpoint: 16 frames of 16x16 latents."""
    if DEMO.is_file():
        model, name, notes = load_demo_checkpoint()[0], "demo checkpoint", []
    else:
        model, name = network(DEMO_SHAPE), "demo-shaped net"
        notes = ["no demo checkpoint was built here: a random network of its shape instead"]
    edits = Edits(model, 16)
    found, _ = alternate(
        {
            "plain": lambda: edits.run(edits.model),
            "cold": edits.cold,
            "warm": lambda: edits.run(edits.edited),
            "Plug-and-Play per frame": lambda: edits.run(edits.injected),
        },
        repeats,
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


def growth(less: dict[str, int], more: dict[str, int]) -> float:
    """What the edit itself takes more, as a share of what latents and images take more."""
    grown = (more["peak"] - more["before"]) - (less["peak"] - less["before"])
    return grown / (more["clip"] - less["clip"])


def memory(_repeats: int) -> tuple[list[Row], list[str]]:
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
        for first in (0, 1):
            span = f"from {LENGTHS[first]} to {LENGTHS[-1]} frames"
            metric = f"growth of an edit {span} / latents and images, {words}"
            rows.append(row(metric, growth(found[first], found[-1]), "x", "<= 1" if joint else ""))
    return rows, [
        "peak memory: a small network (channels 32 and 64, prompt width 64), 32x32 latents, "
        "256x256 images, frames_per_pass 2, cold; growth beside the latents and images themselves"
    ]


def main(repeats: int) -> None:
    """Measures everything and writes the result."""
    torch.set_num_threads(1)
    rows: list[Row] = []
    notes = [
        f"{FRAMES} frames, interval {INTERVAL}, Plug-and-Play in every step, guidance 7.5, "
        f"{TIMED_STEPS} step per run, medians of {repeats} alternating runs, one thread; attention "
        "as ComfyUI chooses it on a CPU (sub-quadratic) where nothing else is said"
    ]
    with torch.inference_mode():
        for part in (mid_size_pytorch, mid_size, demo_size, memory):
            print(part.__name__, flush=True)
            new_rows, new_notes = part(repeats)
            rows, notes = rows + new_rows, notes + new_notes
            print(json.dumps(new_rows), flush=True)
    rows.append(row("SD1.5 at 512x512, warm / plain", None, "x"))
    notes.append("SD1.5 at 512x512 is a measurement for a GPU; this ran on the processor")
    write_result("tokenflow", rows, notes)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 3)
