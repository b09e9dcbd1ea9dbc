"""Edits of the named rendered clips, scored against ground truth: what quality benchmarks share.

Every column edits the same 16-frame clips from the same inversion, with the same checkpoint,
seeds, steps and cfg. Finished columns of a clip are kept in .cache/quality/, so that a stopped run
goes on. Import it after `load_pack()`.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from editing_runs import EVALUATION, encoded_text, inverted, sample, save_sheet
from ground_truth import point_colours
from inprocess import DEMO, content_of, load_demo_checkpoint
from scored_tables import PERFECT, SOURCE, Results
from torch import Tensor

from demo.quality_clips import CLIPS, QualityClip, left_open, moving_scene
from demo.scenes import COLOURS, PALETTE, draw

SIZE = 128
KEPT = Path(__file__).resolve().parent.parent / ".cache" / "quality"
Columns = Mapping[str, Callable[[Any, Tensor], list[Any]]]
"""Name -> (inversion, source frames [F,3,H,W]) -> the edits of that column."""


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


def run_clip(
    clip: QualityClip, parts: tuple, steps: int, cfg: float, columns: Columns, folder: Path
) -> None:
    """Fills the columns of one clip: NAME.json with its scores, NAME.png with four frames."""
    model, clip_model, vae = parts
    scene = moving_scene(clip)
    drawn = draw(scene, SIZE)
    source, target = (
        encoded_text(clip_model, text) for text in (clip.source_caption, clip.target_caption)
    )
    inversion, decoded = inverted(model, vae, source, drawn.image, steps)
    own = float(point_colours(decoded, scene).std(0).mean()) * 255
    _keep(folder, SOURCE, {"colour variation": own}, drawn.image)
    for column, edits_of in columns.items():
        started = time.process_time()
        edits = edits_of(inversion, drawn.image)
        edited = sample(model, inversion, edits, target, source, cfg)
        frames = vae.decode(edited).movedim(-1, 1).clamp(0, 1)
        row = scores(frames, decoded, scene, drawn.mask, clip)
        _keep(folder, column, row | {"CPU seconds": time.process_time() - started}, frames)


def keep_perfect(clip: QualityClip, vae: Any, folder: Path) -> None:
    """Fills the column PERFECT of one clip."""
    scene = moving_scene(clip)
    drawn, target = draw(scene, SIZE), draw(moving_scene(clip.edited), SIZE)
    decoded, frames = (
        vae.decode(vae.encode(pictures.movedim(1, -1))).movedim(-1, 1).clamp(0, 1)
        for pictures in (drawn.image, target.image)
    )
    _keep(folder, PERFECT, scores(frames, decoded, scene, drawn.mask, clip), frames)


def _keep(folder: Path, column: str, row: dict[str, float], frames: Tensor) -> None:
    save_sheet([frames[::5]], folder / f"{column}.png")
    (folder / f"{column}.json").write_text(json.dumps(row), encoding="utf-8")


def chosen(count: int) -> list[QualityClip]:
    """The first `count` clips of both halves, all of them for 0."""
    half = len(CLIPS) // 2
    return list(CLIPS) if count <= 0 else [*CLIPS[:count], *CLIPS[half : half + count]]


def collect(
    clips: list[QualityClip], steps: int, cfg: float, folder: Path, columns: Columns, only: set[str]
) -> Results:
    """Scores of every clip, from the kept results where they are; `only`: columns to fill."""
    results: Results = {}
    parts: tuple | None = None
    for number, clip in enumerate(clips):
        kept = folder / clip.name.replace(" ", "_")
        lacking = {
            name: edits
            for name, edits in columns.items()
            if name in only and not (kept / f"{name}.json").is_file()
        }
        if lacking:
            parts = parts or load_demo_checkpoint()
            run_clip(clip, parts, steps, cfg, lacking, kept)
        if not (kept / f"{PERFECT}.json").is_file():
            parts = parts or load_demo_checkpoint()
            keep_perfect(clip, parts[2], kept)
        files = {name: kept / f"{name}.json" for name in (SOURCE, PERFECT, *columns)}
        results[clip.name] = {n: json.loads(f.read_text()) for n, f in files.items() if f.is_file()}
        print(f"{number + 1}/{len(clips)} {clip.name}", flush=True)
        for column, row in results[clip.name].items():
            print(f"    {column:24s}", {k: round(v, 3) for k, v in row.items()}, flush=True)
    return results


def measured(
    name: str, columns: Columns, description: str | None, cfg: float, free_only: bool = False
) -> tuple[Results, str]:
    """Runs the benchmark `name` with the command line's options -> results, and what was run.

    cfg: guidance unless the command line says another.
    free_only: leaves the half of the clips out whose edit names the object's colour, and begins
        with those where frames disagree most.
    """
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--clips", type=int, default=0, help="clips (of each half); 0 = all")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--cfg", type=float, default=cfg)
    parser.add_argument("--column", action="append", choices=list(columns), help="default: all")
    options = parser.parse_args()
    content, only = content_of(DEMO), set(options.column or columns)
    clips = left_open(options.clips) if free_only else chosen(options.clips)
    with torch.inference_mode():
        folder = KEPT / f"{name}_{content}_{options.steps}_{options.cfg:g}_{EVALUATION}"
        results = collect(clips, options.steps, options.cfg, folder, columns, only)
    named = f" ({', '.join(clip.name for clip in clips)})" if len(clips) < 6 else ""
    return results, (
        f"{len(clips)} of {len(CLIPS)} clips{named}, 16 frames at {SIZE} px, "
        f"{options.steps} steps, cfg {options.cfg:g}, inverted with {EVALUATION!r}, "
        f"demo checkpoint {content}; negative = the source's caption."
    )
