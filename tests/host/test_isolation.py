"""A model is left as it was found, whatever happens; sampling calls never share state."""

from __future__ import annotations

import copy

import comfy.model_management
import comfy.sampler_helpers
import pytest
import torch
from clips import SMALL, Spy, edited, run, same, sigmas_of, source, start_of
from comfy_api.torch_helpers import set_torch_compile_wrapper
from controls import controlled
from reweave.editing import host
from reweave.editing.extended_attention import ExtendedAttention
from reweave.editing.plug_and_play import PlugAndPlay
from reweave.editing.tokenflow import TokenFlow
from toy import conditioning, patcher, sample


@pytest.fixture(scope="module")
def model():
    return patcher(SMALL)


def both(inversion):
    return TokenFlow(inversion, interval=4, frames_per_pass=2), PlugAndPlay(inversion, 1.0, 1.0)


def hooks(model) -> int:
    modules = model.model.modules()
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in modules)


def options_of(model):
    return copy.deepcopy(model.model_options)


def test_parent_and_siblings_sample_as_without_the_pack(model):
    inversion = source(model)
    untouched = run(model, inversion)
    before, wrappers = options_of(model), copy.copy(model.wrappers)
    clone = edited(model, *both(inversion))
    assert clone.model_options == model.model_options == before
    assert model.wrappers == wrappers and host.edits_of(model) == ()
    out = run(clone, inversion)
    assert not same(out, untouched, 0.02)
    assert torch.equal(run(model, inversion), untouched)
    assert torch.equal(run(model.clone(), inversion), untouched)
    assert torch.equal(run(clone, inversion), out)
    assert torch.equal(run(model, inversion), untouched)
    assert clone.model_options == model.model_options == before
    assert hooks(model) == 0


def test_one_more_edit_leaves_the_model_it_was_put_on(model):
    inversion = source(model)
    flow, injection = both(inversion)
    first = edited(model, flow)
    alone = run(first, inversion)
    second = edited(first, injection)
    assert host.edits_of(first) == (flow,) and host.edits_of(second) == (flow, injection)
    assert not same(run(second, inversion), alone, 0.02)
    assert torch.equal(run(first, inversion), alone)


def test_an_evaluation_outside_of_sampling_passes_through(model):
    """Another node may call the model itself: without a session nothing is changed."""
    inversion = source(model)
    clone = edited(model, *both(inversion))
    x, t = inversion.latents[0], torch.full((5,), 3.0)
    context = inversion.context.expand(5, -1, -1)
    options = {"transformer_options": {"cond_or_uncond": [0], "uuids": [0], "sigmas": t}}
    plain = model.model.apply_model(x, t, c_crossattn=context, **options)
    options["transformer_options"]["wrappers"] = clone.wrappers
    assert torch.equal(clone.model.apply_model(x, t, c_crossattn=context, **options), plain)


class Broken(Exception):
    """What a foreign node raises."""


def breaking(error):
    """An attn2 patch that raises inside the UNet, where our feature hook is in place."""
    seen = []

    def patch(n, context, value, extra):
        seen.append(extra["block"])
        if len(seen) > 20 and extra["block"] == ("output", 1):
            raise error
        return n, context, value

    return patch


@pytest.mark.parametrize(
    "error", [Broken("no"), comfy.model_management.InterruptProcessingException()]
)
def test_an_error_inside_the_unet_leaves_the_model_clean(model, error):
    inversion = source(model)
    expected, untouched = run(model, inversion, *both(inversion)), run(model, inversion)
    clone = edited(model, *both(inversion))
    broken = clone.clone()
    broken.set_model_attn2_patch(breaking(error))
    before = options_of(clone)
    with pytest.raises(type(error)):
        run(broken, inversion)
    assert hooks(model) == 0
    assert clone.model_options == before
    assert torch.equal(run(model, inversion), untouched)
    assert torch.equal(run(clone, inversion), expected)


def test_the_stop_button(model):
    """As the server does it: a flag that the next operation of the network sees."""
    inversion = source(model)
    expected = run(model, inversion, *both(inversion))
    clone = edited(model, *both(inversion))
    stopped = clone.clone()

    def press(n, context, value, extra):
        comfy.model_management.interrupt_current_processing(True)
        return n, context, value

    stopped.set_model_attn2_patch(press)
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        run(stopped, inversion, latent=start_of(inversion) + 1.0)
    assert hooks(model) == 0
    assert torch.equal(run(clone, inversion), expected)


