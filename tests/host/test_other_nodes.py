"""Core nodes that change tokens, masks or guidance: they compose, or are named in an error."""

from __future__ import annotations

import comfy_extras.nodes_hypertile
import comfy_extras.nodes_tomesd
import pytest
import torch
from clips import SMALL, Spy, edited, run, sigmas_of, source, start_of
from controls import controlled
from reweave.editing.latent_guidance import LatentGuidance
from reweave.editing.plug_and_play import PlugAndPlay
from reweave.editing.tokenflow import TokenFlow
from toy import conditioning, patcher, sample


@pytest.fixture(scope="module")
def model():
    return patcher(SMALL)


@pytest.fixture
def inversion(model):
    return source(model, size=16)


def first(output):
    """A node's first output; some answer with a tuple."""
    return getattr(output, "result", output)[0]


def edits_on(inversion, name):
    return {"flow": TokenFlow(inversion, interval=4), "injection": PlugAndPlay(inversion)}[name]


@pytest.mark.parametrize("order", ["before", "after"])
@pytest.mark.parametrize("name", ["flow", "injection"])
def test_merged_tokens_are_refused_by_name(model, inversion, name, order):
    def merging(patched):
        return first(comfy_extras.nodes_tomesd.TomePatchModel.execute(patched, 0.5))

    edit = edits_on(inversion, name)
    patched = edited(merging(model), edit) if order == "before" else merging(edited(model, edit))
    with pytest.raises(ValueError, match="merges or tiles its tokens. Remove .*Tome Patch Model"):
        sample(patched, start_of(inversion), sigmas_of(inversion), conditioning(1))


def test_tiled_tokens_are_refused_by_name(model):
    inversion = source(model, size=32)  # smaller pictures are one tile
    node = comfy_extras.nodes_hypertile.HyperTile
    patched = edited(first(node.execute(model, 1, 1, 0, False)), TokenFlow(inversion))
    with pytest.raises(ValueError, match="merges or tiles its tokens. Remove .*HyperTile"):
        sample(patched, start_of(inversion), sigmas_of(inversion), conditioning(1))


def test_a_noise_mask_on_the_inverted_latent_is_refused(model, inversion):
    spy = Spy()
    watched = spy.on(edited(model, TokenFlow(inversion)))
    with pytest.raises(ValueError, match="noise mask .*connect the MASK to 'mask'"):
        sample(
            watched, start_of(inversion), sigmas_of(inversion), conditioning(1),
            denoise_mask=torch.ones(5, 1, 16, 16),
        )  # fmt: skip
    assert not spy.calls


def test_boxed_prompts_are_refused(model, inversion):
    boxed = [[conditioning(1)[0][0], {"gligen": ("position", None, [])}]]
    with pytest.raises(ValueError, match="GLIGEN prompts .* Use a MASK"):
        run(model, inversion, TokenFlow(inversion), positive=boxed)


def test_a_gradient_through_a_controlnet_is_refused(model, inversion):
    positive, negative = controlled(5)
    with pytest.raises(ValueError, match="'gradient' cannot act with a ControlNet.*'closed form'"):
        run(
            model, inversion, LatentGuidance(0.1, 1.0, mode="gradient"),
            positive=[positive], negative=[negative],
        )  # fmt: skip
