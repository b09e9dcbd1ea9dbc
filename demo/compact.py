"""The demo's weights in the repository: int8 per output channel for the UNet, float16 for the
rest."""

from __future__ import annotations

import gzip
from pathlib import Path

import torch
from safetensors.torch import load, load_file, save, save_file
from torch import Tensor

WEIGHTS = Path(__file__).resolve().parent / "weights"
FILES = ("unet.safetensors.gz", "vae.safetensors", "text.safetensors")
LEVELS = 100
"""Steps on each side of zero: fewer than int8 has, because fewer compress better."""
LATENT_SCALE = 0.18215
"""SD1.5's factor between VAE latents and the latents that the UNet sees."""


def quantized(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Matrices and convolutions as int8 with one float16 scale per output channel."""
    result: dict[str, Tensor] = {}
    for name, weight in weights.items():
        if weight.ndim < 2:
            result[name] = weight.half()
            continue
        rows = weight.float().flatten(1)
        scale = (rows.abs().amax(1) / LEVELS).clamp(min=1e-8).half()
        scale = torch.where(scale == 0, torch.full_like(scale, 6e-8), scale)
        levels = (rows / scale.float()[:, None]).round().clamp(-LEVELS, LEVELS)
        result[name] = levels.to(torch.int8).view(weight.shape)
        result[f"{name}:scale"] = scale
    return result


def expanded(compact: dict[str, Tensor]) -> dict[str, Tensor]:
    """The inverse of `quantized`, in float16."""
    result: dict[str, Tensor] = {}
    for name, weight in compact.items():
        if name.endswith(":scale"):
            continue
        scale = compact.get(f"{name}:scale")
        if scale is None:
            result[name] = weight.half()
            continue
        shape = (-1,) + (1,) * (weight.ndim - 1)
        result[name] = (weight.float() * scale.float().view(shape)).half()
    return result


def write_compact(
    folder: Path, unet: dict[str, Tensor], vae: dict[str, Tensor], text: dict[str, Tensor]
) -> int:
    """Writes the three files -> their size in bytes."""
    folder.mkdir(parents=True, exist_ok=True)
    packed = gzip.compress(save(quantized(unet)), 6, mtime=0)
    (folder / "unet.safetensors.gz").write_bytes(packed)
    for name, part in (("vae", vae), ("text", text)):
        kept = {k: v.half() if v.is_floating_point() else v for k, v in part.items()}
        save_file({k: v.contiguous() for k, v in kept.items()}, folder / f"{name}.safetensors")
    return sum(path.stat().st_size for path in folder.glob("*.safetensors*"))


def read_compact(
    folder: Path = WEIGHTS,
) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Tensor]]:
    """(UNet, VAE, text) in float16.

    Raises: ValueError when a file is missing.
    """
    packed = folder / "unet.safetensors.gz"
    if not packed.is_file():
        raise ValueError(f"no demo weights in {folder.name}: the repository is not complete")
    unet = expanded(load(gzip.decompress(packed.read_bytes())))
    return unet, load_file(folder / "vae.safetensors"), load_file(folder / "text.safetensors")
