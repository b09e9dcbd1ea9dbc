"""What cannot work is refused before the model runs, with the node, the numbers and the knob."""

from __future__ import annotations

import inspect
from dataclasses import replace

import comfy.k_diffusion.sampling
import comfy.model_base
import comfy.samplers
import pytest
import torch
from clips import SMALL, SMALL_XL, Spy, edited, run, sigmas_of, source, start_of
from reweave.editing import host
from reweave.editing.extended_attention import ExtendedAttention
from reweave.editing.plug_and_play import PlugAndPlay
from reweave.editing.tokenflow import TokenFlow
from toy import conditioning, patcher, sample


@pytest.fixture(scope="module")
def model():
    return patcher(SMALL)


@pytest.fixture
def inversion(model):
    return source(model)


@pytest.fixture
def refused(model, inversion):
    """Samples under TokenFlow and returns the error's text; the UNet must not have run."""

    def attempt(clip=inversion, on=None, sampler="euler", sigmas=None, latent=None, **options):
        spy = Spy()
        watched = spy.on(edited(model if on is None else on, TokenFlow(clip, interval=4)))
        watched.model_options.update(options.pop("model_options", {}))
        with pytest.raises(ValueError) as caught:
            sample(
                watched,
                start_of(inversion) if latent is None else latent,
                sigmas_of(inversion) if sigmas is None else sigmas,
                options.pop("positive", conditioning(1)),
                sampler=sampler,
                **options,
            )
        assert not spy.calls
        text = str(caught.value)
        assert text.startswith("TokenFlow: ") and text.isascii()
        return text

    return attempt


def test_frame_count(refused, inversion):
    text = refused(latent=start_of(inversion)[:3])
    assert "the inversion has 5 frames, the latent batch 3" in text
    assert "Connect the LATENT of Inversion Latent" in text


def test_latent_size(refused):
    text = refused(latent=torch.ones(5, 4, 8, 16))
    assert "latents are 4x8x8, the sampler's 4x8x16" in text and "Resize the clip" in text


def test_latent_format(refused, inversion):
    text = refused(replace(inversion, latent_format="SDXL"))
    assert "made for SDXL latents, this model uses SD15" in text and "Load the checkpoint" in text


def test_other_base_weights(refused, model, inversion):
    other = patcher(SMALL, seed=3)
    now, then = host.fingerprint(model), host.fingerprint(other)
    text = refused(replace(inversion, fingerprint=then))
    assert f"({now.base[:8]} and {then.base[:8]})" in text and "Load the same checkpoint" in text


def rounded(model, dtype: torch.dtype):
    """The same checkpoint, loaded in another precision."""
    other = patcher(SMALL)
    with torch.inference_mode(False), torch.no_grad():
        other.model.diffusion_model.to(dtype)
    return host.fingerprint(other)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float8_e4m3fn])
def test_the_same_weights_in_another_precision(model, inversion, refused, caplog, dtype):
    """Their hashes differ by rounding alone, so whether they are the same cannot be told."""
    now, then = host.fingerprint(model), rounded(model, dtype)
    assert now.base != then.base and now.dtype == "float32" and then.dtype in str(dtype)
    out = run(model, inversion, TokenFlow(inversion, interval=4))
    caplog.clear()
    other = replace(inversion, fingerprint=then)
    assert torch.equal(run(model, other, TokenFlow(other, interval=4)), out)
    assert f"weights are float32, those that inverted the clip {then.dtype}" in caplog.text
    assert "base weights differ" in refused(replace(inversion, fingerprint=replace(then, dtype="")))


def test_other_weights_in_half_precision(model, inversion, refused):
    """float16 and float32 of one checkpoint have one hash: here a difference is a difference."""
    assert rounded(model, torch.float16).base == host.fingerprint(model).base
    other = replace(host.fingerprint(patcher(SMALL, seed=3)), dtype="float16")
    assert "base weights differ" in refused(replace(inversion, fingerprint=other))


@pytest.mark.parametrize("scheduler", ["karras", "normal"])
def test_sigmas_off_the_trajectory(refused, model, inversion, scheduler):
    sampling = model.get_model_object("model_sampling")
    sigmas = comfy.samplers.calculate_sigmas(sampling, scheduler, 4)
    text = refused(sigmas=sigmas)
    assert f"step 1 of 4 starts at sigma {float(sigmas[0]):.4g}" in text
    low, high = float(inversion.sigmas[-1]), float(inversion.sigmas[0])
    assert f"the inversion (3 steps, {low:.4g} to {high:.4g})" in text
    assert "Connect the SIGMAS of Invert Video or Inversion Latent" in text
    assert "ddim_uniform with as many steps as Invert Video's 'saved_steps'" in text


def test_a_later_step_off_the_trajectory(refused, inversion):
    sigmas = sigmas_of(inversion)
    sigmas[2] *= 1.1
    assert "step 3 of 3 starts at" in refused(sigmas=sigmas)


@pytest.mark.parametrize(
    "settings",
    [
        {"area": (4, 8, 0, 0), "strength": 1.0},
        {"mask": torch.ones(1, 64, 64), "set_area_to_bounds": True, "mask_strength": 1.0},
    ],
)
def test_area_conditioning(refused, settings):
    text = refused(positive=[[conditioning(1)[0][0], settings]])
    assert "area conditioning" in text and "Use a MASK" in text and "mask bounds" in text


def test_context_windows(refused):
    text = refused(model_options={"context_handler": object()})
    assert "context windows" in text and "frames_per_pass" in text


