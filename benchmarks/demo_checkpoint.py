"""What the demo checkpoint can do, on scenes and frames that were never trained on.

The autoencoder's reconstruction, text-to-image read back from pixels (colours by the renderer's
palette, shapes by a template match), and a 50-step inversion and back. All through ComfyUI's own
loader, sampler and VAE: python dev.py bench demo_checkpoint
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from inprocess import DEMO, content_of, load_demo_checkpoint, load_pack

load_pack()

import torch
from common import line, write_result
from reweave.editing import host
from reweave.editing.inversion import CONVENTIONS
from torch import Tensor

from demo import footage, measure, quality_clips, scenes

SIZE, STEPS, CFG, BATCH = 128, 20, 4.0, 16
SEED = 20_000_003
"""Far from every training seed."""
FRAMES = 4
SHEET = Path(__file__).resolve().parent.parent / ".cache" / "demo_training" / "samples.png"


def row(metric: str, value: float, unit: str, least: float | None) -> dict[str, Any]:
    """One line of the result; `least` is the goal."""
    goal = "" if least is None else f">= {least:g}"
    reached = None if least is None else value >= least
    return {
        "metric": metric, "value": round(value, 4), "unit": unit, "goal": goal, "reached": reached,
    }  # fmt: skip


def psnr(made: Tensor, wanted: Tensor) -> float:
    """Mean over pictures [N, 3, H, W] of the peak signal-to-noise ratio in dB."""
    error = (made.clamp(0, 1) - wanted.clamp(0, 1)).square().flatten(1).mean(1)
    return float((-10 * torch.log10(error.clamp(min=1e-10))).mean())


def encoded(vae: Any, pictures: Tensor) -> Tensor:
    """VAE latents of pictures [N, 3, H, W] in 0..1."""
    return vae.encode(pictures.movedim(1, -1))


def decoded(vae: Any, latents: Tensor) -> Tensor:
    """Pictures [N, 3, H, W] of VAE latents."""
    return vae.decode(latents).movedim(-1, 1)


def fresh_scenes(count: int) -> scenes.Scene:
    """Scenes without a style, from this benchmark's seed."""
    return scenes.random_scenes(count, torch.Generator().manual_seed(SEED), styled=0.0)


def check_measures() -> None:
    """The measures must read rendered scenes right. Raises: RuntimeError when they do not."""
    scene = fresh_scenes(48)
    reading = measure.read(scenes.draw(scene, SIZE).image)
    for name in ("back", "colour", "shape"):
        right = float((getattr(reading, name) == getattr(scene, name)).float().mean())
        if right < 0.95:
            raise RuntimeError(f"the measure of {name} reads only {right:.0%} of renderings right")


def held_out_frames() -> Tensor:
    """The footage's held-out frames [N, 3, 96, 160]."""
    clip = footage.frames()
    return footage.resized(clip[footage.split(len(clip))[1]], 96, 160)


def reconstruction(vae: Any) -> list[dict[str, Any]]:
    """Rows for the autoencoder."""
    drawn = scenes.draw(fresh_scenes(48), SIZE).image
    found = [(psnr(decoded(vae, encoded(vae, p)), p)) for p in (drawn, held_out_frames())]
    return [
        row("VAE reconstruction, scenes", found[0], "dB", 31),
        row("VAE reconstruction, held-out footage", found[1], "dB", 27),
    ]


def conditioning(clip: Any, text: str) -> list:
    """What CLIPTextEncode returns."""
    return clip.encode_from_tokens_scheduled(clip.tokenize(text))


