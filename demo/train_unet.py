"""Train the demo's UNet on latents of rendered scenes and of the bundled footage.

python demo/train_unet.py --minutes 60 --small 0.6   the first 60 % of the time at 64 pixels, then
at 128

Predicts the noise on Stable Diffusion's schedule, with min-SNR weights (Hang et al. 2023) below
and truncated-SNR weights (Salimans and Ho 2022) above equal signal and noise, and keeps averaged
weights. A stopped run goes on from its own checkpoint in .cache/demo_training. Several processes
share a batch:

    torchrun --nproc-per-node 2 demo/train_unet.py --minutes 60
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

if not __package__:
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    __package__ = "demo"

import torch
from torch import Tensor, distributed, nn

from . import footage, scenes
from .nets import alphas_cumprod, build_unet, build_vae
from .training import arguments, fast_bf16, logger, save_atomically
from .vocabulary import TextEncoder

RATE, WARM_UP, AVERAGE, STYLED = 4e-4, 150, 0.998, 0.2
MIN_SNR, HEAVIEST = 5.0, 10.0
Batch = tuple[Tensor, list[str]]


@dataclass(frozen=True)
class Kind:
    """One kind of training picture: how often, how many at once, and how it is made."""

    share: float
    batch: int
    height: int
    width: int
    real: bool

    def draw(self, n: int, generator: torch.Generator) -> Batch:
        """n pictures [n, 3, height, width] with captions."""
        if self.real:
            return footage.training_crops(n, self.height, self.width, generator)
        drawn = scenes.random_scenes(n, generator, STYLED)
        picture = scenes.draw(drawn, self.height, self.width).image
        return picture, scenes.scene_captions(drawn, generator)


SMALL = (
    Kind(0.78, 32, 64, 64, False),
    Kind(0.12, 32, 64, 64, True),
    Kind(0.10, 32, 64, 112, True),
)
LARGE = (
    Kind(0.60, 12, 128, 128, False),
    Kind(0.12, 32, 64, 64, False),
    Kind(0.20, 12, 96, 160, True),
    Kind(0.08, 12, 128, 128, True),
)


@dataclass
class Latents:
    """Latents with captions; half of every batch is new, half was seen before with other noise."""

    encode: Callable[[Tensor], Tensor]
    generator: torch.Generator
    kept: dict[Kind, list[tuple[Tensor, str]]] = field(default_factory=dict)

    def batch(self, kind: Kind, size: int) -> tuple[Tensor, list[str]]:
        """Latents [size, 4, h, w] and their captions."""
        pool = self.kept.setdefault(kind, [])
        fresh = size // 2 if len(pool) >= 6 * size else size
        pictures, captions = kind.draw(fresh, self.generator)
        new = list(zip(self.encode(pictures), captions, strict=True))
        most = max(len(pool), 1)
        again = torch.randint(most, (size - fresh,), generator=self.generator).tolist()
        rows = [*new, *(pool[i] for i in again)]
        pool += new
        del pool[: -40 * size]
        return torch.stack([latent for latent, _ in rows]), [text for _, text in rows]


def pick(kinds: tuple[Kind, ...], generator: torch.Generator) -> Kind:
    """One kind, by its share."""
    shares = torch.tensor([kind.share for kind in kinds])
    return kinds[int(torch.multinomial(shares, 1, generator=generator))]


def denoising_loss(
    net: nn.Module, latents: Tensor, context: Tensor, abar: Tensor, generator: torch.Generator
) -> tuple[Tensor, float]:
    """(weighted loss, plain mean squared error of the noise) at random times.

    In units of the picture's own error the weight is the signal-to-noise ratio between 1 and
    MIN_SNR: without the lower end a picture's outlines, which are settled where the noise is
    strongest, hardly count.
    """
    n = len(latents)
    time_step = torch.randint(len(abar), (n,), generator=generator)
    level = abar[time_step].view(-1, 1, 1, 1).to(latents.device)
    noise = torch.randn(latents.shape, generator=generator).to(latents.device)
    noisy = level.sqrt() * latents + (1 - level).sqrt() * noise
    noisy = noisy.contiguous(memory_format=torch.channels_last)
    predicted = net(noisy, time_step.float().to(latents.device), context)
    error = (predicted.float() - noise).square().mean((1, 2, 3))
    snr = (level / (1 - level)).flatten()
    weight = (snr.clamp(1.0, MIN_SNR) / snr).clamp(max=HEAVIEST)
    return (weight * error).mean(), float(error.detach().mean())


def latent_encoder(path: Path, device: str) -> tuple[Callable[[Tensor], Tensor], float, float]:
    """(pictures -> normalised latents on `device`, mean, deviation): one number each for all
    channels."""
    vae: Any = build_vae().eval().requires_grad_(False)
    vae.load_state_dict(torch.load(path, weights_only=True)["net"])
    vae = vae.to(device)
    known = torch.load(path.with_name("latents.pt"), weights_only=True)
    mean = float(known["mean"].mean())
    deviation = float((known["std"].square() + (known["mean"] - mean).square()).mean().sqrt())

    def encode(pictures: Tensor) -> Tensor:
        with torch.no_grad():
            there = pictures.to(device).contiguous(memory_format=torch.channels_last)
            return (vae.taesd_encoder(there) - mean) / deviation

    return encode, mean, deviation


class Trainer:
    """Network, averaged weights and optimizer, and their checkpoint."""

    def __init__(self, path: Path, device: str, seed: int) -> None:
        torch.manual_seed(seed)
        self.path, self.device, self.step = path, device, 0
        self.net = build_unet().to(device)
        self.weights = list(self.net.parameters())
        self.average = [weight.detach().clone() for weight in self.weights]
        self.optimizer = torch.optim.AdamW(
            self.weights, lr=RATE, betas=(0.9, 0.99), weight_decay=1e-2, fused=True
        )
        self.generator = torch.Generator().manual_seed(seed + 1)
        if path.is_file():
            self._resume(torch.load(path, weights_only=True, map_location=device))

    def _resume(self, kept: dict) -> None:
        self.net.load_state_dict(kept["model"])
        names = [name for name, _ in self.net.named_parameters()]
        self.average = [kept["ema"][name].to(self.device) for name in names]
        self.step = kept["step"]
        if "optimizer" in kept:
            self.optimizer.load_state_dict(kept["optimizer"])
            for group in self.optimizer.param_groups:
                group["fused"] = True
            self.generator.set_state(kept["generator"].cpu())

    def save(self, mean: float, deviation: float) -> None:
        """Writes everything that a later run needs."""
        names = [name for name, _ in self.net.named_parameters()]
        state = {
            "model": self.net.state_dict(),
            "ema": dict(zip(names, self.average, strict=True)),
            "optimizer": self.optimizer.state_dict(),
            "generator": self.generator.get_state(),
            "step": self.step,
            "latent_mean": mean,
            "latent_std": deviation,
        }
        save_atomically(state, self.path)

    def learn(self, loss: Tensor, rate: float) -> None:
        """One optimizer step and its average; processes average their gradients first."""
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        if distributed.is_initialized():
            gradients = [weight.grad for weight in self.weights if weight.grad is not None]
            flat = torch.cat([gradient.reshape(-1) for gradient in gradients])
            distributed.all_reduce(flat)
            flat /= distributed.get_world_size()
            sizes = [gradient.numel() for gradient in gradients]
            for gradient, mean in zip(gradients, flat.split(sizes), strict=True):
                gradient.copy_(mean.view(gradient.shape))
        nn.utils.clip_grad_norm_(self.weights, 1.0)
        self.optimizer.step()
        self.step += 1
        keep = min(AVERAGE, (1 + self.step) / (10 + self.step))
        for average, weight in zip(self.average, self.weights, strict=True):
            average.lerp_(weight.detach(), 1 - keep)


def join_processes(device: str) -> tuple[int, int]:
    """(number of this process, processes); torchrun says so in the environment."""
    if "WORLD_SIZE" not in os.environ:
        return 0, 1
    distributed.init_process_group("nccl" if device.startswith("cuda") else "gloo")
    torch.set_num_threads(1)
    return distributed.get_rank(), distributed.get_world_size()


def train(trainer: Trainer, latents: Latents, options: Any, save: Callable[[], None]) -> None:
    """The loop, until the time is over."""
    rank, world = join_processes(options.device)
    log = logger(options.cache / "unet.log") if rank == 0 else lambda _text: None
    text, abar = TextEncoder(), alphas_cumprod()
    dtype = torch.bfloat16 if fast_bf16(options.device) else torch.float32
    device_type = options.device.split(":")[0]
    kinds = torch.Generator().manual_seed(trainer.step)  # the same in every process
    latents.generator.manual_seed(1000 * trainer.step + rank)
    started = saved = time.monotonic()
    errors: list[float] = []
    done = torch.zeros(1)
    while True:
        done[0] = (time.monotonic() - started) / (60 * options.minutes)
        if world > 1:
            distributed.broadcast(done, 0)
        if float(done) >= 1:
            break
        kind = pick(SMALL if float(done) < options.small else LARGE, kinds)
        batch, captions = latents.batch(kind, max(kind.batch // world, 1))
        context = torch.stack([text(caption) for caption in captions]).to(options.device)
        with torch.autocast(device_type, dtype=dtype, enabled=dtype != torch.float32):
            loss, error = denoising_loss(trainer.net, batch, context, abar, latents.generator)
        rate = RATE * min(1.0, (trainer.step + 1) / WARM_UP, max(0.03, 2 * (1 - float(done))))
        trainer.learn(loss, rate)
        errors.append(error)
        if trainer.step % 25 == 0:
            mean = sum(errors) / len(errors)
            log(
                f"{trainer.step} {time.monotonic() - started:.0f}s error {mean:.4f} rate {rate:.1e}"
            )
            errors.clear()
        if rank == 0 and time.monotonic() - saved > 300:
            save()
            saved = time.monotonic()
    if rank == 0:
        save()
    log(f"done at step {trainer.step}")


def main() -> None:
    """Train, log and save until the time is over."""
    parser = arguments(__doc__ or "", minutes=60)
    parser.add_argument("--small", type=float, default=0.6, help="part of the time at 64 pixels")
    parser.add_argument("--name", default="unet.pt", help="checkpoint in the cache folder")
    options = parser.parse_args()
    encode, mean, deviation = latent_encoder(options.cache / "vae.pt", options.device)
    trainer = Trainer(options.cache / options.name, options.device, options.seed)
    latents = Latents(encode, trainer.generator)
    train(trainer, latents, options, lambda: trainer.save(mean, deviation))


if __name__ == "__main__":
    main()
