"""The temporal nodes: what they hand on, what they write, and which files they refuse."""

from __future__ import annotations

import io as streams
from pathlib import Path

import folder_paths
import pytest
import torch
from clips import SMALL, clip_latents, run, source
from reweave.editing import host, storage
from reweave.editing.host.temporal_files import FILES, list_temporal, load_temporal, prompt_text
from reweave.editing.host.temporal_unet import KEY
from reweave.editing.temporal_unet.payload import TemporalUNet
from reweave.editing.temporal_unet.plan import Architecture
from reweave.nodes.temporal import (
    ApplyTemporalUNet,
    LoadTemporalUNet,
    SaveTemporalUNet,
    TrainTemporalUNet,
)
from safetensors.torch import save_file
from tcve import trained
from toy import conditioning, patcher

PAPER, PUBLISHED = Architecture(), Architecture("published", "published code")


@pytest.fixture(scope="module")
def model():
    return patcher(SMALL)


@pytest.fixture
def payload(model):
    return trained(model, PAPER, losses=(0.5, 0.25), prompt="a red ball")


def train(model, **changes):
    settings = {
        "steps": 2, "learning_rate": 1e-3, "training_seed": 33, "architecture": "paper",
        "layout": "published code", "down_units": False, "gradient_checkpointing": False,
        "snapshot_every": 0, "max_gigabytes": 24.0,
    }  # fmt: skip
    latent = {"samples": clip_latents(4)}
    return TrainTemporalUNet.execute(model, conditioning(), latent, **(settings | changes)).args


def test_train_hands_on_a_network_and_its_loss_curve(model):
    found, curve = train(model)
    assert isinstance(found, TemporalUNet) and found.steps == 2 and found.frames == 4
    assert found.architecture == Architecture("paper", "correct"), "the layout is for 'published'"
    assert curve.shape == (1, 400, 800, 3) and 0 <= float(curve.min()) < float(curve.max()) <= 1
    assert all(value.dtype == torch.float16 for value in found.weights.values())
    published, _ = train(model, architecture="published")
    assert published.architecture == PUBLISHED and published.adds_to_queries
    with pytest.raises(ValueError, match=r"'architecture' to be one of paper, published; got 'x'"):
        train(model, architecture="x")
    with pytest.raises(ValueError, match=r"'layout' to be one of published code, correct"):
        train(model, layout="x")


def test_apply_puts_it_on_a_clone(model, payload):
    (out,) = ApplyTemporalUNet.execute(model, payload, 1.0, "", 4).args
    assert out is not model and out.get_attachment(KEY).sites is None
    (some,) = ApplyTemporalUNet.execute(model, payload, 0.5, "up0; middle", 2).args
    edit = some.get_attachment(KEY)
    assert edit.sites == ("middle", "up0") and edit.strength == 0.5 and edit.overlap == 2
    with pytest.raises(ValueError, match=r"got 'up7'. It has middle, up0, up1. Leave 'sites' emp"):
        ApplyTemporalUNet.execute(model, payload, 1.0, "up7", 4)
    with pytest.raises(ValueError, match=r"'strength' to be between 0 and 2, got 3"):
        ApplyTemporalUNet.execute(model, payload, 3.0, "", 4)


@pytest.mark.parametrize("architecture", [PAPER, PUBLISHED, Architecture(down_units=True)])
def test_a_saved_network_comes_back_as_it_was(model, architecture):
    payload = trained(
        model, architecture, losses=(0.5, 0.25), prompt="a red ball", learning_rate=3e-5
    )
    SaveTemporalUNet.execute(payload, "ball")
    path = Path(folder_paths.get_output_directory()) / "reweave" / FILES / "ball.safetensors"
    count = sum(value.numel() for value in payload.weights.values())
    header = path.stat().st_size - payload.bytes
    assert payload.bytes == 2 * count and 0 < header < 40_000, "two bytes per weight and a header"
    assert list_temporal() == ["ball.safetensors"]
    (back,) = LoadTemporalUNet.execute("ball.safetensors", "published code").args
    assert back.key == payload.key and back.architecture == architecture
    for name in ("plan", "frames", "prompt", "losses", "steps", "learning_rate", "fingerprint"):
        assert getattr(back, name) == getattr(payload, name), name
    inversion = source(model, frames=4, steps=2)
    applied = [ApplyTemporalUNet.execute(model, p, 1.0, "", 4).args[0] for p in (payload, back)]
    assert torch.equal(*(run(clone, inversion) for clone in applied))


