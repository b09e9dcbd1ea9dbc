"""What differs between devices and versions of the host, where it can be seen without them."""

from __future__ import annotations

import comfy.model_management
import pytest
import torch
from clips import SMALL, source
from reweave.editing import host, storage
from reweave.editing.host.feature_cache import compute_dtype, step_cache
from reweave.editing.host.memory import ran_out_of_memory
from reweave.editing.host.model import with_own_weights
from reweave.editing.host.paths import files_folder, list_files
from reweave.editing.host.training_device import training_device
from reweave.editing.latent_guidance import LatentGuidance
from reweave.editing.tokenflow import TokenFlow
from reweave.editing.warping import FlowWarp
from toy import patcher


@pytest.fixture
def model():
    return patcher(SMALL)


class Paged:
    """Makes a MODEL look like one whose weights a newer ComfyUI pages in and out."""

    def __init__(self, model, monkeypatch, plain=True):
        self.asked: list[dict] = []
        clone = model.clone

        def asked(**how):
            self.asked.append(how)
            if how and not plain:
                raise RuntimeError("cached_patcher_init is not initialized")
            return clone()

        monkeypatch.setattr(model, "is_dynamic", lambda: True, raising=False)
        monkeypatch.setattr(model, "clone", asked)


def test_weights_that_are_paged_are_loaded_plainly_for_gradients(model, monkeypatch):
    paged = Paged(model, monkeypatch)
    host.attach(model, LatentGuidance(0.1, 1.0, mode="gradient"))
    assert paged.asked == [{"disable_dynamic": True}]
    paged.asked.clear()
    host.attach(model, LatentGuidance(0.1, 1.0))
    assert paged.asked == [{}]


def test_a_model_that_cannot_be_loaded_plainly_is_refused(model, monkeypatch):
    Paged(model, monkeypatch, plain=False)
    with pytest.raises(ValueError, match="Train Temporal UNet: .*Load it with Load Checkpoint"):
        with_own_weights(model, "Train Temporal UNet")


@pytest.mark.parametrize(
    ("failure", "expected"), [(None, "mps"), (NotImplementedError("no grid_sampler here"), "cpu")]
)
def test_textures_are_trained_where_that_is_possible(monkeypatch, caplog, failure, expected):
    """On a device that is neither a CPU nor CUDA a lookup is tried; here it is the CPU's."""
    caplog.set_level("INFO")
    tried = torch.nn.functional.grid_sample

    def grid_sample(*args, **kwargs):
        if failure:
            raise failure
        return tried(*args, **kwargs)

    zeros = torch.zeros
    monkeypatch.setattr(torch, "zeros", lambda *size, device=None, **how: zeros(*size, **how))
    monkeypatch.setattr(torch.nn.functional, "grid_sample", grid_sample)
    for name, found in (("cpu", "cpu"), ("cuda", "cuda"), ("mps", expected)):
        monkeypatch.setattr(
            comfy.model_management, "get_torch_device", lambda name=name: torch.device(name)
        )
        assert training_device().type == found
    said = "textures cannot be trained on mps (no grid_sampler here): the CPU is used"
    assert (said in caplog.text) is (failure is not None)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (comfy.model_management.OOM_EXCEPTION("Allocation on device"), True),
        (RuntimeError("MPS backend out of memory (MPS allocated: 5 GB)"), True),
        (RuntimeError("CUDA error: out of memory"), True),
        (RuntimeError("shapes cannot be multiplied"), False),
        (ValueError("out of memory"), False),
    ],
)
def test_what_counts_as_out_of_memory(error, expected):
    assert ran_out_of_memory(error) is expected


def test_another_compute_dtype_has_a_cache_of_its_own(model):
    inversion = source(model)
    edits = [TokenFlow(inversion)]
    plain = step_cache(model, edits, inversion.clean)
    other = model.clone()
    other.set_model_compute_dtype(torch.bfloat16)
    assert compute_dtype(other) == torch.bfloat16
    cached = step_cache(other, edits, inversion.clean)
    assert plain is not None and cached is not None and plain.folder != cached.folder


def test_a_file_that_has_gone_does_not_empty_the_list():
    folder = files_folder("inversions")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "here.safetensors").touch()
    try:
        (folder / "gone.safetensors").symlink_to(folder / "nowhere.safetensors")
    except OSError:
        pytest.skip("this system allows no links")
    listed = list_files("inversions")
    assert "here.safetensors" in listed and "gone.safetensors" not in listed


@pytest.mark.parametrize(("version", "safe"), [("2.5.1+cu121", False), ("2.6.0", True)])
def test_old_torch_reads_no_pickles(monkeypatch, version, safe):
    monkeypatch.setattr(torch, "__version__", version)
    if safe:
        storage.require_safe_pickles("folder/checkpoint")
        return
    with pytest.raises(ValueError, match=r"folder/checkpoint was not opened: PyTorch 2\.5\.1"):
        storage.require_safe_pickles("folder/checkpoint")


def test_a_flow_that_leaves_the_picture_reads_its_border():
    """Done without padding_mode="border", which Apple's GPUs lacked."""
    generator = torch.Generator().manual_seed(1)
    targets = torch.randn(2, 3, 6, 5, generator=generator)
    flow = torch.randn(2, 2, 48, 40, generator=generator) * 20
    moved, seen = FlowWarp(flow, torch.ones(2, 1, 48, 40)).follow(targets, 0)
    small = torch.nn.functional.interpolate(flow, (6, 5), mode="area") / 8
    for f in range(2):
        for y in range(6):
            for x in range(5):
                there = (x + float(small[f, 0, y, x]), y + float(small[f, 1, y, x]))
                u, v = min(max(there[0], 0.0), 4.0), min(max(there[1], 0.0), 5.0)
                left, top = min(int(u), 3), min(int(v), 4)
                a, b = u - left, v - top
                rows = targets[f, :, top : top + 2, left : left + 2]
                upper = rows[:, 0, 0] * (1 - a) + rows[:, 0, 1] * a
                lower = rows[:, 1, 0] * (1 - a) + rows[:, 1, 1] * a
                expected = upper * (1 - b) + lower * b
                assert torch.allclose(moved[f, :, y, x], expected, atol=1e-4)
                inside = -0.5 <= there[0] <= 4.5 and -0.5 <= there[1] <= 5.5
                assert float(seen[f, 0, y, x]) == float(inside)
