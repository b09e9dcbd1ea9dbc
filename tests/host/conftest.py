"""Loads the real ComfyUI into this process, on the CPU, and small networks of its own classes."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
HOST = Path(os.environ.get("COMFYUI_PATH", ROOT / ".host" / "ComfyUI"))


def _load_host() -> None:
    if not (HOST / "main.py").is_file():
        raise RuntimeError(f"no ComfyUI in {HOST}: run `python dev.py setup`")
    sys.path.insert(0, str(HOST))
    arguments, sys.argv = sys.argv, ["tests", "--cpu"]
    try:
        import comfy.options

        comfy.options.enable_args_parsing()
        import comfy.cli_args
    finally:
        sys.argv = arguments


_load_host()
sys.path.insert(0, str(Path(__file__).parent))  # tests/host/toy.py


@pytest.fixture(autouse=True)
def user_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Caches and saved files of every test go to its own folder."""
    import folder_paths

    for name in ("user", "output", "input", "temp"):
        (tmp_path / name).mkdir()
        monkeypatch.setattr(folder_paths, f"{name}_directory", str(tmp_path / name))
    return tmp_path


@pytest.fixture(autouse=True)
def as_in_a_prompt():
    """ComfyUI runs nodes in inference mode."""
    import torch

    with torch.inference_mode():
        yield


@pytest.fixture
def demo_checkpoint() -> tuple[Any, Any, Any]:
    """(MODEL, CLIP, VAE) of the demo checkpoint; skips where it was not built."""
    import comfy.sd

    path = HOST / "models" / "checkpoints" / "reweave_demo.safetensors"
    if not path.is_file():
        pytest.skip("no demo checkpoint: run 'python dev.py setup'")
    parts: Any = comfy.sd.load_checkpoint_guess_config(str(path), output_vae=True, output_clip=True)
    return parts[:3]
