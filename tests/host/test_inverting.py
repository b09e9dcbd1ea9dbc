"""Invert Video: against plain formulas, the recording, and what samples on from it."""

from __future__ import annotations

import math

import comfy.model_base
import comfy.sample
import comfy.samplers
import pytest
import torch
from clips import SMALL, SMALL_XL, Spy, clip_latents, edited, same
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


@pytest.fixture
def spied(model):
    """A function that inverts and returns (inversion, number of calls of the UNet)."""
    unet = model.get_model_object("diffusion_model")
    calls = []
    handle = unet.register_forward_pre_hook(lambda module, inputs: calls.append(len(inputs[0])))

    def invert(latent=None, prompt=1, on=model, **settings):
        calls.clear()
        request = InversionRequest(**({"steps": 4, "saved_steps": 4} | settings))
        found = host.invert_clip(on, conditioning(prompt), latent or clip(), request)
        return found, list(calls)

    yield invert
    handle.remove()


def test_the_same_inversion_is_not_made_twice(spied, user_folders):
    first, calls = spied()
    assert calls == [2] * 4
    again, calls = spied()
    assert calls == [] and again.key == first.key
    assert torch.equal(again.latents, first.latents) and again.convention == first.convention
    assert len(list((user_folders / "user" / "reweave").rglob("*.safetensors"))) == 1
    assert not list(user_folders.rglob("*.tmp"))


@pytest.mark.parametrize(
    "change", [{"prompt": 2}, {"steps": 8}, {"convention": "current"}, {"half": False},
               {"latent": {"samples": clip_latents(2, seed=9) / SCALE}}, {"saved_steps": 2}]
)  # fmt: skip
def test_other_settings_are_another_inversion(spied, change):
    spied()
    assert spied(**change)[1]


def test_frames_per_pass_is_the_same_inversion(spied, model, user_folders):
    whole, calls = spied(latent=clip(5), half=False)
    assert spied(latent=clip(5), half=False, frames_per_pass=2)[1] == []
    for file in user_folders.rglob("*.safetensors"):
        file.unlink()
    cut, calls = spied(latent=clip(5), half=False, frames_per_pass=2)
    assert calls == [2, 2, 1] * 4
    assert same(cut.latents, whole.latents)


def test_a_broken_cache_file_is_made_again(spied, user_folders):
    first, _ = spied()
    (file,) = (user_folders / "user" / "reweave").rglob("*.safetensors")
    file.write_bytes(file.read_bytes()[:500])
    again, calls = spied()
    assert calls and torch.equal(again.latents, first.latents)


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
    assert "Invert Video" in str(caught.value) and "multiple of saved_steps" in str(caught.value)


@pytest.mark.parametrize(
    ("latent", "text"),
    [(torch.ones(1, 4, 3, 8, 8), "got 5 dimensions"),
     (torch.full((2, 4, 8, 8), float("nan")), "NaN or infinity")],
)  # fmt: skip
def test_latents_that_cannot_be_inverted(model, latent, text):
    with pytest.raises(ValueError, match=f"Invert Video: .*{text}"):
        host.invert_clip(model, conditioning(1), {"samples": latent}, InversionRequest(4, 4))


def test_an_edit_that_reads_an_inversion_is_refused(model, spied):
    inversion, _ = spied()
    with pytest.raises(ValueError, match="carries Plug-and-Play, which acts on an edit"):
        spied(on=edited(model, PlugAndPlay(inversion)))


def test_an_edit_without_a_source_acts_in_the_inversion(model, spied):
    plain, _ = spied(latent=clip(3))
    joint, _ = spied(latent=clip(3), on=edited(model, ExtendedAttention()))
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
