"""Edits beside ControlNet, IPAdapter, LoRA and PAG nodes; and edits against plain definitions."""

from __future__ import annotations

from typing import Any

import comfy.ldm.modules.attention as comfy_attention
import comfy.model_base
import pytest
import torch
from clips import (
    ATTACH,
    SMALL,
    SMALL_XL,
    Spy,
    edited,
    run,
    same,
    sigmas_of,
    source,
    start_of,
)
from controls import controlled
from reweave.editing import host
from reweave.editing.anchor_attention import AnchorAttention
from reweave.editing.extended_attention import ExtendedAttention
from reweave.editing.latent_guidance import LatentGuidance
from reweave.editing.plug_and_play import PlugAndPlay
from reweave.editing.tokenflow import TokenFlow
from toy import conditioning, patcher, sample

KINDS = comfy.model_base.ModelType


@pytest.fixture(scope="module")
def model():
    return patcher(SMALL)


@pytest.fixture(autouse=True)
def no_cache(monkeypatch):
    monkeypatch.setattr(ATTACH, "step_cache", lambda *_: None)


def both(inversion, frames_per_pass=2):
    flow = TokenFlow(inversion, interval=4, frames_per_pass=frames_per_pass)
    return flow, PlugAndPlay(inversion, 0.7, 0.7)


def test_control_reaches_every_frame_with_its_own_rows(model):
    frames = 5
    inversion, spy = source(model, frames), Spy()
    positive, negative = controlled(frames)
    sample(
        spy.on(edited(model, *both(inversion))),
        start_of(inversion), sigmas_of(inversion), [positive], [negative],
    )  # fmt: skip
    sources = spy.source_calls(inversion)
    assert sources and all(call["control"] is None for call in sources)
    own = [call for call in spy.calls if call["control"] is not None]
    assert len(own) + len(sources) == len(spy.calls)
    for call in own:
        expected = [1.0 + f for _ in call["branches"] for f in call["frames"]]
        wave = float(torch.sin(torch.tensor(0.7)))
        assert torch.allclose(
            call["control"]["middle"][0][:, 1, 0, 0] / wave, torch.tensor(expected)
        )
        rows = [1.0 + c * frames + f for c in range(len(call["branches"])) for f in call["frames"]]
        assert torch.allclose(call["control"]["output"][0][:, 1, 0, 0] / wave, torch.tensor(rows))


def test_control_reaches_anchored_frames_in_any_order(model):
    """Rows of the clip stay with their frames when the anchor runs first."""
    inversion = source(model, 5)
    positive, negative = controlled(5)
    prompts: dict[str, Any] = {"positive": [positive], "negative": [negative]}
    guidance = LatentGuidance(0.1, 1.0)
    whole = run(model, inversion, AnchorAttention(anchor=3), guidance, **prompts)
    cut = AnchorAttention(anchor=3, frames_per_pass=2)
    assert same(run(model, inversion, cut, guidance, **prompts), whole)
    assert not same(run(model, inversion, AnchorAttention(anchor=3), guidance), whole, 0.02)


def test_control_acts_in_every_pass(model):
    """A list that one pass has emptied would change nothing in the next."""
    inversion = source(model)
    positive, negative = controlled(5)
    options: dict[str, Any] = {"positive": [positive], "negative": [negative]}
    whole = run(model, inversion, *both(inversion, 0), **options)
    assert same(run(model, inversion, *both(inversion, 1), **options), whole)
    without = run(model, inversion, *both(inversion, 0))
    change = (whole - without).square().mean((1, 2, 3)).sqrt()
    assert float(change.min()) > 0.02 * float(whole.std())


class ImagePrompt:
    """An attn2 replace that holds one embedding per frame, as IPAdapter nodes do."""

    def __init__(self, frames: int) -> None:
        generator = torch.Generator().manual_seed(4)
        self.embeds = torch.randn(frames, 3, 64, generator=generator)
        self.calls = 0

    def __deepcopy__(self, memo):
        return self

    def __call__(self, q, k, v, extra):
        self.calls += 1
        branches = len(extra["cond_or_uncond"])
        embeds = self.embeds
        parameters = extra.get("ad_params")
        if parameters is not None:
            assert parameters["full_length"] == len(embeds)
            embeds = embeds[parameters["sub_idxs"]]
        assert len(q) == branches * len(embeds)
        own = embeds.repeat(branches, 1, 1).to(q)
        plain = comfy_attention.optimized_attention(q, k, v, extra["n_heads"])
        return plain + comfy_attention.optimized_attention(q, own, own, extra["n_heads"])


