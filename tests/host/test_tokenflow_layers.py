"""Every layer of the recorded run's first step: attention outputs, source tokens, indices."""

from __future__ import annotations

import pytest
import torch
from clips import ATTACH
from reweave.editing.host.call import ModelCall
from reweave.editing.plug_and_play import PlugAndPlay
from reweave.editing.protocol import Site
from reweave.editing.source_field import SourceFieldPass, SourceKeyPass
from reweave.editing.tokenflow import KeyFramePass, TokenFlow
from safetensors.torch import load_file
from test_tokenflow_reference import inversion, run, sigma
from toy import GOLDENS, reference_patcher

LAYERS = ("input_1", "input_8", "middle_0", "output_4", "output_7", "output_11")
FRAMES, INTERVAL = 8, 4


@pytest.fixture(scope="module")
def slices():
    return load_file(GOLDENS / "tf_pnp_slices.safetensors")


@pytest.fixture(scope="module")
def passes():
    """The passes of step 0, by their class."""
    recorded = load_file(GOLDENS / "tf_run.safetensors")
    source = inversion(recorded)
    found: dict[type, object] = {}
    plain = ModelCall.run

    def noted(self, pass_):
        found[type(pass_)] = pass_
        return plain(self, pass_)

    model = reference_patcher()
    edits = [TokenFlow(source, interval=INTERVAL), PlugAndPlay(source, 1.0, 1.0)]
    with pytest.MonkeyPatch.context() as patch, torch.inference_mode():
        patch.setattr(ModelCall, "run", noted)
        patch.setattr(ATTACH, "step_cache", lambda *_: None)
        run(model, recorded, edits, recorded["pnp.x_init"], (751,), sigma(recorded, 501))
    return model, found


def site_of(layer: str) -> Site:
    block, number = layer.split("_")
    return Site(block, int(number), 0)


def after_projection(model, layer: str, tokens):
    """[N,K,L,C] before to_out -> [N*K,L,C] after it, as recorded."""
    block, number = layer.split("_")
    unet = model.model.diffusion_model
    blocks = (
        unet.middle_block if block == "middle" else getattr(unet, f"{block}_blocks")[int(number)]
    )
    return blocks[1].transformer_blocks[0].attn1.to_out(tokens.flatten(0, 1))


@pytest.mark.parametrize("layer", LAYERS)
def test_attention_of_the_key_frames(passes, slices, layer):
    model, found = passes
    # [source, uncond, cond] x key frames
    expected = slices[f"pivot.{layer}.attn1_out"].unflatten(0, (3, -1))
    source = after_projection(model, layer, found[SourceKeyPass].outputs[site_of(layer)])
    edit = after_projection(model, layer, found[KeyFramePass].outputs[site_of(layer)])
    assert float((source - expected[0]).abs().max()) < 1e-4
    assert float((edit - expected[1:].flatten(0, 1)).abs().max()) < 1e-4
    assert float((edit - expected[1:].flip(1).flatten(0, 1)).abs().max()) > 1e-3


@pytest.mark.parametrize("layer", LAYERS)
def test_tokens_of_the_source(passes, slices, layer):
    tokens = passes[1][SourceKeyPass].tokens[site_of(layer)]
    expected = slices[f"pivot.{layer}.norm1_source"]
    assert float((tokens - expected).abs().max()) < 1e-4
    assert float((tokens.flip(0) - expected).abs().max()) > 1e-2


@pytest.mark.parametrize("layer", LAYERS)
def test_the_field(passes, slices, layer):
    index = passes[1][SourceFieldPass].index[site_of(layer)].long()  # [F,2,L]
    assert index.shape[:2] == (FRAMES, 2)
    for batch in range(2):
        frames = slice(batch * INTERVAL, (batch + 1) * INTERVAL)
        current = slices[f"batch{batch}.{layer}.idx_current"].view(INTERVAL, -1).long()
        assert torch.equal(index[frames, 0], current)
    previous = slices[f"batch1.{layer}.idx_previous"].view(INTERVAL, -1).long()
    assert torch.equal(index[INTERVAL:, 1], previous)
    assert not torch.equal(index[INTERVAL:, 0], previous)
