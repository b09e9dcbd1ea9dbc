"""Frames onto textures and back, and edited textures onto frames."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from reweave.editing.atlas.mapping import map_to_atlas, texels_per_pixel, unmap_from_atlas
from reweave.editing.atlas.painting import (
    MapRequest,
    RenderRequest,
    layer_pictures,
    map_pictures,
    render_pictures,
    unmap_picture,
)
from reweave.editing.atlas.rendering import render
from reweave.editing.atlas.requests import visible_layer
from reweave.editing.atlas.types import Atlas
from reweave.tests.editing.atlas_scenes import identity_uv, small_atlas
from reweave.tests.tolerances import assert_close, differ
from safetensors.torch import load_file
from torch import Tensor

MODES = ["fast", "exact"]


def smooth(height: int, width: int) -> Tensor:
    """[3,H,W] a picture that is linear in x and y."""
    uv = identity_uv(height, width)[0]
    return torch.stack([0.5 + 0.3 * uv[..., 0], 0.5 - 0.2 * uv[..., 1], uv.sum(-1) * 0.1 + 0.5])


def test_the_published_partial_textures(root: Path) -> None:
    """Exact mode with the published shift writes where the published code does."""
    golden = load_file(root / "tests" / "goldens" / "sv_atlas.safetensors")
    uv = golden["data.scaled_foreground_uvs"].view(6, 36, 64, 2)[:1]
    frames = torch.rand(1, 3, 36, 64, generator=torch.Generator().manual_seed(1))
    texture, coverage = map_to_atlas(frames, uv, (81, 139), mode="exact", published_shift=True)
    # a pixel that was written at a whole texel reads back as it was, in the published convention
    places = (uv[0] + 1) / 2 * torch.tensor([139.0, 81.0])
    nearest = places.round().long()
    close = ((places - nearest).abs().amax(-1) < 0.02) & (nearest < torch.tensor([139, 81])).all(-1)
    found = texture[:, nearest[close][:, 1], nearest[close][:, 0]]
    assert int(close.sum()) > 2 and float(coverage.max()) == pytest.approx(1, abs=1e-5)
    assert (found - frames[0][:, close]).abs().max() < 0.05
    straight, _ = map_to_atlas(frames, uv, (81, 139), mode="exact")
    assert (straight - texture).abs().max() > 0.1


@pytest.mark.parametrize("mode", MODES)
def test_identity_uv_gives_the_frame_and_back(mode: str) -> None:
    frame = torch.rand(1, 3, 9, 13, generator=torch.Generator().manual_seed(2))
    uv = identity_uv(9, 13)
    texture, coverage = map_to_atlas(frame, uv, (9, 13), mode=mode)
    assert_close(texture, frame[0])
    assert_close(coverage, torch.ones(1, 9, 13))
    assert_close(unmap_from_atlas(texture, uv), frame)
    assert differ(map_to_atlas(frame, uv.flip(2), (9, 13), mode=mode)[0], frame[0])


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("size", [(30, 40), (61, 47), (400, 300), (12, 9)])
def test_map_then_unmap_is_the_frame_where_it_is_covered(mode: str, size: tuple[int, int]) -> None:
    frame = smooth(15, 20)[None]
    uv = identity_uv(15, 20) * 0.8 + 0.05
    texture, coverage = map_to_atlas(frame, uv, size, mode=mode)
    assert 0.5 < float((coverage > 0).float().mean()) < 0.95
    back = unmap_from_atlas(texture, uv)
    # away from the rim, where a texel lies outside of the frame
    inner = (slice(None), slice(None), slice(2, -2), slice(2, -2))
    # a texture coarser than the frame has fewer texels to say it with
    limit = {"fast": 1e-3, "exact": 1e-4}[mode] if min(size) > 20 else 0.03
    assert (back - frame)[inner].abs().max() < limit


def test_fast_and_exact_agree() -> None:
    frame = smooth(24, 32)[None]
    angle = torch.tensor(0.4)
    turn = torch.stack([angle.cos(), -angle.sin(), angle.sin(), angle.cos()]).view(2, 2)
    uv = identity_uv(24, 32) @ turn.T * 0.6
    results = [map_to_atlas(frame, uv, (90, 110), mode=mode) for mode in MODES]
    both = (results[0][1] > 0.5) & (results[1][1] > 0.5)
    assert int(both.sum()) > 0.95 * int((results[1][1] > 0.5).sum())
    assert ((results[0][0] - results[1][0]).abs() * both).max() < 0.02


@pytest.mark.parametrize("mode", MODES)
def test_weights(mode: str) -> None:
    frames = torch.stack([torch.full((3, 8, 8), 0.2), torch.full((3, 8, 8), 0.8)])
    uv = identity_uv(8, 8, 2)
    weight = torch.stack([torch.full((1, 8, 8), 3.0), torch.ones(1, 8, 8)])
    texture, coverage = map_to_atlas(frames, uv, (8, 8), weight, mode)
    assert_close(texture, torch.full((3, 8, 8), 0.35))
    assert_close(coverage, torch.full((1, 8, 8), 4.0))
    nothing, uncovered = map_to_atlas(frames, uv, (8, 8), weight * 0, mode)
    assert not nothing.any() and not uncovered.any()
    left = weight * (torch.arange(8) < 4)
    half, covered = map_to_atlas(frames, uv, (8, 8), left, mode)
    assert bool((covered[:, :, :4] > 0).all()) and not covered[:, :, 5:].any()
    assert_close(half[:, :, :4], torch.full((3, 8, 4), 0.35))


def test_nothing_is_spanned_across_a_gap() -> None:
    """Two far pieces of an object do not smear over what lies between them."""
    frame = torch.ones(1, 3, 9, 21)
    weight = torch.zeros(1, 1, 9, 21)
    weight[..., :4] = weight[..., -4:] = 1
    for mode in MODES:
        _, coverage = map_to_atlas(frame, identity_uv(9, 21), (18, 42), weight, mode)
        assert not coverage[:, :, 12:30].any() and coverage[:, 4:14, 1:6].all(), mode


def test_points_on_a_line_write_nothing_in_exact_mode() -> None:
    uv = identity_uv(1, 9)
    texture, coverage = map_to_atlas(torch.ones(1, 3, 1, 9), uv, (5, 9), mode="exact")
    assert not texture.any() and not coverage.any()


def test_texels_per_pixel() -> None:
    uv = identity_uv(10, 10)[0]
    assert texels_per_pixel(uv, (40, 30)) == pytest.approx(4, rel=1e-4)
    assert texels_per_pixel(uv, (40, 30), torch.zeros(1, 10, 10)) == 0


def test_mapping_errors_say_what_came() -> None:
    uv = identity_uv(4, 4)
    with pytest.raises(ValueError, match="expected a mode of fast, exact; got 'best'"):
        map_to_atlas(torch.ones(1, 3, 4, 4), uv, (4, 4), mode="best")
    with pytest.raises(ValueError, match=r"got \(2, 3, 4, 4\) and \(1, 4, 4, 2\)"):
        map_to_atlas(torch.ones(2, 3, 4, 4), uv, (4, 4))
    with pytest.raises(ValueError, match=r"weight \[F,1,H,W\] of the frames, got \(1, 4, 4\)"):
        map_to_atlas(torch.ones(1, 3, 4, 4), uv, (4, 4), torch.ones(1, 4, 4))


def original(atlas: Atlas) -> Tensor:
    generator = torch.Generator().manual_seed(4)
    return torch.rand(atlas.frames, 3, *atlas.size, generator=generator)


def test_untouched_pixels_are_the_clips_own() -> None:
    atlas = small_atlas()
    clip = original(atlas)
    assert torch.equal(render(atlas, {}, clip), clip)
    assert torch.equal(render(atlas, {"background": atlas.layers[1].texture}, clip), clip)
    texture = atlas.layers[0].texture.clone()
    texture[:, 6:9, 2:6] = 1
    out = render(atlas, {"foreground": texture}, clip)
    changed = (out != clip).any(1)
    assert 0 < int(changed.sum()) < 0.4 * changed.numel()
    assert bool((atlas.layers[0].alpha[:, 0][changed] > 0).all())
    wide = (render(atlas, {"foreground": texture}, clip, seam=2) != clip).any(1)
    assert int(wide.sum()) > int(changed.sum()) and bool(wide[changed].all())


def test_one_layer_alone_at_alpha_0_and_1() -> None:
    atlas = small_atlas()
    front, back = atlas.layers
    for alpha, shown_layer in ((1.0, front), (0.0, back)):
        only = replace(front, alpha=torch.full_like(front.alpha, alpha))
        drawn = render(Atlas((only, back), atlas.names), {})
        assert torch.equal(drawn, unmap_from_atlas(shown_layer.texture, shown_layer.uv))


def test_identity_uv_renders_the_texture() -> None:
    atlas = small_atlas(1)
    uv = identity_uv(16, 24)
    layer = replace(atlas.layers[1], uv=uv, alpha=torch.ones(1, 1, 16, 24))
    drawn = render(Atlas((layer,), ("background",)), {})
    assert_close(drawn[0], layer.texture)


def test_a_texture_of_another_aspect_is_stretched() -> None:
    atlas = small_atlas()
    wide = torch.nn.functional.interpolate(
        atlas.layers[0].texture[None], (32, 24), mode="bilinear"
    )[0]
    plain = render(atlas, {}, None)
    assert (render(atlas, {"foreground": wide}, None) - plain).abs().mean() < 0.05
    assert differ(render(atlas, {"foreground": wide.flip(2)}, None), plain)


def test_a_restoring_mask_takes_the_edit_back() -> None:
    atlas = small_atlas()
    white = torch.ones(1, 16, 24, 3)
    mask = torch.zeros(1, 16, 24)
    textures: dict[str, Tensor | None] = {"foreground": white, "background": None}

    def drawn(restore: Tensor | None) -> Tensor:
        request = RenderRequest(textures, {"foreground": restore}, "reconstruction", 0)
        return render_pictures("Render Atlas", atlas, None, request)

    plain = render(atlas, {}, None).movedim(1, -1)
    assert_close(drawn(mask + 1), plain)
    assert_close(drawn(mask), drawn(None))
    assert differ(drawn(mask), plain)


def test_layer_pictures() -> None:
    atlas = small_atlas()
    own = layer_pictures("Atlas Textures", atlas, "foreground", 0)
    assert_close(own.texture, atlas.layers[0].texture[None].movedim(1, -1))
    assert own.alpha.shape == (3, 12, 20) and own.coverage.shape == (1, 16, 24)
    assert own.opacity[0, 8, 2] > 0.9 and own.opacity[0, 8, -3] < 0.1
    large = layer_pictures("Atlas Textures", atlas, "Background", 96)
    assert large.texture.shape == (1, 64, 96, 3) and large.opacity.shape == (1, 64, 96)


def test_map_pictures_takes_only_what_shows_the_layer() -> None:
    atlas = small_atlas()
    image = render(atlas, {}, None).movedim(1, -1)
    texture, coverage = map_pictures("Map To Atlas", atlas, image, None, MapRequest())
    assert texture.shape == (1, 16, 24, 3) and float(coverage.max()) == 1
    assert coverage[0, 8, 3] > 0.9 and coverage[0, 8, -1] == 0
    once, _ = map_pictures("Map To Atlas", atlas, image[1:2], None, MapRequest(frames="1"))
    sure = coverage[0] > 0.99
    assert (once[0] - texture[0])[sure].abs().mean() < 0.15
    _, less = map_pictures("Map To Atlas", atlas, image, torch.zeros(1, 12, 20), MapRequest())
    assert not less.any()


def test_unmap_gives_what_is_visible() -> None:
    atlas = small_atlas()
    texture = atlas.layers[1].texture[None].movedim(1, -1)
    image, mask = unmap_picture("Unmap From Atlas", atlas, "background", texture)
    drawn = unmap_from_atlas(atlas.layers[1].texture, atlas.layers[1].uv)
    assert_close(image, drawn.movedim(1, -1))
    assert_close(mask, 1 - atlas.layers[0].alpha[:, 0])
    total = torch.stack([visible_layer(atlas, name).alpha for name in atlas.names]).sum(0)
    assert_close(total, torch.ones_like(total))


def refused_textures(atlas: Atlas, image: Tensor) -> dict[str, Callable[[], object]]:
    """Message: call that must give it."""

    def shown_as(layer: str, size: int = 0) -> Callable[[], object]:
        return lambda: layer_pictures("Atlas Textures", atlas, layer, size)

    def mapped(image: Tensor, mask: Tensor | None = None, **request: str) -> Callable[[], object]:
        return lambda: map_pictures("Map To Atlas", atlas, image, mask, MapRequest(**request))

    def unmapped(texture: Tensor) -> Callable[[], object]:
        return lambda: unmap_picture("Unmap From Atlas", atlas, "background", texture)

    return {
        "Atlas Textures: expected 'layer' to be one of .*foreground, background": shown_as("sky"),
        "Atlas Textures: expected 'size' to be 0 .* got 3": shown_as("foreground", 3),
        "Map To Atlas: expected 3 pictures in 'image'": mapped(image[:1]),
        "Map To Atlas: expected 'frames' between 0 and 2": mapped(image[:1], frames="7"),
        "Map To Atlas: the atlas's clip is 20x12, 'image' 20x6": mapped(image[:, :6]),
        "Map To Atlas: expected 1 or 3 masks": mapped(image, image[:2, ..., 0]),
        "Map To Atlas: expected 'mode' to be one of": mapped(image, mode="x"),
        "Unmap From Atlas: expected one picture in 'texture'.*got 3": unmapped(image),
        "Unmap From Atlas: the texture in 'texture' holds NaN": unmapped(image[:1] + float("nan")),
    }


def refused_renders(atlas: Atlas, image: Tensor) -> dict[str, Callable[[], object]]:
    """Message: call that must give it."""
    mask = image[..., 0]

    def drawn(
        clip: Tensor | None,
        foreground: Tensor | None = None,
        restore: Tensor | None = None,
        seam: int = 0,
    ) -> Callable[[], object]:
        request = RenderRequest({"foreground": foreground}, {"foreground": restore}, seam=seam)
        return lambda: render_pictures("Render Atlas", atlas, clip, request)

    return {
        "Render Atlas: 'untouched' is 'original pixels', but no clip": drawn(None),
        "Render Atlas: expected 3 pictures in 'image'": drawn(image[:2]),
        "Render Atlas: expected 'seam' to be between 0 and 256": drawn(image, seam=-1),
        "Render Atlas: 'restore_foreground' has nothing": drawn(image, None, mask),
        "Render Atlas: expected one mask in 'restore_foreground'": drawn(image, image[:1], mask),
        "Render Atlas: expected one picture in 'foreground'": drawn(image, image),
    }


def test_errors_name_the_node_and_the_knob() -> None:
    atlas, image = small_atlas(), torch.zeros(3, 12, 20, 3)
    for table in (refused_textures(atlas, image), refused_renders(atlas, image)):
        for message, call in table.items():
            with pytest.raises(ValueError, match=message):
                call()


def test_an_atlas_comes_back_from_its_file(tmp_path: Path) -> None:
    atlas = small_atlas()
    atlas.save(tmp_path / "clip.safetensors")
    back = Atlas.load(tmp_path / "clip.safetensors")
    assert back.names == atlas.names
    for ours, theirs in zip(back.layers, atlas.layers, strict=True):
        for name, value in vars(theirs).items():
            assert torch.equal(getattr(ours, name), value), name


def test_a_broken_atlas_is_refused(tmp_path: Path) -> None:
    atlas = small_atlas()
    path = tmp_path / "clip.safetensors"
    cut = replace(atlas.layers[0], alpha=atlas.layers[0].alpha[:2])
    Atlas((cut, atlas.layers[1]), atlas.names).save(path)
    with pytest.raises(ValueError, match="alpha of layer 'foreground' to be .* got"):
        Atlas.load(path)
    broken = replace(atlas.layers[1], texture=atlas.layers[1].texture * float("inf"))
    Atlas((atlas.layers[0], broken), atlas.names).save(path)
    with pytest.raises(ValueError, match="texture of layer 'background' holds NaN"):
        Atlas.load(path)
    path.write_bytes(b"no atlas")
    with pytest.raises(ValueError, match="Loading the atlas: clip.safetensors is not a readable"):
        Atlas.load(path)
