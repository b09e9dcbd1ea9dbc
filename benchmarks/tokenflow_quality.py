"""Faithfulness and consistency of edits with ground truth: python dev.py bench tokenflow_quality

Every column edits the same 16-frame clips from the same inversion, with the same checkpoint,
seeds, steps and cfg.
Results of finished clips are kept in .cache/quality/, so that a stopped run goes on; --clips N
takes the first N of both halves.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import time
from pathlib import Path
from typing import Any

from inprocess import HOST, load_demo_checkpoint, load_pack

load_pack()

import torch
from common import write_result
from reweave.editing import host
from reweave.editing.extended_attention import ExtendedAttention
from reweave.editing.plug_and_play import PlugAndPlay
from reweave.editing.tokenflow import TokenFlow
from torch import Tensor
from torch.nn import functional as F

from demo.quality_clips import CLIPS, QualityClip, moving_scene
from demo.scenes import COLOURS, PALETTE, draw, object_points, outline_distance

SIZE, CFG = 128, 2.0
KEPT = Path(__file__).resolve().parent.parent / ".cache" / "quality"
COLUMNS = (
    "plain", "PlugAndPlay", "joint attention", "TokenFlow fixed", "TokenFlow",
    "TokenFlow + PlugAndPlay",
)  # fmt: skip


def edits_of(column: str, inversion: Any) -> list[Any]:
    """The edits of one column."""
    injection = PlugAndPlay(inversion, 0.5, 0.8)
    return {
        "plain": [],
        "PlugAndPlay": [injection],
        "joint attention": [ExtendedAttention("all frames")],
        "TokenFlow fixed": [TokenFlow(inversion, fixed_key_frames=True)],
        "TokenFlow": [TokenFlow(inversion)],
        "TokenFlow + PlugAndPlay": [TokenFlow(inversion), injection],
    }[column]


def point_colours(frames: Tensor, scene: Any, count: int = 400) -> Tensor:
    """Colours [F, 3, P] of fixed physical points inside the object."""
    generator = torch.Generator().manual_seed(5)
    uv = torch.rand(1, 2, count, generator=generator) * 1.9 - 0.95
    inside = outline_distance(uv)[0, int(scene.shape[0])] < -0.12
    at = object_points(scene, uv[:, :, inside].expand(len(frames), -1, -1))  # [F, 2, P]
    grid = at.transpose(1, 2)[:, :, None]
    return F.grid_sample(frames, grid, align_corners=False)[..., 0]


def background_only(scene: Any) -> Tensor:
    """The clip without its object [F, 3, H, W]."""
    return draw(scene.replace(radius=scene.radius * 0 + 1e-3, centre=scene.centre + 9), SIZE).image


def scores(edited: Tensor, decoded: Tensor, scene: Any, mask: Tensor, clip: QualityClip) -> dict:
    """The measures of one edited clip; all tensors [F, C, H, W] in 0..1."""
    inside, outside = mask[:, 0] > 0.8, mask[:, 0] < 0.02
    result = {
        "background change": float((edited - decoded).abs().mean(1)[outside].mean()) * 255,
        "colour variation": float(point_colours(edited, scene).std(0).mean()) * 255,
    }
    apart = (edited - background_only(scene)).abs().amax(1) > 0.22
    solid = mask[:, 0] > 0.5
    result["silhouette IoU"] = float((apart & solid).sum() / (apart | solid).sum())
    if clip.target_colour is not None:
        palette = torch.tensor(list(PALETTE.values()))
        pixels = edited.permute(0, 2, 3, 1)[inside]
        nearest = torch.cdist(pixels, palette).argmin(1)
        hit = nearest == COLOURS.index(clip.target_colour)
        result["target colour coverage"] = float(hit.float().mean())
    return result


def run_clip(clip: QualityClip, parts: tuple, steps: int) -> dict[str, dict[str, float]]:
    """All columns of one clip."""
    model, clip_model, vae = parts
    scene = moving_scene(clip)
    drawn = draw(scene, SIZE)
    latent = {"samples": vae.encode(drawn.image.movedim(1, -1))}
    source, target = (
        clip_model.encode_from_tokens_scheduled(clip_model.tokenize(text))
        for text in (clip.source_caption, clip.target_caption)
    )
    request = host.InversionRequest(steps=steps, saved_steps=steps, half=False)
    inversion = host.invert_clip(model, source, latent, request)
    decoded = vae.decode(latent["samples"]).movedim(-1, 1)
    rows: dict[str, dict[str, float]] = {
        "source clip": {
            "colour variation": float(point_colours(decoded, scene).std(0).mean()) * 255
        }
    }
    pictures = [drawn.image[::5]]
    for column in COLUMNS:
        started = time.process_time()
        edited = sample(model, inversion, edits_of(column, inversion), target, source)
        frames = vae.decode(edited).movedim(-1, 1).clamp(0, 1)
        rows[column] = scores(frames, decoded, scene, drawn.mask, clip)
        rows[column]["CPU seconds"] = time.process_time() - started
        pictures.append(frames[::5])
    save_sheet(torch.stack(pictures), KEPT / f"{clip.name.replace(' ', '_')}.png")
    return rows


def sample(model: Any, inversion: Any, edits: list, positive: list, negative: list) -> Tensor:
    """What SamplerCustom does with add_noise off, from the inversion's own latents."""
    import comfy.samplers

    for edit in edits:
        model = host.attach(model, edit)
    guider = comfy.samplers.CFGGuider(model)
    guider.set_conds(positive, negative)
    guider.set_cfg(CFG)
    start = inversion.sigma_space(inversion.locate(float(inversion.sigmas[0])), inversion.sigmas[0])
    sigmas = torch.cat([inversion.sigmas, torch.tensor([inversion.final_sigma])])
    latent = host.latent_format(inversion.latent_format).process_out(start)
    sampler = comfy.samplers.sampler_object("euler")
    return guider.sample(
        torch.zeros_like(latent), latent, sampler, sigmas, disable_pbar=True, seed=0
    )


