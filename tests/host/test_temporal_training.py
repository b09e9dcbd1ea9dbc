"""Training on a small model: what it changes, what it never touches, and how it goes on."""

from __future__ import annotations

import comfy.lora
import comfy.model_base
import comfy.model_management
import comfy.utils
import pytest
import torch
from clips import SMALL, SMALL_XL, clip_latents, run, same, source
from comfy.model_sampling import V_PREDICTION, ModelSamplingDiscrete
from reweave.editing import host
from reweave.editing.extended_attention import ExtendedAttention
from reweave.editing.host import temporal_training
from reweave.editing.host.temporal_training import TrainingRequest, train_temporal
from reweave.editing.host.temporal_unet import TemporalEdit, apply_temporal
from reweave.editing.temporal_unet.network import TemporalNetwork
from reweave.editing.temporal_unet.plan import Architecture, read_plan
from reweave.editing.temporal_unet.training import Trainer, TrainingSettings
from small_training import KINDS, assert_untouched, frozen_copy, request, train
from tcve import trained
from toy import conditioning, patcher


@pytest.fixture(scope="module")
def model():
    return patcher(SMALL)


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_reach_exactly_what_is_trained(model, kind, monkeypatch):
    """From the second step on: before, the zero convolutions hold back everything behind them."""
    seen = []
    step = Trainer.step

    def spy(self):
        loss = step(self)
        weights = dict(self.net.named_parameters())
        seen.append({n: w.grad is not None and bool(w.grad.any()) for n, w in weights.items()})
        assert not any(weight.grad is not None for weight in self.unet.parameters())
        assert not any(weight.requires_grad for weight in self.unet.parameters())
        return loss

    monkeypatch.setattr(Trainer, "step", spy)
    train(model, request(kind, steps=4))
    first, last = seen[0], seen[-1]
    convolutions = {n for n in first if n.startswith("fusion.") and ".conv." in n}
    tuned = {n for n in first if n.startswith("tuned.")}
    assert {n for n, reached in first.items() if reached} - tuned == convolutions
    held = {n for n in tuned if ".norm_frames." in n}
    assert {n for n, reached in last.items() if not reached} == held
    assert held or kind != "published"


@pytest.mark.parametrize("kind", KINDS)
def test_every_trained_weight_moves_and_the_model_does_not(model, kind):
    before, rng = frozen_copy(model), torch.get_rng_state()
    inversion = source(model, frames=4, steps=2)
    untouched = run(model, inversion)
    payload = train(model, request(kind))
    assert torch.equal(torch.get_rng_state(), rng), "the global generator was drawn from"
    assert_untouched(model, before)
    assert torch.equal(run(model, inversion), untouched)
    with torch.inference_mode(False):
        start = temporal_training.fresh_network(payload.plan, KINDS[kind], 33).state_dict()
    moved = {n for n, w in payload.weights.items() if not torch.equal(w, start[n].half())}
    still = {n for n in payload.weights if n.startswith("tuned.") and ".norm_frames." in n}
    assert moved == payload.weights.keys() - still
    assert payload.steps == len(payload.losses) == 3 and payload.frames == 4
    assert payload.prompt == "a prompt" and payload.fingerprint == host.fingerprint(model)
    edited = run(apply_temporal(model, TemporalEdit(payload)), inversion)
    assert not torch.equal(edited, untouched)


def first_draw(model):
    """Noise level and noise of the first step, as its seed says."""
    generator = torch.Generator().manual_seed(33)
    timestep = int(torch.randint(1000, (), generator=generator))
    noise = torch.randn(4, 4, 8, 8, generator=generator)
    clean = model.model.process_latent_in(clip_latents(4, 8, 5))
    sigma = model.get_model_object("model_sampling").sigmas[timestep]
    signal = 1 / (1 + sigma.double() ** 2)
    root, rest = float(signal.sqrt()), float((1 - signal).sqrt())
    context = conditioning()[0][0].expand(4, -1, -1)
    noisy = root * clean + rest * noise
    out = model.model.diffusion_model(noisy, torch.full((4,), float(timestep)), context)
    return out, {"v": root * noise - rest * clean, "noise": noise}


def told_v(model):
    """As the node ModelSamplingDiscrete does it: v, on a model that says it predicts noise."""
    clone = model.clone()
    sampling = type("Sampling", (ModelSamplingDiscrete, V_PREDICTION), {})
    clone.add_object_patch("model_sampling", sampling(model.model.model_config))
    return clone


