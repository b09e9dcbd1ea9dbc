"""The key frames of a clip by themselves: a contact sheet in seconds."""

# pyright: reportIncompatibleMethodOverride=false
# ComfyUI calls execute() by keyword, with the inputs of the schema.

from __future__ import annotations

from comfy_api.v0_0_2 import io
from comfy_execution.graph_utils import ExecutionBlocker
from torch import Tensor

from ..editing import host
from ..editing import types as payloads
from ..editing.checks import check_draw
from ..editing.keyframes import DRAWS, RULES, draw_key_frames, only_frames
from . import sockets

NODE = "Key Frames Of Inversion"


class KeyFrameInversion(io.ComfyNode):
    """A contact sheet in seconds."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="Reweave_KeyFrameInversion",
            display_name=NODE,
            category="Reweave/inversion",
            description="Only the key frames of a clip, to try a prompt in seconds: sample them "
            "with Extended Attention ('all frames'), then run the whole clip with TokenFlow.",
            inputs=[
                sockets.inversion_input("The inverted clip, from Invert Video or Load Inversion."),
                sockets.interval_input(),
                sockets.keyframe_seed_input(),
                sockets.key_frames_input(
                    "Which frames are taken, as in TokenFlow: 'random per step' those of the first "
                    "step (TokenFlow draws others at every later step), 'fixed' the middle frame "
                    "of every interval. Good: the setting of TokenFlow; with 'fixed' in both, the "
                    "sheet shows exactly the frames that TokenFlow edits together.",
                    optional=True,
                ),
                io.Image.Input(
                    "image",
                    optional=True,
                    tooltip="Pictures of the whole clip, one per frame: the clip itself, or the "
                    "hints of a ControlNet. The output holds those of the key frames.",
                ),
                io.Mask.Input(
                    "mask",
                    optional=True,
                    tooltip="Masks of the whole clip, one per frame. The output holds those of "
                    "the key frames, for the edits that act on them.",
                ),
            ],
            outputs=[
                sockets.inversion_output(),
                *sockets.start_outputs(),
                io.Int.Output(
                    "count_out",
                    display_name="count",
                    tooltip="How many key frames there are.",
                ),
                io.Image.Output(
                    "image_out",
                    display_name="image",
                    tooltip="The pictures of the key frames, from 'image': hints for a ControlNet, "
                    "or what the sheet is compared with.",
                ),
                io.Mask.Output(
                    "mask_out",
                    display_name="mask",
                    tooltip="The masks of the key frames, from 'mask'.",
                ),
                io.String.Output(
                    "frames_out",
                    display_name="frames",
                    tooltip="Which frames of the clip these are, counted from 0, with commas "
                    "between them.",
                ),
            ],
        )

    @classmethod
    def execute(
        cls,
        inversion: payloads.Inversion,
        interval: int,
        keyframe_seed: int,
        key_frames: str = DRAWS[0],
        image: Tensor | None = None,
        mask: Tensor | None = None,
    ) -> io.NodeOutput:
        check_draw(NODE, interval, key_frames, RULES[0])
        fixed = key_frames == DRAWS[1]
        drawn = draw_key_frames(inversion.frames, interval, 1, keyframe_seed, fixed)[0]
        cut = [
            nothing_to_cut(knob)
            if given is None
            else only_frames(NODE, knob, given, inversion.frames, drawn)
            for knob, given in (("image", image), ("mask", mask))
        ]
        numbers = ", ".join(str(frame) for frame in drawn.tolist())
        host.say(f"key frames: {numbers}")
        found = payloads.some_frames(inversion, drawn)
        return io.NodeOutput(found, *host.start_of(found), len(drawn), *cut, numbers)


def nothing_to_cut(knob: str) -> ExecutionBlocker:
    """In place of an output whose input is not connected: an error only where it is used."""
    return ExecutionBlocker(
        f"{NODE}: the output '{knob}' is connected, the input '{knob}' is not. Connect the "
        f"clip's to '{knob}', one per frame."
    )
