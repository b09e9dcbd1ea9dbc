"""Where files live: only inside ComfyUI's own folders."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import folder_paths

CACHE_GIGABYTES = 8.0
"""Size of the cache at which its oldest parts are dropped; REWEAVE_CACHE_GIGABYTES overrides."""


def cache_folder() -> Path:
    """user/reweave/cache: what can be computed again."""
    return Path(folder_paths.get_user_directory()) / "reweave" / "cache"


def files_folder(kind: str) -> Path:
    """output/reweave/<kind>: what an artist saved."""
    return Path(folder_paths.get_output_directory()) / "reweave" / kind


def input_folder(kind: str) -> Path:
    """input/reweave/<kind>: where files from elsewhere may be put."""
    return Path(folder_paths.get_input_directory()) / "reweave" / kind


def list_files(kind: str) -> list[str]:
    """Names of saved files of a kind, newest first."""
    found = [p for f in (files_folder(kind), input_folder(kind)) for p in f.glob("*.safetensors")]
    found.sort(key=lambda path: path.stat().st_mtime, reverse=True)
    return list(dict.fromkeys(path.name for path in found))


def resolve_file(kind: str, name: str, node: str, existing: bool) -> Path:
    """A file of this kind by name.

    Raises: ValueError when the name leaves the folder or, with `existing`, nothing is there.
    """
    plain = Path(name).name
    if not plain or plain != name.strip() or plain.startswith("."):
        raise ValueError(
            f"{node}: expected a plain file name, got {name!r}. "
            f"Files live in output/reweave/{kind}; leave folders out of the name."
        )
    plain = plain if plain.endswith(".safetensors") else f"{plain}.safetensors"
    if not existing:
        return files_folder(kind) / plain
    for folder in (files_folder(kind), input_folder(kind)):
        if (folder / plain).is_file():
            return folder / plain
    raise ValueError(
        f"{node}: found no file {plain} in output/reweave/{kind} or input/reweave/{kind}. "
        "Save one first, or pick another from the list."
    )


def cache_limit() -> int:
    """Bytes that the cache may hold."""
    try:
        gigabytes = float(os.environ.get("REWEAVE_CACHE_GIGABYTES", CACHE_GIGABYTES))
    except ValueError:
        gigabytes = CACHE_GIGABYTES
    return int(gigabytes * 1e9)


def trim_cache(keep: Path | None = None) -> None:
    """Drops the parts used longest ago until the cache fits; `keep` stays."""
    root = cache_folder()
    if not root.is_dir():
        return
    entries = [path for path in root.glob("*/*") if path != keep]
    sized = [(path.stat().st_mtime, _size(path), path) for path in entries]
    total = sum(size for _, size, _ in sized) + (_size(keep) if keep and keep.exists() else 0)
    for _, size, path in sorted(sized, key=lambda entry: entry[0]):
        if total <= cache_limit():
            return
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
        total -= size


def _size(path: Path) -> int:
    if path.is_file():
        return path.stat().st_size
    return sum(part.stat().st_size for part in path.rglob("*") if part.is_file())