def test_per_frame_image_prompts_meet_their_frames(model):
    inversion, prompt = source(model), ImagePrompt(5)
    adapted = model.clone()
    adapted.set_model_attn2_replace(prompt, "output", 0)
    whole = run(adapted, inversion, *both(inversion, 0))
    assert same(run(adapted, inversion, *both(inversion, 2)), whole)
    assert not same(run(model, inversion, *both(inversion, 0)), whole, 0.02)
    prompt.calls, spy = 0, Spy()
    sample(
        spy.on(edited(adapted, *both(inversion, 2))),
        start_of(inversion), sigmas_of(inversion), conditioning(1),
    )  # fmt: skip
    sources = len(spy.source_calls(inversion))
    assert sources and prompt.calls == len(spy.calls) - sources


def lora(model, name: str, strength: float):
    """A clone with a weight patch, and a network that has the patch in its weights."""
    key = f"diffusion_model.{name}"
    weight = dict(model.model.named_parameters())[key]
    patch = torch.randn(weight.shape, generator=torch.Generator().manual_seed(9)) * 0.2
    patched = model.clone()
    assert patched.add_patches({key: ("diff", (patch,))}, strength)
    baked = patcher(SMALL)
    with torch.inference_mode(False), torch.no_grad():
        dict(baked.model.named_parameters())[key].add_(strength * patch)
    return patched, baked


def test_lora_acts_in_every_pass(model):
    patched, baked = lora(model, "output_blocks.1.1.transformer_blocks.0.attn1.to_q.weight", 0.8)
    inversion = source(model)
    out = run(patched, inversion, *both(inversion))
    assert same(out, run(baked, inversion, *both(inversion)))
    assert not same(out, run(model, inversion, *both(inversion)), 0.01)


def test_lora_does_not_change_the_base_fingerprint(model, caplog):
    inversion = host.invert_clip(
        model, conditioning(1), {"samples": start_of(source(model, 2))},
        host.InversionRequest(3, 3),
    )  # fmt: skip
    patched, _ = lora(model, "time_embed.0.bias", 0.8)
    before = host.fingerprint(patched)
    run(patched, inversion, *both(inversion))  # leaves the patch on the shared weights
    assert host.fingerprint(patched) == before
    assert host.fingerprint(model) == inversion.fingerprint
    assert before.base == inversion.fingerprint.base and before.patches
    assert "LoRA" in caplog.text


def pag_like(q, k, v, extra):
    return v


@pytest.mark.parametrize("place", [("output", 2), ("output", 2, 0)])
def test_foreign_attn1_replace_is_refused_by_its_owner(model, place):
    inversion, other = source(model), model.clone()
    other.set_model_attn1_replace(pag_like, *place)
    with pytest.raises(ValueError, match=r"output\.2\.0 is replaced by another node") as caught:
        run(other, inversion, *both(inversion))
    assert __name__ in str(caught.value) and "Remove that node" in str(caught.value)


def test_foreign_attn1_replace_elsewhere_keeps_acting(model):
    """Plug-and-Play leaves the first decoder attention alone: another node may have it."""
    inversion, other = source(model), model.clone()
    other.set_model_attn1_replace(pag_like, "output", 0)
    edit = PlugAndPlay(inversion, 1.0, 1.0)
    assert not same(run(other, inversion, edit), run(model, inversion, edit), 0.01)


def test_foreign_attn1_patch_never_sees_empty_rows(model):
    seen = []

    def patch(n, context, value, extra):
        seen.append((len(n), len(context), len(value)))
        return n * 1.1, context, value

    inversion = source(model)
    for order in ("before", "after"):
        seen.clear()
        clone = model if order == "after" else model.clone()
        if order == "before":
            clone.set_model_attn1_patch(patch)
        clone = edited(clone, *both(inversion))
        if order == "after":
            clone.set_model_attn1_patch(patch)
        sample(clone, start_of(inversion), sigmas_of(inversion), conditioning(1))
        assert seen and all(min(rows) > 0 for rows in seen)


