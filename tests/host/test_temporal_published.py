"""Folders of the published training script: what is imported, and what is refused and how."""

from __future__ import annotations

import json
from pathlib import Path

import folder_paths
import pytest
import torch
from reweave.editing import host
from reweave.editing.host.temporal_files import FILES, list_temporal, load_temporal
from reweave.editing.temporal_unet.plan import Architecture, read_plan
from reweave.editing.temporal_unet.published_names import from_published
from reweave.nodes.temporal import LoadTemporalUNet
from safetensors.torch import save_file
from tcve import image_unet, published_weights

PUBLISHED = Architecture("published", "published code")
CONFIG = {"attention_head_dim": [8, 8, 8, 8], "norm_num_groups": 8}


def published_folder(name: str = "tcve", pickled: bool = True) -> Path:
    """What the published training script writes: a diffusers pipeline's unet/."""
    folder = host.input_folder(FILES) / name / "unet"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(CONFIG))
    weights = published_weights()
    if pickled:
        torch.save(weights, folder / "diffusion_pytorch_model.bin")
    else:
        save_file(weights, folder / "diffusion_pytorch_model.safetensors")
    return folder


@pytest.mark.parametrize("pickled", [True, False])
def test_a_published_folder_is_imported(pickled):
    published_folder(pickled=pickled)
    assert list_temporal() == ["tcve"]
    (found,) = LoadTemporalUNet.execute("tcve", "published code").args
    unet, weights = image_unet(published_weights()), published_weights()
    assert found.plan == read_plan(unet) and found.architecture == PUBLISHED
    expected = from_published(found.plan, weights)
    assert found.weights.keys() == expected.keys()
    assert all(torch.equal(found.weights[n], v.half()) for n, v in expected.items())
    assert not found.adds_to_queries and found.frames == 0
    state = {f"{k}": v for k, v in unet.named_parameters()}
    assert found.fingerprint.base == host.base_hash(state) != ""
    found.network()
    stamp = LoadTemporalUNet.fingerprint_inputs("tcve", "correct")
    file = next((host.input_folder(FILES) / "tcve" / "unet").glob("*.[bs]*"))
    file.touch()
    assert LoadTemporalUNet.fingerprint_inputs("tcve", "correct") != stamp


class Evil:
    """What a harmful pickle does when it is opened."""

    def __reduce__(self):
        return (Path.touch, (Path(folder_paths.get_output_directory()) / "owned",))


def refused(match: str) -> None:
    with pytest.raises(ValueError, match=match) as found:
        load_temporal("tcve", "published code")
    text = str(found.value)
    assert text.startswith("Load Temporal UNet: ") and ("opy " in text or "Choose " in text)


def test_files_that_are_no_weights():
    file = published_folder() / "diffusion_pytorch_model.bin"
    whole = file.read_bytes()
    half = whole[: len(whole) // 2]
    for part in (b"", b"hello world", b"<html>", half, b"\x80\x02]q\x00(K\x01"):
        file.write_bytes(part)
        refused(r"tcve/unet/diffusion_pytorch_model.bin cannot be read safely \(.+\). It may be c")
    torch.save({"conv_in.weight": Evil()}, file)
    refused(r"diffusion_pytorch_model.bin cannot be read safely")
    assert not (Path(folder_paths.get_output_directory()) / "owned").exists()
    file.rename(file.with_suffix(".safetensors"))
    refused(r"tcve/unet/diffusion_pytorch_model.safetensors cannot be read safely")


@pytest.mark.parametrize(
    ("held", "kind"),
    [([torch.zeros(1)], "list"), (torch.zeros(1), "Tensor"), ({"state": {}}, "dict"), (7, "int")],
)
def test_files_that_hold_something_else(held, kind):
    torch.save(held, published_folder() / "diffusion_pytorch_model.bin")
    refused(rf"model.bin holds a {kind}, expected weights by their names only. Choose the output")


def test_networks_of_another_kind():
    file = published_folder() / "diffusion_pytorch_model.bin"
    weights = published_weights()
    torch.save({"conv_in.weight": torch.zeros(1)}, file)
    refused(r"tcve lacks conv_in_TempUnet.weight: it holds no TCVE network")
    for name in ("conv_in.weight", "up_stb_TempUnet.1.conv_3d.bias", "conv_in_TempUnet.bias"):
        torch.save({n: v for n, v in weights.items() if n != name}, file)
        refused(rf"tcve lacks {name}: it holds no TCVE network")
    torch.save({n: v for n, v in weights.items() if not n.startswith("up_blocks")}, file)
    refused(r"tcve lacks up_blocks.0.resnets.0.conv1_TempUnet.weight")


@pytest.mark.parametrize(
    ("name", "shape", "expected"),
    [
        ("up_stb_TempUnet.1.conv_3d.bias", (3,), r"\(3,\), expected \(32,\)"),
        ("conv_in_TempUnet.bias", (1,), r"\(1,\), expected \(16,\)"),
        ("mid_block.attentions.0.transformer_blocks.0.attn2.to_q.weight", (32, 9), r"\(32, 9\)"),
        ("conv_in_TempUnet.weight", (16,), r"\(16,\), expected 3 dimensions"),
        ("conv_in_TempUnet.weight", (), r"\(\), expected 3 dimensions"),
        ("mid_block.attentions.0.transformer_blocks.0.attn2.to_k.weight", (2,), r"\(2,\), expe"),
    ],
)  # fmt: skip
def test_a_weight_of_another_shape(name, shape, expected):
    file = published_folder() / "diffusion_pytorch_model.bin"
    torch.save(published_weights() | {name: torch.zeros(shape)}, file)
    refused(rf"tcve/unet/diffusion_pytorch_model.bin: {name} has the shape {expected}")


CONFIGS = {
    "{": r"tcve/unet/config.json cannot be read \(.+\). Copy it again",
    "\xff": r"tcve/unet/config.json cannot be read",
    "[1]": r"tcve/unet/config.json holds no settings by name. Copy it again",
    '{"attention_head_dim": [5, 10]}': r"attention_head_dim to be one number .* got \[5, 10\]",
    '{"attention_head_dim": "8"}': r"attention_head_dim to be one number .* got 8",
    '{"attention_head_dim": []}': r"attention_head_dim to be one number .* got \[\]",
    '{"norm_num_groups": 0}': r"norm_num_groups to be one number above 0 .* got 0",
    '{"norm_num_groups": [[8]]}': r"norm_num_groups to be one number above 0 .* got \[\[8\]\]",
    '{"norm_num_groups": 7}': r"model.bin: 16 channels do not divide into 7 groups. .* config.json",
    '{"attention_head_dim": 3, "norm_num_groups": 8}': r"channels do not divide into 3 heads",
}


@pytest.mark.parametrize("text", CONFIGS)
def test_a_broken_config(text):
    (published_folder() / "config.json").write_bytes(text.encode("latin-1"))
    refused(CONFIGS[text])


def test_an_imported_file_is_not_kept_open():
    """Windows refuses to replace a file that is mapped."""
    maps = Path("/proc/self/maps")
    if not maps.is_file():
        pytest.skip("this system does not list what a process maps")
    folder = published_folder(pickled=False)
    half = {name: value.half() for name, value in published_weights().items()}
    save_file(half, folder / "diffusion_pytorch_model.safetensors")
    found = load_temporal("tcve", "published code")
    assert found.bytes and str(folder) not in maps.read_text()
