"""A ControlNet that tells frames and branches apart."""

from __future__ import annotations

import comfy.controlnet
import torch
from toy import conditioning


class ControlStub(comfy.controlnet.ControlBase):
    """Adds to the middle block and to one skip what tells branch and frame apart."""

    def __init__(self, frames: int, strength: float = 1.0) -> None:
        super().__init__()
        self.frames, self.level = frames, strength

    def copy(self):
        return self

    def get_control(self, x_noisy, t, cond, batched_number, transformer_options):
        assert len(x_noisy) == batched_number * self.frames, "asked for a part of the clip"
        rows = torch.arange(len(x_noisy), dtype=torch.float32)[:, None, None, None]
        wave = torch.sin(torch.arange(64.0) * 0.7)[None, :, None, None]
        middle = self.level * (1 + rows % self.frames) * wave.expand(-1, -1, 4, 4)
        skip = self.level * (1 + rows) * wave[:, :32].expand(-1, -1, 8, 8)
        return {"input": [], "middle": [middle], "output": [skip, None, None, None]}


def controlled(frames: int, strength: float = 1.0):
    """(positive, negative), one row of CONDITIONING each, with a ControlNet on both."""
    control = ControlStub(frames, strength)
    settings = {"control": control, "control_apply_to_uncond": False}
    return [[conditioning(n)[0][0], dict(settings)] for n in (1, 2)]
