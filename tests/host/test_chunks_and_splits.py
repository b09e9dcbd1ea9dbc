"""How the work is cut never changes the result: frames per pass, split calls, warm caches."""

from __future__ import annotations

import pytest
import torch
from clips import ATTACH, SMALL, Spy, edited, no_free_memory, run, same, sigmas_of, source, start_of
from reweave.editing import host
from reweave.editing.extended_attention import ExtendedAttention
from reweave.editing.plug_and_play import PlugAndPlay
from reweave.editing.session import Session
from reweave.editing.tokenflow import TokenFlow
from reweave.editing.tokens import propagated_field
from toy import conditioning, patcher, sample


@pytest.fixture(scope="module")
def model():
    return patcher(SMALL)


@pytest.fixture
def no_cache(monkeypatch):
    """Every run computes its own source features."""
    monkeypatch.setattr(ATTACH, "step_cache", lambda *_: None)


@pytest.fixture
def source_passes(monkeypatch):
    """Source passes of every session that ends."""
    counts: list[int] = []
    evaluate = Session.evaluate

    def counted(self, call):
        before = self.source_passes
        out = evaluate(self, call)
        counts.append(self.source_passes - before)
        return out

    monkeypatch.setattr(Session, "evaluate", counted)
    return counts


def both(inversion, frames_per_pass=8, **options):
    flow = TokenFlow(inversion, interval=4, frames_per_pass=frames_per_pass, **options)
    return flow, PlugAndPlay(inversion, 0.7, 0.7)


@pytest.mark.parametrize("frames", [2, 5, 11])
def test_frames_per_pass_does_not_matter_and_no_frame_is_dropped(model, no_cache, frames):
    inversion = source(model, frames)
    whole = run(model, inversion, *both(inversion, 0))
    assert len(whole) == frames
    for size in (1, 3, 8):
        assert same(run(model, inversion, *both(inversion, size)), whole)
    plain = run(model, inversion)
    changed = (whole - plain).square().mean((1, 2, 3)).sqrt()
    assert float(changed.min()) > 0.05 * float(whole.std()), "a frame was left unedited"


def test_every_frame_is_run_once_per_step(model, no_cache):
    inversion, spy = source(model, 11), Spy()
    sample(
        spy.on(edited(model, *both(inversion, 3))),
        start_of(inversion), sigmas_of(inversion), conditioning(1),
    )  # fmt: skip
    own = [call for call in spy.calls if call["branches"] != [0]]
    first = [call["frames"] for call in own if call["sigma"] == own[0]["sigma"]]
    key_frames = both(inversion)[0].plan(0).key_frames.tolist()
    assert first[0] == key_frames
    assert sorted(frame for part in first[1:] for frame in part) == list(range(11))
    assert max(map(len, first[1:])) == 3


@pytest.mark.parametrize("edit", ["both", "injection", "extended"])
def test_split_of_cond_and_uncond_does_not_matter(
    model, no_cache, monkeypatch, source_passes, edit
):
    inversion = source(model)
    edits = {
        "both": both(inversion),
        "injection": both(inversion)[1:],
        "extended": (ExtendedAttention("first and previous"),),
    }[edit]
    joint = run(model, inversion, *edits)
    assert len(source_passes) == 3
    source_passes.clear()
    spy = Spy()
    no_free_memory(monkeypatch)
    split = sample(
        spy.on(edited(model, *edits)), start_of(inversion), sigmas_of(inversion), conditioning(1)
    )
    assert {tuple(call["branches"]) for call in spy.calls} == {(0,), (1,)}
    assert same(split, joint)
    expected = {"both": [1, 0] * 3, "injection": [1, 0] * 2 + [0, 0], "extended": [0] * 6}[edit]
    assert source_passes == expected
    calls = {"both": 2 * 3, "injection": 2, "extended": 0}[edit]
    assert len(spy.source_calls(inversion)) == calls


@pytest.mark.parametrize("tokens", [14, 63])
def test_prompts_of_different_length(model, no_cache, source_passes, tokens):
    """14 against 7 tokens are tiled into one call, 63 against 7 come in two."""
    inversion, spy = source(model), Spy()
    edits = both(inversion)
    out = sample(
        spy.on(edited(model, *edits)),
        start_of(inversion), sigmas_of(inversion), conditioning(1, tokens),
    )  # fmt: skip
    # by hand: guidance from one conditioning at a time
    calls = [call for call in spy.calls if len(call["branches"]) == 2]
    assert bool(calls) == (tokens == 14)
    assert sum(source_passes) == 3
    assert torch.isfinite(out).all()
    first = float(inversion.sigmas[0])
    one_step = torch.tensor([first, float(inversion.sigmas[1])])
    guided = run(model, inversion, *edits, positive=conditioning(1, tokens), sigmas=one_step)
    alone = [
        run(model, inversion, *edits, positive=prompt, sigmas=one_step, cfg=1.0)
        for prompt in (conditioning(1, tokens), conditioning(2))
    ]
    expected = alone[1] + 7.5 * (alone[0] - alone[1])
    assert same(guided, expected)


