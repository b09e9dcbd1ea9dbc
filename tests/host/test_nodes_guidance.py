"""The guidance nodes, run in this process on a small network."""

from __future__ import annotations

import comfy.model_management
import pytest
import torch
from clips import Spy
from reweave.editing import host
from reweave.nodes import AnchorAttention, LatentGuidance, NNField
from small_clip import edited, invert
from toy import conditioning, patcher, sample


@pytest.fixture(scope="module")
def model():
    return patcher()


@pytest.fixture
def inverted(model):
    return invert(model)


def anchored(model, **settings):
    arguments = {
        "anchor": 0, "keys": "anchor and previous", "own_tokens": False, "refresh_every": 0,
        "cross_fade": 4, "frames_per_pass": 2, "sites": "",
    }  # fmt: skip
    return AnchorAttention.execute(model=model, **(arguments | settings)).args[0]


def guided(model, **settings):
    arguments = {
        "strength": 0.2, "until": 1.0, "target": "previous frame", "mode": "closed form",
        "anchor": 0, "target_step": 1,
    }  # fmt: skip
    return LatentGuidance.execute(model=model, **(arguments | settings)).args[0]


def clip_of(inversion) -> torch.Tensor:
    """Pictures [F,64,64,3] of a drifting texture, as many as the inversion has frames."""
    noise = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    big = torch.nn.functional.interpolate(noise, (96, 96), mode="bicubic").movedim(1, -1)
    return torch.cat([big[:, :64, f : 64 + f] for f in range(inversion.frames)]).clamp(0, 1)


def test_every_setting_changes_the_edit_and_the_model_is_left(model, inverted):
    found, latent, sigmas = inverted
    plain = edited(model, latent, sigmas)
    pictures = clip_of(found)
    ways = [
        anchored(model),
        anchored(model, anchor=1),
        anchored(model, keys="anchor only", sites="output.3.0"),
        anchored(model, own_tokens=True),
        guided(model),
        guided(model, mode="gradient", strength=0.02),
        guided(model, target="anchor frame", anchor=1),
        guided(model, target="fixed step"),
        guided(model, source_frames=pictures),
        guided(model, nn_field=field_of(model, found)),
        guided(anchored(model)),
    ]
    results = [edited(changed, latent, sigmas) for changed in ways]
    assert torch.equal(edited(model, latent, sigmas), plain)
    assert host.edits_of(model) == ()
    for number, one in enumerate([plain, *results]):
        for other in results[number:]:
            assert float((one - other).abs().max()) > 1e-3 * float(plain.std())


def field_of(model, inversion):
    return NNField.execute(
        interval=2, keyframe_seed=1, key_frames="fixed", rule="published code", frames_per_pass=3,
        max_gigabytes=1.0, model=model, inversion=inversion,
    ).args[0]  # fmt: skip


def test_an_edited_anchor_is_a_latent_as_nodes_pass_it(model, inverted):
    _, latent, sigmas = inverted
    given = torch.randn(1, *latent["samples"].shape[1:], generator=torch.Generator().manual_seed(1))
    out = edited(anchored(model, edited_anchor={"samples": given}, anchor=1), latent, sigmas)
    assert torch.allclose(out[1:2], given, atol=1e-3)


@pytest.mark.parametrize(
    ("make", "settings", "words"),
    [
        (anchored, {"keys": "none"}, "Anchor Attention: expected 'keys' to be one of"),
        (
            anchored,
            {"refresh_every": 2, "cross_fade": 3},
            r"'cross_fade' to be at most 'refresh_every' \(2\), got 3",
        ),
        (anchored, {"mask": torch.ones(1, 8, 8)}, "no inversion is connected"),
        (anchored, {"sites": "output.99.0"}, "Anchor Attention: expected 'sites' to name"),
        (guided, {"target": "next"}, "Latent Guidance: expected 'target' to be one of"),
        (guided, {"mode": "x"}, "Latent Guidance: expected 'mode' to be one of"),
        (guided, {"strength": -1.0}, "expected 'strength' to be at least 0, got -1"),
        (guided, {"until": 1.5}, "expected 'until' to be between 0 and 1, got 1.5"),
        (guided, {"mask": torch.zeros(1, 8, 8)}, "Latent Guidance: the mask is empty"),
        (
            guided,
            {"source_frames": torch.full((3, 64, 64, 3), float("nan"))},
            "'source_frames' hold NaN or infinity",
        ),
        (guided, {"source_frames": torch.rand(3, 8, 64, 3)}, "at least 16 pixels a side, got 64x8"),
        (
            guided,
            {"target": "anchor frame", "anchor": 7, "source_frames": torch.rand(5, 64, 64, 3)},
            r"Latent Guidance: expected 'anchor' to be a frame of the clip \(0 to 4\), got 7",
        ),
    ],
)
def test_refusals_at_the_node(model, make, settings, words):
    with pytest.raises(ValueError, match=words):
        make(model, **settings)


def test_a_field_and_pictures_do_not_go_together(model, inverted):
    found, _, _ = inverted
    field = field_of(model, found)
    with pytest.raises(ValueError, match="one of 'source_frames' and 'nn_field', got both"):
        guided(model, nn_field=field, source_frames=clip_of(found))
    with pytest.raises(ValueError, match="leads to the frame before, not to 'anchor frame'"):
        guided(model, nn_field=field, target="anchor frame")


def test_a_clip_of_another_length_is_refused_before_any_call(model, inverted):
    found, latent, sigmas = inverted
    spy = Spy()
    model = spy.on(guided(model, source_frames=clip_of(found)[:-1]))
    with pytest.raises(ValueError, match="'source_frames' to hold the clip's"):
        sample(model, latent["samples"], sigmas, conditioning())
    assert not spy.calls


def test_the_stop_button_leaves_the_model_clean(model, inverted):
    _, latent, sigmas = inverted
    plain = edited(model, latent, sigmas)
    changed = guided(anchored(model), target="fixed step", mode="gradient", strength=0.01)

    def stop(*_args: object) -> None:
        raise comfy.model_management.InterruptProcessingException

    with pytest.raises(comfy.model_management.InterruptProcessingException):
        sample(changed, latent["samples"], sigmas, conditioning(), callback=stop)
    assert torch.equal(edited(model, latent, sigmas), plain)
    assert "reweave" not in changed.model_options["transformer_options"]


def test_inverting_through_guidance_is_refused(model):
    with pytest.raises(ValueError, match="carries Latent Guidance, which acts on an edit"):
        invert(guided(model))
