"""Training resumes from its own checkpoint, and its losses and updates are what they say."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import torch

from demo import compact, export_weights, import_weights, nets, train_unet, train_vae, training

pytestmark = pytest.mark.skipif(not nets.HOST.is_dir(), reason="no ComfyUI here")
TINY = {
    "channel_mult": (1,),
    "num_res_blocks": [1],
    "transformer_depth": [0],
    "transformer_depth_output": [0, 0],
    "model_channels": 32,
    "num_heads": 2,
}


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The trainer builds a very small net; the path of its checkpoint."""
    monkeypatch.setattr(train_unet, "build_unet", partial(nets.build_unet, **TINY))
    return tmp_path / "unet.pt"


def learn(trainer: train_unet.Trainer, steps: int) -> list[float]:
    """Some steps on one fixed batch of latents; their errors."""
    latents = torch.randn(8, 4, 4, 4, generator=torch.Generator().manual_seed(5)) * 0.3
    context, abar = torch.zeros(8, 77, 768), nets.alphas_cumprod()
    errors = []
    for _ in range(steps):
        loss, error = train_unet.denoising_loss(
            trainer.net, latents, context, abar, trainer.generator
        )
        trainer.learn(loss, 2e-3)
        errors.append(error)
    return errors


def test_a_stopped_run_goes_on_as_if_it_had_not_stopped(tiny: Path):
    trainer = train_unet.Trainer(tiny, "cpu", 0)
    learn(trainer, 3)
    trainer.save(0.1, 0.5)
    learn(trainer, 2)
    again = train_unet.Trainer(tiny, "cpu", 99)
    assert again.step == 3
    learn(again, 2)
    for one, two in zip(again.weights, trainer.weights, strict=True):
        assert torch.allclose(one, two, atol=1e-6)
    for one, two in zip(again.average, trainer.average, strict=True):
        assert torch.allclose(one, two, atol=1e-6)
    assert not list(tiny.parent.glob("*.tmp"))


def test_the_loss_falls(tiny: Path):
    errors = learn(train_unet.Trainer(tiny, "cpu", 0), 60)
    assert abs(errors[0] - 1) < 0.4  # the output starts at zero, so the error is the noise's own
    assert sum(errors[-10:]) / 10 < 0.8


def test_the_autoencoders_loss_sees_every_kind_of_error():
    picture = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    assert float(train_vae.reconstruction_loss(picture, picture)) == 0
    brighter = float(train_vae.reconstruction_loss(picture + 0.1, picture))
    rough = picture + 0.1 * (torch.arange(16) % 2 * 2 - 1)
    assert brighter > 0.1
    assert float(train_vae.reconstruction_loss(rough, picture)) > brighter + 0.05


def test_training_goes_on_from_the_repositorys_weights(tmp_path: Path):
    """What is exported again is what was imported, but for rounding."""
    import_weights.import_weights(compact.WEIGHTS, tmp_path)
    before, vae, _ = compact.read_compact()
    trainer = train_unet.Trainer(tmp_path / "unet.pt", "cpu", 0)
    names = [name for name, _ in trainer.net.named_parameters()]
    for name, average in zip(names, trainer.average, strict=True):
        assert torch.equal(average, before[name].float())
    encode, mean, deviation = train_unet.latent_encoder(tmp_path / "vae.pt", "cpu")
    again = export_weights.vae_state(vae, mean, deviation)
    for name in ("vae_scale", "vae_shift"):
        assert float(again[name]) == pytest.approx(float(vae[name]), rel=1e-3)
    assert encode(torch.rand(1, 3, 64, 64)).shape == (1, 4, 8, 8)
    with pytest.raises(ValueError, match="a training is there already"):
        import_weights.import_weights(compact.WEIGHTS, tmp_path)


def test_training_batches_have_the_crop_size():
    batch = train_vae.training_batch(8, torch.Generator().manual_seed(2))
    assert batch.shape == (8, 3, train_vae.CROP, train_vae.CROP)


@pytest.mark.parametrize("shape", [(16, 48), (48, 16)])
def test_updates_are_nearly_orthogonal(shape: tuple[int, int]):
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(3))
    values = torch.linalg.svdvals(training.orthogonalized(matrix))
    assert 0.5 < float(values.min()) and float(values.max()) < 1.4


def test_an_interrupted_save_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "state.pt"
    training.save_atomically({"step": 1}, path)

    def full_disk(*_: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(torch, "save", full_disk)
    with pytest.raises(OSError, match="no space"):
        training.save_atomically({"step": 2}, path)
    assert torch.load(path, weights_only=True)["step"] == 1


def test_a_missing_host_is_named(tmp_path: Path):
    with pytest.raises(ValueError, match=r"dev\.py setup"):
        nets.host_module("comfy.sd", tmp_path)
