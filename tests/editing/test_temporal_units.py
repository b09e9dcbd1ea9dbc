"""The parts of the temporal network against their recordings, each with a mutation."""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

import pytest
import torch
import torch.nn.functional as F
from reweave.editing.temporal_unet.features import resized
from reweave.editing.temporal_unet.units import (
    FrameAttention,
    SpatialTemporalUnit,
    TemporalDown,
    TemporalUnit,
    TemporalUp,
)
from safetensors.torch import load_file
from torch import Tensor, nn

M = TypeVar("M", bound=nn.Module)
TOLERANCE = 1e-5
RECORDED = load_file(Path(__file__).parents[1] / "goldens" / "tcve_modules.safetensors")
UNIT = {"norm1_TempUnet": "norm", "conv1_TempUnet": "conv", "conv_shortcut_TempUnet": "shortcut"}
STU = {
    "norm_temp": "norm_frames",
    "norm": "norm",
    "conv_3d": "conv",
    "attn_temp.to_q": "attention.to_q",
    "attn_temp.to_k": "attention.to_k",
    "attn_temp.to_v": "attention.to_v",
    "attn_temp.to_out.0": "attention.to_out",
}


def loaded(module: M, prefix: str, names: dict[str, str]) -> M:
    state = {}
    for key, value in RECORDED.items():
        if key.startswith(f"{prefix}.w."):
            owner, kind = key.removeprefix(f"{prefix}.w.").rsplit(".", 1)
            if owner in names:
                state[f"{names[owner]}.{kind}"] = value
    module.load_state_dict(state, strict=True)
    return module.requires_grad_(False)


def far(actual: Tensor, expected: Tensor) -> float:
    assert actual.shape == expected.shape
    return float((actual - expected).abs().max())


@pytest.mark.parametrize(("name", "outputs"), [("resnet_same", 16), ("resnet_grow", 32)])
def test_the_temporal_residual_unit(name: str, outputs: int) -> None:
    unit = loaded(TemporalUnit(16, outputs, 8), name, UNIT)
    x, expected = RECORDED[f"{name}.in.x_temp"], RECORDED[f"{name}.out.x_temp"]
    assert far(unit(x), expected) < TOLERANCE
    unit.norm.num_groups = 4
    assert far(unit(x), expected) > 1e-3


def test_the_temporal_resamplers() -> None:
    down = loaded(TemporalDown(16), "down", {"conv_TempUnet": "conv"})
    x, expected = RECORDED["down.in.x_temp"], RECORDED["down.out.x_temp"]
    assert far(down(x), expected) < TOLERANCE
    assert far(down(x.flip(-1)), expected) > 1e-2
    up = loaded(TemporalUp(16), "up", {"upsample_TempUnet.1": "conv"})
    x, expected = RECORDED["up.in.x_temp"], RECORDED["up.out.x_temp"]
    assert far(up(x), expected) < TOLERANCE
    tiled = up.conv(x.repeat(1, 1, 2))
    assert far(tiled, expected) > 1e-2


LAYOUTS = {"same": "x_temp_same", "small": "x_temp_small", "scrambled_layout": None}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_spatial_temporal_unit(layout: str) -> None:
    unit = loaded(SpatialTemporalUnit(16), "stb", STU)
    x = RECORDED["stb.in.x"]
    temporal = RECORDED[f"stb.in.{LAYOUTS[layout] or 'x_temp_scrambled_layout'}"]
    expected = RECORDED[f"stb.out.{layout}"]
    aligned = resized(temporal, (8, 6, 5))
    assert far(x + unit.change(x, unit.attended(aligned)), expected) < TOLERANCE
    assert far(x + unit.change(x, aligned), expected) > 1e-4  # no attention over the frames
    if layout != "same":
        smooth = F.interpolate(temporal, (8, 6, 5), mode="trilinear")
        assert far(x + unit.change(x, unit.attended(smooth)), expected) > 1e-4


def test_attention_without_positions() -> None:
    names = {f"attn_temp.{k}": k for k in ("to_q", "to_k", "to_v")}
    attention = loaded(FrameAttention(16, 8), "block", names | {"attn_temp.to_out.0": "to_out"})
    x, expected = RECORDED["block.in.x"], RECORDED["block.out.attn_temp_only"]
    assert far(attention(x), expected) < TOLERANCE
    attention.heads = 4
    assert far(attention(x), expected) > 1e-3


def test_many_rows_attend_in_parts_without_a_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    attention = FrameAttention(16, 8).requires_grad_(False)
    tokens = RECORDED["block.in.x"]
    whole = attention(tokens)
    monkeypatch.setattr("reweave.editing.temporal_unet.units.ROWS_AT_ONCE", 3)
    torch.testing.assert_close(attention(tokens), whole, rtol=0, atol=1e-6)
