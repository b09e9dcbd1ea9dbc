"""Published atlases: the fields that their networks stand for, and files that are refused."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
import torch
from reweave.editing.atlas.published import (
    NETWORKS,
    evaluate,
    load_published,
    read_checkpoint,
    read_config,
)
from reweave.editing.atlas.rendering import restored
from reweave.kernels.layers import composite, sample_texture
from reweave.tests.editing.atlas_scenes import GOLDEN, checkpoint, write_published
from safetensors.torch import load_file
from torch import Tensor

RESOLUTION = 160
"""Of the recording."""


@pytest.fixture(scope="module")
def golden() -> dict[str, Tensor]:
    return load_file(GOLDEN)


def test_fields_are_as_published(golden: dict[str, Tensor], tmp_path: Path) -> None:
    folder = write_published(tmp_path / "clip")
    nets, clip = read_checkpoint(folder / "checkpoint"), read_config(folder)
    atlas = evaluate(nets, clip, RESOLUTION, published_shift=True)
    assert atlas.names == ("foreground", "background") and atlas.size == (36, 64)
    for layer, name in zip(atlas.layers, atlas.names, strict=True):
        scaled = golden[f"data.scaled_{name}_uvs"].view(6, 36, 64, 2)
        # 2e-3 pixels of a texture that is 139 wide
        torch.testing.assert_close(layer.uv, scaled, rtol=0, atol=2e-5)
        picture = golden[f"data.{name}_grid_atlas"][0]
        torch.testing.assert_close(layer.texture, picture, rtol=0, atol=1e-5)
    torch.testing.assert_close(atlas.layers[0].alpha, golden["data.all_alpha"], rtol=0, atol=1e-5)
    consistent = evaluate(nets, clip, RESOLUTION)
    assert (consistent.layers[0].texture - atlas.layers[0].texture).abs().max() > 1e-3
    wrong_length = evaluate(nets, read_config(folder, 7), RESOLUTION, published_shift=True)
    assert (wrong_length.layers[0].uv[:6] - atlas.layers[0].uv).abs().max() > 1e-3


def test_our_textures_lie_where_they_are_read(tmp_path: Path) -> None:
    """A texel is what the network says of its place: reading twice as finely changes little."""
    folder = write_published(tmp_path / "clip")
    coarse, fine = (load_published(folder, resolution=r) for r in (RESOLUTION, 4 * RESOLUTION))
    shifted = evaluate(
        read_checkpoint(folder / "checkpoint"), read_config(folder), RESOLUTION, True
    )
    truth = sample_texture(fine.layers[0].texture, fine.layers[0].uv)
    ours, published = (
        (sample_texture(a.layers[0].texture, a.layers[0].uv) - truth).abs().mean()
        for a in (coarse, shifted)
    )
    assert ours < 0.3 * published


def test_rendering_is_as_published(golden: dict[str, Tensor], tmp_path: Path) -> None:
    folder = write_published(tmp_path / "clip")
    nets, clip = read_checkpoint(folder / "checkpoint"), read_config(folder)
    atlas = evaluate(nets, clip, RESOLUTION, published_shift=True)
    front, back = atlas.layers
    top, left, high, wide = golden["data.foreground_atlas_bbox"].tolist()
    rows, columns = front.texture.shape[1:]
    around = (left, columns - left - wide, top, rows - top - high)

    def whole(crop: Tensor) -> Tensor:
        """The box of the object, its border drawn out, as the published code does."""
        return torch.nn.functional.pad(crop[None], around, mode="replicate")[0]

    def drawn(foreground: Tensor, background: Tensor) -> Tensor:
        pictures = [
            sample_texture(texture, layer.uv, published_border=True).clamp(0, 1)
            for texture, layer in ((foreground, front), (background, back))
        ]
        return (composite(*pictures, front.alpha).movedim(1, -1) * 255).byte()

    edited = golden["f_atlas_out_u8"].movedim(-1, 0) / 255
    other = golden["render.b_atlas_u8"].movedim(-1, 0) / 255
    own = front.texture[:, top : top + high, left : left + wide]
    plain = [((x * 255).byte() / 255) for x in (own, back.texture)]
    mask = golden["render.user_mask_u8"][..., 0] / 255
    cases = {
        "none_none": drawn(whole(plain[0]), plain[1]),
        "edited": drawn(whole(edited), other),
        "edited_with_mask": drawn(whole(restored(edited, plain[0], mask)), other),
    }
    for name, ours in cases.items():
        truth = golden[f"render.{name}_u8"]
        assert (ours.int() - truth.int()).abs().max() <= 1, name
    assert (cases["edited"].int() - cases["edited_with_mask"].int()).abs().max() > 1
    assert (cases["edited"].int() - golden["render.none_none_u8"].int()).abs().max() > 1


def test_a_folder_becomes_an_atlas_with_coverage(tmp_path: Path) -> None:
    atlas = load_published(write_published(tmp_path / "clip"), resolution=40)
    assert atlas.frames == 6
    for layer in atlas.layers:
        assert layer.uv.abs().max() <= 1
        assert layer.coverage.shape == (1, *layer.texture.shape[1:])
        assert 0 < layer.coverage.count_nonzero()
    assert bool((atlas.layers[1].alpha == 1).all())


class Evil:
    """Runs a program when it is unpickled."""

    def __reduce__(self) -> tuple:
        return (os.mkdir, ("owned",))


def test_code_in_a_checkpoint_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = write_published(tmp_path / "clip") / "checkpoint"
    torch.save(checkpoint() | {"iteration": Evil()}, path)
    with pytest.raises(ValueError, match="clip/checkpoint holds more than numbers"):
        read_checkpoint(path)
    assert not (tmp_path / "owned").exists()


def test_unusable_checkpoints_say_what_is_wrong(tmp_path: Path) -> None:
    path = write_published(tmp_path / "clip") / "checkpoint"
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="clip/checkpoint cannot be read.*Copy it again"):
        read_checkpoint(path)
    path.write_bytes(b"not a checkpoint at all")
    with pytest.raises(ValueError, match="clip/checkpoint cannot be read"):
        read_checkpoint(path)
    path.write_bytes(b"")
    with pytest.raises(ValueError, match="clip/checkpoint cannot be read"):
        read_checkpoint(path)
    torch.save({"state_dict": {"x": torch.zeros(1)}}, path)
    with pytest.raises(ValueError, match="no atlas checkpoint: it lacks model_F_mapping1_state"):
        read_checkpoint(path)
    torch.save([1, 2], path)
    with pytest.raises(ValueError, match="no atlas checkpoint"):
        read_checkpoint(path)
    path.unlink()
    with pytest.raises(ValueError, match="expected a file 'checkpoint' in clip, found none"):
        read_checkpoint(path)


@pytest.mark.parametrize("name", NETWORKS)
def test_foreign_networks_are_named(tmp_path: Path, name: str) -> None:
    path = write_published(tmp_path / "clip") / "checkpoint"
    state = checkpoint()
    last = max(key for key in state[name] if key.endswith("weight"))
    shape = state[name][last].shape
    broken = state | {name: state[name] | {last: torch.zeros(7, shape[1])}}
    torch.save(broken, path)
    with pytest.raises(ValueError, match=f"{name} is not such a network"):
        read_checkpoint(path)
    wide = {last: torch.zeros(7, shape[1]), last.replace("weight", "bias"): torch.zeros(7)}
    torch.save(state | {name: state[name] | wide}, path)
    with pytest.raises(ValueError, match=f"{name} gives 7 numbers"):
        read_checkpoint(path)
    first = torch.zeros(len(state[name]["hidden.0.weight"]), 5)
    torch.save(state | {name: state[name] | {"hidden.0.weight": first}}, path)
    with pytest.raises(ValueError, match=f"{name} is not such a network: its first layer"):
        read_checkpoint(path)
    torch.save(state | {name: {}}, path)
    with pytest.raises(ValueError, match=r"hidden.0.weight is missing"):
        read_checkpoint(path)


def test_unusable_configurations_say_what_is_wrong(tmp_path: Path) -> None:
    folder = write_published(tmp_path / "clip")
    assert read_config(folder).frames == 6
    assert read_config(write_published(tmp_path / "other", number_of_frames=4)).frames == 4
    assert read_config(folder, 5).frames == 5
    config = folder / "config.json"
    for text, message in (
        ("{", "is no JSON"),
        ('{"resx": 64}', "lacks resx, resy or the number of frames"),
        ("[1]", "lacks resx, resy or the number of frames"),
        ('{"resx": 64, "resy": 0, "maximum_number_of_frames": 6}', "sizes must be at least 1"),
    ):
        config.write_text(text, encoding="utf-8")
        with pytest.raises(ValueError, match=message):
            read_config(folder)
    shutil.rmtree(folder)
    with pytest.raises(ValueError, match=r"expected config.json in clip, found none"):
        read_config(folder)


def test_a_texture_that_is_too_large_names_the_knob(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="texels. Lower 'resolution'"):
        load_published(write_published(tmp_path / "clip"), resolution=9000)