def test_the_stamp_changes_with_the_file(payload):
    stamp = LoadTemporalUNet.fingerprint_inputs("ball", "correct")
    assert stamp.startswith("absent")
    SaveTemporalUNet.execute(payload, "ball")
    after = LoadTemporalUNet.fingerprint_inputs("ball", "correct")
    assert after != stamp != LoadTemporalUNet.fingerprint_inputs("ball", "published code")


def saved(payload) -> Path:
    path = host.files_folder(FILES) / "ball.safetensors"
    payload.save(path)
    return path


def refused(match: str) -> None:
    with pytest.raises(ValueError, match=match) as found:
        load_temporal("ball.safetensors", "correct")
    assert str(found.value).startswith("Load Temporal UNet: ")


def test_files_that_are_refused(model, payload):
    refused(r"found no file ball.safetensors in output/reweave/temporal_unets")
    path = saved(payload)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    refused(r"is not a readable safetensors file .* cut short")
    pickled = streams.BytesIO()
    torch.save({"weight": torch.zeros(1)}, pickled)
    path.write_bytes(pickled.getvalue())
    refused(r"is not a readable safetensors file")
    saved(trained(model, PAPER, steps=0))
    refused(r"holds an untrained temporal UNet \(0 steps\)")
    source(model).save(path)
    refused(r"expected a Reweave temporal UNet, ball.safetensors holds inversion")
    save_file({"weight": torch.zeros(1)}, path)
    refused(r"holds a file of another program")
    weights = dict(payload.weights)
    weights["conv_in.bias"] = torch.zeros(3)
    saved(trained(model, PAPER).__class__(weights, payload.plan, PAPER, 4, steps=1))
    refused(r"conv_in.bias has the shape \(3,\), expected \(32,\). The file is damaged")
    del weights["conv_in.bias"]
    saved(trained(model, PAPER).__class__(weights, payload.plan, PAPER, 4, steps=1))
    refused(r"lacks parts of what it should hold \('conv_in.bias'\)")
    storage.save(path, TemporalUNet.KIND, payload.weights, {"frames": 4})
    refused(r"lacks parts of what it should hold \('plan'\)")
    with pytest.raises(ValueError, match=r"expected a plain file name, got '../x'"):
        load_temporal("../x", "correct")


GRAPH = {
    "1": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "x"}},
    "2": {"class_type": "CLIPTextEncode", "inputs": {"text": "a ball", "clip": ["1", 1]}},
    "3": {"class_type": "ConditioningConcat", "inputs": {"conditioning_to": ["2", 0]}},
    "4": {"class_type": "Reweave_TrainTemporalUNet", "inputs": {"positive": ["3", 0]}},
}


def test_the_prompt_is_found_in_the_graph():
    assert prompt_text(GRAPH, "4", "positive") == "a ball"
    assert prompt_text(GRAPH, "3", "positive") == prompt_text(None, None, "positive") == ""
    around = {"1": {"inputs": {"positive": ["1", 0]}}}
    assert prompt_text(around, "1", "positive") == ""


@pytest.mark.parametrize("order", [("positive", "negative"), ("negative", "positive")])
def test_a_node_with_two_conditionings_passes_on_its_own(order):
    """ControlNet Apply: the negative's text is nearer, or comes first, and is not the clip's."""
    links = {"positive": ["3", 0], "negative": ["5", 0]}
    graph = GRAPH | {
        "4": {"inputs": {"positive": ["6", 0]}},
        "5": {"class_type": "CLIPTextEncode", "inputs": {"text": "blurry", "clip": ["1", 1]}},
        "6": {
            "class_type": "ControlNetApplyAdvanced",
            "inputs": {name: links[name] for name in order} | {"strength": 1.0},
        },
    }
    assert prompt_text(graph, "4", "positive") == "a ball"
    assert prompt_text({**graph, "3": {"inputs": {}}}, "4", "positive") == ""
    single = {**graph, "6": {"inputs": {"conditioning": ["3", 0], "strength": 1.0}}}
    assert prompt_text(single, "4", "positive") == "a ball"
