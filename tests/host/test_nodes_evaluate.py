"""Consistency Report and Compare Videos as ComfyUI calls them, with small CLIPs of its classes."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import av
import comfy.clip_vision
import comfy.sd
import comfy.sd1_clip
import pytest
import torch
from reweave.editing.host import embedding, progress, video
from reweave.nodes import CompareVideos, ConsistencyReport

F, H, W, D = 3, 32, 48, 16
TEXT = {
    "num_hidden_layers": 3, "hidden_size": D, "num_attention_heads": 2, "intermediate_size": 32,
    "hidden_act": "quick_gelu", "max_position_embeddings": 77, "vocab_size": 49408,
    "eos_token_id": 49407,
}  # fmt: skip
VISION = {
    "num_hidden_layers": 3, "hidden_size": 24, "num_attention_heads": 2, "intermediate_size": 32,
    "hidden_act": "quick_gelu", "image_size": 32, "patch_size": 8, "num_channels": 3,
    "projection_dim": D, "model_type": "clip_vision_model",
}  # fmt: skip


def fill(module: torch.nn.Module, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for value in module.parameters():
        value.data = torch.randn(value.shape, generator=generator) * 0.1


class SmallText(comfy.sd1_clip.SDClipModel):
    """As in an SD1.x checkpoint: the pooled output is not projected."""

    def __init__(self, device="cpu", dtype=None, model_options=None):
        super().__init__(
            device=device, dtype=torch.float32, textmodel_json_config=dict(TEXT),
            return_projected_pooled=False, layer="hidden", layer_idx=-2,
        )  # fmt: skip


@pytest.fixture(scope="module")
def text_clip():
    def model(**options):
        kind: Any = SmallText
        return comfy.sd1_clip.SD1ClipModel(clip_model=kind, **options)

    target = SimpleNamespace(params={}, clip=model, tokenizer=comfy.sd1_clip.SD1Tokenizer)
    clip = comfy.sd.CLIP(target)
    fill(clip.cond_stage_model, 0)
    return clip


@pytest.fixture(scope="module")
def vision(tmp_path_factory: pytest.TempPathFactory):
    config = tmp_path_factory.mktemp("vision") / "config.json"
    config.write_text(json.dumps(VISION))
    model = comfy.clip_vision.ClipVisionModel(str(config))
    fill(model.model, 1)
    return model


def clip(seed: int, frames: int = F, height: int = H, width: int = W) -> torch.Tensor:
    return torch.rand(frames, height, width, 3, generator=torch.Generator().manual_seed(seed))


def report(**given):
    inputs = {"source": clip(0), "edited": clip(1), "slice_at": 0.5, "prompt": "", **given}
    return ConsistencyReport.execute(**inputs)


def test_the_report_gives_text_numbers_and_pictures(user_folders: Path):
    found = report(mask=torch.zeros(1, H, W))
    text, numbers, plots, heat, sliced = found.args
    assert "| warp error |" in text and "- text alignment: no 'clip_vision' connected." in text
    assert json.loads(numbers)["metrics"]["warp error"]["value"] > 0
    assert plots.ndim == 4 and heat.shape == (F, H, W, 3) and sliced.shape[2] == W
    shown = found.ui
    assert shown["text"] == (text,) and len(shown["images"]) == len(plots)
    assert all((user_folders / "temp" / entry["filename"]).is_file() for entry in shown["images"])


def test_clip_measures_come_from_both_encoders(text_clip, vision):
    numbers = json.loads(report(clip=text_clip, clip_vision=vision, prompt="a cat").args[1])
    found = numbers["metrics"]
    edited, source = (vision.encode_image(x)["image_embeds"].double() for x in (clip(1), clip(0)))
    tokens = text_clip.tokenize("a cat")
    encoder = text_clip.cond_stage_model.clip_l
    whole = text_clip.clone()
    whole.clip_layer(None)
    pooled = whole.encode_from_tokens(tokens, return_pooled=True)[1]
    wanted = torch.nn.functional.linear(pooled, encoder.transformer.text_projection.weight)
    cosine = torch.nn.functional.cosine_similarity(edited, wanted.double())
    assert found["text alignment"]["value"] == pytest.approx(float(cosine.mean()), abs=1e-5)
    pairs = torch.nn.functional.cosine_similarity(edited[:-1], edited[1:])
    assert found["CLIP-Image"]["value"] == pytest.approx(float(pairs.mean()), abs=1e-5)
    own = torch.nn.functional.cosine_similarity(source[:-1], source[1:])
    assert found["CLIP-Image"]["source"] == pytest.approx(float(own.mean()), abs=1e-5)


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ({}, "no 'clip_vision' connected"),
        ({"prompt": "a cat"}, "no 'clip_vision' connected"),
        ({"clip_vision": True}, "no 'clip' connected"),
        ({"clip_vision": True, "clip": True}, "no prompt"),
    ],
)
def test_what_lacks_for_text_alignment_is_said(given, why, text_clip, vision):
    models = {"clip": text_clip, "clip_vision": vision}
    given = {name: models.get(name, value) for name, value in given.items()}
    metrics = json.loads(report(**given).args[1])["metrics"]
    assert metrics["text alignment"]["missing"] == why


@pytest.mark.parametrize("weight", [torch.zeros(D, D), torch.eye(D), torch.full((D, D), torch.nan)])
def test_a_projection_that_was_never_loaded_is_refused(weight, text_clip):
    projection = text_clip.cond_stage_model.clip_l.transformer.text_projection
    kept = projection.weight.data
    projection.weight.data = weight
    try:
        found, why = embedding.text_embedding(text_clip, "a cat")
    finally:
        projection.weight.data = kept
    assert found is None and why.startswith("this CLIP has no text projection (SD1.x checkpoints")
    assert embedding.text_embedding(text_clip, "a cat")[1] == ""


def test_an_encoder_without_embeddings_is_refused():
    other = SimpleNamespace(encode_image=lambda image: {"image_embeds": None})
    with pytest.raises(
        ValueError, match=r"Consistency Report: expected 'clip_vision' to be a CLIP"
    ):
        report(clip_vision=other)


def test_slice_at_has_limits():
    with pytest.raises(ValueError, match=r"Consistency Report: expected 'slice_at' .* got 1.5"):
        report(slice_at=1.5)


def test_progress_stops_on_cancel(monkeypatch: pytest.MonkeyPatch):
    import comfy.model_management as management

    tick = progress.progress(5)
    tick(0)
    monkeypatch.setattr(management, "interrupt_processing", True)
    with pytest.raises(management.InterruptProcessingException):
        tick(1)


WORKFLOW = {"nodes": [{"id": 7}], "version": 0.4}


def compare(monkeypatch: pytest.MonkeyPatch, **given):
    hidden = SimpleNamespace(prompt={"7": {}}, extra_pnginfo={"workflow": WORKFLOW})
    monkeypatch.setattr(CompareVideos, "hidden", hidden, raising=False)
    inputs = {
        "clip_a": clip(0), "clip_b": clip(1), "fps": 8.0, "labels": "before, after", "keep": True,
        "filename_prefix": "reweave/compare", **given,
    }  # fmt: skip
    return CompareVideos.execute(**inputs).ui["reweave_compare"]


def decode(file: Path) -> tuple[torch.Tensor, dict]:
    with av.open(str(file)) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
        rate = container.streams.video[0].average_rate
        return torch.stack([torch.from_numpy(f) for f in frames]), {
            **container.metadata, "rate": float(rate)
        }  # fmt: skip


def test_the_files_play_and_carry_the_workflow(monkeypatch, user_folders: Path):
    flat = torch.linspace(0.2, 0.8, F).view(F, 1, 1, 1).expand(F, H, W, 3)
    shown = compare(monkeypatch, clip_b=flat)
    assert [entry["label"] for entry in shown] == ["before", "after"]
    for entry in shown:
        assert entry["type"] == "output" and entry["subfolder"] == "reweave"
        frames, metadata = decode(user_folders / "output" / "reweave" / entry["filename"])
        assert len(frames) == F == entry["frames"] and metadata["rate"] == entry["fps"] == 8.0
        assert json.loads(metadata["workflow"]) == WORKFLOW
        assert json.loads(metadata["prompt"]) == {"7": {}}
    frames, _ = decode(user_folders / "output" / "reweave" / shown[1]["filename"])
    levels = frames.float().mean((1, 2, 3)) / 255
    assert torch.allclose(levels, flat[:, 0, 0, 0], atol=0.02)
    assert not list((user_folders / "output").rglob("*.part*"))


def test_runs_are_numbered_and_odd_sides_made_even(monkeypatch, user_folders: Path):
    first = compare(monkeypatch)
    again = compare(monkeypatch, clip_b=clip(1, F, 33, 47), clip_c=clip(2), clip_d=clip(3))
    assert first[0]["filename"] == "compare_00001_a.mp4"
    assert [entry["filename"][-7:] for entry in again] == [f"2_{x}.mp4" for x in "abcd"]
    frames, _ = decode(user_folders / "output" / "reweave" / again[1]["filename"])
    assert frames.shape == (F, 34, 48, 3) and again[1]["height"] == 33
    padded = video.even(clip(0, 1, 3, 5))
    assert torch.equal(padded[:, 3], padded[:, 2]) and torch.equal(padded[:, :, 5], padded[:, :, 4])


def test_files_that_are_not_kept_go_to_temp(monkeypatch, user_folders: Path):
    (entry, _) = compare(monkeypatch, keep=False)
    assert entry["type"] == "temp"
    assert (user_folders / "temp" / "reweave" / entry["filename"]).is_file()
    assert not list((user_folders / "output").rglob("*.mp4"))


def test_metadata_is_left_out_where_the_user_asked_for_it(monkeypatch, user_folders: Path):
    monkeypatch.setattr(video.args, "disable_metadata", True)
    (entry, _) = compare(monkeypatch)
    _, metadata = decode(user_folders / "output" / "reweave" / entry["filename"])
    assert "workflow" not in metadata and "prompt" not in metadata
    assert video.workflow_metadata(None) is None


@pytest.mark.parametrize(
    "prefix", ["../out", "/tmp/x", "", "a/../../b", "C:x", "\\x", "a\\..\\..\\b"]
)
def test_files_stay_below_comfyuis_folder(monkeypatch, prefix: str):
    with pytest.raises(
        ValueError, match=r"Compare Videos: expected 'filename_prefix' to be a name"
    ):
        compare(monkeypatch, filename_prefix=prefix)


def test_a_full_disk_leaves_nothing_behind(monkeypatch, user_folders: Path):
    def full(self, path, **_):
        Path(path).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(video.InputImpl.VideoFromComponents, "save_to", full)
    with pytest.raises(
        ValueError, match=r"Compare Videos: compare_00001_a.mp4 was not written .*Free"
    ):
        compare(monkeypatch)
    assert not [p for p in (user_folders / "output").rglob("*") if p.is_file()]


def test_what_cannot_be_compared_is_refused(monkeypatch):
    with pytest.raises(ValueError, match=r"same number of frames, got 'clip_a' 3, 'clip_b' 2"):
        compare(monkeypatch, clip_b=clip(1, 2))
    with pytest.raises(ValueError, match=r"Compare Videos: expected 'fps' .* got 0"):
        compare(monkeypatch, fps=0)
