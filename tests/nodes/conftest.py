"""The nodes' schemas need ComfyUI's API: loaded as for the tests in tests/host."""

from __future__ import annotations

import importlib.util
from pathlib import Path

_PATH = Path(__file__).resolve().parents[1] / "host" / "conftest.py"
_SPEC = importlib.util.spec_from_file_location("reweave_tests_host", _PATH)
assert _SPEC is not None and _SPEC.loader is not None
_HOST = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(_HOST)

user_folders = _HOST.user_folders
