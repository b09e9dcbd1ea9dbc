"""Gives the repository, whatever its folder is called, the package name `reweave`."""

from __future__ import annotations

import importlib.util
import os
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

# Two test processes that spin on their barriers starve each other on a small machine.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest

ROOT = Path(__file__).resolve().parent.parent


def _load_pack() -> ModuleType:
    spec = importlib.util.spec_from_file_location(
        "reweave", ROOT / "__init__.py", submodule_search_locations=[str(ROOT)]
    )
    assert spec is not None and spec.loader is not None
    pack = importlib.util.module_from_spec(spec)
    sys.modules["reweave"] = pack
    spec.loader.exec_module(pack)
    return pack


# `python -m pytest` puts the current folder there, and ComfyUI's `import nodes` would find ours.
sys.path[:] = [entry for entry in sys.path if Path(entry).resolve() != ROOT]
_load_pack()

from reweave.demo.host_server import HostServer  # noqa: E402  (the name exists from here on)


@pytest.fixture(scope="session")
def root() -> Path:
    """The repository's root folder."""
    return ROOT


@pytest.fixture(scope="session")
def comfyui() -> Path:
    """The folder of the real host: COMFYUI_PATH, or where `dev.py setup` puts it."""
    folder = Path(os.environ.get("COMFYUI_PATH") or ROOT / ".host" / "ComfyUI")
    if not (folder / "main.py").exists():
        pytest.skip(f"no ComfyUI in {folder}: run 'python dev.py setup'")
    return folder


@pytest.fixture(scope="session")
def host_server(comfyui: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[HostServer]:
    """One real ComfyUI on the CPU with this pack, started once for all tests that need it."""
    from reweave.tests.editing.atlas_scenes import write_published  # torch, for these tests only

    # Its own base directory: settings are kept on the server's side and would leak between runs.
    base = tmp_path_factory.mktemp("host")
    server = HostServer(comfyui, base, extra=("--cpu", "--disable-api-nodes"))
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("OMP_NUM_THREADS", raising=False)  # it samples while this process waits
        server.start()
    with server:
        for clip in sorted((ROOT / "demo" / "clips").glob("*.mp4")):
            server.add_input(clip)
        # 9 frames, as the shortened workflows have (tests/server/test_workflows.py)
        published = base / "input" / "reweave" / "atlases" / "published"
        write_published(published, maximum_number_of_frames=9)
        yield server


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say in the last lines what was not run, and why: a skipped test is no passed test."""
    reasons = Counter(
        report.longrepr[2].removeprefix("Skipped: ")
        for report in terminalreporter.stats.get("skipped", [])
        if isinstance(report.longrepr, tuple)
    )
    for reason, count in reasons.items():
        terminalreporter.write_line(f"NOT RUN: {count} tests: {reason}", yellow=True)
