"""Tokens and correspondences: what the model sees as the same thing in two frames."""

# pyright: reportIncompatibleMethodOverride=false
# ComfyUI calls execute() by keyword, with the inputs of the schema.

from __future__ import annotations

from typing import Any

import torch
from comfy_api.v0_0_2 import io, ui
from torch import Tensor

from ..editing import host, previews
from ..editing import types as payloads
from ..editing.checks import check_range
from . import sockets

FILES = "nn_fields"


def field_output() -> io.Output:
    """A field, for TokenFlow and the preview."""
    return sockets.NNFieldSocket.Output(
        "nn_field_out",
        display_name="nn_field",
        tooltip="For every place of every frame: the place in the key frames that looks the same "
        "to the model. Connect it to TokenFlow, Preview or Save.",
    )


class ExtractTokens(io.ComfyNode):
    """What the model sees."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="Reweave_ExtractTokens",
            display_name="Extract Tokens",
            category="Reweave/tokens",
            description="Keeps what the model sees in the source (its tokens) at a few steps, to "
            "look at or to match. TokenFlow does not need this node.",
            inputs=[
                io.Model.Input(
                    "model",
                    tooltip="The model that inverted the clip; edits on it are not used. Good: "
                    "the one connected to Invert Video.",
                ),
                sockets.inversion_input("The clip to look at, from Invert Video."),
                sockets.sites_input("one in the middle of the decoder"),
                io.Int.Input(
                    "step_count",
                    default=5,
                    min=1,
                    max=1000,
                    tooltip="Steps, spread over the schedule, whose tokens are kept. More takes "
                    "more memory and time. Good: 5.",
                ),
                sockets.frames_per_pass_input(8),
                sockets.max_gigabytes_input("the tokens"),
            ],
            outputs=[
                sockets.Tokens.Output(
                    "tokens_out",
                    display_name="tokens",
                    tooltip="The source's tokens. Connect them to Preview Tokens or to "
                    "Nearest-Neighbour Field.",
                )
            ],
        )

    @classmethod
    def execute(
        cls,
        model: Any,
        inversion: payloads.Inversion,
        sites: str,
        step_count: int,
        frames_per_pass: int,
        max_gigabytes: float,
    ) -> io.NodeOutput:
        return io.NodeOutput(
            host.extract(model, inversion, sites, step_count, frames_per_pass, max_gigabytes)
        )


class PreviewTokens(io.ComfyNode):
    """Tokens as colours."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="Reweave_PreviewTokens",
            display_name="Preview Tokens",
            category="Reweave/tokens",
            description="Shows tokens as colours: what has the same colour is the same thing to "
            "the model. Colours that stay on an object over time promise a good TokenFlow edit.",
            is_output_node=True,
            inputs=[
                sockets.Tokens.Input("tokens", tooltip="Tokens from Extract Tokens."),
                io.Int.Input(
                    "scale",
                    default=8,
                    min=1,
                    max=64,
                    tooltip="Pixels per token of the finest site. Larger gives larger pictures, "
                    "not more detail. Good: 8.",
                ),
            ],
            outputs=[
                io.Image.Output(
                    "image_out",
                    display_name="image",
                    tooltip="One picture per frame, the last kept step; with several sites one "
                    "block of frames after the other.",
                )
            ],
        )

    @classmethod
    def execute(cls, tokens: payloads.TokenStore, scale: int) -> io.NodeOutput:
        check_range("Preview Tokens", "scale", scale, 1)
        pictures = previews.token_pictures(tokens, scale)
        return io.NodeOutput(pictures, ui=ui.PreviewImage(pictures, cls=cls))