TYPES = comfy.model_base.ModelType
PREDICTING = {
    "noise": lambda: patcher(SMALL, TYPES.EPS),
    "v": lambda: patcher(SMALL, TYPES.V_PREDICTION),
    "v, by a node": lambda: told_v(patcher(SMALL, TYPES.EPS)),
}


@pytest.mark.parametrize("kind", PREDICTING)
def test_the_first_loss_is_the_hand_made_one(kind):
    """Untrained, "paper" is the image UNet alone: its error of v, or of the noise."""
    model = PREDICTING[kind]()
    (loss,) = train(model, request(steps=1)).losses
    out, targets = first_draw(model)
    errors = {name: float((out - target).square().mean()) for name, target in targets.items()}
    assert loss == pytest.approx(errors.pop(kind.split(",")[0]), rel=1e-5)
    assert loss != pytest.approx(*errors.values(), rel=1e-2)


def test_training_lowers_the_loss(model):
    payload = train(model, request(steps=40, learning_rate=1e-2))
    assert sum(payload.losses[-10:]) < 0.9 * sum(payload.losses[:10])


def test_a_seed_gives_a_training_and_checkpoints_do_not_change_it(model, monkeypatch):
    monkeypatch.setattr(temporal_training, "resume_from", lambda *_: False)
    plain = train(model, request("published"))
    again = train(model, request("published"))
    thrifty = train(model, request("published", checkpointing=True))
    other = train(model, request("published", training_seed=34))
    assert plain.losses == again.losses and plain.key == again.key
    assert thrifty.losses == pytest.approx(plain.losses, rel=1e-5)
    assert all(
        same(thrifty.weights[n].float(), w.float(), 2e-3)
        for n, w in plain.weights.items()
        if w.float().std() > 1e-3
    )
    assert other.losses != plain.losses


def test_the_loss_curve_is_shown_on_the_way(model, monkeypatch):
    shown = []
    monkeypatch.setattr(
        comfy.utils.ProgressBar,
        "update_absolute",
        lambda self, value, total=None, preview=None: shown.append((value, total, preview)),
    )
    train(model, request(steps=3))
    assert [entry[:2] for entry in shown] == [(1, 3), (2, 3), (3, 3)]
    kind, picture, size = shown[-1][2]
    assert kind == "JPEG" and picture.size == (800, 400) and size == 800


def with_lora(model, strength=1.0):
    """As LoraLoader does it: a change of two weights of the UNet."""
    clone = model.clone()
    keys = comfy.lora.model_lora_keys_unet(clone.model, {})
    names = [k for k in keys if k.endswith(("attn1_to_q", "attn1_to_v"))][:2]
    state = {}
    generator = torch.Generator().manual_seed(9)
    for name in names:
        target = keys[name]
        weight = clone.model.state_dict()[target if isinstance(target, str) else target[0]]
        state[f"{name}.lora_down.weight"] = torch.randn(2, weight.shape[1], generator=generator)
        state[f"{name}.lora_up.weight"] = torch.randn(weight.shape[0], 2, generator=generator)
    assert clone.add_patches(comfy.lora.load_lora(state, keys), strength)
    return clone


@pytest.mark.parametrize("kind", ["paper", "published"])
def test_a_lora_before_and_after(model, kind):
    """Before: the training sees it. After: it acts on the model that carries the temporal UNet."""
    before = frozen_copy(model)
    plain, styled = train(model, request(kind)), train(with_lora(model), request(kind))
    assert plain.losses != styled.losses and styled.fingerprint.patches
    inversion = source(model, frames=4, steps=2)
    payload = trained(model, KINDS[kind])
    fused = apply_temporal(model, TemporalEdit(payload))
    after = run(with_lora(fused), inversion)
    first = run(apply_temporal(with_lora(model), TemporalEdit(payload)), inversion)
    assert torch.equal(after, first)
    assert not same(after, run(fused, inversion), 1e-3)
    run(model, inversion)  # ComfyUI takes the LoRA off when another clone is loaded
    assert_untouched(model, before)


@pytest.mark.parametrize("frames", [2, 3, 5])
def test_any_frame_count_is_trained_by_padding(model, frames):
    """This UNet halves the frames once; odd counts are padded by reflection."""
    for kind in ("paper", "published"):
        payload = train(model, request(kind, steps=2), frames)
        assert payload.frames == frames and all(loss > 0 for loss in payload.losses)


