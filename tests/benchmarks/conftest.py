"""The benchmarks' own modules."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def parts() -> SimpleNamespace:
    """The scripts' modules, found as a script finds them: by their folder."""
    names = ("common", "ground_truth", "quality_clips", "quality_tables", "scored_tables",
             "demo.edit_clips", "demo.motion")  # fmt: skip
    kept = list(sys.path)
    sys.path[:0] = [str(ROOT / "benchmarks"), str(ROOT)]
    try:
        found = [importlib.import_module(name) for name in names]
    finally:
        sys.path[:] = kept
    return SimpleNamespace(**{module.__name__.split(".")[-1]: module for module in found})
