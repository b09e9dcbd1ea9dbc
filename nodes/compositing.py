"""After sampling: the source's pixels where nothing was meant to change."""

# pyright: reportIncompatibleMethodOverride=false
# ComfyUI calls execute() by keyword, with the inputs of the schema.

from __future__ import annotations

from comfy_api.v0_0_2 import io
from torch import Tensor

from ..editing.checks import check_range, region
from ..editing.compositing import NODE, restore_background


class RestoreBackground(io.ComfyNode):
    """Pixels of the source outside a mask."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="Reweave_RestoreBackground",
            display_name=NODE,
            category="Reweave/compositing",
            description="Puts the source's own pixels back outside a mask, through a soft seam. A "
            "mask on TokenFlow or Plug-and-Play keeps the background in the latents; this also "
            "takes back what the VAE lost.",
            inputs=[
                io.Image.Input(
                    "image",
                    tooltip="The edited frames, from VAE Decode. Same size and number as 'source'.",
                ),
                io.Image.Input(
                    "source",
                    tooltip="The frames that went into VAE Encode. Same size and number as "
                    "'image'.",
                ),
                io.Mask.Input(
                    "mask",
                    tooltip="White = edited, black = the source's own pixels (0..1). One mask for "
                    "all frames, or one per frame. Good: the mask of the edit.",
                ),
                io.Int.Input(
                    "seam",
                    default=4,
                    min=0,
                    max=256,
                    tooltip="Width of the soft seam in pixels, inside the mask. Wider hides the "
                    "seam and shows less of the edit's rim. Good: 4 at 512 pixels; 0 = hard.",
                ),
            ],
            outputs=[
                io.Image.Output(
                    "image_out",
                    display_name="image",
                    tooltip="The edited frames with the source's background.",
                )
            ],
        )

    @classmethod
    def execute(cls, image: Tensor, source: Tensor, mask: Tensor, seam: int) -> io.NodeOutput:
        check_range(NODE, "seam", seam, 0)
        usable = region(NODE, mask, len(image))
        assert usable is not None
        return io.NodeOutput(restore_background(image, source, usable, seam))