def pictures_of(parts: tuple, captions: list[str], size: tuple[int, int], seed: int) -> Tensor:
    """Text-to-image [N, 3, H, W] as KSampler does it, one caption per picture."""
    import comfy.sample

    model, clip, vae = parts
    empty = conditioning(clip, "")
    made = []
    for start in range(0, len(captions), BATCH):
        texts = captions[start : start + BATCH]
        rows = [conditioning(clip, text)[0] for text in texts]
        positive = [[torch.cat([r[0] for r in rows]), {**rows[0][1], "pooled_output": None}]]
        latent = torch.zeros(len(texts), 4, size[0] // 8, size[1] // 8)
        noise = comfy.sample.prepare_noise(latent, seed + start)
        latent = comfy.sample.sample(
            model, noise, STEPS, CFG, "euler", "normal", positive, empty, latent,
            disable_pbar=True, seed=seed,
        )  # fmt: skip
        made.append(decoded(vae, latent))
    return torch.cat(made).clamp(0, 1)


def text_to_image(parts: tuple, count: int) -> list[dict[str, Any]]:
    """Rows for pictures made from complete captions."""
    scene = fresh_scenes(count)
    made = pictures_of(parts, scenes.scene_captions(scene), (SIZE, SIZE), SEED)
    save_sheet(made[:48])
    reading = measure.read(made)
    goals = (
        ("object colour", reading.colour, scene.colour, 0.95),
        ("shape", reading.shape, scene.shape, 0.80),
        ("background colour", reading.back, scene.back, 0.92),
    )
    rows = [
        row(f"text-to-image: {name} right", float((found == wanted).float().mean()), "", least)
        for name, found, wanted, least in goals
    ]
    plain = scene.texture == 0
    if bool(plain.any()):
        right = float((reading.colour == scene.colour)[plain].float().mean())
        rows.append(row("text-to-image: object colour right, plain objects", right, "", None))
    for number, name in enumerate(scenes.SHAPES):
        these = scene.shape == number
        if bool(these.any()):
            right = float((reading.shape == scene.shape)[these].float().mean())
            rows.append(row(f"text-to-image: shape right, {name}", right, "", None))
    return rows


def inversion_and_back(parts: tuple, steps: int, evaluation: str) -> list[dict[str, Any]]:
    """Rows for inverting clips and playing them back, against the VAE's own output; the default
    evaluation has a goal."""
    model, clip, vae = parts
    chosen = quality_clips.CLIPS[::7]
    clips = [
        (scenes.draw(quality_clips.moving_scene(c, FRAMES), SIZE).image, c.source_caption)
        for c in chosen
    ]
    clips.append((held_out_frames()[:FRAMES], footage.caption(subject=1)))
    found = []
    for pictures, text in clips:
        latents = encoded(vae, pictures)
        request = host.InversionRequest(steps, steps, evaluation, half=False)
        inversion = host.invert_clip(model, conditioning(clip, text), {"samples": latents}, request)
        again = host.play_back(model, inversion, "Check Inversion")
        found.append(psnr(decoded(vae, again), decoded(vae, latents)))
    default = evaluation == CONVENTIONS[0]
    name = f"{steps}-step inversion and back{'' if default else f' ({evaluation!r})'}"
    least = 35 if default else None
    return [
        row(f"{name}, scenes", sum(found[:-1]) / len(chosen), "dB", least),
        row(f"{name}, footage", found[-1], "dB", least),
    ]


def save_sheet(pictures: Tensor, columns: int = 8) -> None:
    """The first pictures side by side, for the eye."""
    from PIL import Image

    kept = pictures[: len(pictures) // columns * columns]
    if len(kept) == 0:
        return
    sheet = kept.unflatten(0, (-1, columns)).permute(0, 3, 1, 4, 2).flatten(2, 3).flatten(0, 1)
    SHEET.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray((sheet * 255).byte().numpy()).save(SHEET)


def main() -> None:
    """Measure, print and write benchmarks/results/demo_checkpoint.json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pictures", type=int, default=96, help="pictures for text-to-image")
    parser.add_argument("--steps", type=int, default=50, help="steps of the inversion")
    options = parser.parse_args()
    with torch.inference_mode():
        check_measures()
        parts = load_demo_checkpoint()
        rows: list[dict[str, Any]] = []
        stages: tuple[Callable[[], list[dict[str, Any]]], ...] = (
            lambda: reconstruction(parts[2]),
            lambda: text_to_image(parts, options.pictures),
            lambda: inversion_and_back(parts, options.steps, "current"),
            lambda: inversion_and_back(parts, options.steps, "target"),
        )
        for stage in stages:
            found = stage()
            for entry in found:
                print(line(entry), flush=True)
            rows += found
    content = content_of(DEMO)
    write_result(
        "demo_checkpoint",
        rows,
        f"checkpoint {content}; {options.pictures} pictures of {SIZE} px, {STEPS} steps, cfg "
        f"{CFG:g}, euler; scenes and frames never trained on.",
    )


if __name__ == "__main__":
    main()
