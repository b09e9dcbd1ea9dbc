"""Edits of rendered clips with a temporal UNet, scored against ground truth.

Finished clips are kept in .cache/quality/, so that a stopped run goes on. Import it after
`load_pack()`.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import torch
from editing_runs import EVALUATION, encoded_text, inverted, sample, save_sheet
from ground_truth import point_colours
from inprocess import DEMO, content_of, load_demo_checkpoint
from reweave.editing import host
from reweave.editing.temporal_unet.training import TrainingSettings
from reweave.editing.tokenflow import TokenFlow
from torch import Tensor

from demo.quality_clips import QualityClip, left_open, moving_scene
from demo.scenes import draw

SIZE, FRAMES, STEPS, CFG = 64, 8, 20, 2.0
TRAINING = TrainingSettings(steps=400, checkpointing=False)
"""As published but for the steps (100): after so few this small network makes edits less steady.
Checkpoints change time and memory only."""
KEPT = Path(__file__).resolve().parent.parent / ".cache" / "quality"
OPEN = left_open(0)
"""Clips whose edit leaves a colour or layout open: frames edited one by one disagree there."""
SPENT = {False: ("CPU seconds", time.process_time), True: ("seconds", time.perf_counter)}
"""What a training's time is called and measured with, without and with a GPU."""
COLUMNS = ("untrained", "temporal UNet", "temporal UNet + TokenFlow", "TokenFlow")


def edited_clip(
    clip: QualityClip, parts: tuple, settings: TrainingSettings, sheet: Path, gpu: bool
) -> dict:
    """All columns of one clip -> column -> measure -> value."""
    model, text, vae = parts
    scene = moving_scene(clip)[torch.arange(0, 2 * FRAMES, 2)]  # every second frame, as published
    drawn = draw(scene, SIZE)
    source, target = (encoded_text(text, c) for c in (clip.source_caption, clip.target_caption))
    name, clock = SPENT[gpu]
    started = clock()
    latent = {"samples": vae.encode(drawn.image.movedim(1, -1))}
    trained = host.train_temporal(model, source, latent, host.TrainingRequest(settings=settings))
    seconds = clock() - started
    fused = host.apply_temporal(model, host.TemporalEdit(trained))
    ways = {
        # an untrained network's units are the identity: this is the plain inversion edit
        "untrained": (model, []),
        "temporal UNet": (fused, []),
        "temporal UNet + TokenFlow": (fused, [_flow]),
        "TokenFlow": (model, [_flow]),
    }
    rows: dict[str, Any] = {"training": _training(trained.losses) | {name: seconds}}
    pictures = [drawn.image]
    inversions: dict[int, tuple[Any, Tensor]] = {}
    for column, (chosen, edits) in ways.items():
        if id(chosen) not in inversions:
            inversions[id(chosen)] = inverted(chosen, vae, source, drawn.image, STEPS)
        inversion, decoded = inversions[id(chosen)]
        made = [make(inversion) for make in edits]
        out = sample(chosen, inversion, made, target, source, CFG)
        frames = vae.decode(out).movedim(-1, 1).clamp(0, 1)
        rows[column] = _scores(frames, decoded, drawn.mask, scene)
        rows["source clip"] = _scores(decoded, decoded, drawn.mask, scene)
        pictures.append(frames)
    save_sheet(pictures, sheet)
    return rows


def _flow(inversion: Any) -> TokenFlow:
    return TokenFlow(inversion, interval=4)


def _training(losses: tuple[float, ...]) -> dict[str, float]:
    tenth = max(len(losses) // 4, 1)
    first, last = losses[:tenth], losses[-tenth:]
    return {"first loss": sum(first) / len(first), "last loss": sum(last) / len(last)}


def _scores(frames: Tensor, decoded: Tensor, mask: Tensor, scene: Any) -> dict[str, float]:
    outside = mask[:, 0] < 0.02
    return {
        "colour variation": float(point_colours(frames, scene).std(0).mean()) * 255,
        "background change": float((frames - decoded).abs().mean(1)[outside].mean()) * 255,
        "change of the object": float((frames - decoded).abs().mean(1)[mask[:, 0] > 0.8].mean())
        * 255,
    }


def quality(
    count: int, gpu: bool = False, settings: TrainingSettings = TRAINING
) -> dict[str, dict]:
    """Rows of the first `count` clips; `gpu`: ComfyUI runs on one."""
    parts: tuple | None = None
    found = {}
    trained = f"{settings.steps}_{settings.learning_rate:g}"
    edited = f"{STEPS}_{CFG}_{EVALUATION}{'_gpu' if gpu else ''}"
    name = f"temporal_unet_{content_of(DEMO)}_{trained}_{edited}"
    for clip in OPEN[:count]:
        path = KEPT / name / f"{clip.name.replace(' ', '_')}.json"
        if not path.is_file():
            parts = parts or load_demo_checkpoint()
            rows = edited_clip(clip, parts, settings, path.with_suffix(".png"), gpu)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(rows))
        found[clip.name] = json.loads(path.read_text())
        print(clip.name, json.dumps(found[clip.name]), flush=True)
    return found
