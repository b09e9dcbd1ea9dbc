"""Invert Video: against plain formulas, the recording, and what samples on from it."""

from __future__ import annotations

import math

import comfy.model_base
import comfy.sample
import comfy.samplers
import pytest
import torch
from clips import SMALL, SMALL_XL, Spy, clip_latents, edited, same
from comfy_extras.nodes_context_windows import ContextWindowsManualNode
from reweave.editing import host
from reweave.editing.extended_attention import ExtendedAttention
from reweave.editing.host import InversionRequest
from reweave.editing.inversion import CONVENTIONS, start_latents
from reweave.editing.plug_and_play import PlugAndPlay
from safetensors.torch import load_file
from torch import Tensor
from toy import GOLDENS, conditioning, patcher, reference_patcher, sample

KINDS = comfy.model_base.ModelType
SCALE = 0.18215


def calm(kind=KINDS.EPS):
    """A network whose answer changes slowly, so that few steps invert it well."""
    model = patcher(SMALL, kind)
    with torch.inference_mode(False), torch.no_grad():
        model.model.diffusion_model.out[2].weight.mul_(0.1)
    return model


@pytest.fixture(scope="module")
def model():
    return calm()


@pytest.fixture(scope="module")
def v_model():
    return calm(KINDS.V_PREDICTION)


def clip(frames: int = 2) -> dict[str, Tensor]:
    return {"samples": clip_latents(frames) / SCALE}


def inverted(model, frames: int = 2, positive=None):
    """Four steps of Invert Video."""
    told = conditioning(1) if positive is None else positive
    return host.invert_clip(model, told, clip(frames), InversionRequest(4, 4))


def back(model, inversion):
    """The clip again, by stock euler steps with the inversion's own conditioning."""
    position = inversion.locate(float(inversion.sigmas[0]))
    start = inversion.sigma_space(position, float(inversion.sigmas[0])) / SCALE
    sigmas = torch.cat([inversion.sigmas, torch.tensor([inversion.final_sigma])])
    return sample(model, start, sigmas, [[inversion.context, {}]], cfg=1.0)


@pytest.mark.parametrize("convention", CONVENTIONS)
def test_the_round_trip_converges(model, convention):
    errors = []
    for steps in (10, 40):
        request = InversionRequest(steps, steps, convention, half=False)
        inversion = host.invert_clip(model, conditioning(1), clip(), request)
        came = back(model, inversion) * SCALE
        if inversion.final_sigma:
            came = came / math.sqrt(1 + inversion.final_sigma**2)
        errors.append(float((came - inversion.clean).square().mean().sqrt()))
    assert errors[1] < 0.5 * errors[0]
    assert errors[1] < 0.05 * float(inversion.clean.std())


