"""What both training scripts share: optimizer, checkpoints that survive a stop, device and log."""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .nets import ROOT

CACHE = ROOT / ".cache" / "demo_training"


def arguments(description: str, minutes: float) -> argparse.ArgumentParser:
    """The options both scripts have."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--minutes", type=float, default=minutes, help="stop after this time")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--cache", type=Path, default=CACHE, help="checkpoints and logs")
    parser.add_argument("--seed", type=int, default=0)
    return parser


def save_atomically(state: Any, path: Path) -> None:
    """torch.save to a temporary name, then rename: a stop never leaves half a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(f".{os.getpid()}.tmp")
    torch.save(state, temporary)
    temporary.replace(path)


def logger(path: Path) -> Callable[[str], None]:
    """A function that prints a line with the time and appends it to a file."""
    path.parent.mkdir(parents=True, exist_ok=True)

    def log(text: str) -> None:
        line = f"{time.strftime('%H:%M:%S')} {text}"
        print(line, flush=True)
        with path.open("a", encoding="utf-8") as file:
            file.write(line + "\n")

    return log


def fast_bf16(device: str) -> bool:
    """Whether bfloat16 pays: CUDA, or a CPU with AVX512-bf16 or AMX (elsewhere it is many times
    slower)."""
    if device.startswith("cuda"):
        return True
    has = [
        getattr(torch.cpu, f"_is_{name}_supported", None) for name in ("avx512_bf16", "amx_tile")
    ]
    return device == "cpu" and any(check is not None and check() for check in has)


def orthogonalized(matrix: Tensor) -> Tensor:
    """The nearest semi-orthogonal matrix, roughly: five quintic Newton-Schulz steps (Muon, K.
    Jordan 2024)."""
    tall = matrix.shape[0] > matrix.shape[1]
    x = matrix.T if tall else matrix
    x = x / (x.norm() + 1e-7)
    for _ in range(5):
        gram = x @ x.T
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    return x.T if tall else x


class Muon(torch.optim.Optimizer):
    """Momentum with orthogonalized updates for weight matrices and convolutions (2 or 4
    dimensions)."""

    def __init__(self, params: Iterable[nn.Parameter], lr: float, momentum: float = 0.95) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """One update; gradients must have been computed."""
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is None:
                    continue
                buffer = self.state[weight].setdefault("momentum", torch.zeros_like(weight))
                buffer.lerp_(weight.grad, 1 - group["momentum"])
                update = weight.grad.lerp(buffer, group["momentum"]).flatten(1)
                size = max(1.0, update.shape[0] / update.shape[1]) ** 0.5
                weight.add_(orthogonalized(update).view_as(weight), alpha=-group["lr"] * size)


def optimizers(
    named: Iterable[tuple[str, nn.Parameter]], adam_lr: float, muon_lr: float
) -> list[torch.optim.Optimizer]:
    """Muon for inner matrices and convolutions, AdamW for the rest; 'initial_lr' keeps each one's
    full rate."""
    matrices, others = [], []
    for _name, weight in named:
        inner = weight.dim() in (2, 4) and min(weight.flatten(1).shape) >= 16
        (matrices if inner else others).append(weight)
    made: list[torch.optim.Optimizer] = [Muon(matrices, lr=muon_lr)] if matrices and muon_lr else []
    rest = others if made else matrices + others
    made.append(torch.optim.AdamW(rest, lr=adam_lr, betas=(0.9, 0.99), weight_decay=0.0))
    for optimizer in made:
        for group in optimizer.param_groups:
            group["initial_lr"] = group["lr"]
    return made


def set_rate(made: list[torch.optim.Optimizer], factor: float) -> None:
    """Scale every learning rate to factor times its full rate."""
    for optimizer in made:
        for group in optimizer.param_groups:
            group["lr"] = group["initial_lr"] * factor
