"""Train the demo's autoencoder: encoder and decoder together, or the decoder alone once the
encoder is frozen.

python demo/train_vae.py --minutes 15            trains both and then fixes the latents' mean and
deviation
python demo/train_vae.py --decoder --minutes 30  goes on with the decoder alone; the latents stay
as they are
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

if not __package__:
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    __package__ = "demo"

import torch
from torch import Tensor, nn

from . import footage, scenes
from .nets import build_vae
from .training import arguments, logger, optimizers, save_atomically, set_rate

CROP = 64


def training_batch(n: int, generator: torch.Generator) -> Tensor:
    """n pictures [n, 3, 64, 64]: scenes drawn at 64 and cut from 128 pixels, and cuts of the
    footage."""
    scene_count, small = n - 3 * n // 8, n // 4
    drawn = scenes.draw(scenes.random_scenes(small, generator), CROP).image
    large = scenes.draw(scenes.random_scenes(scene_count - small, generator), 128).image
    height, width = (96, 160) if torch.rand((), generator=generator) < 0.5 else (128, 128)
    real, _ = footage.training_crops(n - scene_count, height, width, generator)
    return torch.cat([drawn, _crops(large, generator), _crops(real, generator)])


def _crops(pictures: Tensor, generator: torch.Generator) -> Tensor:
    height, width = pictures.shape[-2:]
    rows = []
    for picture in pictures:
        top = int(torch.randint((height - CROP) // 4 + 1, (), generator=generator)) * 4
        left = int(torch.randint((width - CROP) // 4 + 1, (), generator=generator)) * 4
        rows.append(picture[:, top : top + CROP, left : left + CROP])
    return torch.stack(rows)


def reconstruction_loss(made: Tensor, wanted: Tensor) -> Tensor:
    """Absolute, gradient and squared error in one."""
    error = made - wanted
    slope = (error[..., 1:] - error[..., :-1]).abs().mean() + (
        error[..., 1:, :] - error[..., :-1, :]
    ).abs().mean()
    return error.abs().mean() + 0.5 * slope + 4 * error.square().mean()


def squared_loss(made: Tensor, wanted: Tensor) -> Tensor:
    """Mostly squared error, which is what PSNR is made of; a little of the other keeps edges."""
    return 10 * (made - wanted).square().mean() + 0.1 * reconstruction_loss(made, wanted)


def psnr(made: Tensor, wanted: Tensor) -> float:
    """Peak signal-to-noise ratio in dB of pictures in 0..1."""
    return float(-10 * torch.log10((made.clamp(0, 1) - wanted).square().mean()))


@torch.no_grad()
def latent_statistics(net: Any, device: str) -> tuple[Tensor, Tensor]:
    """Mean [4] and deviation [4] of the latents of scenes and footage."""
    generator = torch.Generator().manual_seed(1234)
    latents = torch.cat(
        [net.taesd_encoder(training_batch(32, generator).to(device)) for _ in range(6)]
    )
    return latents.mean((0, 2, 3)).cpu(), latents.std((0, 2, 3)).cpu()


@torch.no_grad()
def held_out(net: Any, device: str) -> tuple[float, float]:
    """PSNR in dB on scenes and on footage frames that are never trained on."""
    drawn = scenes.draw(
        scenes.random_scenes(16, torch.Generator().manual_seed(987654), 0.0), 128
    ).image
    clip = footage.frames()
    real = footage.resized(clip[footage.split(len(clip))[1]], 96, 160)
    scores = []
    for pictures in (drawn, real):
        there = pictures.to(device).contiguous(memory_format=torch.channels_last)
        scores.append(psnr(net.taesd_decoder(net.taesd_encoder(there)), there))
    return scores[0], scores[1]


class Trainer:
    """Network, optimizers and their checkpoint."""

    def __init__(self, options: Any) -> None:
        torch.manual_seed(options.seed)
        self.options, self.path = options, options.cache / "vae.pt"
        self.generator = torch.Generator().manual_seed(options.seed + 1)
        self.net: Any = build_vae().to(options.device)
        part = self.net.taesd_decoder if options.decoder else self.net
        named = [(name, weight) for name, weight in part.named_parameters() if weight.requires_grad]
        self.weights = [weight for _, weight in named]
        self.optimizers = optimizers(named, options.rate, options.muon)
        self.step, self.seconds = 0, 0.0
        if self.path.exists():
            self._resume(torch.load(self.path, weights_only=True))

    def _resume(self, saved: dict) -> None:
        self.net.load_state_dict(saved["net"])
        self.step = saved["step"]
        if saved["decoder"] != self.options.decoder or saved["done"]:
            return
        self.seconds = saved["seconds"]
        self.generator.set_state(saved["generator"])
        for optimizer, kept in zip(self.optimizers, saved["optimizers"], strict=True):
            optimizer.load_state_dict(kept)

    def save(self, done: bool) -> None:
        """Writes everything that a later run needs."""
        state = {
            "net": self.net.state_dict(),
            "decoder": self.options.decoder,
            "generator": self.generator.get_state(),
            "step": self.step,
            "seconds": self.seconds,
            "done": done,
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
        }
        save_atomically(state, self.path)

    def learn(self) -> tuple[float, float]:
        """One step -> (loss, PSNR in dB)."""
        alone = self.options.decoder
        left = 1 - self.seconds / (self.options.minutes * 60)
        set_rate(self.optimizers, min(1.0, (self.step + 1) / 100) * max(0.02, left))
        wanted = training_batch(self.options.batch, self.generator).to(self.options.device)
        wanted = wanted.contiguous(memory_format=torch.channels_last)
        with torch.set_grad_enabled(not alone):
            latents = self.net.taesd_encoder(wanted)
        picture = self.net.taesd_decoder(
            latents + (0.0 if alone else 0.03) * torch.randn_like(latents)
        )
        loss = (squared_loss if alone else reconstruction_loss)(picture, wanted)
        if not alone:
            spread = latents.std((0, 2, 3))
            centre = latents.mean((0, 2, 3))
            loss = loss + 1e-3 * (centre.square().mean() + (spread - 1).square().mean())
        self.net.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.weights, 1.0)
        for optimizer in self.optimizers:
            optimizer.step()
        self.step += 1
        return float(loss.detach()), psnr(picture.detach(), wanted)


def train(trainer: Trainer, log: Callable[[str], None]) -> None:
    """The loop, until the time is over."""
    device, last = trainer.options.device, time.monotonic()
    saved_at = last
    while trainer.seconds < trainer.options.minutes * 60:
        loss, quality = trainer.learn()
        now = time.monotonic()
        trainer.seconds, last = trainer.seconds + now - last, now
        if trainer.step % 50 == 0:
            text = f"{trainer.step} {trainer.seconds:.0f}s loss {loss:.4f} psnr {quality:.2f}"
            if trainer.step % 200 == 0:
                drawn, real = held_out(trainer.net, device)
                text += f" held out {drawn:.2f} {real:.2f}"
            log(text)
        if now - saved_at > 120:
            trainer.save(False)
            saved_at = now
    trainer.save(True)


def main() -> None:
    """Train, log and save; at the end of the encoder's training, fix the latents' statistics."""
    parser = arguments(__doc__ or "", minutes=15)
    parser.add_argument("--decoder", action="store_true", help="train the decoder alone")
    parser.add_argument("--batch", type=int, default=8)
    muon = "Muon's rate; 0 trains everything with AdamW"
    parser.add_argument("--muon", type=float, default=0.02, help=muon)
    parser.add_argument("--rate", type=float, default=6e-4)
    options = parser.parse_args()
    log = logger(options.cache / "vae.log")
    trainer = Trainer(options)
    train(trainer, log)
    drawn, real = held_out(trainer.net, options.device)
    log(f"done at step {trainer.step}: held out scenes {drawn:.2f} dB, footage {real:.2f} dB")
    if not options.decoder:
        mean, deviation = latent_statistics(trainer.net, options.device)
        save_atomically({"mean": mean, "std": deviation}, options.cache / "latents.pt")
        log(f"latent mean {mean.tolist()} deviation {deviation.tolist()}")


if __name__ == "__main__":
    main()
