"""Where files live: only inside ComfyUI's own folders."""

from __future__ import annotations

import math
import os
import shutil
from contextlib import suppress
from pathlib import Path

import folder_paths

from ..storage import discard

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
    # a link may lead nowhere, and another ComfyUI may delete a file meanwhile
    found = sorted((p for p in found if p.is_file()), key=_used, reverse=True)
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


def cache_limit() -> float:
    """Bytes that the cache may hold."""
    try:
        gigabytes = float(os.environ.get("REWEAVE_CACHE_GIGABYTES", CACHE_GIGABYTES))
    except ValueError:
        gigabytes = CACHE_GIGABYTES
    return 1e9 * (CACHE_GIGABYTES if math.isnan(gigabytes) else gigabytes)


def mark_used(path: Path) -> None:
    """Puts a part of the cache last in the order in which parts are dropped."""
    with suppress(OSError):  # it is not there yet, or another program holds it: as it was
        os.utime(path)


def trim_cache(keep: Path | None = None, planned: float = 0.0) -> None:
    """Drops the parts used longest ago until the cache fits; `keep` stays.

    Args:
        planned: bytes that `keep` will have grown to; room is made for them now.
    """
    entries = [path for path in cache_folder().glob("*/*") if path != keep]
    sized = [(_used(path), _size(path), path) for path in entries]
    total = sum(size for _, size, _ in sized) + max(_size(keep) if keep else 0, planned)
    for _, size, path in sorted(sized, key=lambda entry: entry[0]):
        if total <= cache_limit():
            return
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            discard(path)
        total -= size - _size(path)  # what is in use (Windows) stays, and the next one goes


def _used(path: Path) -> float:
    """When a part was last used; 0 where it has just gone (a second ComfyUI trims as well)."""
    with suppress(OSError):
        return path.stat().st_mtime
    return 0.0


def _size(path: Path) -> int:
    """Bytes of a file or of all files in a folder; 0 where there is nothing."""
    total = 0
    for part in [path, *path.rglob("*")]:
        with suppress(OSError):
            total += part.stat().st_size if part.is_file() else 0
    return total
