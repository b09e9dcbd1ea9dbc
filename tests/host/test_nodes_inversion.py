"""The inversion nodes, run in this process on a small network."""

from __future__ import annotations

import os

import pytest
import torch
from comfy_execution.graph_utils import ExecutionBlocker
from reweave.editing import host
from reweave.nodes import (
    CheckInversion,
    ExtendedAttention,
    InversionLatent,
    KeyFrameInversion,
    LoadInversion,
    SaveInversion,
    TokenFlow,
)
from safetensors.torch import save_file
from small_clip import FRAMES, STEPS, ToyVAE, clip, edited, flow, invert
from toy import conditioning, patcher, sample


@pytest.fixture(scope="module")
def model():
    return patcher()


@pytest.fixture
def inverted(model):
    return invert(model)


def start(inversion, step=0, mode="trajectory", number=0) -> tuple:
    return InversionLatent.execute(
        inversion=inversion, start_at_step=step, mode=mode, noise_number=number
    ).args


def round_trip_error(model, steps: int) -> float:
    found, latent, sigmas = invert(model, steps=steps, saved_steps=steps)
    assert found.frames == FRAMES and len(sigmas) == steps + 1 and float(sigmas[-1]) == 0
    back = sample(model, latent["samples"], sigmas, conditioning(), cfg=1.0)
    error = float((back - clip()["samples"]).square().mean().sqrt())
    return error / float(clip()["samples"].std())


def test_invert_video_leads_back_to_the_clip(model):
    coarse, fine = round_trip_error(model, 10), round_trip_error(model, 100)
    assert fine < 0.25 and fine < coarse / 2


def test_the_latent_is_in_the_samplers_units(inverted):
    found, latent, sigmas = inverted
    vp = found.latents[0] * (1 + sigmas[0] ** 2).sqrt()
    assert torch.allclose(latent["samples"] * 0.18215, vp, rtol=1e-4, atol=1e-4)


def test_the_second_time_comes_from_the_cache(model, inverted, user_folders, monkeypatch):
    from reweave.editing.host import inverting

    def fail(*_: object) -> None:
        raise AssertionError("inverted again")

    monkeypatch.setattr(inverting, "_run", fail)
    again = invert(model)[0]
    assert torch.equal(again.latents, inverted[0].latents) and again.key == inverted[0].key
    with pytest.raises(AssertionError, match="inverted again"):
        invert(model, steps=STEPS * 2)


def test_inversion_latent_starts_later(inverted):
    found, _, sigmas = inverted
    latent, rest = start(found, 2)
    assert torch.equal(rest, sigmas[2:])
    vp = found.latents[2] * (1 + sigmas[2] ** 2).sqrt()
    assert torch.allclose(latent["samples"] * 0.18215, vp, rtol=1e-4, atol=1e-4)


def test_one_shared_noise_is_shared_and_numbered(inverted):
    found, _, sigmas = inverted
    one, _ = start(found, 1, "one shared noise", 3)
    noise = (one["samples"] * 0.18215 - found.clean) / sigmas[1]
    assert float((noise - noise[:1]).abs().max()) < 1e-4 < float(noise.std()) - 0.5
    assert torch.equal(start(found, 1, "one shared noise", 3)[0]["samples"], one["samples"])
    other = start(found, 1, "one shared noise", 4)[0]["samples"]
    assert not torch.allclose(other, one["samples"])


def test_extracted_noise_ends_where_the_clip_is(inverted):
    found, _, sigmas = inverted
    late, _ = start(found, STEPS - 1, "extracted noise")
    first, _ = start(found, 0, "extracted noise")
    noise = (first["samples"] * 0.18215 - found.clean) / sigmas[0]
    expected = found.clean + sigmas[STEPS - 1] * noise
    assert torch.allclose(late["samples"] * 0.18215, expected, atol=1e-4)


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ((STEPS,), "Inversion Latent: expected 'start_at_step' to be between 0 and 3, got 4"),
        ((-1,), "expected 'start_at_step' to be between 0 and 3, got -1"),
        ((0, "noise"), "Inversion Latent: expected 'mode' to be one of trajectory, .*'noise'"),
    ],
)
def test_inversion_latent_says_what_is_wrong(inverted, settings, text):
    with pytest.raises(ValueError, match=text):
        start(inverted[0], *settings)


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"storage": "int8"}, "Invert Video: expected 'storage' to be one of float16, float32"),
        ({"evaluation": "best"}, "Invert Video: expected 'evaluation' to be one of current"),
        ({"steps": 0}, "Invert Video: expected 'steps' to be between 1 and 1000, got 0"),
        ({"saved_steps": 0}, "expected 'saved_steps' to be between 1 and 1000, got 0"),
        ({"steps": 50, "saved_steps": 33}, "as a multiple of 'saved_steps'"),
        ({"latent": {"samples": torch.full((2, 4, 8, 8), float("nan"))}}, "NaN or infinity"),
        ({"latent": {"samples": torch.zeros(2, 4, 1, 8, 8)}}, "got 5 dimensions"),
    ],
)
def test_invert_video_says_what_is_wrong(model, settings, text):
    with pytest.raises(ValueError, match=text):
        invert(model, **settings)


