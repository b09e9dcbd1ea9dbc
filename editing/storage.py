"""Files: safetensors with JSON metadata, written to a temporary name and then renamed."""

from __future__ import annotations

import errno
import json
import uuid
from contextlib import suppress
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

FORMAT = "reweave"


def save(path: Path, kind: str, tensors: dict[str, Tensor], metadata: dict[str, Any]) -> None:
    """Writes one payload. Nothing half-written is left behind, whatever happens.

    Raises: ValueError when the disk is full or the folder cannot be written.
    """
    header = {"format": FORMAT, "kind": kind, "data": json.dumps(metadata)}
    temporary = path.with_name(f"{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file({k: v.contiguous().cpu() for k, v in tensors.items()}, temporary, header)
        temporary.replace(path)
    except (OSError, SafetensorError) as error:
        raise ValueError(_write_problem(path, kind, error)) from error
    finally:
        with suppress(OSError):  # what stands in the way of the file stands in its way too
            temporary.unlink(missing_ok=True)


def _write_problem(path: Path, kind: str, error: Exception) -> str:
    full = getattr(error, "errno", None) == errno.ENOSPC or "No space left" in str(error)
    reason = "the disk is full" if full else f"it cannot be written ({error})"
    knob = "Free some space or choose another file name, then queue again."
    return f"Saving the {kind}: {path.name} was not written because {reason}. {knob}"


def load_metadata(path: Path, kind: str) -> dict[str, Any]:
    """Metadata of a payload file.

    Raises: ValueError when the file is missing, corrupt, or of another kind.
    """
    if not path.is_file():
        raise ValueError(
            f"Loading the {kind}: expected a file named {path.name}, found none. "
            "Choose an existing file, or make it again and save it."
        )
    try:
        with safe_open(path, "pt") as file:
            header = file.metadata() or {}
    except (OSError, SafetensorError) as error:
        raise ValueError(
            f"Loading the {kind}: {path.name} is not a readable safetensors file ({error}). "
            "It may be cut short: make it again and save it."
        ) from error
    if header.get("format") != FORMAT or header.get("kind") != kind:
        came = header.get("kind", "a file of another program")
        raise ValueError(
            f"Loading the {kind}: expected a Reweave {kind}, {path.name} holds {came}. "
            f"Choose a file that the matching save node wrote."
        )
    return json.loads(header["data"])


def load(path: Path, kind: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and metadata of a payload file; raises as `load_metadata`.

    The tensors are copies: what `get_tensor` returns keeps the file mapped, and Windows then
    refuses to replace or delete it. It takes no more memory than making them did.
    """
    metadata = load_metadata(path, kind)
    with safe_open(path, "pt") as file:
        return {name: file.get_tensor(name).clone() for name in file.keys()}, metadata


def discard(path: Path) -> None:
    """Deletes a file that can be made again; one that is in use (Windows) stays."""
    with suppress(OSError):
        path.unlink(missing_ok=True)