def save_sheet(rows: Tensor, path: Path) -> None:
    """A contact sheet: one row per column of the table, frames from left to right."""
    from PIL import Image

    path.parent.mkdir(parents=True, exist_ok=True)
    sheet = rows.permute(0, 3, 1, 4, 2).flatten(2, 3).flatten(0, 1)
    Image.fromarray((sheet.clamp(0, 1) * 255).byte().numpy()).save(path)


def chosen(count: int) -> list[QualityClip]:
    """The first `count` clips of both halves, all of them for 0."""
    half = len(CLIPS) // 2
    return list(CLIPS) if count <= 0 else [*CLIPS[:count], *CLIPS[half : half + count]]


def collect(clips: list[QualityClip], steps: int, key: str) -> dict[str, dict]:
    """Scores of every clip, from the kept results where they are."""
    results: dict[str, dict] = {}
    parts: tuple | None = None
    for number, clip in enumerate(clips):
        path = KEPT / key / f"{clip.name.replace(' ', '_')}.json"
        if not path.is_file():
            parts = parts or load_demo_checkpoint()
            rows = run_clip(clip, parts, steps)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(rows))
        results[clip.name] = json.loads(path.read_text())
        print(f"{number + 1}/{len(clips)} {clip.name}", flush=True)
        for column, row in results[clip.name].items():
            print(f"    {column:24s}", {k: round(v, 3) for k, v in row.items()}, flush=True)
    return results


def mean(results: dict[str, dict], column: str, measure: str) -> float | None:
    values = [r[column][measure] for r in results.values() if measure in r[column]]
    return sum(values) / len(values) if values else None


def table(results: dict[str, dict]) -> list[dict[str, Any]]:
    """Rows for the result file: every measure of every column, goals on the last column."""
    best = COLUMNS[-1]
    plain = {m: mean(results, "plain", m) for m in ("background change", "colour variation")}
    source = mean(results, "source clip", "colour variation") or 0.0
    limit = max(0.15 * (plain["colour variation"] or 0.0), 1.2 * source)
    goals = {
        "target colour coverage": (">= 0.97", lambda v: v >= 0.97),
        "background change": (
            f"<= 5 and < plain ({plain['background change']:.1f})",
            lambda v: v <= 5 and v < (plain["background change"] or 0.0),
        ),
        "silhouette IoU": (">= 0.85", lambda v: v >= 0.85),
        "colour variation": (f"<= {limit:.2f}", lambda v: v <= limit),
    }
    units = {"background change": "/255", "colour variation": "/255", "CPU seconds": "s"}
    rows = [_row("source clip: colour variation", source, "/255")]
    for column in COLUMNS:
        for measure in (*goals, "CPU seconds"):
            value = mean(results, column, measure)
            if value is None:
                continue
            row = _row(f"{column}: {measure}", value, units.get(measure, ""))
            if column == best and measure in goals:
                row["goal"], row["reached"] = goals[measure][0], bool(goals[measure][1](value))
            rows.append(row)
    return rows


def _row(metric: str, value: float, unit: str) -> dict[str, Any]:
    return {"metric": metric, "value": round(value, 4), "unit": unit, "goal": "", "reached": None}


def main() -> None:
    """Measure, print and write benchmarks/results/tokenflow_quality.json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clips", type=int, default=0, help="clips of each half; 0 = all")
    parser.add_argument("--steps", type=int, default=20)
    options = parser.parse_args()
    checkpoint = HOST / "models" / "checkpoints" / "reweave_demo.safetensors"
    content = hashlib.sha256(checkpoint.read_bytes()).hexdigest()[:12]
    clips = chosen(options.clips)
    with torch.inference_mode():
        results = collect(clips, options.steps, f"{content}_{options.steps}_{CFG}")
    notes = (
        f"{len(clips)} of {len(CLIPS)} clips, 16 frames at {SIZE} px, {options.steps} steps, "
        f"cfg {CFG}, demo checkpoint {content}; negative = the source's caption."
    )
    write_result("tokenflow_quality", table(results), notes)


if __name__ == "__main__":
    main()
