"""The default inversion is the one that comes back most exactly, on a trained checkpoint."""

from __future__ import annotations

from typing import Any

import torch
from reweave.demo.quality_clips import CLIPS, moving_scene
from reweave.demo.scenes import draw
from reweave.editing import host
from reweave.editing.inversion import CONVENTIONS
from reweave.editing.report import psnr


def test_the_default_comes_back_most_exactly(demo_checkpoint: tuple[Any, Any, Any]) -> None:
    model, text, vae = demo_checkpoint
    clip = CLIPS[2]
    frames = draw(moving_scene(clip)[torch.tensor([0, 8])], 128).image
    latent = {"samples": vae.encode(frames.movedim(1, -1))}
    told = text.encode_from_tokens_scheduled(text.tokenize(clip.source_caption))

    def round_trip(convention: str) -> float:
        request = host.InversionRequest(10, 10, convention, half=False)
        inversion = host.invert_clip(model, told, latent, request)
        again = host.play_back(model, inversion, "Check Inversion")
        return float(psnr(vae.decode(again), vae.decode(latent["samples"])).mean())

    found = {convention: round_trip(convention) for convention in CONVENTIONS}
    default = host.InversionRequest().convention
    others = [value for convention, value in found.items() if convention != default]
    assert found[default] > max(others) + 3, found
