"""Each kernel against its plain definition: time and peak extra memory, on the same inputs.

Every case is first checked against the definition; if one differs, nothing is reported.
"""

import importlib.util
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parent.parent
MIB = 1 << 20


def load_pack() -> None:
    """Give the repository the package name `reweave`, whatever its folder is called."""
    if "reweave" in sys.modules:
        return
    spec = importlib.util.spec_from_file_location(
        "reweave", ROOT / "__init__.py", submodule_search_locations=[str(ROOT)]
    )
    assert spec is not None and spec.loader is not None
    sys.modules["reweave"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sys.modules["reweave"])


load_pack()
from common import processor, write_result
from reweave.kernels import frame_attention, layers, nn_field, propagate, schedule
from reweave.tests.tolerances import assert_close


@dataclass(frozen=True)
class Case:
    """One kernel on one set of inputs."""

    name: str
    fast: Callable[[], Any]
    naive: Callable[[], Any]
    speed_goal: float
    """times faster than the definition"""
    memory_goal: float
    """share of the definition's peak extra memory"""


def cases(device: str) -> list[Case]:
    """Sizes: SD1.5 at 512x512 (64x64 and 32x32 tokens) and the mid-size network of the facts."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(device)

    return [
        search_case(draw, 8, 1024, 64, 2.1),
        search_case(draw, 2, 4096, 320, 1.2),
        blend_case(draw, 8, 1024, 64),
        blend_case(draw, 8, 4096, 320),
        attention_case(draw, 2, 1024, 64),
        attention_case(draw, 5, 1024, 64),
        *texture_cases(draw, device),
        step_case(draw, device),
    ]


def search_case(draw: Callable[..., Tensor], frames: int, length: int, c: int, goal: float) -> Case:
    neighbours = torch.tensor([[1, 0]] * frames)
    given = (draw(frames, length, c), draw(2, length, c), neighbours)
    name = f"nn_field, {frames} frames x 2 key frames, {length} tokens of {c}"
    return Case(
        name,
        partial(nn_field.nn_field, *given),
        partial(nn_field.nn_field_naive, *given),
        goal,
        0.5,
    )


def blend_case(draw: Callable[..., Tensor], frames: int, length: int, c: int) -> Case:
    tokens, weight = draw(2, 2, length, c), draw(frames, 2).softmax(dim=1)
    index = (draw(frames, 2, length).abs() * 1e6).long() % length
    given = (tokens, index, torch.tensor([[1, 0]] * frames), weight)
    name = f"propagate, 2 branches x {frames} frames, {length} tokens of {c}"
    fast, naive = partial(propagate.propagate, *given), partial(propagate.propagate_naive, *given)
    return Case(name, fast, naive, 2, 0.5)


def attention_case(draw: Callable[..., Tensor], keys: int, length: int, c: int) -> Case:
    q, k, v = (draw(2, keys, length, c) for _ in range(3))
    given = (q, k, v, 4, torch.arange(keys).expand(keys, keys))
    name = f"frame_attention, 2 branches x {keys} key frames joint, {length} tokens of {c}"
    fast = partial(frame_attention.frame_attention, *given)
    return Case(name, fast, partial(frame_attention.frame_attention_naive, *given), 2, 0.25)


def texture_cases(draw: Callable[..., Tensor], device: str) -> list[Case]:
    texture, frames, uv = draw(3, 512, 512), draw(4, 3, 256, 256), draw(4, 256, 256, 2) * 0.5
    small, small_uv, size = draw(2, 3, 32, 32), draw(2, 32, 32, 2) * 0.5, (48, 48)
    ones, alpha = torch.ones(2, 1, 32, 32, device=device), draw(4, 1, 256, 256).sigmoid()
    reading, mixing = (texture, uv), (frames, frames.flip(0), alpha)
    return [
        Case(
            "sample_texture, 4 frames of 256x256 from 512x512",
            partial(layers.sample_texture, *reading),
            partial(layers.sample_texture_naive, *reading),
            2,
            1,
        ),
        Case(
            "splat_to_texture, 2 frames of 32x32 into 48x48",
            partial(layers.splat_to_texture, small, small_uv, size, ones),
            partial(layers.splat_to_texture_naive, small, small_uv, size, ones),
            2,
            0.25,
        ),
        Case(
            "composite, 4 frames of 256x256",
            partial(layers.composite, *mixing),
            partial(layers.composite_naive, *mixing),
            1,
            1,
        ),
    ]


def step_case(draw: Callable[..., Tensor], device: str) -> Case:
    sigmas = torch.linspace(0.1, 10, 16, device=device)
    given = (draw(16, 4, 64, 64), draw(16, 4, 64, 64), sigmas, sigmas / 2)
    fast, naive = partial(schedule.ddim_step, *given), partial(schedule.ddim_step_naive, *given)
    return Case("ddim_step, 16 frames of 64x64 latents", fast, naive, 2, 1)


def check(case: Case) -> None:
    """Fast and plain agree: similarities and values within tolerance (indices may tie)."""
    ours, truth = case.fast(), case.naive()
    if isinstance(ours, Tensor):
        return assert_close(ours, truth)
    if not ours[0].is_floating_point():
        agree = (ours[0] == truth[0]).float().mean().item()
        assert agree > 0.999, f"{case.name}: {agree:.2%} of the indices agree"
        ours, truth = ours[1:], truth[1:]
    for a, b in zip(ours, truth, strict=True):
        assert_close(a, b)
    return None


def seconds(fast: Callable[[], Any], naive: Callable[[], Any], device: str) -> tuple[float, float]:
    """Best of several, in turns, so that a busy machine slows both."""
    best, used = [float("inf")] * 2, 0.0
    while used < 2.0 or best[1] == float("inf"):
        for i, run in enumerate((fast, naive)):
            start = time.perf_counter()
            run()
            if device == "cuda":
                torch.cuda.synchronize()
            took = time.perf_counter() - start
            best[i], used = min(best[i], took), used + took
    return best[0], best[1]


def peak_bytes(run: Callable[[], Any], device: str) -> int:
    """Most memory that lives at once beyond what lived before, results included."""
    if device == "cuda":
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        run()
        return torch.cuda.max_memory_allocated() - before
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
    ) as profile:
        run()
    assert profile.profiler is not None and profile.profiler.kineto_results is not None
    found: list[Any] = profile.profiler.kineto_results.events()
    events = [e for e in found if e.name() == "[memory]"]
    live = peak = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        live += event.nbytes()
        peak = max(peak, live)
    return peak


def measure(case: Case, device: str, label: str) -> tuple[list[dict[str, Any]], str]:
    fast_time, naive_time = seconds(case.fast, case.naive, device)
    fast_peak, naive_peak = peak_bytes(case.fast, device), peak_bytes(case.naive, device)
    speed, share = naive_time / fast_time, fast_peak / naive_peak
    rows = [
        row(f"{label}: {case.name}: speed-up", speed, "x", f">= {case.speed_goal}"),
        row(f"{label}: {case.name}: peak extra memory", share, "x", f"<= {case.memory_goal}"),
    ]
    note = (
        f"{label}: {case.name}: {fast_time * 1e3:.2f} ms, definition {naive_time * 1e3:.2f} ms; "
        f"peak {fast_peak / MIB:.2f} MiB, definition {naive_peak / MIB:.2f} MiB"
    )
    return rows, note


def row(metric: str, value: float, unit: str, goal: str) -> dict[str, Any]:
    sign, limit = goal.split()
    reached = value >= float(limit) if sign == ">=" else value <= float(limit)
    return {
        "metric": metric,
        "value": round(value, 3),
        "unit": unit,
        "goal": goal,
        "reached": reached,
    }


def absent_rows() -> list[dict[str, Any]]:
    """What a GPU would have been asked, declared null with the reason."""
    reason = "GPU only: no CUDA device on this machine"
    return [
        {"metric": f"cuda: {what}", "value": None, "unit": "x", "goal": goal, "reached": None}
        | {"reason": reason}
        for what, goal in (("nn_field (Triton), 4096 tokens of 320: speed-up", ">= 1.2"),)
    ]


def main() -> None:
    """Check every case on every device, then measure and write results/kernels.json."""
    torch.set_grad_enabled(False)
    every = torch.get_num_threads()
    devices = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    work = [(case, device) for device in devices for case in cases(device)]
    for case, _ in work:
        check(case)
    rows: list[dict[str, Any]] = []
    notes = ["float32, best of the runs of 2 seconds, in turns with the definition"]
    notes.append("peak extra memory: share of the definition's, results included")
    for case, device in work:
        for threads in sorted({1, every}) if device == "cpu" else [every]:
            torch.set_num_threads(threads)
            label = f"cpu, {threads} threads" if device == "cpu" else device
            measured, note = measure(case, device, label)
            print(note)
            rows += measured
            notes.append(note)
    if len(devices) == 1:
        rows += absent_rows()
    else:
        notes.append(f"cpu: {processor()}")
    write_result("kernels", rows, notes)


if __name__ == "__main__":
    main()
