"""Pictures of tokens and fields, on cases whose answer is known."""

from __future__ import annotations

import pytest
import torch
from reweave.editing import previews, report
from reweave.editing.protocol import Site
from reweave.editing.types import NNField, TokenStore

FINE, COARSE = Site("output", 4, 0), Site("output", 1, 0)
NODE = "Preview Nearest-Neighbour Field"


def picture(frames: int, height: int, width: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(frames, height, width, 3, generator=torch.Generator().manual_seed(seed))


def field(grid: tuple[int, int], frames: int = 3, shift: int = 0) -> NNField:
    """Every frame is its (only) key frame 1, moved by `shift` places along the row."""
    h, w = grid
    places = torch.arange(h * w).view(h, w).roll(shift, 1).flatten()
    index = places.expand(frames, 2, -1).to(torch.int16)
    coarse = torch.zeros(frames, 2, 1, dtype=torch.int16)
    return NNField(
        key_frames=torch.tensor([[1]]),
        neighbours=torch.zeros(1, frames, 2, dtype=torch.int64),
        weights=torch.tensor([0.75, 0.25]).expand(1, frames, 2),
        index={(FINE, 0): index, (COARSE, 0): coarse},
        grids={FINE: grid, COARSE: (1, 1)},
    )


def test_a_still_field_gives_the_key_frame_back():
    image = picture(3, 12, 20)
    built = previews.reassembled(field((3, 5)), image, 0, "", NODE)
    assert torch.allclose(built, image[1].expand(3, -1, -1, -1), atol=1e-6)


def test_a_moved_field_moves_whole_cells():
    image = picture(3, 12, 20)
    built = previews.reassembled(field((3, 5), shift=1), image, 0, "output.4.0", NODE)
    assert torch.allclose(built, image[1].roll(4, 1).expand(3, -1, -1, -1), atol=1e-6)


def test_sizes_that_do_not_divide_are_kept():
    image = picture(3, 13, 21)
    built = previews.reassembled(field((3, 5)), image, 0, "", NODE)
    assert built.shape == image.shape
    assert float(built.std(0).max()) < 1e-6  # every frame shows the same key frame


def test_matches_are_the_colours_of_where_they_point():
    image, wheel = picture(3, 6, 10), previews.colour_wheel(3, 5)
    still = previews.match_colours(field((3, 5)), image, 0, "", NODE)
    assert torch.equal(still[0], wheel.repeat_interleave(2, 0).repeat_interleave(2, 1))
    moved = previews.match_colours(field((3, 5), shift=1), image, 0, "", NODE)
    assert torch.equal(moved[2], still[2].roll(2, 1))
    assert len(wheel.flatten(0, 1).unique(dim=0)) == 15


@pytest.mark.parametrize(
    ("image", "step", "site", "text"),
    [
        (picture(2, 6, 10), 0, "", "the field has 3 frames, 'image' 2"),
        (picture(3, 2, 10), 0, "", "'image' .10x2. is smaller than the field's grid .5x3."),
        (picture(3, 6, 10), 4, "", r"expected 'step' to be one that the field holds \(0\), got 4"),
        (picture(3, 6, 10), 0, "output.9.0", "expected 'site' .*output.1.0, output.4.0.*'output"),
    ],
)
def test_what_does_not_belong_together_is_said(image, step, site, text):
    for show in (previews.match_colours, previews.reassembled):
        with pytest.raises(ValueError, match=f"{NODE}: .*{text}|{NODE}: {text}"):
            show(field((3, 5)), image, step, site, NODE)


def test_principal_colours_tell_groups_apart_and_do_not_flip():
    generator = torch.Generator().manual_seed(3)
    groups = torch.randn(4, 16, generator=generator)
    label = torch.arange(40) % 4
    tokens = groups[label].view(2, 20, 16) + 0.01 * torch.randn(2, 20, 16, generator=generator)
    colours = previews.principal_colours(tokens.half()).flatten(0, 1)
    assert float(colours.min()) >= 0 and float(colours.max()) <= 1
    same = max(float(colours[label == g].std(0).max()) for g in range(4))
    centres = torch.stack([colours[label == g].mean(0) for g in range(4)])
    assert same < 0.1 * float(torch.pdist(centres).min())
    again = previews.principal_colours(tokens.flip(0).half())
    assert torch.allclose(again.flip(0).flatten(0, 1), colours, atol=1e-2)


def test_token_pictures_show_the_last_step_of_every_site():
    generator = torch.Generator().manual_seed(0)
    tokens = {
        (site, step): torch.randn(2, length, 8, generator=generator).half()
        for site, length in ((FINE, 12), (COARSE, 2))
        for step in (0, 3)
    }
    store = TokenStore(tokens, {FINE: (3, 4), COARSE: (1, 2)}, torch.tensor([4.0, 3.0, 2.0, 1.0]))
    pictures = previews.token_pictures(store, 2)
    assert pictures.shape == (4, 6, 8, 3)
    expected = previews.principal_colours(tokens[FINE, 3]).view(2, 3, 4, 3)
    assert torch.equal(pictures[2:, ::2, ::2], expected)


def test_psnr_by_hand():
    one = torch.zeros(2, 4, 4, 3)
    other = one.clone()
    other[1] = 0.1  # mean squared error 0.01 -> 20 dB
    assert report.psnr(one, other).tolist() == pytest.approx([report.IDENTICAL, 20.0], abs=1e-4)


@pytest.mark.parametrize(
    ("trip", "own", "convention", "expected", "absent"),
    [
        (40.0, 30.0, "current", ["The inversion is good."], ["steps"]),
        (20.0, 30.0, "current", ["below 30 dB", "'steps'", "prompt"], ["'evaluation'", "good."]),
        (20.0, 30.0, "target", ["'evaluation' of Invert Video to 'current'"], ["good."]),
        (40.0, 20.0, "current", ["The VAE alone is below 24 dB"], ["Raise 'steps'", "good."]),
    ],
)
def test_advice(trip, own, convention, expected, absent):
    values = torch.tensor([50.0, trip]), torch.full((2,), own)
    text = report.InversionReport(*values, steps=20, convention=convention).text
    assert f"worst {trip:.1f} dB at frame 1" in text
    assert all(part in text for part in expected), text
    assert not any(part in text for part in absent), text


def test_the_plot_is_a_picture():
    found = report.InversionReport(torch.tensor([31.0, 35.0]), torch.tensor([33.0, 34.0]), 5, "x")
    plot = report.plot(found)
    assert plot.shape == (1, 400, 800, 3) and plot.dtype == torch.float32
    assert float(plot.min()) < 0.3 and float(plot.max()) == 1.0


def test_pictures_are_cut_as_the_vae_cuts_them():
    image = picture(1, 70, 65)
    assert torch.equal(report.as_encoded("N", image, 64, 64), image[:, 3:67, 0:64])
    with pytest.raises(ValueError, match="N: the inversion's pictures are 64x64, 'image' is 65x32"):
        report.as_encoded("N", image[:, :32], 64, 64)
