"""Anchor Attention beyond the recording: chunks, refreshed anchors, given anchors, composition."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from clips import (
    SMALL,
    SMALL_XL,
    Spy,
    edited,
    no_free_memory,
    run,
    same,
    sigmas_of,
    source,
    start_of,
)
from reweave.editing.anchor_attention import KEYS, AnchorAttention
from reweave.editing.extended_attention import ExtendedAttention
from reweave.editing.latent_guidance import LatentGuidance
from reweave.editing.plug_and_play import PlugAndPlay
from reweave.editing.tokenflow import TokenFlow
from toy import conditioning, patcher, sample

FRAMES = 7


@pytest.fixture(scope="module")
def model():
    return patcher(SMALL)


@pytest.fixture(scope="module")
def inversion(model):
    return source(model, FRAMES)


@pytest.mark.parametrize("keys", KEYS)
@pytest.mark.parametrize(
    "options",
    [{}, {"anchor": 4}, {"refresh_every": 2, "cross_fade": 2}, {"own_tokens": True, "anchor": 2}],
)
def test_frames_per_pass_does_not_matter(model, inversion, keys, options):
    whole = run(model, inversion, AnchorAttention(keys=keys, **options))
    plain = run(model, inversion)
    assert not same(whole, plain, 0.05)
    for size in (1, 2, 3):
        edit = AnchorAttention(keys=keys, frames_per_pass=size, **options)
        assert same(run(model, inversion, edit), whole)


def test_every_frame_runs_once_per_step_the_anchor_first(model, inversion):
    spy = Spy()
    edit = AnchorAttention(anchor=3, frames_per_pass=3)
    sample(spy.on(edited(model, edit)), start_of(inversion), sigmas_of(inversion), conditioning())
    first = [call["frames"] for call in spy.calls if call["sigma"] == spy.calls[0]["sigma"]]
    assert first == [[3, 0, 1], [2, 4, 5], [6]]


def test_only_what_later_frames_read_is_handed_on():
    plan = AnchorAttention(anchor=3).plan(7)
    assert plan.rows == [(3,), (3, 0), (3, 1), (3,), (3,), (3, 4), (3, 5)]
    assert plan.handed_on([3, 0, 1]) == [1, 3]
    assert plan.handed_on([2, 4, 5]) == [3, 5]
    assert plan.handed_on([6]) == []


def test_a_refreshed_anchor_hands_the_look_on():
    plan = AnchorAttention(refresh_every=3, cross_fade=2).plan(8)
    assert plan.rows == [(0,), (0,), (0, 1), (0, 2), (3,), (3, 4), (3, 5), (6,)]
    assert plan.fades == {4: ((0, 3), 0.5), 7: ((3, 6), 0.5)}
    assert plan.handed_on([0, 1, 2, 3]) == [0, 3]
    assert AnchorAttention(keys="previous only", refresh_every=3).plan(8).fades == {}


def test_a_cross_fade_mixes_the_old_and_the_new_anchor(model, inversion):
    slow, fast = (
        run(model, inversion, AnchorAttention(refresh_every=2, cross_fade=fade)) for fade in (2, 1)
    )
    assert same(slow[:3], fast[:3])
    assert not same(slow[3:4], fast[3:4], 1e-3)


def test_anchor_frame_is_edited_alone(model, inversion):
    out = run(model, inversion, AnchorAttention(anchor=2))
    assert same(out[2:3], run(model, inversion)[2:3])


def test_split_branches_give_the_same(model, inversion, monkeypatch):
    whole = run(model, inversion, AnchorAttention())
    no_free_memory(monkeypatch)
    assert same(run(model, inversion, AnchorAttention()), whole)


def spied_run(model, inversion, cfg, frames_per_pass=0):
    """(LATENT, inner calls) of Anchor Attention with Latent Guidance."""
    spy = Spy()
    edits = AnchorAttention(anchor=2, frames_per_pass=frames_per_pass), LatentGuidance(0.1, 1.0)
    out = sample(
        spy.on(edited(model, *edits)),
        start_of(inversion), sigmas_of(inversion), conditioning(1), cfg=cfg,
    )  # fmt: skip
    return out, spy.calls


@pytest.mark.parametrize("size", [1, 3])
def test_guidance_one_runs_one_branch_in_any_chunks(model, inversion, size):
    whole, calls = spied_run(model, inversion, 1.0)
    assert [call["branches"] for call in calls] == [[0]] * 3
    cut, calls = spied_run(model, inversion, 1.0, size)
    assert same(cut, whole)
    assert {tuple(call["branches"]) for call in calls} == {(0,)}
    assert all(torch.equal(call["context"][:1], conditioning(1)[0][0]) for call in calls)
    order = [2, 0, 1, 3, 4, 5, 6]
    parts = [order[i : i + size] for i in range(0, FRAMES, size)]
    assert [call["frames"] for call in calls] == parts * 3
    # what this must not agree with: two branches, and either edit left out
    guided, calls = spied_run(model, inversion, 1.5)
    assert {tuple(sorted(call["branches"])) for call in calls} == {(0, 1)}
    assert not same(guided, whole, 0.02)
    for alone in (AnchorAttention(anchor=2), LatentGuidance(0.1, 1.0)):
        assert not same(run(model, inversion, alone, cfg=1.0), whole, 0.02)


def test_a_given_anchor_comes_out_as_it_is_and_leads_the_others(model, inversion):
    given = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(3))
    edit = AnchorAttention(anchor=1, edited_anchor=given)
    out = run(model, inversion, edit)
    assert torch.allclose(out[1:2] * 0.18215, given, atol=1e-4)
    free = run(model, inversion, AnchorAttention(anchor=1))
    assert not same(out[2:], free[2:], 1e-3)


def test_with_plug_and_play_in_any_order_and_any_chunks(model, inversion):
    injection, anchored = PlugAndPlay(inversion, 0.7, 0.7), AnchorAttention()
    whole = run(model, inversion, injection, anchored)
    assert same(run(model, inversion, anchored, injection), whole)
    assert same(run(model, inversion, injection, AnchorAttention(frames_per_pass=2)), whole)
    assert not same(whole, run(model, inversion, anchored), 0.02)
    assert not same(whole, run(model, inversion, injection), 0.02)


def test_a_network_of_the_sdxl_layout(model):
    large = patcher(SMALL_XL)
    inversion = source(large, 3)
    positive = [[conditioning()[0][0], {"pooled_output": torch.zeros(1, 1280)}]]
    options: dict[str, Any] = {"positive": positive, "negative": positive}
    out = run(large, inversion, AnchorAttention(), **options)
    assert not same(out, run(large, inversion, **options), 0.02)
    assert same(run(large, inversion, AnchorAttention(frames_per_pass=1), **options), out)


def test_a_mask_locks_what_lies_outside(model, inversion):
    mask = torch.zeros(1, 64, 64)
    mask[:, :, :32] = 1
    out = run(model, inversion, AnchorAttention(inversion=inversion, mask=mask))
    clip = inversion.clean / 0.18215
    assert same(out[..., 4:], clip[..., 4:], 1e-5)
    assert not same(out[..., :4], clip[..., :4], 0.2)


@pytest.mark.parametrize(
    ("edit", "frames", "words"),
    [
        (AnchorAttention(), 1, "Anchor Attention: expected at least 2 frames, got 1"),
        (AnchorAttention(anchor=5), 5, r"'anchor' to be a frame of the clip \(0 to 4\), got 5"),
        (
            AnchorAttention(edited_anchor=torch.zeros(2, 4, 8, 8)),
            3,
            "'edited_anchor' to be one latent of size 4x8x8, got 2x4x8x8",
        ),
        (
            AnchorAttention(mask=torch.ones(1, 8, 8)),
            3,
            "Anchor Attention: a mask keeps .* no inversion is connected",
        ),
    ],
)
def test_refusals_before_any_call(model, edit, frames, words):
    inversion, spy = source(model, frames), Spy()
    with pytest.raises(ValueError, match=words):
        sample(
            spy.on(edited(model, edit)), start_of(inversion), sigmas_of(inversion), conditioning()
        )
    assert not spy.calls


@pytest.mark.parametrize("other", ["TokenFlow", "Extended Attention"])
def test_two_owners_of_the_attention_are_refused(model, inversion, other):
    edit = TokenFlow(inversion) if other == "TokenFlow" else ExtendedAttention()
    with pytest.raises(ValueError, match=f"Anchor Attention and {other} both decide"):
        edited(model, edit, AnchorAttention())
