"""Every complaint names the node, what came and the knob; what is right passes."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from reweave.editing import checks
from reweave.editing.extended_attention import ExtendedAttention
from reweave.editing.plug_and_play import PlugAndPlay
from reweave.editing.protocol import Site
from reweave.editing.tokenflow import TokenFlow
from reweave.editing.types import Inversion, NNField, some_frames

SITES = [Site("input", 1, 0), Site("output", 0, 0), Site("output", 1, 0)]
NN = torch.zeros(4, 2, 9, dtype=torch.int16)


def inversion(frames: int = 4, steps: int = 3, seed: int = 0) -> Inversion:
    generator = torch.Generator().manual_seed(seed)
    return Inversion(
        latents=torch.randn(steps, frames, 4, 3, 3, generator=generator),
        clean=torch.randn(frames, 4, 3, 3, generator=generator),
        sigmas=torch.tensor([9.0, 3.0, 1.0])[:steps],
        timesteps=torch.tensor([900, 500, 100])[:steps],
        context=torch.randn(frames, 7, 8, generator=generator),
    )


def field(source: Inversion, steps: int = 3, sites: int = 3) -> NNField:
    return NNField(
        key_frames=torch.tensor([[0, 2]]).expand(len(source.sigmas), -1),
        neighbours=torch.zeros(3, source.frames, 2, dtype=torch.int64),
        weights=torch.full((3, source.frames, 2), 0.5),
        index={(site, step): NN for site in SITES[:sites] for step in range(steps)},
        grids=dict.fromkeys(SITES, (3, 3)),
        rule="paper",
        interval=2,
        keyframe_seed=7,
        inversion_key=source.key,
    )


def flow(**settings) -> TokenFlow:
    return TokenFlow(**({"inversion": inversion()} | settings))


WRONG = [
    (flow(interval=0), "TokenFlow: expected 'interval' to be at least 1, got 0"),
    (flow(rule="nearest"), "TokenFlow: expected 'rule' to be one of .*'nearest'"),
    (flow(frames_per_pass=-1), "TokenFlow: expected 'frames_per_pass' to be at least 0, got -1"),
    (flow(max_joint_key_frames=-2), "'max_joint_key_frames' to be at least 0, got -2"),
    (flow(mask=torch.ones(3, 8, 8)), "TokenFlow: expected a mask of 1 or 4 frames .*got 3"),
    (flow(mask=torch.zeros(4, 8, 8)), "TokenFlow: the mask is empty"),
    (flow(mask=torch.ones(1, 4, 8, 8)), "got 4 dimensions"),
    (flow(mask=torch.full((1, 8, 8), float("nan"))), "the mask holds NaN"),
    (flow(nn_field=field(inversion(frames=5))), "inversion has 4 frames, .* field 5"),
    (flow(nn_field=field(inversion(seed=1))), "was made from another inversion"),
    (flow(nn_field=field(inversion(), steps=2)), "partial: it holds 2 of 3 steps and 3 of 3"),
    (flow(nn_field=field(inversion(), sites=1)), "partial: it holds 3 of 3 steps and 1 of 3"),
]


@pytest.mark.parametrize(("edit", "text"), WRONG, ids=[text for _, text in WRONG])
def test_token_flow_says_what_is_wrong(edit: TokenFlow, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        checks.check_token_flow(edit, SITES)


def test_a_good_field_brings_its_own_settings() -> None:
    source = inversion()
    edit = checks.check_token_flow(flow(inversion=source, nn_field=field(source)), SITES)
    assert (edit.interval, edit.rule, edit.keyframe_seed) == (2, "paper", 7)
    plain = flow(mask=torch.full((8, 8), 2.0))
    assert torch.equal(checks.check_token_flow(plain, SITES).mask, torch.ones(1, 8, 8))


@pytest.mark.parametrize("knob", ["inject_attention_until", "inject_features_until"])
@pytest.mark.parametrize("value", [-0.1, 1.1, float("nan")])
def test_plug_and_play_fractions(knob: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"Plug-and-Play: expected '{knob}' to be between 0 and 1"):
        checks.check_plug_and_play(replace(PlugAndPlay(inversion()), **{knob: value}))


@pytest.mark.parametrize(
    ("edit", "text"),
    [
        (ExtendedAttention("some frames"), "Extended Attention: expected 'mode' to be one of"),
        (ExtendedAttention(interval=0), "expected 'interval' to be at least 1, got 0"),
        (ExtendedAttention(window=0), "expected 'window' to be at least 1, got 0"),
    ],
)
def test_extended_attention_settings(edit: ExtendedAttention, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        checks.check_extended_attention(edit)


def test_sites_are_read_in_the_models_order() -> None:
    assert checks.chosen_sites("N", " output.1.0, input.1.0 ", SITES) == (SITES[0], SITES[2])
    assert checks.chosen_sites("N", "  ", SITES) == ()
    for text in ("output.5.0", "up.1.0", "output.1", "output.x.0"):
        with pytest.raises(ValueError, match=r"N: expected .sites. .* It has input\.1\.0"):
            checks.chosen_sites("N", text, SITES)


def test_memory_plans_are_said_and_refused() -> None:
    assert checks.check_memory("N", "tokens", 2e9, 4.0, "Lower it") == "tokens take 2 GB"
    with pytest.raises(ValueError, match=r"N: tokens take 5 GB, more than 'max_gigabytes' \(4\)"):
        checks.check_memory("N", "tokens", 5e9, 4.0, "Lower it")


def test_some_frames_of_an_inversion() -> None:
    source = replace(inversion(), noisiest=torch.randn(4, 4, 3, 3, generator=torch.Generator()))
    part = some_frames(source, torch.tensor([1, 3]))
    assert torch.equal(part.latents, source.latents[:, [1, 3]]) and part.frames == 2
    assert torch.equal(part.clean, source.clean[[1, 3]])
    assert torch.equal(part.context, source.context[[1, 3]])
    assert part.noisiest is not None and torch.equal(part.noisiest, source.noisiest[[1, 3]])
    shared = some_frames(replace(source, context=source.context[:1]), torch.tensor([3]))
    assert torch.equal(shared.context, source.context[:1])