def test_guidance_one_runs_one_branch(model, no_cache):
    inversion, spy = source(model), Spy()
    sample(
        spy.on(edited(model, *both(inversion))),
        start_of(inversion), sigmas_of(inversion), conditioning(1), cfg=1.0,
    )  # fmt: skip
    assert {tuple(call["branches"]) for call in spy.calls} == {(0,)}


def test_warm_cache_equals_cold_run_bit_for_bit(model, source_passes):
    inversion = source(model)
    cold = run(model, inversion, *both(inversion))
    assert source_passes == [1, 1, 1]
    source_passes.clear()
    warm = run(model, inversion, *both(inversion))
    assert source_passes == [0, 0, 0]
    assert torch.equal(cold, warm)


def test_another_prompt_reuses_the_cache(model, source_passes, monkeypatch):
    inversion = source(model)
    run(model, inversion, *both(inversion))
    source_passes.clear()
    other = run(model, inversion, *both(inversion), prompt=9)
    assert source_passes == [0, 0, 0]
    monkeypatch.setattr(ATTACH, "step_cache", lambda *_: None)
    assert torch.equal(other, run(model, inversion, *both(inversion), prompt=9))


@pytest.mark.parametrize("change", ["seed", "interval", "rule", "clip", "model"])
def test_what_changes_the_field_misses_the_cache(model, source_passes, change):
    inversion = source(model)
    run(model, inversion, *both(inversion))
    source_passes.clear()
    options = {"seed": {"keyframe_seed": 3}, "rule": {"rule": "paper"}}.get(change, {})
    clip = source(model, seed=8) if change == "clip" else inversion
    flow = TokenFlow(clip, interval=2 if change == "interval" else 4, **options)
    run(patcher(SMALL, seed=4) if change == "model" else model, clip, flow)
    assert source_passes == [1, 1, 1]


def test_features_missing_from_the_cache_are_added(model, source_passes, monkeypatch):
    """TokenFlow alone first, then with Plug-and-Play: only the first steps need the source."""
    inversion = source(model)
    run(model, inversion, both(inversion)[0])
    source_passes.clear()
    out = run(model, inversion, *both(inversion))
    assert source_passes == [1, 1, 0]
    monkeypatch.setattr(ATTACH, "step_cache", lambda *_: None)
    assert torch.equal(out, run(model, inversion, *both(inversion)))


@pytest.mark.parametrize("half", [False, True])
def test_connected_field_equals_running_without_one(model, no_cache, half, source_passes):
    inversion = source(model)
    flow, injection = both(inversion)

    def walk(steps, visit):
        host.walk_source(model, inversion, steps, visit, "NN Field")

    field = propagated_field(walk, inversion, range(3), 4, flow.keyframe_seed, flow.rule)
    assert field.covers([0, 1, 2], host.sites_of(model))
    edits = (flow,) if half else (flow, injection)
    without = run(model, inversion, *edits)
    source_passes.clear()
    # the node's own settings lose against the field's
    other = TokenFlow(inversion, interval=2, keyframe_seed=77, rule="paper", nn_field=field)
    out = run(model, inversion, other, *edits[1:])
    assert torch.equal(out, without)
    assert source_passes == ([0, 0, 0] if half else [1, 1, 0])


def test_the_sources_key_frames_are_run_in_parts(model, no_cache):
    """Memory: no source pass is longer than frames_per_pass, whatever the clip's length."""
    inversion = source(model, 15)
    flow = TokenFlow(inversion, interval=2, frames_per_pass=3)
    assert len(flow.plan(0).key_frames) == 8
    spy, injection = Spy(), PlugAndPlay(inversion, 0.7, 0.7)
    sample(
        spy.on(edited(model, flow, injection)),
        start_of(inversion), sigmas_of(inversion), conditioning(1),
    )  # fmt: skip
    sources = [call["frames"] for call in spy.source_calls(inversion)]
    assert sources and max(map(len, sources)) == 3
    whole = run(model, inversion, TokenFlow(inversion, interval=2, frames_per_pass=0), injection)
    assert same(run(model, inversion, flow, injection), whole)
