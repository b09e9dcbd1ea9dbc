"""The recorded Pix2Video runs, through the pack's own code in ComfyUI's UNetModel.

The recording edits frame after frame with stored features; ours runs all frames in one call.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import comfy.patcher_extension
import pytest
import torch
import torch.nn.functional as F
from comfy.ldm.modules.attention import optimized_attention
from reweave.editing import host
from reweave.editing.anchor_attention import KEYS, AnchorAttention, AnchorPass, Carried
from reweave.editing.inversion import invert
from reweave.editing.latent_guidance import LatentGuidance, pull
from reweave.editing.protocol import Site, StepSource
from reweave.kernels.frame_attention import frame_attention
from reweave.kernels.schedule import sigma_space_from_vp, vp_from_sigma_space
from reweave.tests.tolerances import assert_close, differ
from safetensors.torch import load_file
from torch import Tensor
from toy import GOLDENS, reference_patcher, sample

FRAMES = 3
STRENGTH = 200 / 1024
"""The published 200 / N at the recording's 4 x 16 x 16 latents."""
TOLERANCE, LONG_TOLERANCE = 5e-4, 2e-3
"""Chained over 4 and 50 steps, absolute, as stated beside the recording."""
GUIDED = LatentGuidance(strength=STRENGTH, until=1.0)


@pytest.fixture(scope="module")
def recorded() -> dict[str, Tensor]:
    return load_file(GOLDENS / "p2v_run.safetensors")


