"""The attention nodes, run in this process on a small network."""

from __future__ import annotations

import pytest
import torch
from reweave.editing import host
from reweave.nodes import ExtendedAttention, PlugAndPlay
from small_clip import edited, flow, invert
from toy import patcher


@pytest.fixture(scope="module")
def model():
    return patcher()


@pytest.fixture
def inverted(model):
    return invert(model)


def extended(model, **settings):
    arguments = {"mode": "all frames", "interval": 2, "window": 3, "sites": ""}
    return ExtendedAttention.execute(model=model, **(arguments | settings)).args[0]


def plug_and_play(model, inversion, **settings):
    arguments = {"inject_attention_until": 0.5, "inject_features_until": 0.8}
    return PlugAndPlay.execute(model=model, inversion=inversion, **(arguments | settings)).args[0]


def test_every_node_changes_the_edit_and_leaves_the_model(model, inverted):
    found, latent, sigmas = inverted
    plain = edited(model, latent, sigmas)
    results = [
        edited(changed, latent, sigmas)
        for changed in (
            extended(model),
            plug_and_play(model, found),
            flow(model, found),
            flow(plug_and_play(model, found), found),
        )
    ]
    assert torch.equal(edited(model, latent, sigmas), plain)
    assert host.edits_of(model) == ()
    for number, one in enumerate([plain, *results]):
        for other in results[number:]:
            assert not torch.allclose(one, other, atol=1e-3)


@pytest.mark.parametrize(
    "mode", ["all frames", "key frames", "first and previous", "sliding window"]
)
def test_modes_and_sites_of_extended_attention(model, inverted, mode):
    _, latent, sigmas = inverted
    everywhere = edited(extended(model, mode=mode), latent, sigmas)
    some = edited(extended(model, mode=mode, sites="output.3.0"), latent, sigmas)
    plain = edited(model, latent, sigmas)
    assert not torch.allclose(everywhere, plain, atol=1e-3)
    assert not torch.allclose(everywhere, some, atol=1e-3)
    assert not torch.allclose(some, plain, atol=1e-5)


def test_a_window_of_one_frame_is_ordinary_attention(model, inverted):
    _, latent, sigmas = inverted
    one = edited(extended(model, mode="sliding window", window=1), latent, sigmas)
    assert torch.allclose(one, edited(model, latent, sigmas), atol=1e-3)


def test_plug_and_play_without_any_step_does_nothing(model, inverted):
    found, latent, sigmas = inverted
    none = plug_and_play(model, found, inject_attention_until=0.0, inject_features_until=0.0)
    assert torch.allclose(edited(none, latent, sigmas), edited(model, latent, sigmas), atol=1e-4)


@pytest.mark.parametrize("node", [plug_and_play, flow])
def test_a_mask_locks_the_background(model, inverted, node):
    found, latent, sigmas = inverted
    mask = torch.zeros(1, 64, 64)
    mask[:, :, 32:] = 1
    masked = edited(node(model, found, mask=mask), latent, sigmas)
    clean = found.clean / 0.18215
    assert torch.allclose(masked[..., :4], clean[..., :4], atol=1e-2)
    assert not torch.allclose(masked[..., 4:], clean[..., 4:], atol=0.5)


def test_key_frames_and_memory_knobs(model, inverted):
    found, latent, sigmas = inverted
    once = edited(flow(model, found), latent, sigmas)
    for size in (0, 1, 5):
        again = edited(flow(model, found, frames_per_pass=size), latent, sigmas)
        assert torch.allclose(once, again, atol=1e-3)
    for other in ({"key_frames": "fixed"}, {"rule": "paper"}, {"keyframe_seed": 2},
                  {"interval": 1}, {"max_joint_key_frames": 2}):  # fmt: skip
        assert not torch.allclose(
            once, edited(flow(model, found, **other), latent, sigmas), atol=1e-4
        ), other


def test_settings_that_cannot_work_are_said_before_sampling(model, inverted):
    found = inverted[0]
    cases = (
        (lambda: flow(model, found, interval=0), "TokenFlow: expected 'interval'"),
        (lambda: flow(model, found, key_frames="all"), "TokenFlow: expected 'key_frames'"),
        (lambda: flow(model, found, rule="best"), "TokenFlow: expected 'rule'"),
        (lambda: flow(model, found, mask=torch.zeros(1, 8, 8)), "TokenFlow: the mask is empty"),
        (lambda: plug_and_play(model, found, mask=torch.ones(2, 8, 8)), "1 or 5 frames .*got 2"),
        (lambda: plug_and_play(model, found, inject_features_until=2.0), "between 0 and 1, got 2"),
        (lambda: extended(model, mode="best"), "Extended Attention: expected 'mode'"),
        (lambda: extended(model, sites="output.0.0"), "Extended Attention: expected 'sites'"),
        (lambda: extended(model, window=0), "Extended Attention: expected 'window'"),
    )
    for call, text in cases:
        with pytest.raises(ValueError, match=text):
            call()


def test_what_cannot_compose_names_both_nodes(model, inverted):
    found = inverted[0]
    other = invert(model, steps=8, saved_steps=8)[0]
    with pytest.raises(ValueError, match="TokenFlow and Extended Attention both decide"):
        flow(extended(model), found)
    with pytest.raises(ValueError, match="Plug-and-Play and TokenFlow are connected to two"):
        flow(plug_and_play(model, found), other)
    with pytest.raises(ValueError, match="TokenFlow: this MODEL already has a TokenFlow edit"):
        flow(flow(model, found), found)
