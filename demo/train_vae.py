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
from pathlib import Path

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


def psnr(made: Tensor, wanted: Tensor) -> float:
    """Peak signal-to-noise ratio in dB of pictures in 0..1."""
    return float(-10 * torch.log10((made.clamp(0, 1) - wanted).square().mean()))


@torch.no_grad()
def latent_statistics(net: nn.Module, device: str) -> tuple[Tensor, Tensor]:
    """Mean [4] and deviation [4] of the latents of scenes and footage."""
    generator = torch.Generator().manual_seed(1234)
    latents = torch.cat(
        [net.taesd_encoder(training_batch(32, generator).to(device)) for _ in range(6)]
    )
    return latents.mean((0, 2, 3)).cpu(), latents.std((0, 2, 3)).cpu()


@torch.no_grad()
def held_out(net: nn.Module, device: str) -> tuple[float, float]:
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


def main() -> None:
    """Train, log and save until the time is over."""
    parser = arguments(__doc__ or "", minutes=15)
    parser.add_argument("--decoder", action="store_true", help="train the decoder alone")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument(
        "--muon", type=float, default=0.02, help="Muon's rate; 0 trains everything with AdamW"
    )
    parser.add_argument("--rate", type=float, default=6e-4)
    options = parser.parse_args()
    path = options.cache / "vae.pt"
    log = logger(options.cache / "vae.log")
    torch.manual_seed(options.seed)
    generator = torch.Generator().manual_seed(options.seed + 1)
    net = build_vae().to(options.device)
    named = list((net.taesd_decoder if options.decoder else net).named_parameters())
    named = [(name, weight) for name, weight in named if weight.requires_grad]
    made = optimizers(named, options.rate, options.muon)
    state = {"step": 0, "seconds": 0.0}
    if path.exists():
        saved = torch.load(path, weights_only=True)
        net.load_state_dict(saved["net"])
        state["step"] = saved["step"]
        if saved["decoder"] == options.decoder and not saved["done"]:
            state["seconds"] = saved["seconds"]
            generator.set_state(saved["generator"])
            for optimizer, kept in zip(made, saved["optimizers"], strict=True):
                optimizer.load_state_dict(kept)

    def save(done: bool) -> None:
        record = {
            "net": net.state_dict(),
            "decoder": options.decoder,
            "generator": generator.get_state(),
        }
        kept = [optimizer.state_dict() for optimizer in made]
        save_atomically({**record, **state, "done": done, "optimizers": kept}, path)

    last = saved_at = time.monotonic()
    while state["seconds"] < options.minutes * 60:
        left = 1 - state["seconds"] / (options.minutes * 60)
        set_rate(made, min(1.0, (state["step"] + 1) / 100) * max(0.02, left))
        wanted = training_batch(options.batch, generator).to(options.device)
        wanted = wanted.contiguous(memory_format=torch.channels_last)
        with torch.set_grad_enabled(not options.decoder):
            latents = net.taesd_encoder(wanted)
        loose = 0.0 if options.decoder else 0.03
        picture = net.taesd_decoder(latents + loose * torch.randn_like(latents))
        loss = reconstruction_loss(picture, wanted)
        if not options.decoder:
            spread = latents.std((0, 2, 3))
            loss = loss + 1e-3 * (
                latents.mean((0, 2, 3)).square().mean() + (spread - 1).square().mean()
            )
        net.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_([weight for _, weight in named], 1.0)
        for optimizer in made:
            optimizer.step()
        now = time.monotonic()
        state["seconds"] += now - last
        state["step"] += 1
        last = now
        if state["step"] % 50 == 0:
            drawn, real = held_out(net, options.device) if state["step"] % 200 == 0 else (0.0, 0.0)
            log(
                f"{state['step']} {state['seconds']:.0f}s loss {float(loss):.4f} "
                f"psnr {psnr(picture.detach(), wanted):.2f} held out {drawn:.2f} {real:.2f}"
            )
        if now - saved_at > 120:
            save(False)
            saved_at = now
    save(True)
    drawn, real = held_out(net, options.device)
    log(f"done at step {state['step']}: held out scenes {drawn:.2f} dB, footage {real:.2f} dB")
    if not options.decoder:
        mean, deviation = latent_statistics(net, options.device)
        save_atomically({"mean": mean, "std": deviation}, options.cache / "latents.pt")
        log(f"latent mean {mean.tolist()} deviation {deviation.tolist()}")


if __name__ == "__main__":
    main()
