"""What must hold before set-up begins, and the message where it does not. Standard library only."""

from __future__ import annotations

import hashlib
import os
import shutil
import socket
from collections.abc import Sequence
from pathlib import Path


class Failure(Exception):
    """A message for the user: what is wrong and what to do."""


def require_python(version: Sequence[int]) -> None:
    """Raise Failure for a Python that is too old."""
    if tuple(version[:2]) < (3, 10):
        raise Failure(
            f"Reweave needs Python 3.10 or newer, this is {version[0]}.{version[1]}. "
            "Start dev.py with a newer one, for instance: python3.12 dev.py demo"
        )


def require_space(folder: Path, gigabytes: float) -> None:
    """Raise Failure when the disk of `folder` has less than `gigabytes` free."""
    free = shutil.disk_usage(folder).free / 1e9
    if free < gigabytes:
        raise Failure(
            f"the disk is full: set-up needs about {gigabytes:.1f} GB in {folder}, "
            f"{free:.1f} GB are free. Make room, or move this folder to another disk."
        )


def require_writable(folder: Path) -> None:
    """Make `folder`; raise Failure when nothing can be written there."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".reweave-{os.getpid()}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise Failure(
            f"the demo's model goes to {folder}, where nothing can be written ({error.strerror}). "
            "Allow it, or leave out --comfyui: then dev.py downloads a ComfyUI of its own."
        ) from error


def require_sha256(file: Path, expected: str) -> None:
    """Delete `file` and raise Failure when its content is not the expected one."""
    found = hashlib.sha256(file.read_bytes()).hexdigest()
    if found != expected:
        file.unlink()
        raise Failure(
            f"{file.name} has a wrong sha256: expected {expected}, got {found}. It was deleted. "
            "Try again; if it comes back, the download is being changed on its way to you."
        )


def require_port(port: int) -> None:
    """Raise Failure when another program listens on `port`."""
    with socket.socket() as probe:
        if os.name != "nt":  # there it would allow a second listener
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            raise Failure(
                f"port {port} is taken ({error.strerror}): a ComfyUI may be running already. "
                f"Stop it, or choose another port: --port {port + 1}"
            ) from error
