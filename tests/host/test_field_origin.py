"""A connected field says which model it was made with; another LoRA or checkpoint is told."""

from __future__ import annotations

import logging
from dataclasses import replace

import pytest
import torch
from clips import SMALL, run, source
from reweave.editing import host, storage
from reweave.editing.latent_guidance import LatentGuidance
from reweave.editing.plug_and_play import PlugAndPlay
from reweave.editing.tokenflow import TokenFlow
from reweave.editing.types import Fingerprint, NNField
from reweave.editing.warping import FieldWarp
from toy import patcher

WEIGHT = "diffusion_model.input_blocks.1.1.transformer_blocks.0.attn1.to_q.weight"


@pytest.fixture(scope="module")
def model():
    return patcher(SMALL)


@pytest.fixture
def inversion(model):
    return source(model)


@pytest.fixture
def field(model, inversion):
    return host.field_of(model, inversion, None, 4, 1, "fixed", "published code", 8, 4.0)


@pytest.fixture
def told(caplog):
    """What was said of a field since the last question."""
    caplog.set_level(logging.WARNING, "reweave")

    def ask() -> list[str]:
        texts = [text for text in caplog.messages if "nearest-neighbour field" in text]
        caplog.clear()
        return texts

    return ask


def with_lora(model, strength=0.1):
    clone = model.clone()
    shape = model.model.state_dict()[WEIGHT].shape
    clone.add_patches({WEIGHT: ("diff", (torch.ones(shape),))}, strength)
    return clone


def edits_with(field, inversion):
    guidance = LatentGuidance(strength=0.1, warp=FieldWarp(field))
    return [(TokenFlow(inversion, interval=4, nn_field=field),), (guidance,)]


def test_the_field_of_this_model_is_taken_in_silence(model, inversion, field, told):
    assert field.fingerprint == host.fingerprint(model) != Fingerprint()
    for edits in edits_with(field, inversion):
        run(model, inversion, *edits)
    assert told() == []


def test_another_lora_is_told(model, inversion, field, told):
    for edits in edits_with(field, inversion):
        run(with_lora(model), inversion, *edits)
        (text,) = told()
        assert f"{edits[0].name}: the nearest-neighbour field was made with another LoRA" in text
        assert "Make it again from this MODEL, or disconnect 'nn_field'" in text
    styled = with_lora(model)
    field = host.field_of(styled, inversion, None, 4, 1, "fixed", "published code", 8, 4.0)
    run(styled, inversion, *edits_with(field, inversion)[1])
    assert told() == []
    run(with_lora(model, 0.2), inversion, *edits_with(field, inversion)[1])
    assert "another LoRA" in told()[0]


def test_another_checkpoint_is_told(inversion, field, told):
    """TokenFlow's inversion refuses it; guidance alone reads no inversion."""
    run(patcher(SMALL, seed=1), inversion, *edits_with(field, inversion)[1])
    (text,) = told()
    assert "Latent Guidance: the nearest-neighbour field was made with another checkpoint" in text


def test_another_inversion_is_told_where_it_is_not_refused(model, inversion, field, told):
    other = source(model, seed=9)
    (guidance,) = edits_with(field, inversion)[1]
    run(model, other, guidance, PlugAndPlay(other))
    (text,) = told()
    assert "Latent Guidance: the nearest-neighbour field was made from another inversion" in text
    run(model, inversion, guidance, PlugAndPlay(inversion))
    assert told() == []


def test_a_field_from_tokens_knows_its_model(model, inversion, told):
    store = host.extract(model, inversion, "", 2, 8, 4.0)
    field = host.field_of(None, None, store, 4, 1, "fixed", "published code", 8, 4.0)
    assert field.fingerprint == host.fingerprint(model)
    run(with_lora(model), inversion, *edits_with(field, inversion)[1])
    assert "another LoRA" in told()[0]


def test_files_of_before_are_read_and_not_doubted(model, inversion, field, told, tmp_path):
    path = tmp_path / "field.safetensors"
    field.save(path)
    assert NNField.load(path).fingerprint == field.fingerprint
    tensors, plain = storage.load(path, NNField.KIND)
    del plain["fingerprint"]
    storage.save(path, NNField.KIND, tensors, plain)
    older = NNField.load(path)
    assert older.fingerprint == Fingerprint()
    run(with_lora(model), inversion, *edits_with(older, inversion)[1])
    assert told() == []


def test_weights_that_a_precision_rounds_are_not_called_another_checkpoint(
    model, inversion, field, told
):
    rounded = replace(field.fingerprint, base="0" * 16, dtype="bfloat16")
    field = replace(field, fingerprint=rounded)
    run(model, inversion, *edits_with(field, inversion)[1])
    assert told() == []