def test_a_model_that_reads_an_inversion_is_refused(model, inverted):
    edited_model = TokenFlow.execute(
        model=model, inversion=inverted[0], interval=2, keyframe_seed=1, key_frames="fixed",
        rule="paper", frames_per_pass=0, max_joint_key_frames=0,
    ).args[0]  # fmt: skip
    with pytest.raises(ValueError, match="Invert Video: this MODEL carries TokenFlow"):
        invert(edited_model)


def test_save_and_load(inverted, user_folders):
    found, latent, sigmas = inverted
    shown = SaveInversion.execute(inversion=found, filename="hare").ui.as_dict()["text"][0]
    assert shown.startswith("saved output/reweave/inversions/hare.safetensors (")
    loaded, latent_again, sigmas_again = LoadInversion.execute(file="hare.safetensors").args
    assert loaded.key == found.key and torch.equal(loaded.latents, found.latents)
    assert torch.equal(latent_again["samples"], latent["samples"])
    assert torch.equal(sigmas_again, sigmas)
    assert list((user_folders / "output").rglob("*.tmp")) == []


def test_the_list_of_files_and_their_stamps(inverted, user_folders):
    assert LoadInversion.define_schema().inputs[0].options == []
    assert LoadInversion.fingerprint_inputs(file="hare.safetensors") == "absent"
    SaveInversion.execute(inversion=inverted[0], filename="hare")
    assert LoadInversion.define_schema().inputs[0].options == ["hare.safetensors"]
    before = LoadInversion.fingerprint_inputs(file="hare.safetensors")
    os.utime(next((user_folders / "output").rglob("hare.safetensors")), (1, 1))
    assert LoadInversion.fingerprint_inputs(file="hare.safetensors") not in (before, "absent")


@pytest.mark.parametrize("name", ["../hare", "/tmp/hare", "", ".hare", "a/b"])
def test_names_stay_in_their_folder(inverted, name, user_folders):
    with pytest.raises(ValueError, match="Save Inversion: expected a plain file name"):
        SaveInversion.execute(inversion=inverted[0], filename=name)
    with pytest.raises(ValueError, match="Load Inversion: expected a plain file name"):
        LoadInversion.execute(file=name)


def test_files_that_cannot_be_loaded(user_folders):
    folder = user_folders / "output" / "reweave" / "inversions"
    folder.mkdir(parents=True)
    (folder / "short.safetensors").write_bytes(b"\x10\x00\x00")
    save_file({"x": torch.zeros(1)}, folder / "foreign.safetensors")
    meta = {"format": "reweave", "kind": "inversion", "data": "{}"}
    save_file({"x": torch.zeros(1)}, folder / "parts.safetensors", meta)
    for name, text in (
        ("none", "Load Inversion: found no file none.safetensors in output/reweave/inversions"),
        ("short", "Load Inversion: .*short.safetensors is not a readable safetensors file"),
        ("foreign", "Load Inversion: .*foreign.safetensors holds a file of another program"),
        ("parts", "Load Inversion: .*parts.safetensors lacks parts of an inversion"),
    ):
        with pytest.raises(ValueError, match=text):
            LoadInversion.execute(file=name)


def test_a_full_disk_is_said_and_leaves_nothing(inverted, user_folders, monkeypatch):
    from reweave.editing import storage

    def full(_tensors, path, _header):
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(storage, "save_file", full)
    with pytest.raises(ValueError, match=r"Save Inversion: .*the disk is full"):
        SaveInversion.execute(inversion=inverted[0], filename="hare")
    assert [path for path in (user_folders / "output").rglob("*") if path.is_file()] == []


def test_check_inversion_measures_and_plots(model, user_folders):
    found, _, _ = invert(model, steps=40, saved_steps=40)
    image = ToyVAE().decode(clip()["samples"])
    out = CheckInversion.execute(model=model, vae=ToyVAE(), inversion=found, image=image)
    report, plot = out.args
    assert plot.shape == (1, 400, 800, 3)
    assert report.count(" dB") >= 2 * FRAMES and "VAE alone: 99" in report
    coarse = CheckInversion.execute(
        model=model, vae=ToyVAE(), inversion=invert(model)[0], image=image
    ).args[0]
    assert average(report) > average(coarse)
    shown = out.ui.as_dict()["images"]
    assert len(shown) == 1 and (user_folders / "temp" / shown[0]["filename"]).is_file()


