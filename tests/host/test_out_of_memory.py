"""Where memory runs out: passes get shorter and the result stays, or the error names the knob."""

from __future__ import annotations

from dataclasses import replace

import comfy.model_base
import comfy.model_management
import pytest
import torch
from clips import ATTACH, SMALL, run, same, source
from reweave.editing import host
from reweave.editing.extended_attention import ExtendedAttention
from reweave.editing.host.walking import FRAMES_PER_PASS, play_back
from reweave.editing.latent_guidance import LatentGuidance
from reweave.editing.plug_and_play import PlugAndPlay
from reweave.editing.tokenflow import TokenFlow
from reweave.editing.tokens import propagated_field
from toy import patcher

BASE = comfy.model_base.BaseModel


@pytest.fixture(scope="module")
def model():
    return patcher(SMALL)


@pytest.fixture(autouse=True)
def no_cache(monkeypatch):
    """Every run computes its own source features."""
    monkeypatch.setattr(ATTACH, "step_cache", lambda *_: None)


@pytest.fixture
def network(monkeypatch):
    """The rows of every call of the network; `short(rows)` sets how many fit, `fail` says when."""
    return Network(monkeypatch)


class Network:
    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.seen: list[int] = []
        self.most = 0
        self.failing: set[int] = set()
        """Numbers of calls that do not fit, whatever their size."""
        whole = BASE._apply_model

        def apply_model(model, x, *args, **kwargs):
            self.seen.append(len(x))
            if (self.most and len(x) > self.most) or len(self.seen) in self.failing:
                raise comfy.model_management.OOM_EXCEPTION("no room on the test's device")
            return whole(model, x, *args, **kwargs)

        monkeypatch.setattr(BASE, "_apply_model", apply_model)

    def short(self, rows: int) -> None:
        self.seen.clear()
        self.most = rows

    def fail(self, *calls: int) -> None:
        self.seen.clear()
        self.failing = set(calls)


@pytest.mark.parametrize("rows", [5, 4, 2])
@pytest.mark.parametrize("edit", ["injection", "guidance", "both"])
def test_frames_that_are_independent_run_in_parts(model, network, rows, edit, caplog):
    """5 frames in two branches: 10 rows do not fit, nor do all 5 of the source with 4."""
    inversion = source(model)
    injection, guidance = PlugAndPlay(inversion, 1.0, 1.0), LatentGuidance(0.1, 1.0)
    edits = {"injection": [injection], "guidance": [guidance], "both": [injection, guidance]}[edit]
    whole = run(model, inversion, *edits)
    assert max(network.seen) == 10
    network.short(rows)
    caplog.set_level("INFO")
    assert same(run(model, inversion, *edits), whole)
    assert sum(size > rows for size in network.seen) <= 3, "what did not fit is tried once"
    assert "out of memory: going on with" in caplog.text


def test_what_fits_is_one_call(model, network):
    inversion = source(model)
    run(model, inversion, PlugAndPlay(inversion, 1.0, 1.0))
    assert network.seen == [5, 10] * 3


def test_playing_an_inversion_back_is_cut_like_inverting_it(model, network):
    inversion = source(model, FRAMES_PER_PASS + 3, steps=2)
    back = play_back(model, inversion, "Check Inversion")
    assert network.seen == [FRAMES_PER_PASS, 3] * 2
    network.short(6)
    assert same(play_back(model, inversion, "Check Inversion"), back)
    assert max(network.seen[2:]) <= 6
    network.short(1)
    few = source(model, 2)
    assert len(play_back(model, few, "Check Inversion")) == 2


@pytest.mark.parametrize("injected", [False, True])
def test_the_sources_key_frames_go_on_in_shorter_runs(model, network, injected):
    """7 key frames in one run of the source, then at most 4, then 2; the edit needs 4 rows."""
    inversion = source(model, 13)
    edits = [TokenFlow(inversion, interval=2, frames_per_pass=0, max_joint_key_frames=2)]
    edits += [PlugAndPlay(inversion, 1.0, 1.0)] if injected else []
    whole = run(model, inversion, *edits)
    assert max(network.seen) > 7
    network.short(4)
    assert same(run(model, inversion, *edits), whole)
    assert network.seen[0] == 7 and network.seen[1] == 3


@pytest.mark.parametrize("rule", ["published code", "paper"])
@pytest.mark.parametrize("interval", [1, 2, 3, 5, 13, 20])
def test_runs_of_the_source_serve_every_frame_once(model, network, interval, rule):
    """Whatever the runs: one, several, a single key frame."""
    inversion = source(model, 13, steps=1)
    flow = TokenFlow(inversion, interval=interval, rule=rule, frames_per_pass=3)
    whole = run(model, inversion, replace(flow, frames_per_pass=0))
    assert same(run(model, inversion, flow), whole)


@pytest.mark.parametrize("failing", [(1,), (2,), (4,), (1, 4)])
def test_a_run_of_the_source_that_fails_is_not_lost(model, network, failing):
    """Runs of the source before the failure are kept, the rest goes on from there."""
    inversion = source(model, 13)

    def field():
        def walk(steps, visit):
            host.walk_source(model, inversion, steps, visit, "Nearest-Neighbour Field")

        return propagated_field(walk, inversion, [0], 2, 1, "published code", frames_per_pass=4)

    whole = field()
    before = list(network.seen)
    network.fail(*failing)
    again = field()
    assert network.seen[: failing[0]] == before[: failing[0]] and len(network.seen) > len(before)
    assert set(again.index) == set(whole.index)
    for at, index in whole.index.items():
        assert torch.equal(again.index[at], index)
        assert torch.allclose(again.similarity[at].float(), whole.similarity[at].float(), atol=2e-3)


def test_two_key_frames_of_the_source_must_fit(model, network):
    inversion = source(model)
    network.short(1)
    with pytest.raises(comfy.model_management.OOM_EXCEPTION):
        run(model, inversion, TokenFlow(inversion, interval=2))
    assert network.seen == [3, 2]


@pytest.mark.parametrize(
    ("settings", "advice"),
    [
        ({"interval": 1}, "5 key frames .* Set 'max_joint_key_frames' to 2"),
        ({"interval": 2}, "3 key frames .* Set 'max_joint_key_frames' to 2"),
        ({"interval": 1, "max_joint_key_frames": 4}, "4 key frames .* to 2"),
        ({"interval": 4}, "2 key frames edited together ran out of memory. Use smaller pictures"),
    ],
)
def test_key_frames_that_do_not_fit_together(model, network, settings, advice):
    """Fewer at once change the result, so the artist decides."""
    inversion = source(model)
    network.short(3)
    with pytest.raises(ValueError, match=f"TokenFlow: {advice}") as caught:
        run(model, inversion, TokenFlow(inversion, frames_per_pass=3, **settings))
    assert ("max_joint" in str(caught.value)) == (settings["interval"] < 4)


@pytest.mark.parametrize(
    ("mode", "advice"),
    [
        ("all frames", "Choose 'mode' first and previous"),
        ("key frames", "Raise 'interval'"),
        ("first and previous", "Name fewer 'sites', use fewer frames or smaller pictures"),
        ("sliding window", "Lower 'window'"),
    ],
)
def test_frames_that_attend_to_each_other_do_not_fit(model, network, mode, advice):
    inversion = source(model)
    network.short(9)
    with pytest.raises(ValueError, match=f"Extended Attention: 5 frames .* {advice}"):
        run(model, inversion, ExtendedAttention(mode))
