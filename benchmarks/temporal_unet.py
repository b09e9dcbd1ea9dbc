"""The temporal UNet: cost of training and of sampling, memory, and what it does for an edit.

python benchmarks/temporal_unet.py [--clips N] [--repeats N] [--gpu]. CPU seconds of one thread on
the demo checkpoint (with --gpu: seconds), medians of alternating repeats; arithmetic of SD1.5's
shape by counting. Nothing is reported unless an untrained network changes nothing, bit for bit.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable
from contextlib import contextmanager
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from inprocess import load_demo_checkpoint, load_pack

OPTIONS = argparse.ArgumentParser(description=__doc__)
OPTIONS.add_argument("--clips", type=int, default=2)
OPTIONS.add_argument("--repeats", type=int, default=3)
OPTIONS.add_argument("--gpu", action="store_true", help="run on the GPU instead of the CPU")
CHOSEN = OPTIONS.parse_args()
load_pack(CHOSEN.gpu)

import comfy.samplers
import torch
from common import write_result
from editing_runs import EVALUATION
from reweave.editing import host
from reweave.editing.host import temporal_training
from reweave.editing.temporal_unet.network import TemporalNetwork, fresh_network
from reweave.editing.temporal_unet.payload import TemporalUNet, at_rest
from reweave.editing.temporal_unet.plan import Architecture, read_plan
from reweave.editing.temporal_unet.training import Trainer, TrainingSettings
from sd15_arithmetic import counted
from small_nets import prompt
from temporal_edits import CFG, COLUMNS, FRAMES, OPEN, SIZE, SPENT, STEPS, TRAINING, quality
from torch import Tensor

Row = dict[str, Any]
KINDS = {"paper": Architecture(), "published": Architecture("published", "correct")}
CUDA = CHOSEN.gpu and torch.cuda.is_available()


def row(metric: str, value: float | None, unit: str, limit: float | None = None) -> Row:
    """One line of the result; `limit` is the most that is wanted."""
    goal = "" if limit is None else f"<= {limit:g}"
    reached = None if limit is None or value is None else bool(value <= limit)
    shown = None if value is None else round(value, 4)
    return {"metric": metric, "value": shown, "unit": unit, "goal": goal, "reached": reached}


def seconds() -> float:
    """CPU seconds of this process, or the clock where a GPU works beside it."""
    if CUDA:
        torch.cuda.synchronize()
    return time.perf_counter() if CHOSEN.gpu else time.process_time()


CLOCK = "s" if CHOSEN.gpu else "CPU s"
UNIT = f"{CLOCK}/step"


def untrained(model: Any, architecture: Architecture, moved: float = 0.0) -> TemporalUNet:
    """A payload beside a model; `moved`: how far the zero weights were trained away."""
    plan = read_plan(model.model.diffusion_model)
    net = fresh_network(plan, architecture, 1)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for weight in net.parameters():
            if moved and not bool(weight.any()):
                weight.copy_(torch.randn(weight.shape, generator=generator) * moved)
    return TemporalUNet(
        at_rest(net, {}), plan, architecture, 16, adds_to_queries=True, steps=1,
        fingerprint=host.fingerprint(model),
    )  # fmt: skip


def sampled(model: Any, latent: Tensor, steps: int = 1) -> tuple[Tensor, float]:
    """Euler steps with guidance -> latents, seconds per step."""
    guider = comfy.samplers.CFGGuider(model)
    guider.set_conds(prompt(4, model), prompt(5, model))
    guider.set_cfg(7.5)
    sigmas = torch.linspace(10.0, 0.0, steps + 1)
    sampler = comfy.samplers.sampler_object("euler")
    started = seconds()
    out = guider.sample(
        torch.zeros_like(latent), latent, sampler, sigmas, disable_pbar=True, seed=0
    )
    return out, (seconds() - started) / steps


def sampling(model: Any, repeats: int) -> list[Row]:
    """Plain sampling against the two architectures, 16 frames of 16x16 latents."""
    latent = torch.randn(16, 4, 16, 16, generator=torch.Generator().manual_seed(1))
    plain = sampled(model, latent)[0]
    bare = host.apply_temporal(model, host.TemporalEdit(untrained(model, KINDS["paper"])))
    if not torch.equal(sampled(bare, latent)[0], plain):
        raise RuntimeError("not reported: an untrained temporal UNet changes the picture")
    ways = {"plain": model}
    for kind, architecture in KINDS.items():
        payload = untrained(model, architecture, 0.01)
        ways[kind] = host.apply_temporal(model, host.TemporalEdit(payload))
    taken: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(repeats):
        for way, chosen in ways.items():
            taken[way].append(sampled(chosen, latent)[1])
            print(f"  sampling, {way}: {taken[way][-1]:.2f} {UNIT}", flush=True)
    found = {way: statistics.median(values) for way, values in taken.items()}
    rows = [row(f"sampling, {way}", value, UNIT) for way, value in found.items()]
    ratios = {kind: found[kind] / found["plain"] for kind in KINDS}
    return [
        *rows,
        row("sampling, paper / plain", ratios["paper"], "x", 1.6),
        row("sampling, published / plain", ratios["published"], "x"),
    ]


@contextmanager
def kept_bytes(found: list[int]):
    """Counts what a forward pass keeps for the backward pass, every storage once."""
    sizes: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        if not isinstance(tensor, torch.nn.Parameter):
            sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield
    found.append(sum(sizes.values()))


def training(model: Any, repeats: int) -> list[Row]:
    """A training step with and without checkpoints, 8 frames of 8x8 latents."""
    rows = []
    for kind, architecture in KINDS.items():
        for checkpointing in (False, True):
            taken, kept = training_steps(model, architecture, checkpointing, repeats)
            name = f"training, {kind}, {'with' if checkpointing else 'without'} checkpoints"
            rows.append(row(name, statistics.median(taken), UNIT))
            rows.append(row(f"{name}: kept for the backward pass", kept / 1e6, "MB"))
            if CUDA:
                rows.append(row(f"{name}: peak", torch.cuda.max_memory_allocated() / 1e6, "MB"))
    return rows


def training_steps(
    model: Any, architecture: Architecture, checkpointing: bool, repeats: int
) -> tuple[list[float], int]:
    """(seconds of every step but the first, most bytes kept)."""
    latent = {"samples": torch.randn(8, 4, 8, 8, generator=torch.Generator().manual_seed(1))}
    settings = TrainingSettings(steps=repeats + 1, checkpointing=checkpointing)
    taken: list[float] = []
    kept: list[int] = []
    step: Callable[[Trainer], float] = Trainer.step

    def timed(trainer: Trainer) -> float:
        if trainer.done == 0:
            with kept_bytes(kept):
                return step(trainer)
        started = seconds()
        loss = step(trainer)
        taken.append(seconds() - started)
        return loss

    if CUDA:
        torch.cuda.reset_peak_memory_stats()
    Trainer.step, resume = timed, temporal_training.resume_from
    temporal_training.resume_from = lambda *_: False
    try:
        request = host.TrainingRequest(architecture, settings)
        host.train_temporal(model, prompt(3, model), latent, request)
    finally:
        Trainer.step, temporal_training.resume_from = step, resume
    print(f"  training, {architecture.kind}, checkpoints {checkpointing}: {taken}", flush=True)
    return taken, max(kept)


def edits(count: int) -> tuple[list[Row], list[str]]:
    """Averages over clips of the quality columns."""
    found = quality(count, CHOSEN.gpu)
    rows: list[Row] = []
    averages: dict[str, float] = {}
    for column in ("source clip", *COLUMNS):
        for measure in ("colour variation", "background change", "change of the object"):
            values = [clip[column][measure] for clip in found.values()]
            averages[f"{column}: {measure}"] = sum(values) / len(values)
    goal = averages["untrained: colour variation"]
    for name, value in averages.items():
        limit = goal if name == "temporal UNet: colour variation" else None
        rows.append(row(f"edit, {name}", value, "/255", limit))
    for measure in ("first loss", "last loss"):
        values = [clip["training"][measure] for clip in found.values()]
        name = f"training, {measure} (mean of a quarter of the steps)"
        rows.append(row(name, sum(values) / len(values), ""))
    seconds_of = [clip["training"][SPENT[CHOSEN.gpu][0]] for clip in found.values()]
    rows.append(row(f"training, {TRAINING.steps} steps", sum(seconds_of) / len(seconds_of), CLOCK))
    note = (
        f"edits: {len(found)} of {len(OPEN)} open clips, {FRAMES} frames at {SIZE} px, "
        f"{TRAINING.steps} training steps (published: 100) at {TRAINING.learning_rate:g}, "
        f"inverted with {EVALUATION!r} and edited in {STEPS} steps, cfg {CFG}, negative = the "
        "source's caption; untrained = plain inversion edit (an untrained unit is the identity)"
    )
    source, fused = (averages[f"{c}: colour variation"] for c in ("source clip", COLUMNS[1]))
    if fused > goal:
        note += (
            f"; colour variation is not lowered: the untrained edit's ({goal:.2f}) is no more than "
            f"the source clip's own ({source:.2f}, what points in {SIZE} px frames give), "
            "so these edits leave no flicker to remove, and training pulls towards the source"
            if goal <= source
            else "; colour variation is not lowered; other lengths of training were not measured"
        )
    return rows, [note]


def main() -> None:
    """Measures everything and writes benchmarks/results/temporal_unet.json."""
    torch.set_num_threads(1)
    with torch.inference_mode():
        model = load_demo_checkpoint()[0]
        weights = sum(w.numel() for w in TemporalNetwork(*shape_of(model)).parameters()) / 1e6
        rows = [row("weights, paper, demo checkpoint", weights, "M")]
        rows += sampling(model, CHOSEN.repeats)
        rows += training(model, CHOSEN.repeats)
        rows += [row(*entry) for entry in counted()]
        more, notes = edits(CHOSEN.clips)
    notes.append(
        "sampling: 16 frames of 16x16 latents, guidance in one call; training: 8 frames of 8x8"
    )
    notes.append("SD1.5 is counted, not timed")
    write_result("temporal_unet", rows + more, notes)


def shape_of(model: Any) -> tuple:
    """Plan and architecture of the default network."""
    return read_plan(model.model.diffusion_model), KINDS["paper"]


if __name__ == "__main__":
    main()
