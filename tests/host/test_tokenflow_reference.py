"""The recorded TokenFlow run, through the pack's own code in ComfyUI's UNetModel."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from reweave.editing import host
from reweave.editing.inversion import extracted_noise
from reweave.editing.plug_and_play import PlugAndPlay
from reweave.editing.tokenflow import TokenFlow
from reweave.editing.types import Inversion
from reweave.kernels.schedule import sigma_space_from_vp, vp_from_sigma_space
from safetensors.torch import load_file
from toy import GOLDENS, reference_patcher, sample

EDIT_STEPS = (751, 501, 251, 1)
TOLERANCE = 1e-3
"""Chained, absolute, as stated beside the recording."""


@pytest.fixture(scope="module")
def recorded() -> dict[str, torch.Tensor]:
    return load_file(GOLDENS / "tf_run.safetensors")


@pytest.fixture(scope="module")
def model():
    return reference_patcher()


def sigma(recorded: dict, step: int) -> float:
    abar = recorded["alphas_cumprod"][step].double()
    return float(((1 - abar) / abar).sqrt())


def inversion(recorded: dict, steps=EDIT_STEPS) -> Inversion:
    return Inversion(
        latents=torch.stack([recorded[f"noisy_latents_{t}"] for t in steps]),
        clean=recorded["x0"],
        sigmas=torch.tensor([sigma(recorded, t) for t in steps]),
        timesteps=torch.tensor(steps),
        context=recorded["ctx_inversion"],
        convention="published",
        final_sigma=sigma(recorded, 0),
        noisiest=recorded["noisy_latents_951"],
        noisiest_sigma=sigma(recorded, 951),
    )


def run(model, recorded: dict, edits: list, x_vp: torch.Tensor, steps, last: float):
    """Euler steps from `x_vp` -> VP latents after the last step."""
    for edit in edits:
        model = host.attach(model, edit)
    sigmas = torch.tensor([*(sigma(recorded, t) for t in steps), last])
    start = sigma_space_from_vp(x_vp, float(sigmas[0])) / 0.18215
    positive, negative = [[recorded["ctx_cond"], {}]], [[recorded["ctx_uncond"], {}]]
    out = sample(model, start, sigmas, positive, negative, cfg=7.5) * 0.18215
    return vp_from_sigma_space(out, float(sigmas[-1]))


def test_key_frames_are_drawn_as_published(recorded):
    edit = TokenFlow(inversion(recorded), interval=4, keyframe_seed=1)
    drawn = [edit.plan(step).key_frames for step in range(4)]
    expected = [recorded[f"pnp.step{step}.pivotal_idx"] for step in range(4)]
    assert torch.equal(torch.stack(drawn), torch.stack(expected).long())


@pytest.mark.parametrize("steps_done", [1, 4])
def test_plug_and_play_run_is_reproduced(model, recorded, steps_done):
    source = inversion(recorded)
    edits = [TokenFlow(source, interval=4), PlugAndPlay(source, 0.5, 0.75)]
    steps = EDIT_STEPS[:steps_done]
    last = sigma(recorded, EDIT_STEPS[steps_done]) if steps_done < 4 else source.final_sigma
    if steps_done < 4:  # fractions count the steps of this sampling call
        edits[1] = replace(edits[1], inject_attention_until=1.0, inject_features_until=1.0)
    out = run(model, recorded, edits, recorded["pnp.x_init"], steps, last)
    expected = recorded[f"pnp.step{steps_done - 1}.x_next"]
    assert float((out - expected).abs().max()) < TOLERANCE
    without = run(model, recorded, edits[:1], recorded["pnp.x_init"], steps, last)
    assert float((without - expected).abs().max()) > 10 * TOLERANCE


@pytest.mark.parametrize(
    ("name", "queries", "features"),
    [("none", 0, 0), ("conv_only", 0, 1), ("qk_only", 1, 0), ("both", 1, 1)],
)
def test_single_steps_are_reproduced(model, recorded, name, queries, features):
    source = inversion(recorded, (501,))
    key_frames = recorded[f"single.inj_{name}.pivotal_idx"].long()
    edits = [FixedTokenFlow(source, key_frames)]
    if queries or features:
        edits.append(PlugAndPlay(source, float(queries), float(features)))
    out = run(model, recorded, edits, recorded["single.x_in"], (501,), sigma(recorded, 251))
    expected = recorded[f"single.inj_{name}.x_next"]
    assert float((out - expected).abs().max()) < 2e-4
    other = FixedTokenFlow(source, (key_frames + 1) % 4 + torch.tensor([0, 4]))
    changed = run(
        model, recorded, [other, *edits[1:]], recorded["single.x_in"], (501,), sigma(recorded, 251)
    )
    assert float((changed - expected).abs().max()) > 2e-3


def FixedTokenFlow(source: Inversion, key_frames: torch.Tensor) -> TokenFlow:
    """TokenFlow whose seed draws exactly these key frames at its only step."""
    for seed in range(1000):
        edit = TokenFlow(source, interval=4, keyframe_seed=seed)
        if torch.equal(edit.plan(0).key_frames, key_frames):
            return edit
    raise AssertionError("no seed draws these key frames")


def test_sdedit_run_is_reproduced(model, recorded):
    steps = tuple(int(t) for t in recorded["sdedit.timesteps"])
    source = inversion(recorded, steps)
    edit = TokenFlow(source, interval=4)
    assert torch.equal(edit.plan(1).key_frames, recorded["sdedit.step1.pivotal_idx"].long())
    start = recorded["sdedit.x_init"]
    out = run(model, recorded, [edit], start, steps, source.final_sigma)
    assert float((out - recorded["sdedit.step1.x_next"]).abs().max()) < TOLERANCE


def test_extracted_noise_is_reproduced(recorded):
    source = inversion(recorded)
    noise = extracted_noise(source.noisiest, source.clean, source.noisiest_sigma)
    assert torch.allclose(noise, recorded["ddim_eps"], atol=1e-4)
