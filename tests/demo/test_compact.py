"""The repository's compact weights come back as they were, within int8's step."""

from __future__ import annotations

import pytest
import torch

from demo.compact import LEVELS, expanded, quantized, read_compact, write_compact


def weights() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        "conv.weight": torch.randn(5, 3, 3, 3, generator=generator) * 0.1,
        "linear.weight": torch.randn(7, 11, generator=generator),
        "zero.weight": torch.zeros(4, 6),
        "norm.bias": torch.randn(9, generator=generator),
    }


def test_expanding_undoes_quantizing_within_half_a_step():
    before, after = weights(), expanded(quantized(weights()))
    assert after.keys() == before.keys()
    for name, weight in before.items():
        assert after[name].shape == weight.shape
        step = weight.flatten(1).abs().amax(1) / LEVELS if weight.ndim > 1 else weight.abs() * 1e-3
        error = (after[name].float() - weight).flatten(1 if weight.ndim > 1 else 0).abs()
        bound = 0.51 * step + weight.abs().max() * 1.5e-3
        assert bool((error <= (bound[:, None] if weight.ndim > 1 else bound)).all()), name


def test_a_disturbed_scale_is_seen():
    compact = quantized(weights())
    compact["linear.weight:scale"] *= 1.1
    error = (expanded(compact)["linear.weight"].float() - weights()["linear.weight"]).abs().max()
    assert float(error) > 0.1


def test_the_files_hold_everything(tmp_path):
    vae, text = {"vae_scale": torch.tensor(0.5)}, {"tokens": torch.tensor([3], dtype=torch.int32)}
    size = write_compact(tmp_path, weights(), vae, text)
    assert size == sum(path.stat().st_size for path in tmp_path.iterdir())
    unet, kept_vae, kept_text = read_compact(tmp_path)
    assert unet.keys() == weights().keys()
    assert float(kept_vae["vae_scale"]) == 0.5
    assert kept_text["tokens"].tolist() == [3]


def test_missing_weights_are_named(tmp_path):
    with pytest.raises(ValueError, match="no demo weights"):
        read_compact(tmp_path)
