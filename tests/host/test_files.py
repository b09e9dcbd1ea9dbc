"""Saved inversions, fields and cached steps: round trips, broken files, a full disk."""

from __future__ import annotations

import errno
from dataclasses import fields

import pytest
import torch
from clips import SMALL, run, source
from reweave.editing import host, storage
from reweave.editing.plug_and_play import PlugAndPlay
from reweave.editing.tokenflow import TokenFlow
from reweave.editing.types import Fingerprint, Inversion, NNField
from safetensors import SafetensorError
from safetensors.torch import save_file
from toy import conditioning, patcher


@pytest.fixture(scope="module")
def model():
    return patcher(SMALL)


@pytest.fixture
def inversion(model):
    return host.invert_clip(
        model, conditioning(1), {"samples": source(model).clean / 0.18215},
        host.InversionRequest(8, 4),
    )  # fmt: skip


@pytest.fixture
def field(model, inversion):
    return host.field_of(model, inversion, None, 4, 1, "random per step", "published code", 8, 4.0)


@pytest.fixture(params=["inversion", "field"])
def payload(request, inversion):
    if request.param == "inversion":
        return inversion
    return request.getfixturevalue("field")


KINDS = {Inversion: "inversions", NNField: "fields"}


def equal(one, other) -> bool:
    if isinstance(one, torch.Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(equal(one[k], other[k]) for k in one)
    return one == other


def save(payload, name="clip"):
    return host.save_payload(payload, KINDS[type(payload)], name, "Save")


def load(payload, name="clip"):
    return host.load_payload(type(payload), KINDS[type(payload)], name, "Load")


def path_of(payload, user_folders):
    return user_folders / "output" / "reweave" / KINDS[type(payload)] / "clip.safetensors"


def test_every_field_comes_back(payload):
    assert "MB" in save(payload)
    loaded = load(payload)
    for part in fields(payload):
        assert equal(getattr(payload, part.name), getattr(loaded, part.name)), part.name
    if isinstance(payload, Inversion):
        assert loaded.key == payload.key and loaded.fingerprint != Fingerprint()
        assert loaded.noisiest is not None


def test_a_file_from_before_the_precision_was_kept(inversion, user_folders):
    save(inversion)
    path = path_of(inversion, user_folders)
    tensors, plain = storage.load(path, inversion.KIND)
    assert plain["fingerprint"].pop("dtype") == "float32"
    storage.save(path, inversion.KIND, tensors, plain)
    old = load(inversion)
    assert old.fingerprint.dtype == "" and old.fingerprint.base == inversion.fingerprint.base
    assert old.key == inversion.key, "fields that were made of it still belong to it"


def test_a_loaded_inversion_and_field_edit_as_the_ones_that_were_saved(model, inversion, field):
    save(inversion)
    save(field)
    here = run(model, inversion, TokenFlow(inversion, interval=4, nn_field=field))
    clip = load(inversion)
    there = run(model, clip, TokenFlow(clip, interval=4, nn_field=load(field)))
    assert torch.equal(here, there)


@pytest.mark.parametrize("size", [0, 5, 300, -1])
def test_a_truncated_file(payload, user_folders, size):
    save(payload)
    path = path_of(payload, user_folders)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) - 100 if size < 0 else size])
    with pytest.raises(ValueError, match=r"Load: .*clip\.safetensors is not a readable") as caught:
        load(payload)
    assert "make it again" in str(caught.value).lower()


def test_a_foreign_file(payload, user_folders):
    path = path_of(payload, user_folders)
    path.parent.mkdir(parents=True)
    save_file({"lora.weight": torch.ones(3)}, path)
    with pytest.raises(ValueError, match="holds a file of another program") as caught:
        load(payload)
    assert "clip.safetensors" in str(caught.value) and "Choose a file" in str(caught.value)


def test_a_payload_of_the_other_kind(inversion, field, user_folders):
    save(inversion)
    path = path_of(field, user_folders)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(path_of(inversion, user_folders).read_bytes())
    with pytest.raises(ValueError, match="expected a Reweave correspondence field") as caught:
        load(field)
    assert "holds inversion" in str(caught.value)