@pytest.mark.parametrize("edit", ["TokenFlow", "Extended Attention", "Anchor Attention"])
def test_one_frame_has_no_other_to_look_at(model, edit):
    """Plain sampling would come out, under the name of an edit: said before the model runs."""
    inversion, spy = source(model, 1), Spy()
    edits = {
        "TokenFlow": TokenFlow(inversion),
        "Extended Attention": ExtendedAttention("all frames"),
        "Anchor Attention": AnchorAttention(),
    }
    with pytest.raises(ValueError, match=f"^{edit}: expected at least 2 frames, got 1: .*remove"):
        sample(
            spy.on(edited(model, edits[edit])),
            start_of(inversion), sigmas_of(inversion), conditioning(1),
        )  # fmt: skip
    assert not spy.calls


def test_plug_and_play_takes_one_frame(model):
    inversion = source(model, 1)
    out = run(model, inversion, PlugAndPlay(inversion, 1.0, 1.0))
    assert not same(out, run(model, inversion), 0.02)


@pytest.mark.parametrize("kind", [KINDS.EPS, KINDS.V_PREDICTION])
@pytest.mark.parametrize("xl", [False, True])
def test_all_frames_as_key_frames_is_extended_attention(kind, xl):
    model = patcher(SMALL_XL if xl else SMALL, kind)
    inversion = source(model, 3)
    positive, negative = prompts(xl)
    options: dict[str, Any] = {"positive": positive, "negative": negative}
    joint = run(model, inversion, ExtendedAttention("all frames"), **options)
    flow = TokenFlow(inversion, interval=1, rule="paper")
    assert same(run(model, inversion, flow, **options), joint)
    assert not same(run(model, inversion, **options), joint, 0.02)


def prompts(xl: bool):
    generator = torch.Generator().manual_seed(8)
    both = [conditioning(1), conditioning(2)]
    for ((_, settings),) in both if xl else []:
        settings["pooled_output"] = torch.randn(1, 1280, generator=generator)
    return both


def test_sdxl_layout_runs_every_block_and_tells_the_source_its_own_pooled():
    model = patcher(SMALL_XL)
    inversion, spy = source(model, 5), Spy()
    positive, negative = prompts(True)
    out = sample(
        spy.on(edited(model, *both(inversion))),
        start_of(inversion), sigmas_of(inversion), positive, negative,
    )  # fmt: skip
    assert torch.isfinite(out).all() and len(out) == 5
    sources = spy.source_calls(inversion)
    assert sources
    for call in sources:
        expected = inversion.pooled.expand(len(call["frames"]), -1)
        assert torch.equal(call["extra"]["y"], expected)
    sites = host.sites_of(model)
    assert max(site.transformer for site in sites) == 2
    owned = spy.calls[-1]["options"]["patches_replace"]["attn1"]
    assert {tuple(site) for site in sites} <= set(owned)
    assert same(
        run(model, inversion, *both(inversion, 0), positive=positive, negative=negative), out
    )


def test_injecting_a_clip_into_itself_changes_nothing(model):
    """From the source's own latent with its own prompt, injected features are the own ones."""
    inversion = source(model)
    one_step = inversion.sigmas[:2]
    options: dict[str, Any] = {
        "positive": [[inversion.context, {}]],
        "cfg": 1.0,
        "sigmas": one_step,
    }
    plain = run(model, inversion, **options)
    assert same(run(model, inversion, PlugAndPlay(inversion, 1.0, 1.0), **options), plain)
    foreign = source(model, seed=20)
    changed = run(model, inversion, PlugAndPlay(foreign, 1.0, 1.0), **options)
    assert not same(changed, plain, 0.02)


@pytest.mark.parametrize("most", [2, 3, 4, 9])
def test_runs_of_key_frames(model, most):
    inversion = source(model, 13)
    options: dict[str, Any] = {"interval": 4, "frames_per_pass": 4}
    joint = run(model, inversion, TokenFlow(inversion, **options))
    limited = run(model, inversion, TokenFlow(inversion, max_joint_key_frames=most, **options))
    assert limited.shape == joint.shape
    assert torch.equal(limited, joint) == (most >= 4)
    if most < 4:
        plain = run(model, inversion)
        change = (limited - plain).square().mean((1, 2, 3)).sqrt()
        assert float(change.min()) > 0.02 * float(joint.std()), "a frame was left unedited"
