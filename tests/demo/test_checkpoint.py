"""A small UNet goes through export and builder into a file that ComfyUI's loader takes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from demo import build_checkpoint, compact, nets, vocabulary
from demo.export_weights import vae_state

pytestmark = pytest.mark.skipif(not nets.HOST.is_dir(), reason="no ComfyUI here")
MEAN, DEVIATION = -0.3, 0.45


@pytest.fixture(scope="module")
def parts() -> tuple[torch.nn.Module, torch.nn.Module, vocabulary.TextEncoder]:
    torch.manual_seed(0)
    unet = nets.build_unet(
        channel_mult=(1,),
        num_res_blocks=[1],
        transformer_depth=[1],
        transformer_depth_output=[1, 1],
    )
    torch.nn.init.normal_(unet.out[2].weight, std=0.05)
    return unet.eval(), nets.build_vae().eval(), vocabulary.TextEncoder()


@pytest.fixture(scope="module")
def built(parts: tuple, tmp_path_factory: pytest.TempPathFactory) -> Path:
    unet, vae, text = parts
    folder = tmp_path_factory.mktemp("weights")
    small = vae_state(vae.state_dict(), MEAN, DEVIATION)
    compact.write_compact(folder, unet.state_dict(), small, text.weights(vocabulary.words()))
    out = folder / "tiny.safetensors"
    run(folder, out)
    return out


def run(folder: Path, out: Path) -> None:
    """What `python demo/build_checkpoint.py --weights folder --out out` does."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["build", "--weights", str(folder), "--out", str(out)])
        build_checkpoint.main()


def test_the_file_is_whole_and_not_built_twice(built: Path, capsys: pytest.CaptureFixture[str]):
    names = set(load_file(built))
    assert any(name.startswith("model.diffusion_model.") for name in names)
    assert "first_stage_model.taesd_decoder.1.weight" in names
    assert "cond_stage_model.transformer.text_model.final_layer_norm.weight" in names
    assert not list(built.parent.glob("*.tmp"))
    run(built.parent, built)
    assert "up to date" in capsys.readouterr().out
    built.with_name("broken.safetensors").write_bytes(b"half a file")
    assert not build_checkpoint.is_built(built.with_name("broken.safetensors"), "x")
    assert not build_checkpoint.is_built(built, "another key")


def test_comfyui_loads_the_networks_that_were_trained(built: Path, parts: tuple):
    sd = nets.host_module("comfy.sd")
    unet, vae, text = parts
    model, clip, loaded_vae = sd.load_checkpoint_guess_config(str(built))[:3]
    caption = "a red spotted ball on a blue striped background, neon night"
    with torch.inference_mode():
        encoded = clip.encode_from_tokens_scheduled(clip.tokenize(caption))[0][0]
        assert torch.allclose(encoded[0].float(), text(caption), atol=2e-2)

        picture = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(1))
        latent = model.model.process_latent_in(loaded_vae.encode(picture.movedim(1, -1)))
        wanted = (vae.taesd_encoder(picture) - MEAN) / DEVIATION
        assert torch.allclose(latent.float(), wanted, atol=2e-2, rtol=2e-2)
        shown = loaded_vae.decode(model.model.process_latent_out(latent)).movedim(-1, 1)
        original = vae.taesd_decoder(vae.taesd_encoder(picture)).clamp(0, 1)
        assert float((shown - original).abs().max()) < 2e-2

        x, t = (
            torch.randn(1, 4, 4, 4, generator=torch.Generator().manual_seed(2)),
            torch.tensor([5.0]),
        )
        loaded = model.model.diffusion_model.float().cpu()
        made, trained = loaded(x, t, context=encoded.float()), unet(x, t, text(caption)[None])
        assert float(trained.abs().mean()) > 1e-2
        assert float((made - trained).norm() / trained.norm()) < 0.1
