"""The demo checkpoint learns a clip in 100 steps and edits it: minutes on two CPU cores."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from reweave.demo.quality_clips import CLIPS, moving_scene
from reweave.demo.scenes import draw
from reweave.editing import host
from reweave.editing.temporal_unet.training import TrainingSettings
from reweave.editing.types import Position
from toy import sample

pytestmark = pytest.mark.slow


def test_100_steps_on_8_frames_and_an_edit(demo_checkpoint: tuple[Any, Any, Any]) -> None:
    model, text, vae = demo_checkpoint
    before = {name: value.clone() for name, value in model.model.state_dict().items()}

    def told(words: str) -> list:
        return text.encode_from_tokens_scheduled(text.tokenize(words))

    clip = CLIPS[0]
    frames = draw(moving_scene(clip)[torch.arange(8)], 64).image
    latent = {"samples": vae.encode(frames.movedim(1, -1))}
    settings = TrainingSettings(steps=100, checkpointing=False)
    request = host.TrainingRequest(settings=settings)
    payload = host.train_temporal(model, told(clip.source_caption), latent, request)
    assert payload.steps == 100 and payload.frames == 8
    assert sum(payload.losses[-50:]) < sum(payload.losses[:50]) * 1.5, "the loss must not diverge"

    fused = host.apply_temporal(model, host.TemporalEdit(payload))
    inversion = host.invert_clip(fused, told(""), latent, host.InversionRequest(5, 5, half=False))
    first = float(inversion.sigmas[0])
    start = host.latent_format("SD15").process_out(inversion.sigma_space(Position(0), first))
    sigmas = torch.cat([inversion.sigmas, torch.zeros(1)])
    target, nothing = told(clip.target_caption), told("")
    edited = sample(fused, start, sigmas, target, nothing, cfg=2.0)
    plain = sample(model, start, sigmas, target, nothing, cfg=2.0)
    pictures = vae.decode(edited)
    assert pictures.shape == (8, 64, 64, 3) and bool(torch.isfinite(pictures).all())
    assert float((edited - plain).abs().mean()) > 1e-3, "the training had no effect"
    after = model.model.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())
