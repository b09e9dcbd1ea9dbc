"""A temporal UNet on a MODEL: what it changes, what it shares, and what it leaves alone."""

from __future__ import annotations

import sys

import comfy.model_management
import comfy.patcher_extension
import pytest
import torch
from clips import SMALL, Spy, clip_latents, no_free_memory, run, same, source, start_of
from reweave.editing import host
from reweave.editing.host.temporal_unet import KEY, TemporalEdit, apply_temporal
from reweave.editing.latent_guidance import LatentGuidance
from reweave.editing.plug_and_play import PlugAndPlay
from reweave.editing.temporal_unet.plan import Architecture
from reweave.editing.tokenflow import TokenFlow
from reweave.editing.types import Fingerprint
from tcve import trained
from toy import conditioning, patcher

MODULE = sys.modules["reweave.editing.host.temporal_unet"]
KINDS = [
    Architecture(),
    Architecture(down_units=True),
    Architecture("published", "correct"),
    Architecture("published", "published code"),
]
NAMES = ["paper", "paper with down units", "published, correct", "published"]


@pytest.fixture(scope="module")
def model():
    return patcher(SMALL)


def on(model, architecture=KINDS[0], strength=1.0, frames=4, **options):
    return apply_temporal(
        model, TemporalEdit(trained(model, architecture, frames), strength, **options)
    )


class Runs:
    """Counts how often the temporal UNet looked at a clip, and at which ones."""

    def __init__(self, monkeypatch):
        self.clips = []
        features = MODULE.Features

        def counted(net, clip, *args):
            self.clips.append(clip)
            return features(net, clip, *args)

        monkeypatch.setattr(MODULE, "Features", counted)


@pytest.mark.parametrize("kind", KINDS, ids=NAMES)
def test_it_changes_the_clip_and_nothing_else(model, kind):
    inversion = source(model, frames=4)
    untouched = run(model, inversion)
    before = {name: value.clone() for name, value in model.model.state_dict().items()}
    clone = on(model, kind)
    out = run(clone, inversion)
    assert bool(torch.isfinite(out).all()) and not same(out, untouched, 0.02)
    assert torch.equal(run(clone, inversion), out)
    assert torch.equal(run(model, inversion), untouched)
    assert torch.equal(run(model.clone(), inversion), untouched)
    assert clone.model_options == model.model_options
    assert model.get_attachment(KEY) is None and KEY not in model.additional_models
    after = model.model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    modules = model.model.modules()
    assert sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in modules) == 0


@pytest.mark.parametrize("kind", KINDS, ids=NAMES)
def test_strength_0_is_bit_for_bit_not_connected(model, kind):
    inversion = source(model, frames=4)
    assert torch.equal(run(on(model, kind, strength=0.0), inversion), run(model, inversion))


def test_strength_scales_what_is_fused(model):
    inversion = source(model, frames=4)
    plain = run(model, inversion)
    small, half, full = (run(on(model, strength=s), inversion) - plain for s in (0.01, 0.5, 1.0))
    assert float(small.norm()) < 0.1 * float(half.norm()) < 0.1 * float(full.norm())


def test_an_untrained_network_changes_nothing_but_rounding(model):
    inversion = source(model, frames=4)
    payload = trained(model, KINDS[0])
    for name, value in payload.weights.items():
        if name.startswith("fusion.") and ".conv." in name:
            value.zero_()
    out = run(apply_temporal(model, TemporalEdit(payload)), inversion)
    assert torch.equal(out, run(model, inversion))


@pytest.mark.parametrize("kind", KINDS, ids=NAMES)
def test_features_are_computed_once_per_step_and_shared_by_both_branches(model, kind, monkeypatch):
    inversion = source(model, frames=4)
    clone, runs = on(model, kind), Runs(monkeypatch)
    joint = run(clone, inversion)
    assert len(runs.clips) == len(inversion.sigmas)
    no_free_memory(monkeypatch)
    runs.clips.clear()
    assert same(run(clone, inversion), joint)
    assert len(runs.clips) == len(inversion.sigmas), "once, although the branches were split"


