"""Training on a small model: what it changes, what it never touches, and how it goes on."""

from __future__ import annotations

import comfy.lora
import comfy.model_management
import comfy.utils
import pytest
import torch
from clips import SMALL, SMALL_XL, clip_latents, run, same, source
from reweave.editing import host
from reweave.editing.extended_attention import ExtendedAttention
from reweave.editing.host import temporal_training
from reweave.editing.host.temporal_training import TrainingRequest, train_temporal
from reweave.editing.host.temporal_unet import TemporalEdit, apply_temporal
from reweave.editing.temporal_unet.network import TemporalNetwork
from reweave.editing.temporal_unet.plan import Architecture, read_plan
from reweave.editing.temporal_unet.training import Trainer, TrainingSettings
from tcve import trained
from toy import conditioning, patcher

KINDS = {
    "paper": Architecture(),
    "paper with down units": Architecture(down_units=True),
    "published": Architecture("published", "correct"),
}


@pytest.fixture(scope="module")
def model():
    return patcher(SMALL)


def request(kind="paper", steps=3, every=0, gigabytes=24.0, **settings) -> TrainingRequest:
    settings = {"learning_rate": 1e-3, "checkpointing": False} | settings
    return TrainingRequest(
        KINDS[kind], TrainingSettings(steps=steps, **settings), every, gigabytes, "a prompt"
    )


def train(model, asked, frames=4, seed=5):
    return train_temporal(model, conditioning(), {"samples": clip_latents(frames, 8, seed)}, asked)


def frozen_copy(model):
    return {name: value.clone() for name, value in model.model.state_dict().items()}


def assert_untouched(model, before):
    after = model.model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    modules = model.model.modules()
    assert sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in modules) == 0
    assert not any("forward" in vars(module) for module in model.model.modules())
    assert not any(
        weight.requires_grad and weight.grad is not None for weight in model.model.parameters()
    )


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


def stop_after(monkeypatch, steps, error):
    """As the Cancel button does it, or a crash."""
    step = Trainer.step

    def stopping(self):
        if self.done == steps:
            raise error
        return step(self)

    monkeypatch.setattr(Trainer, "step", stopping)


@pytest.mark.parametrize(
    "error", [comfy.model_management.InterruptProcessingException(), RuntimeError("out of luck")]
)
@pytest.mark.parametrize("kind", ["paper", "published"])
def test_a_stopped_training_leaves_the_model_and_goes_on_bit_for_bit(
    model, kind, error, monkeypatch
):
    before = frozen_copy(model)
    with monkeypatch.context() as patch:
        patch.setattr(temporal_training, "resume_from", lambda *_: False)
        whole = train(model, request(kind, steps=4))
    for file in host.cache_folder().rglob("*.safetensors"):
        file.unlink()
    with monkeypatch.context() as patch:
        stop_after(patch, 2, error)
        with pytest.raises(type(error)):
            train(model, request(kind, steps=4))
    assert_untouched(model, before)
    assert len(list((host.cache_folder() / "training").glob("*.safetensors"))) == 1
    steps = []
    step = Trainer.step
    monkeypatch.setattr(Trainer, "step", lambda self: (steps.append(self.done), step(self))[1])
    resumed = train(model, request(kind, steps=4))
    assert steps == [2, 3] and resumed.losses == whole.losses and resumed.key == whole.key


def test_more_steps_go_on_and_other_settings_do_not(model, monkeypatch):
    steps = []
    step = Trainer.step
    monkeypatch.setattr(Trainer, "step", lambda self: (steps.append(self.done), step(self))[1])
    train(model, request(steps=2))
    train(model, request(steps=3))
    assert steps == [0, 1, 2]
    steps.clear()
    train(model, request(steps=2))  # fewer than the snapshot has
    assert steps == [0, 1]
    for changed in (request(steps=1, learning_rate=2e-3), request("published", steps=1)):
        steps.clear()
        train(model, changed)
        assert steps == [0]
    steps.clear()
    train(model, request(steps=1), seed=6)
    assert steps == [0]


def test_a_broken_snapshot_is_not_used(model):
    train(model, request(steps=2))
    (path,) = (host.cache_folder() / "training").glob("*.safetensors")
    path.write_bytes(path.read_bytes()[:1000])
    assert train(model, request(steps=2)).steps == 2


def test_snapshots_are_written_on_the_way(model, monkeypatch):
    written = []
    save = temporal_training.save_snapshot
    monkeypatch.setattr(
        temporal_training, "save_snapshot", lambda p, t: (written.append(t.done), save(p, t))[1]
    )
    train(model, request(steps=5, every=2))
    assert written == [2, 4, 5]


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
