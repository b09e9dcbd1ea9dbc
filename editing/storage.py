"""Files: safetensors with JSON metadata, written to a temporary name and then renamed."""

from __future__ import annotations

import errno
import json
import re
import uuid
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
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


def require_safe_pickles(name: str) -> None:
    """For the two published formats that are no safetensors.

    Raises: ValueError where this PyTorch can be made to run code by a file of weights
        (CVE-2025-32434, mended in 2.6).
    """
    version = tuple(int(n) for n in re.findall(r"\d+", torch.__version__)[:2])
    if version < (2, 6):
        raise ValueError(
            f"{name} was not opened: PyTorch {torch.__version__} cannot read such files safely. "
            "Update PyTorch to 2.6 or newer, or convert the weights to safetensors elsewhere."
        )


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