def average(report: str) -> float:
    return float(report.split(": ")[1].split(" dB")[0])


@pytest.mark.parametrize(
    ("frames", "size", "text"),
    [(FRAMES - 1, 64, "inversion has 5 frames, 'image' 4"), (FRAMES, 32, "64x64, 'image' is 32")],
)
def test_check_inversion_says_what_is_wrong(model, inverted, frames, size, text):
    image = torch.zeros(frames, size, size, 3)
    with pytest.raises(ValueError, match=f"Check Inversion: .*{text}"):
        CheckInversion.execute(model=model, vae=ToyVAE(), inversion=inverted[0], image=image)


def test_another_checkpoint_is_refused(inverted):
    image = torch.zeros(FRAMES, 64, 64, 3)
    with pytest.raises(ValueError, match="Check Inversion: this MODEL's base weights differ"):
        CheckInversion.execute(
            model=patcher(seed=1), vae=ToyVAE(), inversion=inverted[0], image=image
        )


def test_key_frames_can_be_sampled_alone(model, inverted):
    found, _, _ = inverted
    few, latent, sigmas, count, *_ = KeyFrameInversion.execute(
        inversion=found, interval=2, keyframe_seed=1
    ).args
    assert count == 3 == few.frames == len(latent["samples"])
    places = [int((found.clean == frame).flatten(1).all(1).nonzero()) for frame in few.clean]
    assert [place // 2 for place in places] == [0, 1, 2]
    sheet = ExtendedAttention.execute(
        model=model, mode="all frames", interval=8, window=3, sites=""
    ).args[0]
    together, alone = edited(sheet, latent, sigmas), edited(model, latent, sigmas)
    assert together.shape == (3, 4, 8, 8) and not torch.allclose(together, alone, atol=1e-3)
    with pytest.raises(ValueError, match="Key Frames Of Inversion: expected 'interval'"):
        KeyFrameInversion.execute(inversion=found, interval=0, keyframe_seed=1)
    with pytest.raises(ValueError, match="Key Frames Of Inversion: expected 'key_frames' to be"):
        KeyFrameInversion.execute(inversion=found, interval=2, keyframe_seed=1, key_frames="middle")


@pytest.mark.parametrize("key_frames", ["random per step", "fixed"])
@pytest.mark.parametrize("seed", [2, 3])
def test_the_sheet_shows_the_frames_that_token_flow_edits(model, inverted, key_frames, seed):
    """With the same settings: all steps of 'fixed', the first of 'random per step'."""
    draw = {"interval": 2, "keyframe_seed": seed, "key_frames": key_frames}
    *_, frames = KeyFrameInversion.execute(inversion=inverted[0], **draw).args
    (edit,) = host.edits_of(flow(model, inverted[0], **draw))
    steps = range(STEPS) if key_frames == "fixed" else [0]
    assert {", ".join(map(str, edit.plan(step).key_frames.tolist())) for step in steps} == {frames}
    assert (frames == "1, 3, 4") == (key_frames == "fixed")


def test_pictures_and_masks_are_cut_to_the_key_frames(inverted):
    number = torch.arange(float(FRAMES))
    pictures = number[:, None, None, None].expand(-1, 16, 16, 3)
    masks = number[:, None, None].expand(-1, 16, 16)

    def cut(image, mask):
        return KeyFrameInversion.execute(
            inversion=inverted[0], interval=2, keyframe_seed=1, key_frames="fixed", image=image,
            mask=mask,
        ).args[4:6]  # fmt: skip

    image, mask = cut(pictures, masks)
    assert image.shape == (3, 16, 16, 3) and image[:, 0, 0, 0].tolist() == [1, 3, 4]
    assert mask.shape == (3, 16, 16) and mask[:, 0, 0].tolist() == [1, 3, 4]
    image, mask = cut(pictures[:1], masks[2])
    assert torch.equal(image, pictures[:1]) and torch.equal(mask, masks[2:3])
    for knob, given in (("image", (pictures[:3], masks)), ("mask", (pictures, masks[:4]))):
        with pytest.raises(ValueError, match=f"Key Frames .*: expected '{knob}' to hold 5"):
            cut(*given)


def test_an_output_without_its_input_says_so_where_it_is_used(inverted):
    """Whoever takes the picture gets the text instead; the other outputs are not held up."""
    *_, image, mask, _ = KeyFrameInversion.execute(
        inversion=inverted[0], interval=2, keyframe_seed=1
    ).args
    assert isinstance(image, ExecutionBlocker) and isinstance(mask, ExecutionBlocker)
    assert image.message.startswith("Key Frames Of Inversion: the output 'image' is connected")
    assert "Connect the clip's to 'mask'" in mask.message
