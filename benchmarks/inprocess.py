"""Loads the pack and the real ComfyUI into a benchmark's own process, on the CPU unless --gpu is
given."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
HOST = Path(os.environ.get("COMFYUI_PATH", ROOT / ".host" / "ComfyUI"))
DEMO = HOST / "models" / "checkpoints" / "reweave_demo.safetensors"


def load_pack(gpu: bool = False) -> None:
    """Makes `reweave`, `demo` and ComfyUI importable; caches go to a folder of this process.

    Args:
        gpu: ComfyUI chooses the device; otherwise everything runs on the processor.

    Raises: RuntimeError when there is no ComfyUI.
    """
    if not (HOST / "main.py").is_file():
        raise RuntimeError("no ComfyUI here: run `python dev.py setup` first")
    sys.path[:0] = [str(HOST), str(ROOT)]
    kept, sys.argv = sys.argv, ["bench", "--disable-api-nodes" if gpu else "--cpu"]
    try:
        import comfy.options

        comfy.options.enable_args_parsing()
        import comfy.cli_args
        import folder_paths
    finally:
        sys.argv = kept
    assert comfy.cli_args.args is not None
    folder_paths.set_user_directory(tempfile.mkdtemp(prefix="reweave_bench_"))
    spec = importlib.util.spec_from_file_location(
        "reweave", ROOT / "__init__.py", submodule_search_locations=[str(ROOT)]
    )
    assert spec is not None and spec.loader is not None
    pack = importlib.util.module_from_spec(spec)
    sys.modules["reweave"] = pack
    spec.loader.exec_module(pack)


def load_demo_checkpoint() -> tuple[Any, Any, Any]:
    """(MODEL, CLIP, VAE) of the demo checkpoint, loaded as CheckpointLoaderSimple does.

    Raises: RuntimeError when it was not built yet.
    """
    import comfy.sd

    if not DEMO.is_file():
        raise RuntimeError("no demo checkpoint: run `python dev.py setup` first")
    return comfy.sd.load_checkpoint_guess_config(str(DEMO), output_vae=True, output_clip=True)[:3]


def content_of(path: Path) -> str:
    """12 hex digits that change with a file's content."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 24):
            digest.update(block)
    return digest.hexdigest()[:12]