def test_sdxl_is_told_its_pooled_conditioning():
    model = patcher(SMALL_XL)
    seen = []
    model.model.diffusion_model.label_emb.register_forward_pre_hook(
        lambda _module, inputs: seen.append(inputs[0].shape)
    )
    positive = conditioning()
    positive[0][1]["pooled_output"] = torch.randn(
        1, 1280, generator=torch.Generator().manual_seed(1)
    )
    payload = train_temporal(model, positive, {"samples": clip_latents(2)}, request(steps=2))
    assert seen == [(2, 2816)] * 2 and payload.steps == 2


def test_an_inpainting_model_is_refused_before_it_is_loaded(model, monkeypatch):
    def loading(*_args, **_kwargs):
        raise AssertionError("the model was loaded")

    monkeypatch.setattr(comfy.model_management, "load_models_gpu", loading)
    with pytest.raises(
        ValueError,
        match=r"Train Temporal UNet: expected a UNet that takes the 4 channels of the latents, "
        r"this SD15 model's takes 9 \(an inpainting model, .*\). Load the plain checkpoint",
    ):
        train(patcher(SMALL | {"in_channels": 9}), request())
    latent = {"samples": torch.zeros(2, 16, 8, 8)}
    with pytest.raises(
        ValueError,
        match=r"latents of 4 channels, which this SD15 model has, got 16. Encode the clip with the",
    ):
        train_temporal(model, conditioning(), latent, request())


def test_what_cannot_be_trained_is_said_first(model):
    attended = host.attach(model, ExtendedAttention())
    with pytest.raises(ValueError, match=r"Train Temporal UNet: this MODEL carries Extended Att"):
        train(attended, request())
    fused = apply_temporal(model, TemporalEdit(trained(model, KINDS["paper"])))
    with pytest.raises(ValueError, match=r"carries Apply Temporal UNet, which cannot act"):
        train(fused, request())
    with pytest.raises(ValueError, match=r"2 frames or more, got \(1, 4, 8, 8\)"):
        train(model, request(), frames=1)
    latent = {"samples": torch.full((2, 4, 8, 8), float("nan"))}
    with pytest.raises(ValueError, match=r"the latents hold NaN"):
        train_temporal(model, conditioning(), latent, request())
    with pytest.raises(ValueError, match=r"expected 'steps' to be at least 1, got 0"):
        train(model, request(steps=0))
    with pytest.raises(ValueError, match=r"'learning_rate' above 0 and at most 1, got 0"):
        train(model, request(learning_rate=0.0))
    both = TrainingRequest(Architecture("published", "correct", True))
    with pytest.raises(ValueError, match=r"'down_units' belongs to the architecture 'paper'"):
        train(model, both)
    with pytest.raises(ValueError, match=r"the training \(image model .* more than 'max_gigabyt"):
        train(model, request(gigabytes=1e-4))
    scrambled = TrainingRequest(Architecture("published", "published code"), TrainingSettings(1))
    three_levels = patcher(
        SMALL
        | {"channel_mult": [1, 1, 1], "num_res_blocks": [1, 1, 1], "transformer_depth": [1, 1, 1]}
        | {"transformer_depth_output": [1] * 6}
    )
    latent = {"samples": torch.zeros(2, 4, 5, 7)}
    with pytest.raises(ValueError, match=r"cannot fuse latents of 7x5"):
        train_temporal(three_levels, conditioning(), latent, scrambled)


def test_a_loss_that_is_no_number_stops_the_training(model, monkeypatch):
    monkeypatch.setattr(
        temporal_training, "predictor", lambda *_: lambda noisy, _: noisy * float("nan")
    )
    with pytest.raises(ValueError, match=r"the loss is nan at step 1. Lower 'learning_rate'"):
        train(model, request())


def test_the_plan_mirrors_the_unet(model):
    plan = read_plan(model.model.diffusion_model)
    assert plan.multiple == 2 and plan.middle == 64 and plan.groups == 32
    assert plan.sites(KINDS["paper"]) == {"middle": 64, "up0": 64, "up1": 32}
    down = plan.sites(KINDS["paper with down units"])
    assert list(down) == ["down0", "down1", "middle", "up0", "up1"]
    net = TemporalNetwork(plan, KINDS["published"])
    assert set(net.tuned) == {t.name for t in plan.transformers}