def test_a_file_that_lacks_parts(payload, user_folders):
    """As a later version, or a hand that edited it, might leave it."""
    save(payload)
    path = path_of(payload, user_folders)
    tensors, plain = storage.load(path, payload.KIND)
    gone = "latents" if isinstance(payload, Inversion) else "weights"
    tensors.pop(gone)
    storage.save(path, payload.KIND, tensors, plain)
    with pytest.raises(ValueError, match=f"lacks parts.*{gone}"):
        load(payload)


@pytest.mark.parametrize("name", ["nowhere", "../outside", "", ".hidden", "a/b"])
def test_missing_files_and_bad_names(payload, name):
    with pytest.raises(ValueError, match="Load: ") as caught:
        load(payload, name)
    text = str(caught.value)
    assert ("found no file nowhere.safetensors" in text) == (name == "nowhere")
    assert name == "nowhere" or "expected a plain file name" in text


FULL = [
    OSError(errno.ENOSPC, "No space left on device"),
    SafetensorError("I/O error: No space left on device (os error 28)"),
]


def fill_disk(monkeypatch, error=FULL[0]):
    """Writing stops in the middle of a file."""

    def stop(tensors, path, metadata=None):
        path.write_bytes(b"half of it")
        raise error

    monkeypatch.setattr(storage, "save_file", stop)


@pytest.mark.parametrize("error", FULL, ids=["python", "rust"])
def test_a_full_disk_leaves_nothing_half_written(inversion, error, monkeypatch, user_folders):
    fill_disk(monkeypatch, error)
    before = sorted(user_folders.rglob("*"))
    with pytest.raises(ValueError, match=r"Save: .* because the disk is full") as caught:
        save(inversion)
    assert "Free some space" in str(caught.value)
    left = [path for path in user_folders.rglob("*") if path.is_file() and path not in before]
    assert left == []


def test_a_file_where_the_folder_should_be(tmp_path):
    (tmp_path / "taken").write_text("not a folder")
    path = tmp_path / "taken" / "clip.safetensors"
    with pytest.raises(ValueError, match=r"clip\.safetensors was not written"):
        storage.save(path, "inversion", {"x": torch.zeros(1)}, {})


def test_a_full_disk_keeps_the_older_file(model, monkeypatch, user_folders):
    clip = source(model)
    save(clip)
    old = path_of(clip, user_folders).read_bytes()
    fill_disk(monkeypatch)
    with pytest.raises(ValueError, match="the disk is full"):
        save(source(model, seed=9))
    assert path_of(clip, user_folders).read_bytes() == old


def test_a_full_disk_costs_the_cache_never_the_edit(model, monkeypatch, user_folders):
    inversion = source(model)
    edits = TokenFlow(inversion, interval=4), PlugAndPlay(inversion)
    expected = run(model, inversion, *edits)

    for file in user_folders.rglob("*.safetensors"):
        file.unlink()
    fill_disk(monkeypatch)
    assert torch.equal(run(model, inversion, *edits), expected)
    host.invert_clip(
        model, conditioning(1), {"samples": torch.ones(2, 4, 8, 8)}, host.InversionRequest(3, 3)
    )
    assert [path for path in user_folders.rglob("*") if path.is_file()] == []


@pytest.mark.parametrize("damage", ["cut", "foreign", "lacks"])
def test_a_damaged_cached_step_is_computed_again(model, user_folders, damage):
    inversion = source(model)
    edits = TokenFlow(inversion, interval=4), PlugAndPlay(inversion)
    expected = run(model, inversion, *edits)
    steps = sorted((user_folders / "user").rglob("step_*.safetensors"))
    assert len(steps) == 3
    for path in steps:
        if damage == "cut":
            path.write_bytes(path.read_bytes()[:1000])
        elif damage == "foreign":
            save_file({"x": torch.ones(2)}, path)
        else:
            tensors, plain = storage.load(path, "cached step")
            tensors.pop(next(iter(tensors)))
            tensors.pop("features", None)
            storage.save(path, "cached step", tensors, plain)
    assert torch.equal(run(model, inversion, *edits), expected)
    assert torch.equal(run(model, inversion, *edits), expected)
