"""What a training takes is said first, refused first, and taken once; in which precision, too."""

from __future__ import annotations

import comfy.model_management
import comfy.model_patcher
import pytest
import torch
from clips import SMALL, run, source
from reweave.editing import host
from reweave.editing.host import temporal_copy, temporal_training
from reweave.editing.host.temporal_unet import TemporalRun
from reweave.editing.temporal_unet.training import Trainer
from small_training import request, train
from toy import patcher


@pytest.fixture(scope="module")
def model():
    return patcher(SMALL)


@pytest.fixture
def said(monkeypatch):
    texts = []
    monkeypatch.setattr(temporal_training, "say", texts.append)
    return texts


def test_the_plan_is_shown_and_padding_is_said(model, said):
    train(model, request(steps=1), frames=5)
    assert len(said) == 1
    assert said[0].startswith("the training (image model 0.00")
    assert "trained weights and optimizer" in said[0] and "activations about" in said[0]
    assert said[0].endswith("; 5 frames are padded by reflection to a multiple of 2")
    said.clear()
    train(model, request(steps=2), frames=4)
    assert len(said) == 1 and "padded" not in said[0]


def test_a_plan_above_the_limit_is_refused_before_anything_is_loaded(model, monkeypatch):
    comfy.model_management.unload_all_models()

    def loading(*_args, **_kwargs):
        raise AssertionError("the model was loaded")

    monkeypatch.setattr(comfy.model_management, "load_models_gpu", loading)
    monkeypatch.setattr(temporal_training, "fresh_network", loading)
    with pytest.raises(ValueError, match=r"the training \(image model .* more than 'max_gigabyt"):
        train(model, request(gigabytes=1e-4))


def test_a_plan_above_what_the_device_has_is_refused(model, monkeypatch):
    """Whatever 'max_gigabytes' allows."""
    monkeypatch.setattr(comfy.model_management, "get_total_memory", lambda *_: 1e5)
    with pytest.raises(ValueError, match=r"the training .* cpu has 0\.0001 GB in all\. .*smaller"):
        train(model, request())


@pytest.mark.parametrize("place", ["training", "sampling"])
def test_running_out_of_memory_names_the_node_and_the_knob(model, monkeypatch, place):
    trained = train(model, request(steps=1))
    full = comfy.model_management.OOM_EXCEPTION("no room on the test's device")

    def fails(*_args, **_kwargs):
        raise full

    if place == "training":
        monkeypatch.setattr(Trainer, "step", fails)
        with pytest.raises(ValueError, match="^Train Temporal UNet: ran out of memory .*smaller"):
            train(model, request(steps=2))
        return
    applied = host.apply_temporal(model, host.TemporalEdit(trained))
    monkeypatch.setattr(TemporalRun, "joint", fails)
    with pytest.raises(ValueError, match="^Apply Temporal UNet: 5 frames in one call ran out"):
        run(applied, source(model))


def test_the_plan_counts_what_stays_on_the_device():
    """The copy; and the MODEL too where ComfyUI keeps it there (CPU, --highvram)."""
    small = patcher(SMALL)
    copied = 4 * sum(weight.numel() for weight in small.model.diffusion_model.parameters())
    both = temporal_copy.resident_bytes(small, torch.float32)
    assert both == copied + small.model_size() >= 2 * copied
    cpu, gpu = torch.device("cpu"), torch.device("cuda:0")
    offloaded = comfy.model_patcher.ModelPatcher(small.model, gpu, cpu)
    assert temporal_copy.resident_bytes(offloaded, torch.float32) == copied
    assert temporal_copy.resident_bytes(offloaded, torch.bfloat16) == copied / 2


def test_the_model_has_left_the_device_when_the_copy_goes_there(model, monkeypatch):
    comfy.model_management.unload_all_models()
    seen = []
    load, to = comfy.model_management.load_models_gpu, torch.nn.Module.to

    def loading(models, *args, **kwargs):
        load(models, *args, **kwargs)
        seen.append(("loaded", models[0].loaded_size() > 0))

    def moving(module, *args, **kwargs):
        if type(module).__name__ == "UNetModel" and module is not model.model.diffusion_model:
            seen.append(("copy moves", model.loaded_size() > 0))
        return to(module, *args, **kwargs)

    monkeypatch.setattr(comfy.model_management, "load_models_gpu", loading)
    monkeypatch.setattr(torch.nn.Module, "to", moving)
    train(model, request(steps=1))
    assert seen == [("loaded", True), ("copy moves", False)]


def test_the_copy_is_made_in_ram_whatever_the_device(model):
    """deepcopy alone would put a second UNet beside the first on the device."""
    with torch.inference_mode(False):
        unet = patcher(SMALL).model.diffusion_model
        unet.register_buffer("more", torch.ones(2))
        copied = temporal_copy.copied_to_ram(unet)
        own = [*copied.parameters(), *copied.buffers()]
        for one, other in zip(own, [*unet.parameters(), *unet.buffers()], strict=True):
            assert torch.equal(one, other) and one.data_ptr() != other.data_ptr()
            assert one.device.type == "cpu" and type(one) is type(other)
            assert not one.is_inference() and not one.requires_grad
        assert copied.state_dict().keys() == unet.state_dict().keys()


@pytest.mark.parametrize("kind", ["paper", "published"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_half_precision_arithmetic_is_close(model, kind, checkpointing, monkeypatch):
    """As on a GPU with bfloat16; there the frozen weights are halved too, which needs CUDA's
    group norm."""
    asked = request(kind, steps=3, checkpointing=checkpointing)
    plain = train(model, asked)
    monkeypatch.setattr(
        temporal_training, "precision_of", lambda _patcher: (torch.float32, torch.bfloat16)
    )
    kinds = set()
    backward = Trainer._backward

    def spy(self, *args):
        loss = backward(self, *args)
        kinds.update(weight.dtype for weight in self.weights.values())
        kinds.update(w.grad.dtype for w in self.weights.values() if w.grad is not None)
        return loss

    monkeypatch.setattr(Trainer, "_backward", spy)
    half = train(model, asked)
    assert kinds == {torch.float32}, "what is trained, and its gradients"
    assert half.losses != plain.losses and half.losses == pytest.approx(plain.losses, rel=0.02)


def test_half_precision_is_for_cuda_with_bfloat16(monkeypatch):
    small, cpu = patcher(SMALL), torch.device("cpu")
    half = torch.bfloat16
    assert temporal_copy.precision_of(small) == (torch.float32, None)
    gpu = comfy.model_patcher.ModelPatcher(small.model, torch.device("cuda:0"), cpu)
    able = [False]
    monkeypatch.setattr(comfy.model_management, "should_use_bf16", lambda _device: able[0])
    assert temporal_copy.precision_of(gpu) == (torch.float32, None)
    able[0] = True
    assert temporal_copy.precision_of(gpu) == (half, half)
    small.model.diffusion_model.to(torch.float16)
    assert temporal_copy.precision_of(gpu) == (torch.float16, half)