def by_the_formula(model, clean: Tensor, context: Tensor, steps: int, convention: str) -> Tensor:
    """DDIM inversion written in the papers' own terms, with abar and eps; latents [S,F,C,h,w]."""
    sampling = model.model.model_sampling
    abar = 1 / (1 + sampling.sigmas.double() ** 2)
    steps_up = list(range(1, 1000, 1000 // steps))
    level = float(abar[0]) if convention == "published" else 1.0
    x, kept = clean.clone(), []
    for number, t in enumerate(steps_up):
        told = steps_up[number - 1] if convention == "current" and number else t
        raw = model.model.diffusion_model(
            x, torch.full((len(x),), float(told)), context.expand(len(x), -1, -1),
            transformer_options={},
        )  # fmt: skip
        a = float(abar[told])
        if model.model.model_type == KINDS.V_PREDICTION:
            raw = math.sqrt(a) * raw + math.sqrt(1 - a) * x
        x0 = (x - math.sqrt(1 - level) * raw) / math.sqrt(level)
        level = float(abar[t])
        x = math.sqrt(level) * x0 + math.sqrt(1 - level) * raw
        kept.append(x)
    return torch.stack(kept[::-1])


@pytest.mark.parametrize("convention", CONVENTIONS)
@pytest.mark.parametrize("kind", ["eps", "v"])
def test_every_convention_is_the_papers_formula(model, v_model, kind, convention):
    net = model if kind == "eps" else v_model
    positive = conditioning(1)
    request = InversionRequest(5, 5, convention, half=False)
    inversion = host.invert_clip(net, positive, clip(), request)
    expected = by_the_formula(net, clip()["samples"] * SCALE, positive[0][0], 5, convention)
    assert inversion.timesteps.tolist() == [801, 601, 401, 201, 1]
    assert same(inversion.latents, expected, 1e-4)
    for other in CONVENTIONS:
        if other != convention:
            wrong = by_the_formula(net, inversion.clean, positive[0][0], 5, other)
            assert not same(inversion.latents, wrong, 1e-3)


def test_the_recorded_inversion():
    recorded = load_file(GOLDENS / "tf_run.safetensors")
    positive = [[recorded["ctx_inversion"], {}]]
    request = InversionRequest(20, 20, "published", half=False)
    latents = {"samples": recorded["x0"] / SCALE}
    inversion = host.invert_clip(reference_patcher(), positive, latents, request)
    assert inversion.timesteps.tolist() == recorded["inversion_timesteps"].tolist()
    for step in (1, 251, 501, 751, 951):
        found = inversion.latents[inversion.timesteps.tolist().index(step)]
        assert float((found - recorded[f"noisy_latents_{step}"]).abs().max()) < 1e-4
    assert float((found - recorded["noisy_latents_751"]).abs().max()) > 1e-2
    noise = recorded["ddim_eps"] * inversion.sigmas[0] + recorded["x0"]
    start = start_latents(
        inversion.latents[0], inversion.clean, float(inversion.sigmas[0]), "extracted noise",
        inversion.latents[0], float(inversion.sigmas[0]), 0,
    )  # fmt: skip
    assert same(start, noise)


def test_more_steps_than_are_kept(model):
    every = host.invert_clip(model, conditioning(1), clip(), InversionRequest(20, 20, half=False))
    some = host.invert_clip(model, conditioning(1), clip(), InversionRequest(20, 4, half=False))
    assert some.timesteps.tolist() == [751, 501, 251, 1]
    chosen = [every.timesteps.tolist().index(t) for t in some.timesteps.tolist()]
    assert torch.equal(some.latents, every.latents[chosen])
    assert torch.equal(some.noisiest, every.latents[0])
    assert some.noisiest_sigma == pytest.approx(float(every.sigmas[0]))


def test_levels_that_are_not_passed_are_refused(model):
    with pytest.raises(ValueError, match="an inversion of 7 steps does not pass") as caught:
        host.invert_clip(model, conditioning(1), clip(), InversionRequest(7, 4))
    assert "Invert Video" in str(caught.value) and "multiple of 'saved_steps'" in str(caught.value)


@pytest.mark.parametrize(
    ("latent", "text"),
    [(torch.ones(1, 4, 3, 8, 8), "got 5 dimensions"),
     (torch.full((2, 4, 8, 8), float("nan")), "NaN or infinity")],
)  # fmt: skip
def test_latents_that_cannot_be_inverted(model, latent, text):
    with pytest.raises(ValueError, match=f"Invert Video: .*{text}"):
        host.invert_clip(model, conditioning(1), {"samples": latent}, InversionRequest(4, 4))


ENTRY = conditioning(1)[0][0]
MASK = torch.ones(1, 64, 64)


@pytest.mark.parametrize(
    ("positive", "text"),
    [
        ([], "got 0 .*Connect one CLIP Text Encode"),
        (conditioning(1) + conditioning(2), r"one prompt in 'positive', got 2 \(Conditioning Comb"),
        ([[ENTRY, {"start_percent": 0.0, "end_percent": 0.5}]], "from 0 to 0.5 .*end to 1"),
        ([[ENTRY, {"start_percent": 0.25}]], "from 0.25 to 1 .*Timestep Range.*set start to 0"),
        ([[ENTRY, {"area": (4, 8, 0, 0)}]], "area conditioning .*Use a MASK"),
        ([[ENTRY, {"mask": MASK, "set_area_to_bounds": True}]], "area conditioning .*mask bounds"),
        ([[ENTRY, {"mask": MASK, "set_area_to_bounds": False}]], "with a mask .*without it"),
    ],
)
def test_prompts_that_an_inversion_cannot_hold(model, positive, text):
    spy = Spy()
    with pytest.raises(ValueError, match=f"^Invert Video: .*{text}"):
        inverted(spy.on(model), positive=positive)
    assert not spy.calls


def test_context_windows_are_refused(model):
    (windowed,) = ContextWindowsManualNode.execute(
        model, 16, 4, "standard_static", 1, False, "pyramid", 0
    ).args
    with pytest.raises(ValueError, match=r"^Invert Video: context windows .*'frames_per_pass'"):
        inverted(windowed)


def test_a_range_of_all_steps_and_a_context_per_frame_are_one_prompt(model):
    plain = inverted(model, 3)
    whole = [[ENTRY, {"start_percent": 0.0, "end_percent": 1.0}]]
    assert same(inverted(model, 3, whole).latents.float(), plain.latents.float())
    rows = torch.cat([conditioning(seed)[0][0] for seed in (1, 2, 3)])
    several = inverted(model, 3, [[rows, {}]])
    assert torch.equal(several.context, rows)
    assert same(several.latents[:, 0].float(), plain.latents[:, 0].float(), 2e-3)
    assert not same(several.latents[:, 1:].float(), plain.latents[:, 1:].float(), 0.01)


def test_an_edit_that_reads_an_inversion_is_refused(model):
    inversion = inverted(model)
    with pytest.raises(ValueError, match="carries Plug-and-Play, which acts on an edit"):
        inverted(edited(model, PlugAndPlay(inversion)))


def test_an_edit_without_a_source_acts_in_the_inversion(model):
    plain, joint = inverted(model, 3), inverted(edited(model, ExtendedAttention()), 3)
    assert not same(joint.latents.float(), plain.latents.float(), 0.002)


def test_steps_that_explode_are_refused():
    model = patcher(SMALL)
    with torch.inference_mode(False), torch.no_grad():
        model.model.diffusion_model.out[2].weight.mul_(1e38)
    with pytest.raises(ValueError, match="stopped being finite at step") as caught:
        host.invert_clip(model, conditioning(1), clip(), InversionRequest(4, 4))
    assert "Invert Video" in str(caught.value) and "--force-fp32" in str(caught.value)


@pytest.mark.parametrize("sampler", ["euler", "ddim"])
def test_a_stock_ksampler_continues_from_it(model, sampler):
    """KSampler (Advanced), ddim_uniform, the same steps, no noise added; as SamplerCustom."""
    request = InversionRequest(10, 10, half=False)
    inversion = host.invert_clip(model, conditioning(1), clip(), request)
    first = float(inversion.sigmas[0])
    latent = inversion.sigma_space(inversion.locate(first), first) / SCALE
    out = comfy.sample.sample(
        model, torch.zeros_like(latent), 10, 1.0, sampler, "ddim_uniform", conditioning(1),
        conditioning(2), latent, disable_noise=True, disable_pbar=True, seed=0,
    )  # fmt: skip
    assert torch.equal(out, back(model, inversion))


def test_play_back_is_stock_sampling(model):
    inversion = host.invert_clip(
        model, conditioning(1), clip(), InversionRequest(10, 10, half=False)
    )
    assert same(host.play_back(model, inversion, "Check Inversion"), back(model, inversion))


def test_sdxl_keeps_pooled_and_sizes():
    model = patcher(SMALL_XL)
    spy = Spy()
    positive = conditioning(1)
    positive[0][1]["pooled_output"] = torch.randn(1, 1280)
    inversion = host.invert_clip(
        spy.on(model), positive, clip(), InversionRequest(3, 3, half=False)
    )
    assert inversion.pooled.shape == (1, 2816) and inversion.latent_format == "SDXL"
    assert torch.equal(spy.calls[0]["extra"]["y"][:1], inversion.pooled)
    out = host.play_back(model, inversion, "Check Inversion")
    assert out.shape == inversion.clean.shape and torch.isfinite(out).all()
