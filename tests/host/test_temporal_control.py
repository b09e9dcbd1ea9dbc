"""A temporal UNet beside a real ControlNet of ComfyUI, with a hint for every frame."""

from __future__ import annotations

from typing import Any

import comfy.cldm.cldm
import comfy.controlnet
import comfy.ops
import pytest
import torch
from clips import SMALL, Spy, no_free_memory, run, same, source
from reweave.editing import host
from reweave.editing.host.temporal_unet import TemporalEdit, apply_temporal
from reweave.editing.temporal_unet.plan import Architecture
from reweave.editing.tokenflow import TokenFlow
from tcve import trained
from toy import conditioning, patcher

KINDS = {"paper": Architecture(), "published": Architecture("published", "correct")}
FRAMES = 4


@pytest.fixture(scope="module")
def model():
    return patcher(SMALL)


@pytest.fixture(scope="module")
def control_net():
    """Of the small UNet's layout, all weights random: its zero convolutions too."""
    left_out = ("out_channels", "use_temporal_attention")
    config: dict[str, Any] = {k: v for k, v in SMALL.items() if k not in left_out}
    with torch.inference_mode(False):
        net = comfy.cldm.cldm.ControlNet(
            **config, hint_channels=3, dtype=torch.float32, operations=comfy.ops.disable_weight_init
        )
        generator = torch.Generator().manual_seed(11)
        for weight in net.parameters():
            noise = torch.randn(weight.shape, generator=generator)
            weight.data.copy_(noise * max(weight[:1].numel(), 1) ** -0.5)
    return comfy.controlnet.ControlNet(net, load_device=torch.device("cpu"))


def hints(*changed: int) -> torch.Tensor:
    """[F,3,64,64] grey pictures, noise in the changed ones."""
    generator = torch.Generator().manual_seed(12)
    found = torch.full((FRAMES, 3, 64, 64), 0.5)
    for frame in changed:
        found[frame] = torch.rand(3, 64, 64, generator=generator)
    return found


def sampled(model, inversion, control_net, hint, *edits):
    """With what ControlNetApplyAdvanced makes of two conditionings."""
    control = control_net.copy().set_cond_hint(hint, 0.8)
    told = []
    for seed in (1, 2):
        ((embedding, settings),) = conditioning(seed)
        own = {"control": control, "control_apply_to_uncond": False}
        told.append([[embedding, settings | own]])
    return run(model, inversion, *edits, positive=told[0], negative=told[1])


@pytest.mark.parametrize("kind", KINDS)
def test_every_frame_gets_its_own_hint(model, control_net, kind, monkeypatch):
    inversion = source(model, frames=FRAMES)
    fused = apply_temporal(model, TemporalEdit(trained(model, KINDS[kind])))
    first = {}
    for name, hint in {"grey": hints(), "third": hints(2)}.items():
        spy = Spy()
        sampled(spy.on(fused), inversion, control_net, hint)
        first[name] = spy.calls[0]["control"]
        assert len(spy.calls[0]["branches"]) == 2
    for key in ("output", "middle"):
        pairs = [p for p in zip(*(first[n][key] for n in first), strict=True) if p[0] is not None]
        assert pairs
        for one, other in pairs:
            moved = (one - other).flatten(1).abs().amax(1) > 1e-4
            assert moved.tolist() == [frame == 2 for frame in range(FRAMES)] * 2
    out = sampled(fused, inversion, control_net, hints(0, 1, 2, 3))
    assert not same(out, run(fused, inversion), 0.02), "the ControlNet acts"
    plain = sampled(model, inversion, control_net, hints(0, 1, 2, 3))
    assert not same(out, plain, 0.02), "and so does the temporal UNet"
    backwards = sampled(fused, inversion, control_net, hints(0, 1, 2, 3).flip(0))
    assert not same(out, backwards, 1e-3), "each its own"
    no_free_memory(monkeypatch)
    assert same(sampled(fused, inversion, control_net, hints(0, 1, 2, 3)), out)


def test_key_frames_get_the_hints_of_their_frames(model, control_net):
    """With TokenFlow on top, which draws some frames before the clip."""
    inversion = source(model, frames=FRAMES, steps=2)
    fused = apply_temporal(model, TemporalEdit(trained(model, KINDS["paper"])))
    clone = host.attach(fused, TokenFlow(inversion, interval=2))
    found = {}
    for name, hint in {"grey": hints(), "noise": hints(1, 3)}.items():
        spy = Spy()
        out = sampled(spy.on(clone), inversion, control_net, hint)
        assert bool(torch.isfinite(out).all())
        found[name] = [call for call in spy.calls if call["control"] is not None]
    few = 0
    for one, other in zip(*found.values(), strict=True):
        if not torch.equal(one["x"], other["x"]):
            continue  # from the second step on the latents differ
        frames = list(range(FRAMES)) if one["frames"] is None else one["frames"]
        few += len(frames) < FRAMES
        change = (one["control"]["middle"][0] - other["control"]["middle"][0]).flatten(1)
        moved = change.abs().amax(1) > 1e-4
        assert moved.tolist() == [f in (1, 3) for f in frames] * len(one["branches"])
    assert few, "no call on key frames was compared"