def test_several_gpus(refused):
    text = refused(model_options={"multigpu_clones": [1]})
    assert "multi-GPU models are not supported" in text and "Remove that node" in text


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_latents_that_are_not_finite(refused, inversion, bad):
    latent = start_of(inversion).clone()
    latent[2, 0, 3, 3] = bad
    assert "NaN or infinity" in refused(latent=latent)


NOISY = [
    name
    for name in comfy.samplers.KSAMPLER_NAMES
    if (f := getattr(comfy.k_diffusion.sampling, f"sample_{name}", None)) is not None
    and "noise_sampler" in inspect.signature(f).parameters
    and name not in ("res_multistep", "res_multistep_cfg_pp")  # their eta is 0
] + ["dpm_fast", "dpm_adaptive"]


def test_the_list_of_noisy_samplers_is_the_hosts():
    assert {"euler_ancestral", "dpmpp_sde", "lcm", "ddpm", "er_sde"} <= set(NOISY)


@pytest.mark.parametrize("name", sorted(set(NOISY)))
def test_samplers_with_noise_of_their_own(refused, name):
    text = refused(sampler=name)
    assert "adds noise or chooses its own steps" in text and "Use euler or ddim" in text


@pytest.mark.parametrize("name", ["euler", "ddim", "heun", "dpm_2", "dpmpp_2m", "uni_pc"])
def test_samplers_without_noise_run_and_stay_finite(model, inversion, name):
    edits = TokenFlow(inversion, interval=4), PlugAndPlay(inversion, 0.7, 0.7)
    out = run(model, inversion, *edits, sampler=name)
    assert out.shape == inversion.clean.shape and torch.isfinite(out).all()
    plain = run(model, inversion, sampler=name)
    assert float((out - plain).std()) > 0.02 * float(plain.std())


def test_ddim_is_euler(model, inversion):
    edit = TokenFlow(inversion, interval=4)
    euler = run(model, inversion, edit)
    assert torch.equal(run(model, inversion, edit, sampler="ddim"), euler)


def test_noise_on_inverted_latents(refused, inversion):
    noise = torch.randn(inversion.clean.shape, generator=torch.Generator().manual_seed(1))
    text = refused(noise=noise)
    assert "adds noise to latents that are already inverted" in text
    assert "Switch 'add_noise' off" in text


def test_noise_on_the_clip_is_sdedit(model, inversion):
    noise = torch.randn(inversion.clean.shape, generator=torch.Generator().manual_seed(1))
    clip = host.latent_format("SD15").process_out(inversion.clean)
    edit = TokenFlow(inversion, interval=4)
    for start in range(3):
        out = run(
            model, inversion, edit, latent=clip, noise=noise, sigmas=sigmas_of(inversion)[start:]
        )
        assert torch.isfinite(out).all()


def test_two_inversions(model, inversion):
    other = source(model, seed=20)
    with pytest.raises(ValueError, match="two different inversions") as caught:
        edited(model, TokenFlow(inversion), PlugAndPlay(other))
    text = str(caught.value)
    assert "TokenFlow" in text and "Plug-and-Play" in text and "Connect the same INVERSION" in text


@pytest.mark.parametrize("order", [0, 1])
def test_two_edits_of_the_attention(model, inversion, order):
    pair = [TokenFlow(inversion), ExtendedAttention()]
    with pytest.raises(ValueError, match="both decide what the self-attentions return") as caught:
        edited(model, pair[order], pair[1 - order])
    assert "TokenFlow" in str(caught.value) and "Extended Attention" in str(caught.value)
    assert "its own branch of the graph" in str(caught.value)


def test_the_same_edit_twice(model, inversion):
    with pytest.raises(ValueError, match="TokenFlow: this MODEL already has a TokenFlow edit"):
        edited(model, TokenFlow(inversion), TokenFlow(inversion))


def test_flow_models():
    flow = patcher(SMALL, comfy.model_base.ModelType.FLOW)
    for edit in (ExtendedAttention(), TokenFlow(source(patcher(SMALL)))):
        with pytest.raises(ValueError, match=f"{edit.name}: expected an eps or v model") as caught:
            edited(flow, edit)
        assert "FLOW" in str(caught.value) and "load another checkpoint" in str(caught.value)
    with pytest.raises(ValueError, match="Invert Video: expected an eps or v model"):
        host.invert_clip(
            flow, conditioning(1), {"samples": torch.ones(2, 4, 8, 8)}, host.InversionRequest(3, 3)
        )


def test_errors_name_all_edits(model, inversion):
    with pytest.raises(ValueError, match="TokenFlow and Plug-and-Play: the inversion has 5"):
        run(
            model, inversion, TokenFlow(inversion), PlugAndPlay(inversion),
            latent=start_of(inversion)[:2],
        )  # fmt: skip


def test_a_model_of_another_family(inversion):
    with pytest.raises(ValueError, match="made for SD15 latents, this model uses SDXL"):
        run(patcher(SMALL_XL), inversion, TokenFlow(inversion))


def test_an_unchanged_clip_is_noticed(model, inversion, caplog):
    """Guidance 1, the inversion's own prompt and full injection: nothing can change much."""
    import logging

    mask = torch.zeros(1, 8, 8)
    edit = PlugAndPlay(inversion, 1.0, 1.0, mask)
    with caplog.at_level(logging.WARNING, "reweave"):
        run(model, inversion, edit)
    assert "output = input" in caplog.text and "inject_attention_until" in caplog.text
    caplog.clear()
    run(model, inversion, TokenFlow(inversion))
    assert "output = input" not in caplog.text
