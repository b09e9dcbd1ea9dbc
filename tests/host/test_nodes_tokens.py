"""The nodes for tokens and fields, run in this process on a small network."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from reweave.editing import host
from reweave.nodes import (
    ExtractTokens,
    LoadNNField,
    NNField,
    PreviewNNField,
    PreviewTokens,
    SaveNNField,
)
from small_clip import FRAMES, STEPS, clip, edited, flow, invert
from toy import SDXL, conditioning, patcher


@pytest.fixture(scope="module")
def model():
    return patcher()


@pytest.fixture
def inverted(model):
    return invert(model)


def extract(model, inversion, **settings):
    arguments = {"sites": "", "step_count": 2, "frames_per_pass": 2, "max_gigabytes": 4.0}
    return ExtractTokens.execute(model=model, inversion=inversion, **(arguments | settings)).args[0]


def field(**settings):
    arguments = {
        "interval": 2, "keyframe_seed": 1, "key_frames": "random per step",
        "rule": "published code", "frames_per_pass": 2, "max_gigabytes": 4.0,
    }  # fmt: skip
    return NNField.execute(**(arguments | settings)).args[0]


def test_tokens_of_the_default_site(model, inverted):
    store = extract(model, inverted[0])
    sites = {site for site, _ in store.tokens}
    assert len(sites) == 1 and store.steps == [0, STEPS - 1]
    site = sites.pop()
    h, w = store.grids[site]
    assert {tuple(part.shape[:2]) for part in store.tokens.values()} == {(FRAMES, h * w)}
    assert store.inversion_key == inverted[0].key


def test_tokens_of_named_sites_do_not_depend_on_passes(model, inverted):
    names = "input.1.0, middle.0.0 output.11.0"
    one = extract(model, inverted[0], sites=names, frames_per_pass=0)
    other = extract(model, inverted[0], sites=names, frames_per_pass=2)
    assert {str(site) for site, _ in one.tokens} == {"input.1.0", "middle.0.0", "output.11.0"}
    for key, value in one.tokens.items():
        assert torch.allclose(value.float(), other.tokens[key].float(), atol=5e-3)


@pytest.mark.parametrize("unet", [None, SDXL], ids=["sd15", "sdxl"])
def test_the_plan_is_what_the_tokens_take(unet):
    net = patcher(unet)
    sites = host.sites_of(net)
    pooled = {"pooled_output": torch.zeros(1, 1280)} if unet else {}
    found = invert(net, positive=[[conditioning()[0][0], pooled]])[0]
    store = extract(net, found, sites=" ".join(str(site) for site in sites))
    real = sum(part.numel() * part.element_size() for part in store.tokens.values())
    assert host.token_bytes(net, sites, found.clean, 2) == real


def test_too_much_memory_is_refused_with_the_plan(model, inverted):
    with pytest.raises(ValueError, match=r"Extract Tokens: the tokens .sites: 1, steps: 2. take"):
        extract(model, inverted[0], max_gigabytes=1e-9)
    text = "Nearest-Neighbour Field: its matches take .* more than 'max_gigabytes'"
    for source in ({"model": model, "inversion": inverted[0]},
                   {"tokens": extract(model, inverted[0])}):  # fmt: skip
        with pytest.raises(ValueError, match=text):
            field(**source, max_gigabytes=1e-9)


def test_wrong_sites_and_counts_are_said(model, inverted):
    with pytest.raises(ValueError, match=r"Extract Tokens: expected 'sites' .*'output.40.0'"):
        extract(model, inverted[0], sites="output.40.0")
    with pytest.raises(ValueError, match="Extract Tokens: expected 'step_count'"):
        extract(model, inverted[0], step_count=0)


def test_preview_tokens(model, inverted, user_folders):
    store = extract(model, inverted[0], sites="output.3.0 output.11.0")
    out = PreviewTokens.execute(tokens=store, scale=2)
    assert out.args[0].shape == (2 * FRAMES, 16, 16, 3)
    files = [user_folders / "temp" / entry["filename"] for entry in out.ui.as_dict()["images"]]
    assert len(files) == 2 * FRAMES and all(path.is_file() for path in files)


@pytest.mark.parametrize("key_frames", ["random per step", "fixed"])
@pytest.mark.parametrize("rule", ["published code", "paper"])
def test_the_exact_field_is_the_one_tokenflow_uses(model, inverted, key_frames, rule):
    found, latent, sigmas = inverted
    draw = {"key_frames": key_frames, "rule": rule}
    exact = field(model=model, inversion=found, **draw)
    assert exact.origin == "propagated" and exact.steps == list(range(STEPS))
    assert set(exact.grids) == set(host.sites_of(model))
    plain = edited(flow(model, found, **draw), latent, sigmas)
    # the field's own settings win over the node's
    given = edited(flow(model, found, nn_field=exact, interval=5, rule="paper"), latent, sigmas)
    assert torch.allclose(plain, given, atol=1e-4)
    other = edited(flow(model, found, interval=5), latent, sigmas)
    assert not torch.allclose(plain, other, atol=1e-3)


def test_the_plan_of_a_field_is_what_it_takes(model, inverted):
    exact = field(model=model, inversion=inverted[0])
    tables = (*exact.index.values(), *exact.similarity.values())
    real = sum(table.numel() * table.element_size() for table in tables)
    assert host.field_bytes(model, inverted[0].clean, STEPS) == real


def test_a_clean_field_is_for_viewing_only(model, inverted):
    found, _, _ = inverted
    clean = field(tokens=extract(model, found))
    assert clean.origin == "clean" and clean.steps == [0, STEPS - 1]
    with pytest.raises(ValueError, match="TokenFlow: the nearest-neighbour field is partial"):
        flow(model, found, nn_field=clean)


def test_a_foreign_field_is_refused(model, inverted):
    exact = field(model=model, inversion=inverted[0])
    other = invert(model, clip(seed=6))[0]
    with pytest.raises(ValueError, match=r"TokenFlow: .* was made from another inversion"):
        flow(model, other, nn_field=exact)
    few = invert(model, clip(frames=3))[0]
    with pytest.raises(ValueError, match="inversion has 3 frames, the nearest-neighbour field 5"):
        flow(model, few, nn_field=exact)


def test_what_is_connected_must_be_clear(model, inverted):
    store = extract(model, inverted[0])
    for sources, came in (
        ({}, "nothing"),
        ({"model": model}, "model"),
        ({"inversion": inverted[0]}, "inversion"),
        ({"model": model, "tokens": store}, "model, tokens"),
        ({"model": model, "inversion": inverted[0], "tokens": store}, "model, inversion, tokens"),
    ):
        with pytest.raises(ValueError, match=f"Nearest-Neighbour Field: .*; got {came}\\."):
            field(**sources)


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"interval": 0}, "Nearest-Neighbour Field: expected 'interval' to be at least 1, got 0"),
        ({"key_frames": "none"}, "expected 'key_frames' to be one of random per step, fixed"),
        ({"rule": "none"}, "expected 'rule' to be one of published code, paper"),
    ],
)
def test_wrong_draws_are_said(model, inverted, settings, text):
    with pytest.raises(ValueError, match=text):
        field(model=model, inversion=inverted[0], **settings)


def test_save_and_load(model, inverted, user_folders):
    exact = field(model=model, inversion=inverted[0])
    shown = SaveNNField.execute(nn_field=exact, filename="hare").ui.as_dict()["text"][0]
    assert shown.startswith("saved output/reweave/nn_fields/hare.safetensors (")
    assert LoadNNField.define_schema().inputs[0].options == ["hare.safetensors"]
    loaded = LoadNNField.execute(file="hare.safetensors").args[0]
    assert loaded.index.keys() == exact.index.keys() and loaded.grids == exact.grids
    assert all(torch.equal(loaded.index[key], value) for key, value in exact.index.items())
    assert (loaded.rule, loaded.interval, loaded.inversion_key) == (
        exact.rule, exact.interval, exact.inversion_key,
    )  # fmt: skip
    assert LoadNNField.fingerprint_inputs(file="hare") != "absent"
    with pytest.raises(ValueError, match="Load Nearest-Neighbour Field: found no file cow"):
        LoadNNField.execute(file="cow")


def test_preview_of_a_field(model, inverted, user_folders):
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(FRAMES, 64, 64, 3, generator=generator)
    exact = field(model=model, inversion=inverted[0])
    out = PreviewNNField.execute(nn_field=exact, image=image, step=1, site="")
    matches, built = out.args
    assert matches.shape == built.shape == image.shape
    assert len(out.ui.as_dict()["images"]) == FRAMES
    shown = PreviewNNField.execute(nn_field=exact, image=image, step=-1, site="").args
    last = sorted(exact.steps)[round(0.8 * (len(exact.steps) - 1))]
    named = PreviewNNField.execute(nn_field=exact, image=image, step=last, site="").args
    assert all(torch.equal(a, b) for a, b in zip(shown, named, strict=True))
    # a key frame finds itself where it is its own main neighbour: the paper's rule does that
    own = field(model=model, inversion=inverted[0], rule="paper")
    built = PreviewNNField.execute(nn_field=own, image=image, step=1, site="input.1.0").args[1]
    for frame in own.key_frames[1].tolist():
        assert torch.allclose(built[frame], image[frame], atol=1e-5)


def test_flow_models_are_refused_by_name(inverted):
    from comfy.model_base import ModelType

    net = patcher(kind=ModelType.FLOW)
    calls = (
        lambda: extract(net, inverted[0]),
        lambda: field(model=net, inversion=inverted[0]),
        lambda: flow(net, inverted[0]),
    )
    for call in calls:
        with pytest.raises(ValueError, match=r"expected an eps or v model .*FLOW"):
            call()


def test_other_frames_than_the_inversions(model, inverted):
    context = conditioning()[0][0]
    broken = replace(inverted[0], latent_format="SDXL", context=context)
    with pytest.raises(ValueError, match="Extract Tokens: the inversion was made for SDXL latents"):
        extract(model, broken)
