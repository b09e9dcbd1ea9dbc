"""Builds a ControlNet for the demo checkpoint: its encoder, and output convolutions that are zero.

It has no effect until it is trained; it stands in, for canny and for depth, so that the ControlNet
templates run as they are.
python demo/build_controlnet.py --checkpoint reweave_demo.safetensors --out
reweave_demo_canny.safetensors
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

if not __package__:
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    __package__ = "demo"

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from .nets import HOST, UNET_CONFIG, host_module

UNET_PREFIX = "model.diffusion_model."


def controlnet_weights(checkpoint: dict[str, Tensor], comfyui: Path) -> dict[str, Tensor]:
    """Weights in the original ControlNet layout, from a checkpoint of the demo's network."""
    module = host_module("comfy.cldm.cldm", comfyui)
    operations = host_module("comfy.ops", comfyui).disable_weight_init
    config = {name: value for name, value in UNET_CONFIG.items() if name != "out_channels"}
    config.pop("transformer_depth_output")
    net = module.ControlNet(
        **config, hint_channels=3, dtype=torch.float32, device="cpu", operations=operations
    )
    generator = torch.Generator().manual_seed(1)
    for name, weight in net.state_dict().items():
        zero = "zero_convs" in name or "middle_block_out" in name or name.endswith("bias")
        noise = torch.randn(weight.shape, generator=generator) * 0.05
        weight.copy_(torch.zeros_like(weight) if zero else noise)
    encoder = {
        name.removeprefix(UNET_PREFIX): value.float()
        for name, value in checkpoint.items()
        if name.startswith(UNET_PREFIX)
    }
    shared = {name: encoder[name] for name in net.state_dict() if name in encoder}
    net.load_state_dict(shared, strict=False)
    return {f"control_model.{n}": v.half().contiguous() for n, v in net.state_dict().items()}


def main() -> None:
    """Read the checkpoint, write the ControlNet under a temporary name, rename."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--comfyui", type=Path, default=HOST)
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    weights = controlnet_weights(load_file(options.checkpoint), options.comfyui)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    temporary = options.out.with_suffix(".tmp")
    save_file(weights, temporary)
    temporary.replace(options.out)
    print(f"wrote {options.out.name}: {len(weights)} tensors, output convolutions zero")


if __name__ == "__main__":
    with torch.inference_mode():
        main()
