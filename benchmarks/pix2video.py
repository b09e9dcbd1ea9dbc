"""Pix2Video in one call per step against its published order of work: CPU seconds and memory.

Every way and length of clip runs in a process of its own, one thread, on the demo checkpoint's
network and weights; both must give the same clip before a number is reported.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from inprocess import load_demo_checkpoint, load_pack

LENGTHS = (16, 48)
SIZE, CFG, STRENGTH, UNTIL = 16, 7.5, 0.0122, 0.52
WAYS = ("published order", "one call per step", "one call per step, 8 frames at once")
EQUAL = 5e-3
"""Largest difference allowed, against the clip's standard deviation."""


def latents(frames: int) -> Any:
    """[F,4,h,w] a drifting picture with some grain, in the model's latent space."""
    import torch

    generator = torch.Generator().manual_seed(1)
    picture = torch.randn(1, 4, SIZE, SIZE, generator=generator)
    drift = torch.cat([picture.roll(shift, -1) for shift in range(frames)])
    return drift + 0.2 * torch.randn(drift.shape, generator=generator)


def one(way: str, frames: int, steps: int, out: Path) -> None:
    """Inverts and edits a clip; prints the numbers, writes the edited latents to `out`."""
    load_pack()
    import torch
    from memory_growth import peak_since_start, start_of_peak

    torch.set_num_threads(1)
    with torch.inference_mode():
        model, clip, _ = load_demo_checkpoint()
        model.model.diffusion_model.float()
        texts = ("", "a red plain ball", "a green plain ball")
        conds = [clip.encode_from_tokens_scheduled(clip.tokenize(text)) for text in texts]
        before, started = start_of_peak(), time.process_time()
        run = published if way == WAYS[0] else together
        edited, kept = run(model, conds, latents(frames), steps, 8 if way == WAYS[2] else 0)
        numbers = {
            "seconds": time.process_time() - started,
            "peak": peak_since_start() - before,
            "kept": kept,
        }
        torch.save(edited, out)
        print(json.dumps(numbers))


def schedule(model: Any, steps: int) -> list[float]:
    """Descending levels of ddim_uniform, without 0."""
    import comfy.samplers

    sampling = model.get_model_object("model_sampling")
    table = comfy.samplers.calculate_sigmas(sampling, "ddim_uniform", steps)
    return [float(sigma) for sigma in table if float(sigma) > 0]


def published(model: Any, conds: list, clean: Any, steps: int, _run: int) -> tuple[Any, int]:
    """-> (edited latents, most bytes of kept tokens)."""
    import comfy.model_management
    from pix2video_order import PublishedOrder

    comfy.model_management.load_models_gpu([model])
    sampling = model.get_model_object("model_sampling")
    contexts = tuple(cond[0][0].float() for cond in conds)
    order = PublishedOrder(model.model.diffusion_model, sampling, contexts)
    sigmas = schedule(model, steps)
    start = order.invert(clean, sigmas[::-1])
    guided = int(steps * UNTIL + 1e-6)
    return order.edit(start, [*sigmas, 0.0], CFG, STRENGTH, guided), order.most_bytes


def together(model: Any, conds: list, clean: Any, steps: int, run: int) -> tuple[Any, int]:
    """The same through the pack's nodes' code."""
    import comfy.samplers
    import torch
    from reweave.editing import anchor_attention, host
    from reweave.editing.anchor_attention import AnchorAttention
    from reweave.editing.latent_guidance import LatentGuidance

    kept = [0]
    finished = anchor_attention.AnchorPass.attend

    def counted(self: Any, *args: Any) -> Any:
        result = finished(self, *args)
        tables = (*self.carried.values(), *self.handed_on.values())
        held = sum(entry.key.nbytes + entry.value.nbytes for entry in tables)
        kept[0] = max(kept[0], held)
        return result

    anchor_attention.AnchorPass.attend = counted
    format_ = model.get_model_object("latent_format")
    request = host.InversionRequest(steps=steps, saved_steps=steps, half=False, frames_per_pass=run)
    latent = {"samples": format_.process_out(clean)}
    inversion = host.invert_clip(model, conds[1], latent, request)
    for edit in (AnchorAttention(frames_per_pass=run), LatentGuidance(STRENGTH, UNTIL)):
        model = host.attach(model, edit)
    guider = comfy.samplers.CFGGuider(model)
    guider.set_conds(conds[2], conds[0])
    guider.set_cfg(CFG)
    start, sigmas = host.start_of(inversion)
    out = guider.sample(
        torch.zeros_like(start["samples"]), start["samples"],
        comfy.samplers.sampler_object("euler"), sigmas, disable_pbar=True, seed=0,
    )  # fmt: skip
    return format_.process_in(out), kept[0]


def measured(way: str, frames: int, steps: int, folder: Path) -> tuple[dict[str, float], Any]:
    """One way in a process of its own -> (numbers, edited latents)."""
    import torch

    out = folder / f"{way}_{frames}.pt"
    command = [sys.executable, __file__, "--way", way, "--frames", str(frames)]
    command += ["--steps", str(steps), "--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{way}, {frames} frames:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1]), torch.load(out, weights_only=True)


def rows_of(frames: int, steps: int, folder: Path) -> list[dict[str, Any]]:
    """All ways of one length of clip.

    Raises: RuntimeError when their clips differ.
    """
    import torch
    from common import row

    found = {way: measured(way, frames, steps, folder) for way in WAYS}
    expected = found[WAYS[0]][1]
    rows = []
    for way, (numbers, edited) in found.items():
        apart = float((edited - expected).abs().max() / expected.std())
        if not torch.isfinite(edited).all() or apart > EQUAL:
            raise RuntimeError(f"{way}: differs from the published order by {apart:.2g}")
        rows.append(row(f"{frames} frames, {way}: inversion and edit", numbers["seconds"], "CPU s"))
        rows.append(row(f"{frames} frames, {way}: peak memory", numbers["peak"] / 1e6, "MB"))
        rows.append(row(f"{frames} frames, {way}: stored tokens", numbers["kept"] / 1e6, "MB"))
        rows.append(row(f"{frames} frames, {way}: difference from published", apart, "std"))
    slow = found[WAYS[0]][0]
    fast, small = found[WAYS[1]][0], found[WAYS[2]][0]
    rows.append(
        row(f"{frames} frames: times faster", slow["seconds"] / fast["seconds"], "x", ">= 1.5")
    )
    stored = slow["kept"] / max(small["kept"], 1)
    rows.append(row(f"{frames} frames: times less stored tokens", stored, "x", ">= 10"))
    return rows


def main() -> None:
    """Measure, print and write benchmarks/results/pix2video.json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--lengths", type=int, nargs="+", default=list(LENGTHS))
    parser.add_argument("--way", choices=WAYS, help="only this one, in this process")
    parser.add_argument("--frames", type=int)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    if options.way:
        one(options.way, options.frames, options.steps, options.out)
        return
    from common import write_result

    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        for frames in options.lengths:
            rows += rows_of(frames, options.steps, Path(folder))
    notes = [
        f"Demo checkpoint's network in float32, {SIZE}x{SIZE} latents, {options.steps} steps, cfg "
        f"{CFG}, one thread; every way in its own process, once.",
        "Stored tokens: what is kept for frames that come later. The published order keeps every "
        "step's; ours keeps one step's anchor and last frame where the clip is cut into passes.",
        "Not run on a GPU.",
    ]
    write_result("pix2video", rows, notes)


if __name__ == "__main__":
    main()
