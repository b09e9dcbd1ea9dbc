"""Key frames of a small clip, drawn by a small network: for the tests of the loop and its nodes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import comfy.controlnet
import pytest
import torch
from clips import SMALL
from reweave.editing.atlas.requests import Carriage, Choice, Cropping, EditRequest, Sampling
from reweave.editing.host import drawing, keyframe_editing
from reweave.editing.host.drawing import Tools
from reweave.editing.host.keyframe_editing import Edited, edit_clip
from reweave.tests.turning_object import pictures, turning_atlas
from torch import Tensor
from toy import conditioning, patcher

REQUEST = EditRequest(
    Choice(key_frames="0, 2, 3"),
    Carriage(mapping="exact"),
    Sampling(steps=4, cfg=2.0, noise_strength=0.5, first_strength=0.5, resolution=64),
    Cropping(4, 1),
)
ATLAS = turning_atlas()
CLIP = pictures(ATLAS, ATLAS.layers[0].texture)


class SmallVAE:
    """An eighth of the size, colours as channels: what ComfyUI's VAE looks like from outside."""

    def __init__(self) -> None:
        self.first_stage_model: torch.nn.Module | None = torch.nn.Linear(3, 4)
        for weight in self.first_stage_model.parameters():
            weight.data.fill_(0.5)

    def encode(self, pixels: Tensor) -> Tensor:
        small = torch.nn.functional.avg_pool2d(pixels.movedim(-1, 1) * 2 - 1, 8)
        return torch.cat([small, small.mean(1, keepdim=True)], 1) / 0.18215

    def decode(self, samples: Tensor) -> Tensor:
        large = (samples[:, :3] * 0.18215).repeat_interleave(8, 2).repeat_interleave(8, 3)
        return (large / 2 + 0.5).movedim(1, -1)


class ControlStub(comfy.controlnet.ControlBase):
    """Remembers its picture and strength; pushes the middle block."""

    def __init__(self, seen: list) -> None:
        super().__init__()
        self.seen = seen
        self.control_model = torch.nn.Linear(2, 2)

    def copy(self) -> ControlStub:
        found = ControlStub(self.seen)
        self.copy_to(found)
        return found

    def get_control(self, x_noisy: Tensor, *_: Any) -> dict:
        self.seen.append((self.cond_hint_original, self.strength, len(x_noisy)))
        return {"input": [], "middle": [torch.full((1, 64, 1, 1), 0.3)], "output": []}


def small_tools() -> Tools:
    """A random network, with prompts."""
    return Tools(patcher(SMALL), SmallVAE(), conditioning(1), conditioning(2))


def spy_on_drawing(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """A list that collects the first latents of every key frame that is really drawn."""
    starts: list[Tensor] = []
    real = drawing.sample

    def spy(tools: Tools, schedule: Any, x: Tensor, *rest: Any) -> Tensor:
        starts.append(x)
        return real(tools, schedule, x, *rest)

    monkeypatch.setattr(keyframe_editing, "sample", spy)
    return starts


def edited(tools: Tools, request: EditRequest = REQUEST, **inputs: Any) -> Edited:
    """What Edit Key Frames makes of the clip."""
    return edit_clip(tools, ATLAS, request, inputs.pop("image", CLIP), **inputs)


def changed(part: str, **values: Any) -> EditRequest:
    """The usual request with other values in one part of it."""
    return replace(REQUEST, **{part: replace(getattr(REQUEST, part), **values)})
