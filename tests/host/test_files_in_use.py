"""Windows denies replacing or deleting a file that is in use: no loaded file is, and a refusal in
the cache never costs the artist a run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from clips import SMALL, clip_latents, run, source
from reweave.editing import host, storage
from reweave.editing.host import inverting, keyframe_editing, paths, temporal_training
from reweave.editing.plug_and_play import PlugAndPlay
from reweave.editing.tokenflow import TokenFlow
from reweave.editing.types import Inversion, NNField
from toy import conditioning, patcher

MAPS = Path("/proc/self/maps")
REQUEST = host.InversionRequest(4, 4)
CLIP = {"samples": clip_latents(3) / 0.18215}


@pytest.fixture(scope="module")
def model():
    return patcher(SMALL)


def deny(monkeypatch: pytest.MonkeyPatch, denied: Callable[[Path], bool]) -> None:
    """Replacing or deleting such a file raises what it does on Windows."""
    replace, unlink = Path.replace, Path.unlink

    def ask(path: Path) -> None:
        if denied(path):
            raise PermissionError(13, "The process cannot access the file", str(path))

    def guarded_replace(self: Path, target: Path) -> Path:
        ask(Path(target))
        return replace(self, target)

    def guarded_unlink(self: Path, missing_ok: bool = False) -> None:
        ask(self)
        unlink(self, missing_ok)

    monkeypatch.setattr(Path, "replace", guarded_replace)
    monkeypatch.setattr(Path, "unlink", guarded_unlink)


def is_mapped(path: Path) -> bool:
    return any(line.endswith(f" {path}") for line in MAPS.read_text().splitlines())


@pytest.fixture
def windows(monkeypatch):
    if not MAPS.is_file():
        pytest.skip("this system does not list what a process maps")
    deny(monkeypatch, is_mapped)


@pytest.fixture
def stuck_cache(monkeypatch, user_folders):
    """A function: from here on, what is in the cache can be neither replaced nor deleted."""
    inside = user_folders / "user"

    def stuck(path: Path) -> bool:
        return inside in path.parents and path.suffix == ".safetensors" and path.is_file()

    return lambda: deny(monkeypatch, stuck)


def test_the_simulation_notices_a_mapped_file(windows, tmp_path):
    path = tmp_path / "mapped.bin"
    path.write_bytes(bytes(4096))
    held = torch.from_file(str(path), size=4096, dtype=torch.uint8)
    with pytest.raises(PermissionError):
        path.unlink()
    del held
    path.unlink()


@pytest.mark.parametrize("kind", [Inversion, NNField])
def test_a_loaded_payload_can_be_saved_under_its_own_name(model, windows, kind):
    inversion = host.invert_clip(model, conditioning(1), CLIP, REQUEST)
    payload, folder = inversion, "inversions"
    if kind is NNField:
        settings = (2, 1, "random per step", "published code", 8, 4.0)
        payload, folder = host.field_of(model, inversion, None, *settings), "fields"
    host.save_payload(payload, folder, "clip", "Save")
    loaded = host.load_payload(kind, folder, "clip", "Load")
    assert "saved" in host.save_payload(loaded, folder, "clip", "Save")
    assert torch.equal(
        vars(loaded)[name := "latents" if kind is Inversion else "weights"], vars(payload)[name]
    )


def test_a_cached_step_grows_while_it_is_read(model, windows, user_folders):
    """First TokenFlow alone, then with Plug-and-Play: the step files gain features."""
    inversion = source(model)
    flow, injection = TokenFlow(inversion, interval=4), PlugAndPlay(inversion, 1.0, 1.0)
    run(model, inversion, flow)
    small = {path: path.stat().st_size for path in user_folders.rglob("step_*")}
    warm = run(model, inversion, flow, injection)
    assert len(small) == 3
    assert all(path.stat().st_size > size for path, size in small.items())
    for path in small:
        path.unlink()
    assert torch.equal(run(model, inversion, flow, injection), warm)


def test_an_inversion_from_the_cache_can_be_evicted_while_it_is_used(model, windows, monkeypatch):
    host.invert_clip(model, conditioning(1), CLIP, REQUEST)
    found = host.invert_clip(model, conditioning(1), CLIP, REQUEST)
    latents = found.latents.clone()
    monkeypatch.setenv("REWEAVE_CACHE_GIGABYTES", "0")
    paths.trim_cache()
    assert not list(host.cache_folder().rglob("*.safetensors"))
    assert torch.equal(found.latents, latents)


def test_a_cache_that_cannot_be_written_costs_speed_only(model, stuck_cache, user_folders):
    inversion = source(model)
    edits = TokenFlow(inversion, interval=4), PlugAndPlay(inversion)
    run(model, inversion, edits[0])
    before = {path: path.read_bytes() for path in user_folders.rglob("step_*")}
    stuck_cache()
    out = run(model, inversion, *edits)
    assert {path: path.read_bytes() for path in user_folders.rglob("step_*")} == before
    assert torch.equal(run(model, inversion, *edits), out)


def test_broken_cache_files_that_cannot_be_deleted_count_as_absent(
    model, stuck_cache, user_folders
):
    inversion = source(model)
    flow = TokenFlow(inversion, interval=4)
    first = host.invert_clip(model, conditioning(1), CLIP, REQUEST)
    out = run(model, inversion, flow)
    for path in (user_folders / "user").rglob("*.safetensors"):
        path.write_bytes(path.read_bytes()[:500])
    stuck_cache()
    assert torch.equal(run(model, inversion, flow), out)
    again = host.invert_clip(model, conditioning(1), CLIP, REQUEST)
    assert torch.equal(again.latents, first.latents)
    key_frame = host.cache_folder() / "key_frames" / "x.safetensors"
    key_frame.parent.mkdir()
    key_frame.write_bytes(b"\x10\x00")
    assert keyframe_editing._from_cache(key_frame) is None


def test_an_inversion_outlives_an_eviction_that_is_denied(model, stuck_cache, monkeypatch):
    other = host.invert_clip(model, conditioning(2), CLIP, REQUEST)
    (path,) = host.cache_folder().rglob("*.safetensors")
    monkeypatch.setenv("REWEAVE_CACHE_GIGABYTES", str(1.5e-9 * path.stat().st_size))
    stuck_cache()
    found = host.invert_clip(model, conditioning(1), CLIP, REQUEST)
    assert torch.isfinite(found.latents).all() and found.key != other.key
    assert path.is_file()


def test_a_key_frame_and_a_training_outlive_it_too(stuck_cache, monkeypatch):
    picture, snapshot = (host.cache_folder() / kind / "x.safetensors" for kind in ("a", "b"))
    for path in (picture, snapshot):
        storage.save(path, "anything", {"x": torch.zeros(10)}, {})
    monkeypatch.setenv("REWEAVE_CACHE_GIGABYTES", "0")
    stuck_cache()
    temporal_training.keep_snapshot(snapshot)
    keyframe_editing._to_cache(host.cache_folder() / "key_frames" / "y.safetensors", torch.ones(3))
    assert picture.is_file() and snapshot.is_file()


def test_a_file_whose_time_cannot_be_set_is_still_read(model, monkeypatch):
    first = host.invert_clip(model, conditioning(1), CLIP, REQUEST)

    def denied(*_args: object, **_kwargs: object) -> None:
        raise PermissionError

    monkeypatch.setattr(paths.os, "utime", denied)
    monkeypatch.setattr(inverting, "_run", denied)
    found = host.invert_clip(model, conditioning(1), CLIP, REQUEST)
    assert torch.equal(found.latents, first.latents)
