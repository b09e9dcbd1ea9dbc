"""Saved payloads by name, for the save and load nodes."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar

import folder_paths

from ..atlas.types import Atlas
from ..temporal_unet.payload import TemporalUNet
from ..types import Inversion, NNField
from .notices import say
from .paths import resolve_file

Payload = TypeVar("Payload", Inversion, NNField, TemporalUNet, Atlas)


def save_payload(
    payload: Inversion | NNField | TemporalUNet | Atlas, kind: str, name: str, node: str
) -> str:
    """Writes a payload to output/reweave/<kind>.

    Returns: path (from ComfyUI's output folder) and size in words, also shown on the node.
    Raises: ValueError for a bad name, or when the file cannot be written.
    """
    path = resolve_file(kind, name, node, existing=False)
    _named(node, payload.save, path)
    short = path.relative_to(Path(folder_paths.get_output_directory()).parent).as_posix()
    text = f"saved {short} ({path.stat().st_size / 1e6:.1f} MB)"
    say(text)
    return text


def load_payload(payload: type[Payload], kind: str, name: str, node: str) -> Payload:
    """Reads a payload by name.

    Raises: ValueError when there is no such file, or when it is corrupt or foreign.
    """
    return _named(node, payload.load, resolve_file(kind, name, node, existing=True))


def file_stamp(kind: str, name: str, node: str) -> str:
    """Changes when the file does; "absent" where there is none."""
    try:
        found = resolve_file(kind, name, node, existing=True).stat()
    except (OSError, ValueError):
        return "absent"
    return f"{found.st_mtime_ns}/{found.st_size}"


def _named(node: str, action: Any, path: Path) -> Any:
    """Runs `action(path)` and puts the node's name before its errors."""
    try:
        return action(path)
    except ValueError as error:
        raise ValueError(f"{node}: {error}") from error
    except (KeyError, TypeError) as error:
        raise ValueError(
            f"{node}: {path.name} lacks parts of what it should hold ({error}). "
            "Make it again and save it."
        ) from error
