"""Layered atlases: likeness and seconds of a fit by size, how true points stay, and the
throughput of mapping, unmapping and rendering against scipy and a plain loop.

Seconds of a fit are CPU seconds of the process, flow and masks included, with one thread: what an
idle core takes; wall-clock time stands beside them. `--swan DIR` measures the DAVIS clip in DIR
too; `--pictures DIR` writes what the fits look like.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from inprocess import load_pack

load_pack()
import torch
from atlas_clips import SCENES, Case, rabbit, scene, swan
from common import row, write_result
from PIL import Image
from reweave.editing.atlas.fitting import FitSettings, fit
from reweave.editing.atlas.mapping import map_to_atlas, unmap_from_atlas
from reweave.editing.atlas.pictures import checkered
from reweave.editing.atlas.preparing import FitRequest, prepare
from reweave.editing.atlas.rendering import render
from reweave.editing.atlas.types import Atlas
from scipy.interpolate import griddata
from torch import Tensor

from demo.atlas_truth import point_errors

Row = dict[str, Any]
DEFAULT = FitSettings()


def fitted(case: Case, settings: FitSettings) -> tuple[Atlas, Tensor, float, float]:
    """Atlas, masks of all frames, CPU seconds and wall seconds."""
    cpu, wall = time.process_time(), time.perf_counter()
    problem = prepare(case.frames.movedim(1, -1), case.masks, FitRequest(settings=settings))
    atlas = fit(problem, settings, lambda progress: None)
    return atlas, problem.masks[0], time.process_time() - cpu, time.perf_counter() - wall


def measure_fit(
    case: Case, decibels: float, seconds: float, pictures: Path | None
) -> tuple[list[Row], str]:
    atlas, masks, cpu, wall = fitted(case, DEFAULT)
    error = (render(atlas, {}) - case.frames).square()
    inside = (masks > 0.5).expand_as(error)
    whole, object_ = (float(-10 * part.mean().log10()) for part in (error, error[inside]))
    frames, _, height, width = case.frames.shape
    label = f"cpu, 1 thread: {case.name}, {frames} frames {width}x{height}"
    rows = [
        row(f"{label}: likeness", whole, "dB", f">= {decibels:g}"),
        row(f"{label}: CPU time of the fit", cpu, "s", f"<= {seconds:g}"),
        row(f"{label}: likeness of the object", object_, "dB"),
    ]
    if case.truth is not None:
        rows += truth_rows(case, atlas, label)
    if pictures is not None:
        save_pictures(
            case, atlas, masks, pictures / f"{case.name.split(' ')[0]}_{frames}_{width}.png"
        )
    return rows, f"{label}: {DEFAULT.steps} steps, {wall:.0f} s wall clock while others computed"


def truth_rows(case: Case, atlas: Atlas, label: str) -> list[Row]:
    assert case.truth is not None
    mask, middle = case.truth.mask[:, 0], len(case.frames) // 2
    found = []
    for layer, truth, member, name in (
        (atlas.layers[0], case.truth.object_uv, mask > 0.9, "object"),
        (atlas.layers[1], case.truth.back_uv, mask < 0.1, "background"),
    ):
        errors = point_errors(layer.uv, truth, member, [0, middle, len(mask) - 1])
        found.append(row(f"{label}: mean point error, {name}", float(errors.mean()), "px", "<= 1"))
    return found


def save_pictures(case: Case, atlas: Atlas, masks: Tensor, path: Path) -> None:
    """Frames, masks, reconstruction and checkerboards of four frames."""
    count = len(case.frames)
    some = [0, count // 3, 2 * count // 3, count - 1]
    parts = [case.frames, masks.expand(-1, 3, -1, -1), render(atlas, {}), checkered(atlas)]
    sheet = torch.cat([torch.cat(list(part[some]), -1) for part in parts], -2)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray((sheet.clamp(0, 1).movedim(0, -1) * 255).byte().numpy()).save(path)


def cpu_seconds(work: Callable[[], Any], least: float = 1.0) -> float:
    """CPU seconds of a call: the best of as many as fit into `least` seconds, at least two."""
    work()
    best, total, rounds = float("inf"), 0.0, 0
    while total < least or rounds < 2:
        begun = time.process_time()
        work()
        best = min(best, time.process_time() - begun)
        total, rounds = total + best, rounds + 1
    return best


def scipy_frame(frame: Tensor, uv: Tensor, size: tuple[int, int]) -> Tensor:
    """The published way: one triangulation per colour."""
    scale = torch.tensor([size[1] / 2, size[0] / 2]).double()
    places = ((uv.double() + 1) * scale - 0.5).flatten(0, 1).numpy()
    y, x = torch.meshgrid(torch.arange(size[0]), torch.arange(size[1]), indexing="ij")
    channels = [
        griddata(places, colour.flatten().numpy(), (x.numpy(), y.numpy()), "linear", 0.0)
        for colour in frame
    ]
    return torch.stack([torch.from_numpy(channel) for channel in channels]).float()


def loop_frame(texture: Tensor, uv: Tensor) -> Tensor:
    """Reading a texture with a loop over pixels."""
    rows, columns = texture.shape[1:]
    out = torch.empty(3, *uv.shape[:2])
    table, flat = texture.movedim(0, -1).tolist(), uv.tolist()
    for i, line in enumerate(flat):
        for j, (u, v) in enumerate(line):
            x = min(max((u + 1) * columns / 2 - 0.5, 0), columns - 1)
            y = min(max((v + 1) * rows / 2 - 0.5, 0), rows - 1)
            left, top = int(x), int(y)
            right, bottom = min(left + 1, columns - 1), min(top + 1, rows - 1)
            a, b = x - left, y - top
            corners = zip(
                table[top][left], table[top][right], table[bottom][left], table[bottom][right],
                strict=True,
            )  # fmt: skip
            for channel, (p, q, r, s) in enumerate(corners):
                out[channel, i, j] = (p * (1 - a) + q * a) * (1 - b) + (r * (1 - a) + s * a) * b
    return out


def throughput(case: Case, atlas: Atlas) -> list[Row]:
    """Frames per CPU second, after checking that all ways agree."""
    layer, size = atlas.layers[1], (512, 512)
    frame, uv = case.frames[:1], layer.uv[:1]
    exact, covered = map_to_atlas(frame, uv, size, mode="exact")
    fast, reached = map_to_atlas(frame, uv, size)
    published = scipy_frame(frame[0], uv[0], size)
    both = ((covered > 0.5) & (reached > 0.5))[0]
    assert (exact - published).abs()[:, both].max() < 1e-3, "exact mode differs from griddata"
    assert (fast - exact).abs()[:, both].mean() < 0.01, "fast mode differs from exact mode"
    read = unmap_from_atlas(layer.texture, uv)
    assert (loop_frame(layer.texture, uv[0]) - read[0]).abs().max() < 1e-4
    times = {
        "fast": cpu_seconds(lambda: map_to_atlas(frame, uv, size)),
        "exact": cpu_seconds(lambda: map_to_atlas(frame, uv, size, mode="exact")),
        "griddata": cpu_seconds(lambda: scipy_frame(frame[0], uv[0], size)),
        "unmap": cpu_seconds(lambda: unmap_from_atlas(layer.texture, layer.uv)) / len(layer.uv),
        "loop": cpu_seconds(lambda: loop_frame(layer.texture, uv[0])),
    }
    white = torch.ones(3, *size)
    edit = cpu_seconds(lambda: render(atlas, {"foreground": white}, case.frames, seam=2))
    shape = "cpu, 1 thread: {} of {}x{}".format("{}", *case.frames.shape[:1:-1])
    return [
        row(shape.format("map to a texture of 512x512, fast, frames"), 1 / times["fast"], "1/s"),
        row(shape.format("the same, exact, frames"), 1 / times["exact"], "1/s"),
        row(shape.format("the same, scipy's griddata, frames"), 1 / times["griddata"], "1/s"),
        row(
            "map, fast against griddata: speed-up", times["griddata"] / times["fast"], "x", ">= 10"
        ),
        row(
            "map, exact against griddata: speed-up", times["griddata"] / times["exact"], "x", ">= 2"
        ),
        row(shape.format("unmap, frames"), 1 / times["unmap"], "1/s"),
        row("unmap against a plain loop: speed-up", times["loop"] / times["unmap"], "x", ">= 100"),
        row(shape.format("render, original pixels, frames"), len(case.frames) / edit, "1/s"),
        row(f"cpu, 1 thread: one edit of {len(case.frames)} frames, rendered", edit, "s"),
    ]


def main() -> None:
    """Measure and write results/atlas.json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--swan", type=Path)
    parser.add_argument("--pictures", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    first, second = SCENES
    small = [rabbit(30, 144), scene(first, 30, 144), scene(second, 30, 144)]
    if options.swan is not None:
        small.append(swan(options.swan, 30, 144))
    large = rabbit(50, 192)
    rows: list[Row] = []
    notes = ["CPU seconds of one thread: wall-clock seconds on an idle core"]
    work = [(case, 31.0, 60.0) for case in small] + [(large, 30.0, 120.0)]
    for case, decibels, seconds in work:
        found, note = measure_fit(case, decibels, seconds, options.pictures)
        for entry in found:
            print(entry["metric"], entry["value"], flush=True)
        rows += found
        notes.append(note)
    rows += throughput(large, fitted(large, FitSettings(steps=0))[0])
    rows.append(row("cuda: 70 frames 768x432: likeness", None, "dB", ">= 30"))
    notes.append("rows of cuda have no value: this benchmark runs on the processor")
    write_result("atlas", rows, notes)


if __name__ == "__main__":
    main()
