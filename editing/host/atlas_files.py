"""Saved atlases, ours and published ones, by the name that Load Atlas lists."""

from __future__ import annotations

from pathlib import Path

from ..atlas.types import Atlas
from .atlas_fitting import read_published
from .files import file_stamp, load_payload
from .paths import files_folder, input_folder, list_files

KIND = "atlases"
NODE = "Load Atlas"
FOLDER = "/"
"""Ends the name of a published folder in the list."""


def list_atlases() -> list[str]:
    """Our files, newest first, then published folders."""
    found = {
        path.parent.name + FOLDER
        for folder in (files_folder(KIND), input_folder(KIND))
        for path in folder.glob("*/config.json")
    }
    return [*list_files(KIND), *sorted(found)]


def load_atlas(name: str, frames: int, resolution: int) -> Atlas:
    """An atlas by its name in the list.

    Raises: ValueError when nothing is there, or when it is corrupt, foreign or holds code.
    """
    if not name.endswith(FOLDER):
        return load_payload(Atlas, KIND, name, NODE)
    return read_published(published_folder(name), frames, resolution, NODE)


def atlas_stamp(name: str) -> str:
    """Changes when the file or folder does."""
    if not name.endswith(FOLDER):
        return file_stamp(KIND, name, NODE)
    try:
        parts = [published_folder(name) / part for part in ("config.json", "checkpoint")]
        return "/".join(f"{x.stat().st_mtime_ns}.{x.stat().st_size}" for x in parts)
    except (OSError, ValueError):
        return "absent"


def published_folder(name: str) -> Path:
    """The folder of that name. Raises: ValueError when it leads elsewhere or is not there."""
    plain = name.strip().removesuffix(FOLDER)
    if not plain or plain != Path(plain).name or plain.startswith("."):
        raise ValueError(
            f"{NODE}: expected a plain folder name, got {name!r}. Folders lie in "
            f"input/reweave/{KIND} or output/reweave/{KIND}."
        )
    for folder in (files_folder(KIND), input_folder(KIND)):
        if (folder / plain / "config.json").is_file():
            return folder / plain
    raise ValueError(
        f"{NODE}: found no folder {plain} with a config.json in input/reweave/{KIND} or "
        f"output/reweave/{KIND}. Copy the published folder there, or pick another from the list."
    )
