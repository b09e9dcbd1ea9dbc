"""The atlas nodes in the host: a clip to an atlas, files, textures, and frames again."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import comfy.model_management
import pytest
import torch
from comfy.model_management import InterruptProcessingException
from reweave.editing.host import atlas_fitting
from reweave.nodes import (
    AtlasTextures,
    FitAtlas,
    LoadAtlas,
    MapToAtlas,
    RenderAtlas,
    SaveAtlas,
    UnmapFromAtlas,
)
from reweave.tests.editing.atlas_scenes import textured_scene, write_published
from torch import Tensor


def clip(frames: int = 3, size: int = 32) -> tuple[Tensor, Tensor]:
    """IMAGE and MASK."""
    scene = textured_scene(frames, size)
    return scene.frames.movedim(1, -1), scene.mask[:, 0]


def fit(image: Tensor, mask: Tensor | None, **settings: Any) -> Any:
    arguments = {
        "layers": "foreground and background", "mask_frames": "", "flow": "DIS (OpenCV)",
        "steps": 60, "stop_at_decibels": 0.0, "texture_detail": 1.0, "fit_seed": 1,
    } | settings  # fmt: skip
    return FitAtlas.execute(image=image, mask=mask, **arguments).args[0]


def files(folder: Path, pattern: str) -> list[Path]:
    return sorted(folder.rglob(pattern))


def test_from_a_clip_to_painted_frames_and_back(user_folders: Path) -> None:
    image, mask = clip()
    atlas = fit(image, mask)
    SaveAtlas.execute(atlas=atlas, filename="ring")
    assert files(user_folders / "output" / "reweave" / "atlases", "*") == [
        user_folders / "output" / "reweave" / "atlases" / "ring.safetensors"
    ]
    (loaded,) = LoadAtlas.execute(file="ring.safetensors", frames=0, resolution=2000).args
    texture, opacity, coverage, alpha = AtlasTextures.execute(
        atlas=loaded, layer="foreground", size=64
    ).args
    assert max(texture.shape[1:3]) == 64 and opacity.shape == coverage.shape == texture.shape[:3]
    assert alpha.shape == (3, 32, 32)
    painted = texture.clone()
    painted[:] = torch.tensor([1.0, 0.0, 1.0])
    arguments: dict[str, Any] = {"atlas": loaded, "image": image, "seam": 0}
    (out,) = RenderAtlas.execute(foreground=painted, untouched="original pixels", **arguments).args
    object_, around = mask > 0.98, alpha < 0.01
    assert (out[object_] - torch.tensor([1.0, 0.0, 1.0])).abs().mean() < 0.1
    assert torch.equal(out[around], image[around])
    (plain,) = RenderAtlas.execute(untouched="reconstruction", **arguments).args
    assert float(-10 * (plain - image).square().mean().log10()) > 28
    mapped, covered = MapToAtlas.execute(
        atlas=loaded, image=image[1:2], layer="foreground", frames="1", size=0, mode="fast"
    ).args
    shown, where = UnmapFromAtlas.execute(atlas=loaded, texture=mapped, layer="foreground").args
    assert covered.max() == 1 and shown.shape == image.shape
    sure = mask[1] > 0.98
    assert (shown[1][sure] - image[1][sure]).abs().mean() < 0.05
    assert (where - alpha).abs().max() < 1e-6


def test_cancelling_keeps_what_is_done_and_goes_on(
    user_folders: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image, mask = clip()
    whole = fit(image, mask)
    (kept,) = files(user_folders / "user", "*.safetensors")
    kept.unlink()
    calls = 0
    plain = atlas_fitting.alive

    def cancel_later() -> None:
        nonlocal calls
        calls += 1
        if calls == 20:
            comfy.model_management.interrupt_current_processing(True)
        plain()

    monkeypatch.setattr(atlas_fitting, "alive", cancel_later)
    with pytest.raises(InterruptProcessingException):
        fit(image, mask)
    assert files(user_folders / "user", "*.safetensors") == [kept]
    told: list[str] = []
    monkeypatch.setattr(atlas_fitting, "alive", plain)
    monkeypatch.setattr(atlas_fitting, "say", told.append)
    again = fit(image, mask)
    assert any("going on with this fit" in text for text in told)
    for ours, theirs in zip(again.layers, whole.layers, strict=True):
        for name, value in vars(theirs).items():
            assert torch.equal(getattr(ours, name), value), name


def test_likeness_is_told_for_each_layer_with_a_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    pictures: list[Any] = []
    monkeypatch.setattr(atlas_fitting, "say", told.append)
    monkeypatch.setattr(
        atlas_fitting.comfy.utils,
        "PROGRESS_BAR_HOOK",
        lambda value, total, preview, node_id=None: pictures.append((value, total, preview)),
    )
    image, mask = clip()
    fit(image, mask)
    assert told[0].endswith("GB") and "step 0 of 60" in " ".join(told)
    assert "foreground" in told[-1] and "background" in told[-1] and "dB" in told[-1]
    assert pictures[-1][0] == 60
    kind, picture, side = pictures[-1][2]
    assert kind == "JPEG" and side == 512 and picture.height == 256 and picture.width > 512
    fit(image, None)
    assert "whole picture" in told[-1]


def test_a_published_folder_is_listed_and_loaded(user_folders: Path) -> None:
    write_published(user_folders / "input" / "reweave" / "atlases" / "swan")
    options = LoadAtlas.define_schema().inputs[0].as_dict()["options"]
    assert options == ["swan/"]
    stamp = LoadAtlas.fingerprint_inputs(file="swan/", frames=0, resolution=40)
    assert stamp != LoadAtlas.fingerprint_inputs(file="swan/", frames=0, resolution=50)
    (atlas,) = LoadAtlas.execute(file="swan/", frames=0, resolution=40).args
    assert atlas.frames == 6 and atlas.size == (36, 64)
    (fewer,) = LoadAtlas.execute(file="swan/", frames=4, resolution=40).args
    assert fewer.frames == 4
    (drawn,) = RenderAtlas.execute(atlas=atlas, untouched="reconstruction", seam=0).args
    assert drawn.shape == (6, 36, 64, 3)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("../secret/", "expected a plain folder name, got '../secret/'"),
        ("../secret", "expected a plain file name"),
        ("swan/", "found no folder swan with a config.json"),
        ("swan", "found no file swan.safetensors"),
    ],
)
def test_names_stay_in_the_folder(name: str, message: str) -> None:
    assert LoadAtlas.fingerprint_inputs(file=name, frames=0, resolution=40).startswith("absent")
    with pytest.raises(ValueError, match=f"^Load Atlas: {message}"):
        LoadAtlas.execute(file=name, frames=0, resolution=40)


def test_a_broken_published_folder_names_the_node(user_folders: Path) -> None:
    folder = write_published(user_folders / "output" / "reweave" / "atlases" / "swan")
    (folder / "checkpoint").write_bytes(b"cut")
    with pytest.raises(ValueError, match="^Load Atlas: swan/checkpoint cannot be read"):
        LoadAtlas.execute(file="swan/", frames=0, resolution=40)


def test_what_cannot_be_fitted_is_refused_by_name() -> None:
    image, mask = clip()
    with pytest.raises(ValueError, match="^Fit Atlas: the mask is empty"):
        fit(image, mask * 0)
    with pytest.raises(ValueError, match="^Fit Atlas: 'flow_field' cannot be used"):
        fit(image, mask, flow_field="no flow at all")


def test_a_flow_of_another_pack_is_taken() -> None:
    scene = textured_scene(3, 32)
    image, mask = clip()
    flow = scene.flow.movedim(1, -1)
    ours, theirs = fit(image, mask), fit(image, mask, flow_field=flow)
    assert (ours.layers[0].uv - theirs.layers[0].uv).abs().max() > 1e-6
    assert theirs.frames == 3


def test_execute_has_the_inputs_of_the_schema() -> None:
    for node in (FitAtlas, RenderAtlas, MapToAtlas):
        given = set(inspect.signature(node.execute).parameters)
        assert given == {entry.id for entry in node.define_schema().inputs}
