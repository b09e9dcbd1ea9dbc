"""Multiplications of SD1.5's UNet with and without a temporal UNet, counted without weights."""

from __future__ import annotations

import comfy.ldm.modules.attention as comfy_attention
import comfy.ldm.modules.diffusionmodules.openaimodel as openaimodel
import comfy.ops
import torch
from reweave.editing.temporal_unet.features import Features
from reweave.editing.temporal_unet.joining import Joint, joined
from reweave.editing.temporal_unet.network import TemporalNetwork
from reweave.editing.temporal_unet.plan import Architecture, read_plan
from small_nets import SHARED
from torch.utils.flop_counter import FlopCounterMode

SD15 = SHARED | {
    "model_channels": 320, "channel_mult": [1, 2, 4, 4], "num_res_blocks": [2, 2, 2, 2],
    "transformer_depth": [1] * 6 + [0] * 2, "transformer_depth_output": [1] * 9 + [0] * 3,
}  # fmt: skip
FRAMES, SIDE = 16, 64


def counted() -> list[tuple[str, float, str]]:
    """(metric, value, unit) of one sampling step with guidance, 16 frames at 512x512."""
    with torch.device("meta"):
        unet = openaimodel.UNetModel(
            **SD15, dtype=torch.float32, operations=comfy.ops.disable_weight_init
        )
        plain = step(unet, None)
        found = [("SD1.5 at 512x512, plain step", plain, "TFLOP")]
        for architecture in (Architecture(), Architecture("published", "correct")):
            net = TemporalNetwork(read_plan(unet), architecture)
            name = f"SD1.5 at 512x512, {architecture.kind}"
            weights = sum(w.numel() for w in net.trainable().values()) / 1e6
            found.append((f"{name}, trained weights", weights, "M"))
            found.append((f"{name} / plain, counted", step(unet, net) / plain, "x"))
    return found


def step(unet: torch.nn.Module, net: TemporalNetwork | None) -> float:
    """TFLOP of both branches of one step."""
    branches = 2
    rows = torch.empty(branches * FRAMES, 4, SIDE, SIDE)
    text = torch.empty(branches * FRAMES, 77, 768)
    options = {"optimized_attention_override": _plain_attention}

    def run() -> None:
        unet(rows, torch.empty(len(rows)), text, transformer_options=options)

    with FlopCounterMode(display=False) as counter:
        if net is None:
            run()
        else:
            features = Features(net, rows[None, :FRAMES])
            with joined(unet, Joint(features, branches)):
                run()
    return counter.get_total_flops() / 1e12


def _plain_attention(_chosen, *args, **options) -> torch.Tensor:
    return comfy_attention.attention_pytorch(*args, **options)
