"""Measuring an edit and looking at it beside its source."""

# pyright: reportIncompatibleMethodOverride=false
# ComfyUI calls execute() by keyword, with the inputs of the schema.

from __future__ import annotations

from dataclasses import replace
from typing import Any

from comfy_api.v0_0_2 import io, ui
from torch import Tensor

from ..editing import host
from ..editing.checks import check_range
from ..editing.evaluate import comparing, evidence, measure, pictures, table
from ..editing.host.embedding import embeddings
from ..editing.host.progress import progress
from ..editing.host.video import workflow_metadata, write_clips


def clip_inputs() -> list[io.Input]:
    """The two clips and what to look at."""
    return [
        io.Image.Input(
            "source",
            tooltip="The frames that were edited, as they went into VAE Encode. Same size "
            "and number as 'edited'.",
        ),
        io.Image.Input("edited", tooltip="The edited frames, from VAE Decode, in the same order."),
        io.Float.Input(
            "slice_at",
            default=0.5,
            min=0.0,
            max=1.0,
            step=0.01,
            tooltip="The row of pixels that the x-t slice follows through time, 0..1: 0 = "
            "top, 1 = bottom. Good: 0.5, or a row that crosses the edited object.",
        ),
        io.String.Input(
            "prompt",
            default="",
            multiline=True,
            tooltip="What the edit shall show: text alignment is measured against it; "
            "needs 'clip' and 'clip_vision'. Good: the prompt of the edit; empty = not "
            "measured.",
        ),
    ]


def known_inputs() -> list[io.Input]:
    """What else may be known of the clips."""
    return [
        io.Mask.Input(
            "mask",
            optional=True,
            tooltip="White = the object that was meant to change (0..1). One mask for all "
            "frames, or one per frame. Without it the background measures are missing.",
        ),
        io.Image.Input(
            "flow",
            optional=True,
            tooltip="Exact motion of a rendered source, from each frame to the next, in "
            "pixels: red = to the right, green = down. Without it the motion is estimated.",
        ),
        io.Image.Input(
            "uv",
            optional=True,
            tooltip="Exact uv pass of a rendered source: red and green = place on the "
            "surface (0..1), blue = 1 where it shows. For the colour of physical points.",
        ),
        io.Clip.Input(
            "clip",
            optional=True,
            tooltip="A whole CLIP text encoder of the same kind as 'clip_vision', from "
            "Load CLIP. An SD1.x checkpoint's own lacks a part and is refused by name.",
        ),
        io.ClipVision.Input(
            "clip_vision",
            optional=True,
            tooltip="A CLIP picture encoder, from Load CLIP Vision: frame consistency and "
            "text alignment. Papers take ViT-L/14 or ViT-B/32.",
        ),
    ]


def report_outputs() -> list[io.Output]:
    """The same report to read, to compute with and to look at."""
    return [
        io.String.Output(
            "report_out",
            display_name="report",
            tooltip="A table (Markdown): every measure of the edit beside the source's "
            "own, and what could not be computed.",
        ),
        io.String.Output(
            "numbers_out",
            display_name="numbers",
            tooltip="The same as JSON, with the values over time.",
        ),
        io.Image.Output(
            "plots_out",
            display_name="plots",
            tooltip="One picture per measure: frames from left to right.",
        ),
        io.Image.Output(
            "heat_map_out",
            display_name="heat_map",
            tooltip="Where the edit does not follow the source's motion to the next "
            "frame: black = it does, white = it does not, bluish = not known.",
        ),
        io.Image.Output(
            "slice_out",
            display_name="slice",
            tooltip="One row of pixels over time (time runs down): source above, edit "
            "below. Flicker draws horizontal stripes.",
        ),
    ]