def test_it_is_loaded_counted_and_offloaded_with_the_model(model, monkeypatch):
    inversion = source(model, frames=4)
    loaded = []
    load = comfy.model_management.load_models_gpu

    def spy(models, *args, **kwargs):
        loaded.append([type(m.model).__name__ for m in models])
        return load(models, *args, **kwargs)

    monkeypatch.setattr(comfy.model_management, "load_models_gpu", spy)
    clone = on(model)
    run(clone, inversion)
    assert loaded == [["BaseModel", "TemporalNetwork"]]
    (own,) = clone.get_additional_models_with_key(KEY)
    payload = clone.get_attachment(KEY).payload
    assert own.model_size() == payload.bytes == sum(v.nbytes for v in own.model.parameters())
    known = [entry.model for entry in comfy.model_management.current_loaded_models]
    assert own in known and own.loaded_size() == own.model_size()
    comfy.model_management.unload_all_models()
    assert own.loaded_size() == clone.loaded_size() == 0
    assert not comfy.model_management.current_loaded_models
    run(clone, inversion)
    assert own.loaded_size() == own.model_size(), "and loaded again"


def test_sites(model):
    inversion = source(model, frames=4)
    everywhere = run(on(model), inversion)
    named = on(model, sites=("middle", "up0", "up1"))
    assert torch.equal(run(named, inversion), everywhere)
    assert not same(run(on(model, sites=("middle",)), inversion), everywhere, 1e-3)
    assert torch.equal(run(on(model, sites=()), inversion), run(model, inversion))


@pytest.mark.parametrize("order", ["before", "after"])
@pytest.mark.parametrize("kind", KINDS[:3:2], ids=NAMES[:3:2])
def test_it_composes_with_token_flow_and_plug_and_play(model, kind, order, monkeypatch):
    inversion = source(model, frames=6, steps=2)
    edits = TokenFlow(inversion, interval=3, frames_per_pass=2), PlugAndPlay(inversion, 0.5, 0.5)

    def both():
        start = on(model, kind) if order == "before" else model
        for edit in edits:
            start = host.attach(start, edit)
        return start if order == "before" else on(start, kind)

    clone, spy, runs = both(), Spy(), Runs(monkeypatch)
    out = run(spy.on(clone), inversion)
    alone = run(model, inversion, *edits)
    assert not same(out, alone, 0.02) and not same(out, run(on(model, kind), inversion), 0.02)
    # one look at the clip and one at the source in every step, whatever passes ran
    steps = len(inversion.sigmas)
    assert steps <= len(runs.clips) <= 2 * steps + 3
    assert all(clip.shape[1] == 6 for clip in runs.clips)
    sizes = {len(call["frames"]) for call in spy.calls}
    assert sizes == {2, 6}, "key frames, and then the whole clip although 2 frames were asked for"


def test_the_order_of_nodes_does_not_matter(model):
    inversion = source(model, frames=4)
    edit = PlugAndPlay(inversion, 0.5, 0.5)
    first = run(host.attach(on(model), edit), inversion)
    last = run(on(host.attach(model, edit)), inversion)
    assert torch.equal(first, last)


@pytest.mark.parametrize("kind", KINDS[:3:2], ids=NAMES[:3:2])
def test_guidance_by_gradients_goes_through_it(model, kind):
    """As Pix2Video's paper: the gradient of the prediction, here of the fused network."""
    inversion = source(model, frames=3, steps=2)
    guidance = LatentGuidance(strength=0.5, until=1.0, mode="gradient")
    fused = on(model, kind)
    guided = run(fused, inversion, guidance)
    assert bool(torch.isfinite(guided).all())
    assert not same(guided, run(fused, inversion), 1e-3)
    assert not same(guided, run(model, inversion, guidance), 1e-3)


def test_frames_per_pass_does_not_change_the_result(model):
    inversion = source(model, frames=5)
    results = [
        run(on(model), inversion, TokenFlow(inversion, interval=5, frames_per_pass=n))
        for n in (1, 2, 0)
    ]
    assert torch.equal(results[0], results[1]) and torch.equal(results[1], results[2])


def test_another_temporal_unet_does_not_find_token_flows_cached_features(model):
    inversion = source(model, frames=4, steps=2)
    flow = TokenFlow(inversion, interval=2)
    plain = run(model, inversion, flow)
    fused = run(on(model), inversion, flow)
    assert torch.equal(run(model, inversion, flow), plain)
    assert torch.equal(run(on(model), inversion, flow), fused)
    weak = run(on(model, strength=0.5), inversion, flow)
    assert not same(weak, fused, 1e-3)


