"""The published TCVE network against its recording: ComfyUI's UNet plus our temporal network."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import comfy.ops
import pytest
import torch
from comfy.ldm.modules.attention import SpatialTransformer
from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel
from reweave.editing.temporal_unet.features import Features
from reweave.editing.temporal_unet.joining import Joint, joined, transformer_hooks
from reweave.editing.temporal_unet.network import TemporalNetwork
from reweave.editing.temporal_unet.plan import (
    Architecture,
    Part,
    Plan,
    Transformer,
    read_plan,
    site_modules,
)
from reweave.editing.temporal_unet.published_names import published_names
from reweave.editing.temporal_unet.training import Trainer, TrainingSettings
from tcve import (
    PUBLISHED,
    EightGroups,
    forward,
    goldens,
    image_unet,
    published_weights,
    temporal_network,
)
from torch import Tensor
from toy import SD15

TOLERANCE = 1e-4
"""Absolute, of a whole network: what the recording's provenance calls fair."""


def far(actual: Tensor, expected: Tensor) -> float:
    assert actual.shape == expected.shape
    return float((actual.detach() - expected).abs().max())


@pytest.fixture(scope="module")
def recorded() -> dict[str, Tensor]:
    return goldens("tcve_unet_tiny")


@pytest.fixture(scope="module")
def weights() -> dict[str, Tensor]:
    return published_weights()


@pytest.fixture(scope="module")
def unet(weights):
    return image_unet(weights)


def run(unet, net, recorded, case):
    inputs = (recorded[f"{case}.in.{name}"] for name in ("sample", "t", "ctx"))
    return forward(unet, net, *inputs)


@pytest.mark.parametrize("case", "ABCD")
def test_the_whole_network_is_the_recorded_one(unet, weights, recorded, case):
    net = temporal_network(unet, weights)
    assert far(run(unet, net, recorded, case), recorded[f"{case}.out"]) < TOLERANCE
    correct = temporal_network(unet, weights, Architecture("published", "correct"))
    assert far(run(unet, correct, recorded, case), recorded[f"{case}.out"]) > 1e-3


@pytest.mark.parametrize("place", ["middle", "up0", "up1"])
def test_features_and_fusion_are_the_recorded_ones(unet, weights, recorded, place):
    net = temporal_network(unet, weights)
    clip = recorded["A.in.sample"]
    raw = net.features(clip.transpose(1, 2))
    name = {"middle": "mid.temporal", "up0": "up0.temporal"}.get(place)
    if name:
        assert far(raw[place], recorded[f"A.act.{name}"]) < TOLERANCE
        assert far(raw[place].flip(0), recorded[f"A.act.{name}"]) > 1e-2
    fused = {}
    modules = dict(site_modules(unet, PUBLISHED))

    def keep(_module, _inputs, out):
        fused[place] = out

    inputs = clip.transpose(1, 2)
    with joined(unet, Joint(Features(net, inputs), 2)):
        handle = modules[place].register_forward_hook(keep)  # after ours
        steps = recorded["A.in.t"].repeat_interleave(8)
        unet(inputs.flatten(0, 1), steps, recorded["A.in.ctx"].repeat_interleave(8, 0))
        handle.remove()
    expected = recorded["A.act.mid_stb" if place == "middle" else f"A.act.up_stb{place[2]}"]
    found = fused[place].unflatten(0, (2, 8)).transpose(1, 2)
    assert far(found, expected) < TOLERANCE
    assert far(found.roll(1, 2), expected) > 1e-2


def test_timestep_and_text_never_reach_the_temporal_branch(unet, weights, recorded):
    """The branch is a function of the noisy latents alone: it can be shared by all branches."""
    net = temporal_network(unet, weights)
    seen = []
    net.conv_in.register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[0]))
    clip = recorded["A.in.sample"]
    for t, text in ((100, 1.0), (900, -1.0)):
        forward(unet, net, clip, torch.tensor([t]), recorded["A.in.ctx"] * text)
    assert torch.equal(*seen)


VARIANTS = {"rand_lr1e-3": 1e-3, "zero_lr3e-5": 3e-5}
ZERO = ("conv_3d.weight", "conv_3d.bias", "attn_temp.to_out.0.weight")


def trainer_of(unet, weights, recorded, variant, **changes) -> Trainer:
    if variant.startswith("zero"):
        weights = {
            name: torch.zeros_like(value) if name.endswith(ZERO) else value
            for name, value in weights.items()
        }
    net = temporal_network(unet, weights)
    context = recorded[f"{variant}.ctx"].repeat_interleave(8, 0)

    def predict(noisy: Tensor, timestep: int) -> Tensor:
        return unet(noisy, torch.full((8,), timestep), context)

    latents = recorded[f"{variant}.latents"][0].transpose(0, 1)
    settings = TrainingSettings(learning_rate=VARIANTS[variant], **changes)
    return Trainer(net, unet, predict, latents, recorded["alphas_cumprod"], settings)


def three_steps(trainer: Trainer, recorded, variant) -> list[float]:
    for number in range(3):
        noise = recorded[f"{variant}.noise{number}"][0].transpose(0, 1)
        trainer.step_on(int(recorded[f"{variant}.t{number}"]), noise)
    return trainer.losses


def by_published_name(trainer: Trainer) -> dict[str, Tensor]:
    """Weights in training as the recording names them."""
    names = published_names(trainer.net.plan)
    return {names[name]: weight for name, weight in trainer.net.named_parameters()}


