"""Builds the demo checkpoint: a complete SD1.5-layout file from the compact weights in
demo/weights.

python demo/build_checkpoint.py --out ComfyUI/models/checkpoints/reweave_demo.safetensors
"""

from __future__ import annotations

import argparse
import hashlib
import sys
from pathlib import Path

if not __package__:
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    __package__ = "demo"

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from .compact import FILES, WEIGHTS, read_compact
from .nets import HOST
from .vocabulary import clip_state

METADATA = {"format": "pt", "title": "Reweave demo", "note": "toy weights, see demo/"}


def checkpoint_state(folder: Path = WEIGHTS) -> dict[str, Tensor]:
    """All tensors of the checkpoint; raises ValueError when the weights are missing."""
    unet, vae, text = read_compact(folder)
    state = {f"model.diffusion_model.{name}": value for name, value in unet.items()}
    state |= {f"first_stage_model.{name}": value.float() for name, value in vae.items()}
    return state | clip_state(text)


def content_key(folder: Path = WEIGHTS) -> str:
    """A name for what would be built: the weights and the code that expands them."""
    digest = hashlib.sha256()
    here = Path(__file__).resolve().parent
    parts = [folder / name for name in FILES]
    for path in [*parts, *(here / f"{name}.py" for name in ("compact", "vocabulary"))]:
        digest.update(path.read_bytes() if path.is_file() else b"")
    return digest.hexdigest()[:16]


def is_built(out: Path, key: str) -> bool:
    """Whether `out` is a whole checkpoint of this content."""
    try:
        with safe_open(out, framework="pt") as built:
            return (built.metadata() or {}).get("content_key") == key
    except (OSError, SafetensorError):
        return False


def main() -> None:
    """Write the checkpoint under a temporary name, then rename it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--comfyui", type=Path, default=HOST, help="kept for a uniform call")
    parser.add_argument("--weights", type=Path, default=WEIGHTS)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    key = content_key(options.weights)
    if is_built(options.out, key):
        print(f"{options.out.name} is up to date")
        return
    state = checkpoint_state(options.weights)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    temporary = options.out.with_suffix(".tmp")
    save_file(
        {name: value.contiguous() for name, value in state.items()},
        temporary,
        {**METADATA, "content_key": key},
    )
    temporary.replace(options.out)
    print(f"wrote {options.out.name}: {options.out.stat().st_size / 1e6:.0f} MB")


if __name__ == "__main__":
    with torch.inference_mode():
        main()
