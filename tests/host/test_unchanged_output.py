"""'output = input' is said when a well inverted clip just comes back, and not after an edit."""

from __future__ import annotations

import logging

import pytest
from clips import ATTACH, clip_latents, run
from reweave.editing import host
from reweave.editing.host import InversionRequest
from reweave.editing.plug_and_play import PlugAndPlay
from test_inverting import SCALE, calm
from toy import conditioning

STEPS = 100
"""The calm network brings the clip back to 1.2 % of its deviation in so many, to 2.2 % in 50."""


@pytest.fixture(scope="module")
def model():
    return calm()


@pytest.fixture
def inversion(model):
    latent = {"samples": clip_latents(2) / SCALE}
    return host.invert_clip(model, conditioning(1), latent, InversionRequest(STEPS, STEPS))


@pytest.fixture
def said(model, inversion, caplog):
    """A function that samples the clip -> (change against its deviation, what was warned)."""

    def sampled(*edits, **options):
        caplog.clear()
        with caplog.at_level(logging.WARNING, "reweave"):
            out = run(model, inversion, *edits, **options)
        away = out * SCALE - inversion.clean
        change = away.square().mean().sqrt() / inversion.clean.std()
        return float(change), caplog.text

    return sampled


def test_a_clip_that_came_back_is_noticed_and_an_edited_one_is_not(said, inversion):
    own = [[inversion.context, {}]]
    for until, knob in (
        (1.0, "lower 'inject_attention_until' of Plug-and-Play, or raise cfg"),
        (0.5, "raise cfg or change the prompt"),
    ):
        change, text = said(PlugAndPlay(inversion, until, 0.8), positive=own, cfg=1.0)
        assert 0 < change < ATTACH.UNCHANGED
        assert f"output = input: the edit left the clip as it was; {knob}" in text
    injection = PlugAndPlay(inversion, 0.5, 0.8)
    change, text = said(injection, positive=conditioning(2), negative=own, cfg=7.5)
    assert change > 2 * ATTACH.UNCHANGED and "output = input" not in text
