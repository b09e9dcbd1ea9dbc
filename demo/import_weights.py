"""Lets training go on from the repository's weights: python demo/import_weights.py

Writes the checkpoints that train_unet.py and train_vae.py resume from into .cache/demo_training.
Optimizers start afresh; the latents stay those that the UNet was trained on.
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

from .compact import LATENT_SCALE, WEIGHTS, read_compact
from .training import CACHE, save_atomically


def latent_statistics(vae: dict[str, Tensor]) -> tuple[float, float]:
    """(mean, deviation) of the encoder's latents; the inverse of export_weights.vae_state."""
    deviation = float(vae["vae_scale"]) / LATENT_SCALE
    return -float(vae["vae_shift"]) * LATENT_SCALE * deviation, deviation


def import_weights(folder: Path, cache: Path) -> None:
    """Writes unet.pt, vae.pt and latents.pt.

    Raises: ValueError when one of them is there, or the weights are missing.
    """
    there = [name for name in ("unet.pt", "vae.pt", "latents.pt") if (cache / name).exists()]
    if there:
        raise ValueError(
            f"{', '.join(there)} in {cache.name}: a training is there already. Go on with it, or "
            "move the folder away."
        )
    unet, vae, _text = ({k: v.float() for k, v in part.items()} for part in read_compact(folder))
    mean, deviation = latent_statistics(vae)
    net = vae | {"vae_scale": torch.tensor(1.0), "vae_shift": torch.tensor(0.0)}
    kept = {"net": net, "decoder": False, "done": True, "step": 0, "seconds": 0.0}
    save_atomically(kept, cache / "vae.pt")
    spread = {"mean": torch.full((4,), mean), "std": torch.full((4,), deviation)}
    save_atomically(spread, cache / "latents.pt")
    numbers = {"step": 0, "latent_mean": mean, "latent_std": deviation}
    save_atomically({"model": unet, "ema": unet, **numbers}, cache / "unet.pt")


def main() -> None:
    """Import, and say so."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--weights", type=Path, default=WEIGHTS)
    parser.add_argument("--cache", type=Path, default=CACHE)
    options = parser.parse_args()
    import_weights(options.weights, options.cache)
    print(f"wrote unet.pt, vae.pt and latents.pt to {options.cache.name}")


if __name__ == "__main__":
    main()