def test_two_samplers_share_one_model(model):
    """A sampler that starts inside a step of another one, as a nested graph might."""
    inversion = source(model)
    clone = edited(model, *both(inversion))
    prompts = conditioning(1), conditioning(6)
    alone = [run(clone, inversion, positive=prompt) for prompt in prompts]
    inner = []

    def nested(step, x0, x, total):
        if step == 1:
            running = model.model.current_patcher
            inner.append(run(clone, inversion, positive=prompts[1]))
            model.model.current_patcher = running  # ComfyUI drops it at the end of any sampling

    outer = run(clone, inversion, positive=prompts[0], callback=nested)
    assert torch.equal(inner[0], alone[1])
    assert torch.equal(outer, alone[0])


@pytest.fixture
def declared(monkeypatch):
    """The rows of every sampling call, as ComfyUI plans its memory."""
    shapes: list[int] = []
    estimate = comfy.sampler_helpers.estimate_memory

    def noted(model, noise_shape, conds):
        shapes.append(noise_shape[0])
        return estimate(model, noise_shape, conds)

    monkeypatch.setattr(comfy.sampler_helpers, "estimate_memory", noted)
    return shapes


def test_a_pass_is_declared_with_its_own_rows(model, declared):
    """The model must not be evicted for a batch that is never run."""
    inversion = source(model, 11)
    run(model, inversion, TokenFlow(inversion, interval=4, frames_per_pass=2))
    run(model, inversion)
    assert declared == [3, 11]


def test_a_controlnet_declares_the_whole_clip(model, declared):
    """ComfyUI runs it on all frames at once, so there must be room for them."""
    long = source(model, 11)
    flow = TokenFlow(long, interval=4, frames_per_pass=2)
    positive, negative = controlled(11)
    run(model, long, flow, positive=[positive], negative=[negative])
    assert declared == [11]


@pytest.mark.parametrize(("asked", "rows"), [(2, 2), (16, 11), (0, 11)])
def test_an_inversion_declares_its_passes(model, declared, asked, rows):
    clip = {"samples": start_of(source(model, 11))}
    request = host.InversionRequest(2, 2, frames_per_pass=asked)
    host.invert_clip(model, conditioning(1), clip, request)
    assert declared == [rows]
    declared.clear()
    host.invert_clip(edited(model, ExtendedAttention()), conditioning(1), clip, request)
    assert declared == [11], "an edit without a source runs the whole clip"


@pytest.mark.parametrize(("asked", "rows"), [(2, 2), (0, 11)])
def test_a_field_and_tokens_declare_their_passes(model, declared, asked, rows):
    inversion = source(model, 11)
    host.field_of(model, inversion, None, 4, 1, "random per step", "paper", asked, 4.0)
    host.extract(model, inversion, "", 1, asked, 4.0)
    assert declared == [rows, rows]


@pytest.mark.parametrize(("frames", "rows"), [(18, 16), (3, 3)])
def test_a_play_back_declares_its_passes(model, declared, frames, rows):
    host.play_back(model, source(model, frames, steps=1), "Check Inversion")
    assert declared == [rows]


@pytest.mark.parametrize("way", ["wrapper", "object patch"])
def test_a_compiled_unet_is_refused_where_features_are_injected(model, way):
    inversion = source(model)
    compiled = model.clone()
    if way == "wrapper":
        set_torch_compile_wrapper(compiled, backend="eager")
    else:
        unet = model.get_model_object("diffusion_model")
        compiled.add_object_patch("diffusion_model", torch.compile(unet, backend="eager"))
    with pytest.raises(
        ValueError, match=r"Plug-and-Play: the UNet is compiled.*Remove the compile"
    ):
        run(compiled, inversion, PlugAndPlay(inversion, 0.5, 0.8))


def test_spying_changes_nothing(model):
    inversion, spy = source(model), Spy()
    clone = edited(model, *both(inversion))
    expected = run(clone, inversion)
    watched = sample(spy.on(clone), start_of(inversion), sigmas_of(inversion), conditioning(1))
    assert torch.equal(watched, expected) and spy.calls