@pytest.mark.parametrize("variant", VARIANTS)
def test_three_training_steps_are_the_recorded_ones(weights, variant):
    with torch.inference_mode(False):
        unet, recorded = image_unet(weights), goldens("tcve_train")
        weights = {name: value.clone() for name, value in weights.items()}
        trainer = trainer_of(unet, weights, recorded, variant)
        losses = three_steps(trainer, recorded, variant)
        torch.testing.assert_close(
            torch.tensor(losses).double(), recorded[f"{variant}.loss"].double(), rtol=1e-5, atol=0
        )
        named = by_published_name(trainer)
        after = {k.split(".after.")[1]: v for k, v in recorded.items() if f"{variant}.after." in k}
        assert len(after) == 7
        for name, expected in after.items():
            assert far(named[name], expected) < 3e-5, name
        clean, text = recorded[f"{variant}.latents"], recorded[f"{variant}.ctx"]
        out = forward(unet, trainer.net, clean, torch.tensor([333]), text)
        assert far(out, recorded[f"{variant}.out_after"]) < TOLERANCE


def test_the_first_gradient_is_the_recorded_one_and_each_hyper_parameter_counts(weights):
    variant = "rand_lr1e-3"
    with torch.inference_mode(False):
        unet, recorded = image_unet(weights), goldens("tcve_train")
        weights = {name: value.clone() for name, value in weights.items()}
        noise = recorded[f"{variant}.noise0"][0].transpose(0, 1)
        timestep = int(recorded[f"{variant}.t0"])
        expected = recorded[f"{variant}.grad0.conv3d_up3"]
        name = "up_stb_TempUnet.3.conv_3d.weight"
        after = {}
        for changes in ({}, {"clip_norm": 0.1}, {"weight_decay": 0.5}):
            trainer = trainer_of(unet, weights, recorded, variant, **changes)
            trainer.step_on(timestep, noise)
            weight = by_published_name(trainer)[name]
            assert weight.grad is not None
            after[str(changes)] = weight.detach().clone()
            distance = far(weight.grad, expected)
            assert distance > 1e-3 if "clip_norm" in changes else distance < 1e-5
        plain, _, decayed = after.values()
        assert far(plain, decayed) > 1e-5


def test_the_tuned_transformer_is_the_recorded_one():
    """Norms, first and previous frame, text, feed-forward, then attention over the frames."""
    recorded = goldens("tcve_modules")
    plan = Plan(4, 16, (), 16, (), 8, (Transformer("output_0_0", 16, 8, 24),))
    net = TemporalNetwork(replace(plan, decoder=(Part("unit", 16, 16),)), PUBLISHED)
    layers = EightGroups
    attention = SpatialTransformer(16, 8, 2, context_dim=24, operations=layers)
    state = {k.removeprefix("tr3d.w."): v for k, v in recorded.items() if k.startswith("tr3d.w.")}
    own = {k: v for k, v in state.items() if "_temp" not in k}
    attention.load_state_dict(own, strict=True)
    tuned, prefix = net.tuned["output_0_0"], "transformer_blocks.0."
    parts = {
        "self_query.weight": "attn1.to_q.weight",
        "cross_query.weight": "attn2.to_q.weight",
        "norm_frames.weight": "norm_temp.weight",
        "norm_frames.bias": "norm_temp.bias",
        "attention.to_out.weight": "attn_temp.to_out.0.weight",
        "attention.to_out.bias": "attn_temp.to_out.0.bias",
    }
    parts |= {f"attention.to_{x}.weight": f"attn_temp.to_{x}.weight" for x in "qkv"}
    tuned.load_state_dict({ours: state[prefix + theirs] for ours, theirs in parts.items()})
    x, text = recorded["tr3d.in.x"], recorded["tr3d.in.ctx"]

    def run(branches: int) -> Tensor:
        features = SimpleNamespace(net=net, window=0, overlap=0)
        unet = SimpleNamespace(
            input_blocks=[], middle_block=[], output_blocks=[[attention]], out=[attention.norm]
        )
        handles = transformer_hooks(unet, Joint(features, branches))
        rows = x.transpose(1, 2).flatten(0, 1)
        out = attention(rows, text.repeat_interleave(8, 0), {})
        for handle in handles:
            handle.remove()
        return out.unflatten(0, (2, 8)).transpose(1, 2)

    assert far(run(2), recorded["tr3d.out.x"]) < 1e-5
    assert far(run(1), recorded["tr3d.out.x"]) > 1e-3  # both clips taken for one


def test_sizes_on_sd15_are_those_of_the_published_class():
    """Millions of weights; tuned = frame attention 49.6 and queries 24.8."""
    wide = {"model_channels": 320, "channel_mult": [1, 2, 4, 4], "context_dim": 768, "num_heads": 8}
    config: dict[str, Any] = {**SD15, **wide}
    with torch.device("meta"):
        unet = UNetModel(**config, operations=comfy.ops.disable_weight_init)
        net = TemporalNetwork(read_plan(unet), PUBLISHED)
    sizes = {"fusion": 0, "tuned": 0, "temporal": 0}
    for name, weight in net.trainable().items():
        first = name.split(".")[0]
        sizes[first if first in sizes else "temporal"] += weight.numel()
    millions = {name: round(size / 1e6, 1) for name, size in sizes.items()}
    assert millions == {"temporal": 137.0, "fusion": 168.3, "tuned": 74.4}
    assert read_plan(unet).multiple == 8
