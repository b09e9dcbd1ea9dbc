"""A stopped training goes on as if unbroken, from its own snapshot only, and spoils none."""

from __future__ import annotations

import comfy.model_management
import pytest
import torch
from clips import SMALL
from reweave.editing import host, storage
from reweave.editing.host import temporal_training
from reweave.editing.temporal_unet.snapshot import KIND
from reweave.editing.temporal_unet.training import Trainer
from small_training import assert_untouched, frozen_copy, request, train
from toy import patcher


@pytest.fixture(scope="module")
def model():
    return patcher(SMALL)


@pytest.fixture
def steps(monkeypatch):
    """Numbers of the steps that are taken."""
    taken, step = [], Trainer.step
    monkeypatch.setattr(Trainer, "step", lambda self: (taken.append(self.done), step(self))[1])
    return taken


def the_snapshot():
    (path,) = (host.cache_folder() / "training").glob("*.safetensors")
    return path


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
    model, kind, error, steps, monkeypatch
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
    assert the_snapshot().is_file()
    steps.clear()
    resumed = train(model, request(kind, steps=4))
    assert steps == [2, 3] and resumed.losses == whole.losses and resumed.key == whole.key


def test_more_steps_go_on_and_other_settings_do_not(model, steps):
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
    path = the_snapshot()
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


def test_fewer_steps_leave_the_longer_snapshot(model, steps):
    train(model, request(steps=3))
    longer = the_snapshot().read_bytes()
    assert train(model, request(steps=2, every=1)).steps == 2
    assert the_snapshot().read_bytes() == longer
    steps.clear()
    train(model, request(steps=4))
    assert steps == [3], "goes on from the longer run"


def with_merged_lora(model, name):
    """Another checkpoint: one weight of the same UNet moved."""
    other = patcher(SMALL)
    other.model.load_state_dict(model.model.state_dict())
    with torch.inference_mode(False), torch.no_grad():
        other.model.get_parameter(f"diffusion_model.{name}")[-1] += 0.01
    return other


def test_another_checkpoint_with_the_same_ends_does_not_go_on(model, steps):
    """A merged LoRA moves attention weights, which are not among those of the fingerprint."""
    train(model, request(steps=2))
    name = "middle_block.1.transformer_blocks.0.attn2.to_v.weight"
    other = with_merged_lora(model, name)
    assert host.fingerprint(other) == host.fingerprint(model)
    steps.clear()
    train(other, request(steps=3))
    assert steps == [0, 1, 2]


LACKING = {
    "a weight": lambda tensors: tensors.pop(list(tensors)[-1]),
    "a moment": lambda tensors: tensors.pop(next(n for n in tensors if n.startswith("exp_avg/"))),
    "the generator": lambda tensors: tensors.pop("generator"),
    "a shape": lambda tensors: tensors.update({list(tensors)[-1]: torch.ones(1)}),
    "a state": lambda tensors: tensors.update({"generator": torch.zeros(3)}),
}


@pytest.mark.parametrize("lacking", LACKING)
def test_a_snapshot_that_lacks_something_changes_nothing(model, steps, lacking):
    """Read and checked as a whole before anything is replaced."""
    whole = train(model, request(steps=3))
    path = the_snapshot()
    tensors, plain = storage.load(path, KIND)
    tensors = {name: torch.zeros_like(value) for name, value in tensors.items()}
    tensors = dict(sorted(tensors.items()))  # weights come last
    LACKING[lacking](tensors)
    storage.save(path, KIND, tensors, plain)
    steps.clear()
    again = train(model, request(steps=3))
    assert steps == [0, 1, 2] and again.losses == whole.losses and again.key == whole.key


def test_a_snapshot_that_cannot_be_written_costs_no_training(model, monkeypatch):
    said = []
    monkeypatch.setattr(temporal_training, "say", said.append)

    def full(*_args):
        raise ValueError("Saving the training snapshot: x was not written: the disk is full")

    monkeypatch.setattr(storage, "save", full)
    assert train(model, request(steps=3, every=2)).steps == 3
    assert sum("the disk is full" in text for text in said) == 2, "after step 2 and at the end"


def test_a_gradient_that_is_no_number_stops_the_training(model, monkeypatch):
    """Also in the last step, after which no loss would show it."""
    backward = Trainer._backward

    def broken(self, timestep, noise):
        value = backward(self, timestep, noise)
        if self.done == 2:
            weight = next(weight for weight in self.weights.values() if weight.grad is not None)
            weight.grad[0] = float("inf")
        return value

    monkeypatch.setattr(Trainer, "_backward", broken)
    message = r"Train Temporal UNet: the gradient is inf at step 3. Lower 'learning_rate'"
    with pytest.raises(ValueError, match=message):
        train(model, request(steps=3))
    tensors, plain = storage.load(the_snapshot(), KIND)
    assert len(plain["losses"]) == 2
    assert all(bool(torch.isfinite(v).all()) for v in tensors.values() if v.is_floating_point())
