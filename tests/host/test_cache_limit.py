"""The cache stays below its limit, what was used longest ago goes first, what is in use stays."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from clips import SMALL, edited, run, source, start_of
from reweave.editing import host, storage
from reweave.editing.host import feature_cache, paths
from reweave.editing.host.feature_cache import plan_bytes, step_cache
from reweave.editing.host.paths import cache_limit, trim_cache
from reweave.editing.plug_and_play import PlugAndPlay
from reweave.editing.tokenflow import TokenFlow
from toy import conditioning, patcher

VARIABLE = "REWEAVE_CACHE_GIGABYTES"
NOW = 2_000_000_000.0
KB = 1000


@pytest.fixture(scope="module")
def model():
    return patcher(SMALL)


@pytest.fixture
def inversion(model):
    return source(model)


@pytest.fixture
def limit(monkeypatch):
    """Sets the limit, in bytes."""
    return lambda size: monkeypatch.setenv(VARIABLE, str(size / 1e9))


@pytest.fixture
def saves(monkeypatch):
    """Names of the files that were written."""
    names, save = [], storage.save

    def note(path: Path, *rest: object) -> None:
        names.append(path.name)
        save(path, *rest)

    monkeypatch.setattr(storage, "save", note)
    return names


def put(name: str, size: int, age: float) -> Path:
    """A part of the cache, `age` seconds after it was used: a file, or a folder of steps."""
    path = paths.cache_folder() / name
    file = path / "step_0000.safetensors" if name.startswith("steps/") else path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(bytes(size))
    os.utime(path, (NOW - age, NOW - age))
    return path


def size_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize(
    ("text", "size"),
    [("2.5", 2.5e9), ("0", 0), ("inf", float("inf")), ("nan", 8e9), ("a lot", 8e9), ("", 8e9)],
)  # fmt: skip
def test_the_limit_that_was_asked_for(monkeypatch, text, size):
    monkeypatch.setenv(VARIABLE, text)
    assert cache_limit() == size
    monkeypatch.delenv(VARIABLE)
    assert cache_limit() == 8e9


def test_the_oldest_parts_go_first(limit):
    parts = [
        put("inversions/old.safetensors", 3 * KB, 400),
        put("steps/older", 3 * KB, 500),
        put("steps/new", 3 * KB, 100),
        put("key_frames/newer.safetensors", 3 * KB, 50),
    ]
    limit(12 * KB)
    trim_cache()
    assert all(part.exists() for part in parts)
    limit(11 * KB)
    trim_cache()
    assert [part.exists() for part in parts] == [True, False, True, True]
    limit(6 * KB)
    trim_cache()
    assert [part.exists() for part in parts] == [False, False, True, True]


def test_what_is_in_use_stays(limit):
    used, other = put("steps/used", 3 * KB, 500), put("steps/other", 3 * KB, 100)
    limit(4 * KB)
    trim_cache(keep=used)
    assert used.exists() and not other.exists()
    limit(1 * KB)
    trim_cache(keep=used)
    assert used.exists()


def test_room_is_made_for_what_is_to_come(limit):
    parts = [put(f"steps/{age}", 3 * KB, age) for age in (300, 200, 100)]
    used = put("steps/used", 1 * KB, 500)
    limit(10 * KB)
    trim_cache(keep=used, planned=1 * KB)
    assert all(part.exists() for part in parts)
    trim_cache(keep=used, planned=4 * KB)
    assert [part.exists() for part in parts] == [False, True, True]
    trim_cache(keep=paths.cache_folder() / "steps" / "unborn", planned=5 * KB)
    assert [part.exists() for part in (*parts, used)] == [False, False, True, False]


def test_a_part_that_cannot_be_deleted_is_not_counted_as_gone(limit, monkeypatch):
    stuck = put("steps/stuck", 3 * KB, 300)
    parts = [put(f"steps/{age}", 3 * KB, age) for age in (200, 100)]
    monkeypatch.setattr(
        paths.shutil, "rmtree", lambda path, ignore_errors: None if path == stuck else real(path)
    )
    limit(6 * KB)
    trim_cache()
    assert [part.exists() for part in (stuck, *parts)] == [True, False, True]


real = paths.shutil.rmtree


def test_the_plan_is_what_a_run_writes(model, inversion, user_folders):
    edits = TokenFlow(inversion, interval=4), PlugAndPlay(inversion, 1.0, 1.0)
    planned = sum(plan_bytes(model, edits[0], start_of(inversion), True))
    run(model, inversion, *edits)
    held = sum(
        value.nbytes
        for path in user_folders.rglob("step_*")
        for value in storage.load(path, "cached step")[0].values()
    )
    assert held == planned


def test_large_frames_need_wider_indices(model, inversion):
    flow = TokenFlow(inversion, interval=4)
    small, large = torch.zeros(5, 4, 128, 256), torch.zeros(5, 4, 128, 258)
    ratio = plan_bytes(model, flow, large, False)[0] / plan_bytes(model, flow, small, False)[0]
    assert ratio > 1.5


def test_a_run_keeps_the_cache_below_its_limit(model, inversion, limit):
    edits = TokenFlow(inversion, interval=4), PlugAndPlay(inversion, 1.0, 1.0)
    planned = sum(plan_bytes(model, edits[0], start_of(inversion), True))
    size = int(2.2 * planned)
    limit(size)
    for number in range(8):
        put(f"inversions/{number}.safetensors", size // 8, 100 + number)
    run(model, inversion, *edits)
    left = sorted(path.stem for path in paths.cache_folder().glob("inversions/*"))
    assert size_of(paths.cache_folder()) <= size
    assert 3 <= len(left) <= 5 and left == [str(number) for number in range(len(left))]
    assert len(list(paths.cache_folder().glob("steps/*/step_*"))) == 3


def test_a_warm_run_counts_as_use(model, inversion, limit):
    flow = TokenFlow(inversion, interval=4)
    run(model, inversion, flow)
    (folder,) = paths.cache_folder().glob("steps/*")
    os.utime(folder, (NOW - 1e9, NOW - 1e9))
    other = put("steps/other", size_of(folder), 9e8)
    run(model, inversion, flow)
    limit(int(1.5 * size_of(folder)))
    trim_cache()
    assert folder.exists() and not other.exists()


def test_inversions_make_room_and_one_that_is_too_large_is_not_kept(model, limit):
    latent, request = {"samples": torch.ones(3, 4, 8, 8)}, host.InversionRequest(4, 4)

    def inverted(prompt: int) -> list[str]:
        host.invert_clip(model, conditioning(prompt), latent, request)
        return [path.name for path in paths.cache_folder().glob("inversions/*")]

    (first,) = inverted(1)
    size = size_of(paths.cache_folder())
    os.utime(paths.cache_folder() / "inversions" / first, (NOW - 1e9, NOW - 1e9))
    limit(int(1.5 * size))
    assert len(inverted(2)) == 1 and first not in inverted(2)
    before = inverted(2)
    limit(size // 4)
    assert inverted(3) == before


def halves(model, flow) -> list[float]:
    """The sizes of a plan: all, without queries, field only."""
    field, features, queries = plan_bytes(model, flow, start_of(flow.inversion), True)
    return [field + features + queries, field + features, field]


@pytest.mark.parametrize(
    ("part", "queries", "features"), [(0, True, True), (1, False, True), (2, False, False)]
)
def test_what_does_not_fit_is_left_out(model, inversion, limit, part, queries, features):
    flow, injection = TokenFlow(inversion, interval=4), PlugAndPlay(inversion, 1.0, 1.0)
    size = halves(model, flow)[part]
    limit(2 * size + 2)
    cache = step_cache(edited(model, flow, injection), (flow, injection), start_of(inversion))
    assert cache is not None
    assert (cache.keeps_queries, cache.keeps_features) == (queries, features)
    run(model, inversion, flow, injection)
    names = {
        name.partition("/")[0]
        for path in paths.cache_folder().rglob("step_*")
        for name in storage.load(path, "cached step")[0]
    }
    wanted = {"index"} | ({"features", "key_features"} if features else set())
    assert names == wanted | ({"queries", "keys"} if queries else set())


def test_a_field_that_does_not_fit_is_not_cached(model, inversion, limit):
    flow = TokenFlow(inversion, interval=4)
    limit(2 * halves(model, flow)[2] - 2)
    assert step_cache(model, (flow,), start_of(inversion)) is None
    run(model, inversion, flow)
    assert not paths.cache_folder().exists()


@pytest.mark.parametrize("part", [0, 1, 2])
def test_a_warm_run_writes_nothing(model, inversion, limit, saves, part):
    flow, injection = TokenFlow(inversion, interval=4), PlugAndPlay(inversion, 1.0, 1.0)
    limit(2 * halves(model, flow)[part] + 2)
    cold = run(model, inversion, flow, injection)
    assert len(saves) == 3
    assert torch.equal(run(model, inversion, flow, injection), cold)
    assert len(saves) == 3


def test_a_step_that_gains_parts_is_written_again(model, inversion, saves):
    flow, injection = TokenFlow(inversion, interval=4), PlugAndPlay(inversion, 1.0, 1.0)
    run(model, inversion, flow)
    run(model, inversion, flow, injection)
    assert len(saves) == 6
    run(model, inversion, flow)
    run(model, inversion, flow, injection)
    assert len(saves) == 6


def test_the_run_itself_asks_for_room(model, inversion, monkeypatch):
    asked = []
    monkeypatch.setattr(
        feature_cache, "trim_cache", lambda keep, planned: asked.append((keep, planned))
    )
    flow = TokenFlow(inversion, interval=4)
    cache = step_cache(model, (flow,), start_of(inversion))
    assert cache is not None and cache.folder.parent == host.cache_folder() / "steps"
    assert asked == [(cache.folder, halves(model, flow)[2])]