def test_the_inversion_runs_with_it(model):
    """As published: the clip goes into noise through the same network that edits it."""
    latent = {"samples": clip_latents(5)}
    request = host.InversionRequest(4, 4, frames_per_pass=2)
    plain = host.invert_clip(model, conditioning(), latent, request)
    fused = host.invert_clip(on(model), conditioning(), latent, request)
    assert not same(fused.latents.float(), plain.latents.float(), 0.02)
    whole = host.InversionRequest(4, 4, frames_per_pass=0)
    again = host.invert_clip(on(model), conditioning(), latent, whole)
    assert torch.equal(again.latents, fused.latents)


def test_an_error_inside_the_unet_leaves_the_model_clean(model):
    inversion = source(model, frames=4)
    clone, untouched = on(model, KINDS[2]), run(model, inversion)
    broken = clone.clone()

    def patch(n, context, value, extra):
        if extra["block"] == ("output", 1):
            raise comfy.model_management.InterruptProcessingException
        return n, context, value

    broken.set_model_attn2_patch(patch)
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        run(broken, inversion)
    modules = model.model.modules()
    assert sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in modules) == 0
    assert KEY not in clone.model_options["transformer_options"]
    assert torch.equal(run(model, inversion), untouched)


def test_an_evaluation_outside_of_sampling_passes_through(model):
    inversion = source(model, frames=4)
    clone = on(model)
    x, t = inversion.latents[0], torch.full((4,), 3.0)
    context = inversion.context.expand(4, -1, -1)
    options = {"transformer_options": {"cond_or_uncond": [0], "uuids": [0], "sigmas": t}}
    plain = model.model.apply_model(x, t, c_crossattn=context, **options)
    options["transformer_options"]["wrappers"] = clone.wrappers
    assert torch.equal(clone.model.apply_model(x, t, c_crossattn=context, **options), plain)


def test_what_cannot_work_is_said_before_sampling(model):
    payload = trained(model, KINDS[0])
    with pytest.raises(ValueError, match=r"Apply Temporal UNet: this MODEL already has a temporal"):
        on(on(model))
    other = patcher(SMALL | {"channel_mult": [1, 4]})
    trained_with = r"Apply Temporal UNet: the temporal UNet was trained beside a UNet with other "
    with pytest.raises(
        ValueError,
        match=trained_with
        + r"channels of the encoder \(32-down-64\) than this SD15 model's \(32-do",
    ):
        apply_temporal(other, TemporalEdit(payload))
    with pytest.raises(
        ValueError,
        match=trained_with
        + r"input channels \(4\) than this SD15 model's \(9\). Load the checkpoin",
    ):
        apply_temporal(patcher(SMALL | {"in_channels": 9}), TemporalEdit(payload))
    plain = patcher(SMALL | {"transformer_depth": [0, 1], "transformer_depth_output": [1, 1, 0, 0]})
    with pytest.raises(
        ValueError, match=trained_with + r"transformer blocks \(input_1_0: 32\) than .* \(input_3_"
    ):
        apply_temporal(plain, TemporalEdit(trained(model, KINDS[2])))
    with pytest.raises(ValueError, match=r"another checkpoint of the same kind"):
        apply_temporal(patcher(SMALL, seed=1), TemporalEdit(payload))
    lora = trained(model, KINDS[0], fingerprint=Fingerprint(host.fingerprint(model).base, "lora"))
    assert apply_temporal(model, TemporalEdit(lora)) is not model, "another LoRA is only a note"
    half = trained(model, KINDS[0], fingerprint=Fingerprint("rounded", dtype="bfloat16"))
    assert apply_temporal(model, TemporalEdit(half)) is not model, "rounding hides the checkpoint"
    inversion = source(model, frames=4)
    area = conditioning()
    area[0][1]["area"] = (4, 4, 0, 0)
    with pytest.raises(ValueError, match=r"Apply Temporal UNet: area conditioning"):
        run(on(model), inversion, positive=area, latent=start_of(inversion))