class ConsistencyReport(io.ComfyNode):
    """Numbers that a paper would accept."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="Reweave_ConsistencyReport",
            display_name=evidence.NODE,
            category="Reweave/evaluate",
            description="Measures an edit against its source: does it move like the source, does "
            "it flicker, what changed where nothing should, does it show the prompt. What cannot "
            "be computed is named, with the reason.",
            is_output_node=True,
            inputs=[*clip_inputs(), *known_inputs()],
            outputs=report_outputs(),
        )

    @classmethod
    def execute(
        cls,
        source: Tensor,
        edited: Tensor,
        slice_at: float,
        prompt: str,
        mask: Tensor | None = None,
        flow: Tensor | None = None,
        uv: Tensor | None = None,
        clip: Any = None,
        clip_vision: Any = None,
    ) -> io.NodeOutput:
        check_range(evidence.NODE, "slice_at", slice_at, 0, 1)
        given = evidence.gather(source, edited, mask, flow, uv)
        given = replace(given, **embeddings(clip, clip_vision, prompt, source, edited))
        found = measure(given, progress)
        text, plots = table.markdown(found), pictures.plots(found)
        host.say(table.summary(found))
        return io.NodeOutput(
            text,
            table.as_json(found),
            plots,
            pictures.heat_map(found, edited),
            pictures.slice_through_time(source, edited, slice_at),
            ui={**ui.PreviewImage(plots, cls=cls).as_dict(), "text": (text,)},
        )


class CompareVideos(io.ComfyNode):
    """Before and after, in sync."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="Reweave_CompareVideos",
            display_name=comparing.NODE,
            category="Reweave/evaluate",
            description="Plays two to four clips in sync in the node: wipe, side by side or "
            "difference, frame by frame. The clips are mp4 files that carry the workflow.",
            is_output_node=True,
            inputs=[
                io.Image.Input(
                    "clip_a", tooltip="The first clip, usually the source: left of the wipe."
                ),
                io.Image.Input(
                    "clip_b",
                    tooltip="The second clip, usually the edit: right of the wipe. Same number of "
                    "frames as 'clip_a'; sizes may differ.",
                ),
                io.Float.Input(
                    "fps",
                    default=8.0,
                    min=1.0,
                    max=120.0,
                    step=0.01,
                    tooltip="Speed in frames per second. Good: the fps output of Get Video "
                    "Components.",
                ),
                io.String.Input(
                    "labels",
                    default="source, edit",
                    tooltip="Names of the clips, with commas between them, as the viewer shows "
                    "them. Good: what differs between the clips, in a word each.",
                ),
                io.Boolean.Input(
                    "keep",
                    default=True,
                    tooltip="On: the files stay in ComfyUI's output folder. Off: they go to temp, "
                    "which ComfyUI empties. Good: on for results, off while you try.",
                ),
                io.String.Input(
                    "filename_prefix",
                    default="reweave/compare",
                    tooltip="Folder and name of the files, below ComfyUI's output folder. Good: "
                    "reweave/ and the name of the clip.",
                ),
                io.Image.Input(
                    "clip_c", optional=True, tooltip="A third clip, for example another method's."
                ),
                io.Image.Input(
                    "clip_d", optional=True, tooltip="A fourth clip, for example the heat map."
                ),
            ],
            outputs=[],
            hidden=[io.Hidden.prompt, io.Hidden.extra_pnginfo],
        )

    @classmethod
    def execute(
        cls,
        clip_a: Tensor,
        clip_b: Tensor,
        fps: float,
        labels: str,
        keep: bool,
        filename_prefix: str,
        clip_c: Tensor | None = None,
        clip_d: Tensor | None = None,
    ) -> io.NodeOutput:
        check_range(comparing.NODE, "fps", fps, 1, 120)
        clips = comparing.together(clip_a, clip_b, clip_c, clip_d)
        names = comparing.names_of(labels, len(clips))
        files = write_clips(clips, fps, filename_prefix, keep, workflow_metadata(cls.hidden))
        return io.NodeOutput(ui={"reweave_compare": comparing.shown(files, names, clips, fps)})