@pytest.fixture(scope="module")
def model(recorded):
    """The recorded network; its fifth input channel is the frames' depth."""
    patcher = reference_patcher("p2v")

    def with_depth(executor: Any, x: Tensor, t: Tensor, _concat: Any, *rest: Any, **extra: Any):
        return executor(x, t, recorded["depth"].repeat(len(x) // FRAMES, 1, 1, 1), *rest, **extra)

    kind = comfy.patcher_extension.WrappersMP.APPLY_MODEL
    patcher.add_wrapper_with_key(kind, "depth of the recording", with_depth)
    return patcher


def sigma_of(model, timestep: int) -> float:
    return float(model.get_model_object("model_sampling").sigmas[timestep])


def start_of(recorded: dict[str, Tensor], run: str) -> Tensor:
    """[F,C,h,w] VP latents with which the edit starts."""
    key = "f{}.x_t" if run == "full50" else "f{}.s0.x_t"
    rows = [recorded[f"{run}.{key.format(f)}"] for f in range(FRAMES)]
    return torch.cat([row[:1] for row in rows])


def edited(model, recorded: dict[str, Tensor], edits: list, run: str, steps: int) -> Tensor:
    """VP latents after `steps` steps."""
    for edit in edits:
        model = host.attach(model, edit)
    times = recorded[f"{run}.timesteps"].tolist()
    sigmas = torch.tensor([sigma_of(model, int(t)) for t in times[: steps + 1]])
    start = sigma_space_from_vp(start_of(recorded, run), float(sigmas[0])) / 0.18215
    positive, negative = [[recorded["ctx_edit"], {}]], [[recorded["ctx_uncond"], {}]]
    out = sample(model, start, sigmas, positive, negative, cfg=7.5) * 0.18215
    return vp_from_sigma_space(out, float(sigmas[-1]))


def state(recorded: dict[str, Tensor], run: str, step: int) -> Tensor:
    return torch.cat([recorded[f"{run}.f{f}.s{step}.x_t"] for f in range(FRAMES)])


def off_by(out: Tensor, expected: Tensor) -> float:
    return float((out - expected).abs().max())


def test_inversion_with_depth_is_reproduced(model, recorded):
    unet = model.model.diffusion_model
    times = (0, 250, 500, 750)
    levels = [sigma_of(model, t) for t in times]

    def predict(x: Tensor, sigma: float) -> Tensor:
        t = torch.full((FRAMES,), float(times[levels.index(sigma)]))
        scaled = torch.cat([vp_from_sigma_space(x, sigma), recorded["depth"]], 1)
        return x - sigma * unet(scaled, t, recorded["ctx_source"].expand(FRAMES, -1, -1))

    kept: dict[int, Tensor] = {}
    invert(predict, recorded["latents"], levels, "published", levels[0], kept.__setitem__)
    for f in range(FRAMES):
        # rows of the recording: the clean frame, then the latents after each step
        for number in range(4):
            expected = recorded[f"full4.inv.frame{f}"][number + 1]
            assert off_by(kept[number][f], expected) < TOLERANCE


@pytest.mark.parametrize("frames_per_pass", [0, 1, 2])
def test_guided_run_is_reproduced(model, recorded, frames_per_pass):
    anchored = AnchorAttention(frames_per_pass=frames_per_pass)
    for step in (1, 2, 3):
        out = edited(model, recorded, [anchored, GUIDED], "full4", step)
        assert off_by(out, state(recorded, "full4", step)) < TOLERANCE


@pytest.mark.parametrize(
    ("run", "edits"),
    [
        ("noguid4", [AnchorAttention()]),
        ("anchoronly4", [AnchorAttention(keys="anchor only"), GUIDED]),
        (
            "fixedtarget4",
            [AnchorAttention(), replace(GUIDED, target="fixed step", target_step=2)],
        ),
    ],
)
def test_switches_are_reproduced_and_matter(model, recorded, run, edits):
    out = edited(model, recorded, edits, run, 3)
    assert off_by(out, state(recorded, run, 3)) < TOLERANCE
    assert off_by(out, state(recorded, "full4", 3)) > 10 * TOLERANCE


def test_fifty_steps_are_reproduced(model, recorded):
    # 26 guided steps; the last recorded one, from the lowest level to itself, changes nothing
    edits = [AnchorAttention(), replace(GUIDED, until=26 / 49)]
    out = edited(model, recorded, edits, "full50", 49)
    expected = torch.cat([recorded[f"full50.f{f}.final"] for f in range(FRAMES)])
    assert off_by(out, expected) < LONG_TOLERANCE
    assert off_by(out[[0, 2, 1]], expected) > 10 * LONG_TOLERANCE


def test_guided_update_equals_the_published_one():
    golden = load_file(GOLDENS / "p2v_layer.safetensors")
    sampling: Any = reference_patcher("p2v").get_model_object("model_sampling")
    for t, below in ((980, 960), (480, 460), (460, 440), (20, 0), (0, 0)):
        x0, raw = golden[f"upd.t{t}.x0_pred"], golden[f"upd.t{t}.x_prev_raw"]
        sigma_next = float(sampling.sigmas[below])
        shift = pull(x0, golden["upd.target_x0"], 200 / x0[0].numel(), sigma_next)
        updated = raw + vp_from_sigma_space(shift, sigma_next)
        assert off_by(updated, golden[f"upd.t{t}.x_prev_updated"]) < 1e-4
        wrong = raw + vp_from_sigma_space(shift / (1 + sigma_next**2) ** 0.5, sigma_next)
        assert t < 400 or off_by(wrong, golden[f"upd.t{t}.x_prev_updated"]) > 1e-2


def own_attention(layer: dict[str, Tensor], clip: Tensor, edit: AnchorAttention, cuts=()) -> Tensor:
    """The last frame of a clip [F,L,C] after the recorded layer and its projection, [1,L,C].

    `cuts`: how many frames each pass takes; what later passes read is handed on between them.
    """
    site, plan = Site("output", 1, 0), edit.plan(len(clip))
    q, k, v = ((clip @ layer[f"to_{one}.weight"].T)[None] for one in "qkv")
    carried: dict[Site, Carried] = {}
    tokens = []
    for frames in plan.order.split(list(cuts) or len(clip)):
        pass_ = AnchorPass(frames, plan, [site], carried, StepSource())
        parts = (part[:, frames] for part in (q, k, v))
        tokens.append(pass_.attend(site, *parts, int(layer["heads"]), optimized_attention))
        carried = pass_.handed_on
    return F.linear(tokens[-1][0, -1:], layer["to_out.weight"], layer["to_out.bias"])


LAYER = {
    "out_plain_self": ("x",),
    "out_anchor_twice": ("anchor", "x"),
    "out_anchor_only": ("anchor", "previous", "x"),
    "out_anchor_previous": ("anchor", "previous", "x"),
}
"""Recorded answer -> the clip whose last frame gives it."""
EQUAL = {"out_anchor_twice", "out_anchor_only"}
"""These were recorded as the same: the anchor joined to itself is the anchor."""


@pytest.mark.parametrize(
    ("name", "cuts"),
    [*((name, ()) for name in LAYER), ("out_anchor_only", (2, 1)), ("out_anchor_previous", (2, 1))],
)
def test_the_layer_answers_as_recorded(name, cuts):
    layer = load_file(GOLDENS / "p2v_layer.safetensors")
    clip = torch.cat([layer[frame] for frame in LAYER[name]])
    edit = AnchorAttention(keys="anchor only" if name == "out_anchor_only" else KEYS[0])
    out = own_attention(layer, clip, edit, cuts)
    assert_close(out, layer[name])

    for other in LAYER:
        assert differ(out, layer[other]) != (other == name or {name, other} == EQUAL)
    wrong_heads = layer | {"heads": layer["heads"] * 2}
    assert differ(own_attention(wrong_heads, clip, edit, cuts), layer[name])
    if len(clip) > 1:  # another frame's row, and a frame's own tokens among its keys
        assert differ(own_attention(layer, clip.roll(1, 0), edit, cuts), layer[name])
        own_too = replace(edit, own_tokens=True)
        assert differ(own_attention(layer, clip, own_too, cuts), layer[name])
    if len(clip) > 2:
        wrong_row = replace(edit, keys="previous only")
        assert differ(own_attention(layer, clip, wrong_row, cuts), layer[name])


def test_a_key_that_is_repeated_as_in_the_recording_changes_nothing():
    """The published code joins the anchor to itself for frame 1; ours reads it once."""
    layer = load_file(GOLDENS / "p2v_layer.safetensors")
    frames = torch.cat([layer["anchor"], layer["previous"], layer["x"]])
    q, k, v = ((frames @ layer[f"to_{one}.weight"].T)[None] for one in "qkv")

    def answer(*row: int) -> Tensor:
        tokens = frame_attention(q[:, 2:], k, v, int(layer["heads"]), torch.tensor([row]))
        return F.linear(tokens[0], layer["to_out.weight"], layer["to_out.bias"])

    assert_close(answer(0, 0), layer["out_anchor_twice"])
    assert_close(answer(0, 1), layer["out_anchor_previous"])
    assert_close(answer(2), layer["out_plain_self"])
    assert differ(answer(1, 1), layer["out_anchor_twice"])
    assert differ(answer(0, 2), layer["out_anchor_previous"])
