"""Layered atlases: made from a clip, kept, and brought back to frames."""

# pyright: reportIncompatibleMethodOverride=false
# ComfyUI calls execute() by keyword, with the inputs of the schema.

from __future__ import annotations

from typing import Any

from comfy_api.v0_0_2 import io, ui
from torch import Tensor

from ..editing import host
from ..editing.atlas import types as payloads
from ..editing.atlas.fitting import FitSettings
from ..editing.atlas.flow import METHODS
from ..editing.atlas.painting import RenderRequest, render_pictures
from ..editing.atlas.preparing import LAYERS, FitRequest
from ..editing.atlas.rendering import UNTOUCHED
from . import sockets


class FitAtlas(io.ComfyNode):
    """A clip as textures."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="Reweave_FitAtlas",
            display_name="Fit Atlas",
            category="Reweave/atlas",
            description="Turns a clip into two textures, object and background, and the place of "
            "every pixel on them. Paint on a texture, and the paint sticks in all frames.",
            inputs=[
                io.Image.Input(
                    "image",
                    tooltip="The frames of the clip, one shot without a cut. Good: 16 to 70 frames "
                    "at the size you want to see in the end.",
                ),
                io.Mask.Input(
                    "mask",
                    optional=True,
                    tooltip="White = the object (0..1): one mask per frame, or masks of some "
                    "frames, see 'mask_frames'. Good: a clean mask, a few pixels off are fine; "
                    "nothing connected = the whole picture as one layer.",
                ),
                sockets.flow_input(),
                io.Combo.Input(
                    "layers",
                    options=list(LAYERS),
                    default=LAYERS[0],
                    tooltip="'background only' leaves out what the mask covers: a clean plate of "
                    "what lies behind the object. Good: 'foreground and background'.",
                ),
                io.String.Input(
                    "mask_frames",
                    default="",
                    tooltip="Frame numbers of the masks when there are fewer masks than frames, "
                    "for example 0, 20, 40; counted from 0. The other frames take them along the "
                    "motion. Good: empty, for one mask per frame or one mask of frame 0.",
                ),
                io.Combo.Input(
                    "flow",
                    options=list(METHODS),
                    default=METHODS[0],
                    tooltip="How motion between frames is found when no flow field is connected. "
                    "Good: 'DIS (OpenCV)'; try the other when an object slides on its texture.",
                ),
                *fit_numbers(),
            ],
            outputs=[sockets.atlas_output()],
        )

    @classmethod
    def execute(
        cls,
        image: Tensor,
        layers: str,
        mask_frames: str,
        flow: str,
        steps: int,
        stop_at_decibels: float,
        texture_detail: float,
        fit_seed: int,
        mask: Tensor | None = None,
        flow_field: Any = None,
    ) -> io.NodeOutput:
        settings = FitSettings(steps, texture_detail, stop_at_decibels, fit_seed)
        request = FitRequest(layers, mask_frames, flow, settings)
        return io.NodeOutput(host.fit_clip(image, mask, request, flow_field))


def fit_numbers() -> list[io.Input]:
    """How long and how finely an atlas is fitted."""
    return [
        io.Int.Input(
            "steps",
            default=1500,
            min=0,
            max=20000,
            tooltip="Gradient steps. More follows bending motion better and takes longer; "
            "0 = rigid motion only. Good: 1500; a quick look: 300; large pictures: 4000.",
        ),
        io.Float.Input(
            "stop_at_decibels",
            default=0.0,
            min=0.0,
            max=60.0,
            step=0.5,
            tooltip="Ends early when the likeness of the reconstruction (PSNR) reaches so "
            "many decibels (without unit otherwise); 0 = all steps. Good: 0; hasty: 30.",
        ),
        io.Float.Input(
            "texture_detail",
            default=1.5,
            min=0.25,
            max=4.0,
            step=0.25,
            tooltip="Texels per pixel of the clip; without unit. More is sharper, slower, "
            "and dotted where few frames look. Good: 1.5; for painting: 1.",
        ),
        io.Int.Input(
            "fit_seed",
            default=1,
            min=0,
            max=0xFFFFFFFF,
            tooltip="Which points are looked at in which step (a number without unit). The "
            "same number gives the same atlas. Good: 1.",
        ),
    ]


class SaveAtlas(io.ComfyNode):
    """An atlas to a file."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="Reweave_SaveAtlas",
            display_name="Save Atlas",
            category="Reweave/atlas",
            description="Writes an atlas to output/reweave/atlases, to go on with it later or on "
            "another machine. Shows the path and the size.",
            is_output_node=True,
            inputs=[
                sockets.atlas_input("The atlas to keep, from Fit Atlas or Load Atlas."),
                sockets.filename_input(),
            ],
            outputs=[],
        )

    @classmethod
    def execute(cls, atlas: payloads.Atlas, filename: str) -> io.NodeOutput:
        text = host.save_payload(atlas, host.ATLAS_FILES, filename, "Save Atlas")
        return io.NodeOutput(ui=ui.PreviewText(text))


