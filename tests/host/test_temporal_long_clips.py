"""Other frame counts than trained: padding for short clips, windows that overlap for long ones."""

from __future__ import annotations

import pytest
import torch
from clips import SMALL, run, same, source
from reweave.editing.host.temporal_unet import TemporalEdit, apply_temporal
from reweave.editing.temporal_unet.features import Features
from reweave.editing.temporal_unet.joining import Joint, joined
from reweave.editing.temporal_unet.plan import Architecture, transformer_blocks
from reweave.editing.temporal_unet.windows import window_weights, windows
from tcve import trained
from toy import patcher

KINDS = [Architecture(), Architecture("published", "correct")]


@pytest.fixture(scope="module")
def model():
    return patcher(SMALL)


def on(model, architecture=KINDS[0], frames=4, **options):
    return apply_temporal(model, TemporalEdit(trained(model, architecture, frames), **options))


@pytest.mark.parametrize("frames", [1, 2, 3, 5, 9])
def test_other_frame_counts_than_trained(model, frames):
    """Shorter clips are padded by reflection, longer ones done in windows that overlap."""
    inversion = source(model, frames=frames)
    for kind in KINDS:
        out = run(on(model, kind), inversion)
        assert out.shape[0] == frames and bool(torch.isfinite(out).all())
        assert not same(out, run(model, inversion), 0.02)


def test_windows_overlap_matters_and_one_window_is_no_window(model):
    inversion = source(model, frames=7, steps=2)
    one, two = on(model, frames=7), on(model, frames=0)
    assert torch.equal(run(one, inversion), run(two, inversion))
    narrow = run(on(model, frames=4, overlap=1), inversion)
    wide = run(on(model, frames=4, overlap=3), inversion)
    assert not same(narrow, wide, 1e-3)


class Attended:
    """How many frames the attention over frames of every transformer block was given."""

    def __init__(self, net):
        self.counts = []
        for tuned in net.tuned.values():
            tuned.attention.register_forward_pre_hook(self.note)

    def note(self, _module, inputs):
        self.counts.append(inputs[0].shape[1])


@pytest.mark.parametrize(("window", "counts"), [(0, {7}), (4, {4}), (7, {7}), (9, {7})])
def test_the_frame_attention_of_published_looks_at_the_trained_number(model, window, counts):
    payload = trained(model, KINDS[1], window)
    clone, inversion = apply_temporal(model, TemporalEdit(payload)), source(model, frames=7)
    (own,) = clone.get_additional_models()
    seen = Attended(own.model)
    run(clone, inversion)
    assert set(seen.counts) == counts


@pytest.mark.parametrize("overlap", [0, 2])
def test_frame_attention_in_windows_is_that_of_short_clips_blended(model, overlap):
    """Of one transformer block: its tokens plus the blended changes of every window."""
    net = trained(model, KINDS[1]).network().float()
    generator = torch.Generator().manual_seed(4)
    clip = torch.randn(1, 7, 4, 8, 8, generator=generator)
    features = Features(net, clip, 4, overlap)
    name, block = next(iter(transformer_blocks(model.model.diffusion_model)))
    tokens = torch.randn(2 * 7, 16, 32, generator=generator)
    context = torch.randn(2 * 7, 7, 32, generator=generator)
    found = {}
    last = block.register_forward_hook(lambda _m, _i, out: found.update(before=out))
    with joined(model.model.diffusion_model, Joint(features, 2)):
        after = block(tokens, context=context)  # ours runs after `last`, which was there first
    last.remove()
    before = found["before"].unflatten(0, (2, 7))
    expected = before.clone()
    spans = windows(7, 4, overlap)
    assert len(spans) == (2 if overlap == 0 else 3)
    for span, weight in zip(spans, window_weights(spans), strict=True):
        part = before[:, span.start : span.stop]
        expected[:, span.start : span.stop] += weight[:, None, None] * net.tuned[name].change(part)
    assert same(after.unflatten(0, (2, 7)), expected, 1e-5)
    whole = before + net.tuned[name].change(before)
    assert not same(after.unflatten(0, (2, 7)), whole, 1e-2)
