"""Puts trained weights into demo/weights, compact: python demo/export_weights.py

Takes the UNet's averaged weights, the VAE, and the latents' mean and deviation from
.cache/demo_training.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

if not __package__:
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    __package__ = "demo"

import torch
from torch import Tensor

from .compact import LATENT_SCALE, WEIGHTS, write_compact
from .training import CACHE
from .vocabulary import TextEncoder, words


def vae_state(net: dict[str, Tensor], mean: float, deviation: float) -> dict[str, Tensor]:
    """TAESD's weights with the scale and shift that give the UNet latents of mean 0, deviation 1.

    TAESD encodes to raw / scale + shift, and ComfyUI multiplies that by 0.18215.
    """
    state = {name: value for name, value in net.items() if name.startswith("taesd_")}
    state["vae_scale"] = torch.tensor(LATENT_SCALE * deviation)
    state["vae_shift"] = torch.tensor(-mean / (LATENT_SCALE * deviation))
    return state


def main() -> None:
    """Export and print the size."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--unet", type=Path, default=CACHE / "unet.pt")
    parser.add_argument("--vae", type=Path, default=CACHE / "vae.pt")
    parser.add_argument("--out", type=Path, default=WEIGHTS)
    options = parser.parse_args()
    trained = torch.load(options.unet, weights_only=True)
    net = torch.load(options.vae, weights_only=True)["net"]
    mean = float(torch.as_tensor(trained["latent_mean"]).mean())
    vae = vae_state(net, mean, float(torch.as_tensor(trained["latent_std"]).mean()))
    size = write_compact(options.out, trained["ema"], vae, TextEncoder().weights(words()))
    print(f"wrote {options.out.name}: {size / 1e6:.1f} MB, step {trained['step']}")


if __name__ == "__main__":
    with torch.inference_mode():
        main()