class LoadAtlas(io.ComfyNode):
    """An atlas from a file, or from a published folder."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="Reweave_LoadAtlas",
            display_name="Load Atlas",
            category="Reweave/atlas",
            description="Reads an atlas that Save Atlas wrote, or a folder (config.json and "
            "checkpoint) trained with Neural Layered Atlases, Text2LIVE or StableVideo.",
            inputs=[
                io.Combo.Input(
                    "file",
                    options=host.list_atlases(),
                    tooltip="A file in output/reweave/atlases or input/reweave/atlases, newest "
                    "first, or a published folder there (its name ends with /). Good: the one of "
                    "this clip. Press R to refresh the list.",
                ),
                io.Int.Input(
                    "frames",
                    default=0,
                    min=0,
                    max=4096,
                    tooltip="Published folders only: frames that the atlas was trained on. Good: 0 "
                    "= as config.json says; the clip's real number of frames where that is smaller "
                    "than the configuration's maximum.",
                ),
                io.Int.Input(
                    "resolution",
                    default=2000,
                    min=32,
                    max=4000,
                    tooltip="Published folders only: texels per unit of the networks' uv; without "
                    "unit. More is sharper and slower. Good: 2000, as published; previews: 500.",
                ),
            ],
            outputs=[sockets.atlas_output()],
        )

    @classmethod
    def fingerprint_inputs(cls, file: str, frames: int, resolution: int) -> str:
        return f"{host.atlas_stamp(file)}/{frames}/{resolution}"

    @classmethod
    def execute(cls, file: str, frames: int, resolution: int) -> io.NodeOutput:
        return io.NodeOutput(host.load_atlas(file, frames, resolution))


class RenderAtlas(io.ComfyNode):
    """Edited textures as frames."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="Reweave_RenderAtlas",
            display_name="Render Atlas",
            category="Reweave/atlas",
            description="Puts edited textures back onto every frame. Layers without an edited "
            "texture keep their own, or the clip's original pixels.",
            inputs=[
                sockets.atlas_input("The atlas that the textures belong to."),
                io.Image.Input(
                    "image",
                    optional=True,
                    tooltip="The clip's own frames, for 'original pixels'. Good: the frames that "
                    "Fit Atlas was given.",
                ),
                *(part for name in ("foreground", "background") for part in edited_inputs(name)),
                io.Combo.Input(
                    "untouched",
                    options=list(UNTOUCHED),
                    default=UNTOUCHED[0],
                    tooltip="What is shown where no texture was changed. 'original pixels' are the "
                    "clip's own, exactly; 'reconstruction' is what the atlas makes of them (as "
                    "published). Good: 'original pixels'.",
                ),
                io.Int.Input(
                    "seam",
                    default=2,
                    min=0,
                    max=256,
                    tooltip="Width in pixels of the soft seam between the edit and original "
                    "pixels, outside the edit. Good: 2 at 512 pixels; 0 = hard.",
                ),
            ],
            outputs=[
                io.Image.Output(
                    "image_out",
                    display_name="image",
                    tooltip="The edited frames. Connect them to Save Video or Compare Videos.",
                )
            ],
        )

    @classmethod
    def execute(
        cls,
        atlas: payloads.Atlas,
        untouched: str,
        seam: int,
        image: Tensor | None = None,
        foreground: Tensor | None = None,
        background: Tensor | None = None,
        restore_foreground: Tensor | None = None,
        restore_background: Tensor | None = None,
    ) -> io.NodeOutput:
        textures = {"foreground": foreground, "background": background}
        restore = {"foreground": restore_foreground, "background": restore_background}
        request = RenderRequest(textures, restore, untouched, seam)
        return io.NodeOutput(render_pictures("Render Atlas", atlas, image, request))


def edited_inputs(name: str) -> list[io.Input]:
    """An edited texture and the mask that takes parts of the edit back."""
    return [
        io.Image.Input(
            name,
            optional=True,
            tooltip=f"The edited {name} texture, one picture of any size. Good: the texture from "
            "Atlas Textures, painted on; nothing connected = not edited.",
        ),
        io.Mask.Input(
            f"restore_{name}",
            optional=True,
            tooltip=f"Painted on the {name} texture: white (0..1) takes the edit back there. Good: "
            "nothing connected.",
        ),
    ]
