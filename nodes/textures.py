"""The textures of an atlas as pictures, and pictures onto textures."""

# pyright: reportIncompatibleMethodOverride=false
# ComfyUI calls execute() by keyword, with the inputs of the schema.

from __future__ import annotations

from comfy_api.v0_0_2 import io, ui
from torch import Tensor

from ..editing.atlas import types as payloads
from ..editing.atlas.mapping import MODES
from ..editing.atlas.painting import (
    LARGEST,
    MapRequest,
    layer_pictures,
    map_pictures,
    unmap_picture,
)
from . import sockets


def size_input() -> io.Input:
    """Size of a texture."""
    return io.Int.Input(
        "size",
        default=0,
        min=0,
        max=LARGEST,
        tooltip="Longest side of the texture in texels (the pixels of a texture); without unit "
        "beside that. Good: 0 = as the atlas was fitted; for painting or a model: 1024.",
    )


class AtlasTextures(io.ComfyNode):
    """A layer's texture to look at and paint on."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="Reweave_AtlasTextures",
            display_name="Atlas Textures",
            category="Reweave/atlas",
            description="One layer of an atlas as a picture, with masks of where the object lies "
            "on it and of what any frame sees. Paint on it, or run a model over it, and give it "
            "to Render Atlas.",
            inputs=[
                sockets.atlas_input("The atlas, from Fit Atlas or Load Atlas."),
                sockets.layer_input(),
                size_input(),
            ],
            outputs=[
                io.Image.Output(
                    "texture_out", display_name="texture", tooltip="The texture, one picture."
                ),
                io.Mask.Output(
                    "opacity_out",
                    display_name="opacity",
                    tooltip="On the texture: white where the layer is opaque (the object).",
                ),
                io.Mask.Output(
                    "coverage_out",
                    display_name="coverage",
                    tooltip="On the texture: white where any frame sees it; paint elsewhere is "
                    "never shown.",
                ),
                io.Mask.Output(
                    "alpha_out",
                    display_name="alpha",
                    tooltip="On the frames, one mask each: how opaque the layer is there.",
                ),
            ],
        )

    @classmethod
    def execute(cls, atlas: payloads.Atlas, layer: str, size: int) -> io.NodeOutput:
        found = layer_pictures("Atlas Textures", atlas, layer, size)
        preview = ui.PreviewImage(found.texture, cls=cls)
        return io.NodeOutput(found.texture, found.opacity, found.coverage, found.alpha, ui=preview)


class MapToAtlas(io.ComfyNode):
    """Frames onto a texture."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="Reweave_MapToAtlas",
            display_name="Map To Atlas",
            category="Reweave/atlas",
            description="Collects pictures of some frames on a layer's texture: edit a few frames "
            "by any means, map them here, and Render Atlas shows the edit in all frames.",
            inputs=[
                sockets.atlas_input("The atlas of the clip that the pictures belong to."),
                io.Image.Input(
                    "image",
                    tooltip="The edited frames, at the clip's size, one for each number in "
                    "'frames'. Good: one to five frames that show all sides of the object.",
                ),
                io.Mask.Input(
                    "mask",
                    optional=True,
                    tooltip="White = use these pixels, black = leave them out (0..1); one per "
                    "picture or one for all. Good: nothing connected = all that shows the layer.",
                ),
                sockets.layer_input(),
                io.String.Input(
                    "frames",
                    default="",
                    tooltip="Numbers of the frames that the pictures are, counted from 0, for "
                    "example 0, 16. Good: empty = the pictures are all frames of the clip.",
                ),
                size_input(),
                io.Combo.Input(
                    "mode",
                    options=list(MODES),
                    default=MODES[0],
                    tooltip="'fast' writes on the GPU where there is one. 'exact' triangulates, as "
                    "published: slow, and hardly different. Good: 'fast'.",
                ),
            ],
            outputs=[
                io.Image.Output(
                    "texture_out",
                    display_name="texture",
                    tooltip="The texture; black where none of the pictures shows it.",
                ),
                io.Mask.Output(
                    "coverage_out",
                    display_name="coverage",
                    tooltip="White where the pictures show the texture: blend it over the atlas's "
                    "own with Image Composite Masked.",
                ),
            ],
        )

    @classmethod
    def execute(
        cls,
        atlas: payloads.Atlas,
        image: Tensor,
        layer: str,
        frames: str,
        size: int,
        mode: str,
        mask: Tensor | None = None,
    ) -> io.NodeOutput:
        request = MapRequest(layer, frames, size, mode)
        return io.NodeOutput(*map_pictures("Map To Atlas", atlas, image, mask, request))


class UnmapFromAtlas(io.ComfyNode):
    """A texture onto frames."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="Reweave_UnmapFromAtlas",
            display_name="Unmap From Atlas",
            category="Reweave/atlas",
            description="A texture as every frame sees it, without the other layers: a moving "
            "mask, a hint for ControlNet or a start for img2img that sticks to the object.",
            inputs=[
                sockets.atlas_input("The atlas of the clip, from Fit Atlas or Load Atlas."),
                io.Image.Input(
                    "texture",
                    tooltip="One picture of any size, stretched over the layer's texture. Good: "
                    "what Atlas Textures or Map To Atlas gave, painted on.",
                ),
                sockets.layer_input(),
            ],
            outputs=[
                io.Image.Output(
                    "image_out",
                    display_name="image",
                    tooltip="The texture in every frame; beyond the object it goes on.",
                ),
                io.Mask.Output(
                    "mask_out",
                    display_name="mask",
                    tooltip="White where that layer is what one sees, one mask per frame.",
                ),
            ],
        )

    @classmethod
    def execute(cls, atlas: payloads.Atlas, texture: Tensor, layer: str) -> io.NodeOutput:
        return io.NodeOutput(*unmap_picture("Unmap From Atlas", atlas, layer, texture))
