"""Latents of odd sizes, and networks in half precision: shapes, finite values, the same result."""

from __future__ import annotations

from collections.abc import Callable

import comfy.model_patcher
import pytest
import torch
from clips import ATTACH, SMALL, run, same, source
from reweave.editing.anchor_attention import AnchorAttention
from reweave.editing.latent_guidance import LatentGuidance
from reweave.editing.plug_and_play import PlugAndPlay
from reweave.editing.protocol import Edit
from reweave.editing.tokenflow import TokenFlow
from reweave.editing.types import Inversion, NNField
from reweave.nodes import NNField as NNFieldNode
from reweave.nodes import PreviewNNField
from torch import Tensor
from toy import patcher

FRAMES = 5
SIZES = [(9, 13), (8, 15)]
HALF = [torch.bfloat16, torch.float16]
EDITS: dict[str, Callable[[Inversion, int], list[Edit]]] = {
    "TokenFlow, Plug-and-Play": lambda clip, size: [
        TokenFlow(clip, interval=4, frames_per_pass=size), PlugAndPlay(clip, 0.7, 0.7),
    ],
    "Anchor Attention, Latent Guidance": lambda _clip, size: [
        AnchorAttention(frames_per_pass=size), LatentGuidance(0.1, 1.0),
    ],
    "Anchor Attention, gradient": lambda _clip, size: [
        AnchorAttention(frames_per_pass=size), LatentGuidance(0.02, 1.0, mode="gradient"),
    ],
}  # fmt: skip
"""Name -> the edits of a clip with so many frames per pass (0 = all)."""


def network(dtype: torch.dtype, unet: dict | None = SMALL) -> comfy.model_patcher.ModelPatcher:
    """A random network that computes in `dtype`, as ComfyUI loads one in half precision."""
    model = patcher(unet)
    with torch.inference_mode(False):
        model.model.diffusion_model.to(dtype)
    model.model.diffusion_model.dtype = dtype
    assert model.model_dtype() == model.model.get_dtype() == dtype
    return model


@pytest.fixture(scope="module")
def model():
    return network(torch.float32)


@pytest.fixture(autouse=True)
def no_cache(monkeypatch):
    """Every run computes its own source features."""
    monkeypatch.setattr(ATTACH, "step_cache", lambda *_: None)


def apart(one: Tensor, other: Tensor) -> Tensor:
    """[F] the frames' distance, against the standard deviation of the clip."""
    return (one - other).square().mean((1, 2, 3)).sqrt() / other.std()


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("edits", EDITS)
def test_odd_sizes_in_any_chunks(model, edits, size):
    inversion = source(model, FRAMES, steps=2, size=size)
    whole, cut = (run(model, inversion, *EDITS[edits](inversion, part)) for part in (0, 2))
    assert whole.shape == (FRAMES, 4, *size) and bool(torch.isfinite(whole).all())
    assert same(cut, whole)
    changed = apart(run(model, inversion), whole)[1:]  # frame 0 is the anchor: it stays
    assert float(changed.min()) > 0.02, f"a frame was left as it was: {changed}"


@pytest.mark.parametrize("dtype", HALF, ids=str)
@pytest.mark.parametrize("edits", EDITS)
def test_half_precision_is_as_near_as_without_an_edit(model, edits, dtype):
    """The edit adds no rounding of its own to that of the network."""
    inversion, half = source(model, 3, steps=2, size=(5, 7)), network(dtype)
    plain = [run(net, inversion) for net in (model, half)]
    edited = [run(net, inversion, *EDITS[edits](inversion, 2)) for net in (model, half)]
    assert edited[1].shape == edited[0].shape and bool(torch.isfinite(edited[1]).all())
    rounding = float(apart(plain[1], plain[0]).mean())
    assert 1e-4 < rounding < 0.1
    assert float(apart(edited[1], edited[0]).mean()) < 1.5 * rounding
    assert float(apart(edited[1], plain[1]).mean()) > 0.03, "the edit did not act"


def field_of(net: comfy.model_patcher.ModelPatcher, clip: Inversion, size: int = 2) -> NNField:
    """What the node makes of a clip; by the paper's rule a key frame is its own neighbour."""
    out = NNFieldNode.execute(
        model=net, inversion=clip, interval=2, keyframe_seed=1, key_frames="random per step",
        rule="paper", frames_per_pass=size, max_gigabytes=4.0,
    )  # fmt: skip
    return out.args[0]


@pytest.mark.parametrize("dtype", [torch.float32, *HALF], ids=str)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_a_field_of_an_odd_size_and_its_preview(size, dtype):
    net = network(dtype)
    clip = source(net, FRAMES, steps=2, size=size)
    field = field_of(net, clip)
    half = tuple(-(-side // 2) for side in size)
    assert set(field.grids.values()) == {size, half}
    for (site, step), index in field.index.items():
        tokens = field.grids[site][0] * field.grids[site][1]
        assert index.shape == (FRAMES, 2, tokens)
        assert int(index.min()) >= 0 and int(index.max()) < tokens
        assert bool(torch.isfinite(field.similarity[site, step]).all())
    if dtype == torch.float32:
        whole = field_of(net, clip, 0)
        assert all(torch.equal(index, whole.index[key]) for key, index in field.index.items())

    pixels = torch.rand(
        FRAMES, 8 * size[0], 8 * size[1], 3, generator=torch.Generator().manual_seed(4)
    )
    shown = [
        PreviewNNField.execute(nn_field=field, image=pixels, step=1, site=str(site)).args
        for site in field.grids
    ]
    for pictures in (picture for pair in shown for picture in pair):
        assert pictures.shape == pixels.shape and bool(torch.isfinite(pictures).all())
        assert float(pictures.min()) >= 0 and float(pictures.max()) <= 1
    # at the last site, of the finest grid, a key frame finds itself, token for token
    built, key_frames = shown[-1][1], set(field.key_frames[1].tolist())
    exact = {f for f in range(FRAMES) if torch.allclose(built[f], pixels[f], atol=1e-5)}
    assert exact == key_frames and len(key_frames) < FRAMES