class NNField(io.ComfyNode):
    """Which place is which."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="Reweave_NNField",
            display_name="Nearest-Neighbour Field",
            category="Reweave/tokens",
            description="Finds, for every place of every frame, the place in the key frames that "
            "looks the same to the model. With model and inversion: exactly what TokenFlow uses. "
            "With tokens: a quick one to look at.",
            inputs=[
                sockets.interval_input(),
                sockets.keyframe_seed_input(),
                sockets.key_frames_input(),
                sockets.rule_input(),
                sockets.frames_per_pass_input(8),
                sockets.max_gigabytes_input("the field"),
                io.Model.Input(
                    "model",
                    optional=True,
                    tooltip="The model that inverted the clip, together with 'inversion': the "
                    "exact field. Good: the one connected to Invert Video.",
                ),
                sockets.inversion_input(
                    "The inverted clip, together with 'model': the exact field.", optional=True
                ),
                sockets.Tokens.Input(
                    "tokens",
                    optional=True,
                    tooltip="Tokens from Extract Tokens, instead of model and inversion: a quick "
                    "field of a few steps and sites, to look at only.",
                ),
            ],
            outputs=[field_output()],
        )

    @classmethod
    def execute(
        cls,
        interval: int,
        keyframe_seed: int,
        key_frames: str,
        rule: str,
        frames_per_pass: int,
        max_gigabytes: float,
        model: Any = None,
        inversion: payloads.Inversion | None = None,
        tokens: payloads.TokenStore | None = None,
    ) -> io.NodeOutput:
        draw = (interval, keyframe_seed, key_frames, rule)
        return io.NodeOutput(
            host.field_of(model, inversion, tokens, *draw, frames_per_pass, max_gigabytes)
        )


class SaveNNField(io.ComfyNode):
    """A field to a file."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="Reweave_SaveNNField",
            display_name="Save Nearest-Neighbour Field",
            category="Reweave/tokens",
            description="Writes a field to output/reweave/nn_fields, to use it again later. Shows "
            "the path and the size.",
            is_output_node=True,
            inputs=[
                sockets.NNFieldSocket.Input(
                    "nn_field", tooltip="The field to keep, from Nearest-Neighbour Field."
                ),
                sockets.filename_input(),
            ],
            outputs=[],
        )

    @classmethod
    def execute(cls, nn_field: payloads.NNField, filename: str) -> io.NodeOutput:
        text = host.save_payload(nn_field, FILES, filename, "Save Nearest-Neighbour Field")
        return io.NodeOutput(ui=ui.PreviewText(text))


class LoadNNField(io.ComfyNode):
    """A field from a file."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="Reweave_LoadNNField",
            display_name="Load Nearest-Neighbour Field",
            category="Reweave/tokens",
            description="Reads a field that Save Nearest-Neighbour Field wrote. It belongs to one "
            "inversion of one clip.",
            inputs=[
                io.Combo.Input(
                    "file",
                    options=host.list_files(FILES),
                    tooltip="A file in output/reweave/nn_fields or input/reweave/nn_fields, newest "
                    "first. Good: the one saved for this inversion. Press R to refresh the list.",
                ),
            ],
            outputs=[field_output()],
        )

    @classmethod
    def fingerprint_inputs(cls, file: str) -> str:
        return host.file_stamp(FILES, file, "Load Nearest-Neighbour Field")

    @classmethod
    def execute(cls, file: str) -> io.NodeOutput:
        node = "Load Nearest-Neighbour Field"
        return io.NodeOutput(host.load_payload(payloads.NNField, FILES, file, node))


class PreviewNNField(io.ComfyNode):
    """Matches as colours, and the clip re-assembled."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="Reweave_PreviewNNField",
            display_name="Preview Nearest-Neighbour Field",
            category="Reweave/tokens",
            description="Shows a field: matched places as colours, and the clip re-assembled from "
            "its key frames. Where the re-assembled clip looks wrong, an edit will too.",
            is_output_node=True,
            inputs=[
                sockets.NNFieldSocket.Input(
                    "nn_field", tooltip="The field to look at, from Nearest-Neighbour Field."
                ),
                io.Image.Input(
                    "image",
                    tooltip="The pictures that were encoded for Invert Video, one per frame. "
                    "Good: the input of VAE Encode.",
                ),
                io.Int.Input(
                    "step",
                    default=-1,
                    min=-1,
                    max=999,
                    tooltip="Sampling step to look at (0 = the noisiest, -1 = four fifths of the "
                    "way through those the field holds). Later steps match finer detail. Good: -1.",
                ),
                io.String.Input(
                    "site",
                    default="",
                    tooltip="Which self-attention, as a name like output.4.0 "
                    "(block.number.index); no unit. Good: empty = the finest grid.",
                ),
            ],
            outputs=[
                io.Image.Output(
                    "matches_out",
                    display_name="matches",
                    tooltip="Every place in the colour of the place that it was found at; a "
                    "still clip shows the same colour wheel in all frames.",
                ),
                io.Image.Output(
                    "reassembled_out",
                    display_name="reassembled",
                    tooltip="The clip built from the key frames' pixels along the field.",
                ),
            ],
        )

    @classmethod
    def execute(
        cls, nn_field: payloads.NNField, image: Tensor, step: int, site: str
    ) -> io.NodeOutput:
        step = previews.shown_step(nn_field) if step < 0 else step
        where = (nn_field, image.cpu(), step, site, "Preview Nearest-Neighbour Field")
        matches, built = previews.match_colours(*where), previews.reassembled(*where)
        both = ui.PreviewImage(torch.cat([matches, built], 2), cls=cls)
        return io.NodeOutput(matches, built, ui=both)
