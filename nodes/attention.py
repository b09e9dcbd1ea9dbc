"""Edits that act in the model's attention: each puts one frozen value on the MODEL."""

# pyright: reportIncompatibleMethodOverride=false
# ComfyUI calls execute() by keyword, with the inputs of the schema.

from __future__ import annotations

from typing import Any

from comfy_api.v0_0_2 import io
from torch import Tensor

from ..editing import extended_attention, host, plug_and_play, tokenflow
from ..editing.checks import (
    check_choice,
    check_extended_attention,
    check_plug_and_play,
    check_token_flow,
    chosen_sites,
)
from ..editing.keyframes import DRAWS
from ..editing.types import Inversion, NNField
from . import sockets

MODEL_TOOLTIP = (
    "The diffusion model (SD1.x, SD2.x or SDXL) after LoRA nodes. This model is left as it is; "
    "the output carries the edit."
)


def model_output(what: str) -> io.Output:
    """The MODEL with one more edit."""
    tooltip = f"The model with {what}. Connect it to the sampler or to the next Reweave node."
    return io.Model.Output("model_out", display_name="model", tooltip=tooltip)


class ExtendedAttention(io.ComfyNode):
    """Frames that look at each other."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="Reweave_ExtendedAttention",
            display_name="Extended Attention",
            category="Reweave/attention",
            description="Lets every frame look at other frames while it is drawn, so that they "
            "agree on colours and textures. Good for a handful of frames; use TokenFlow for "
            "clips.",
            inputs=[
                io.Model.Input("model", tooltip=MODEL_TOOLTIP),
                io.Combo.Input(
                    "mode",
                    options=list(extended_attention.MODES),
                    default=extended_attention.MODES[0],
                    tooltip="Which frames a frame looks at: all; every interval-th; the first and "
                    "the previous one; or a window around it. More frames agree better and cost "
                    "more. Good: 'all frames' up to about 8 frames, else 'first and previous'.",
                ),
                sockets.interval_input(
                    "Frames from one key frame to the next (mode 'key frames' only): every frame "
                    "looks at frames 0, 'interval', 2 x 'interval' and so on. Smaller agrees "
                    "better and costs more time and memory. Good: 8."
                ),
                io.Int.Input(
                    "window",
                    default=3,
                    min=1,
                    max=1024,
                    tooltip="Frames in the sliding window, the frame itself in the middle (mode "
                    "'sliding window' only). Larger agrees over a longer time and costs more. "
                    "Good: 3.",
                ),
                sockets.sites_input("all of them"),
            ],
            outputs=[model_output("frames that look at each other")],
        )

    @classmethod
    def execute(
        cls, model: Any, mode: str, interval: int, window: int, sites: str
    ) -> io.NodeOutput:
        name = "Extended Attention"
        chosen = chosen_sites(name, sites, host.supported_sites(model, name))
        edit = extended_attention.ExtendedAttention(mode, interval, window, chosen)
        return io.NodeOutput(host.attach(model, check_extended_attention(edit)))


class PlugAndPlay(io.ComfyNode):
    """Keeps the source's layout."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="Reweave_PlugAndPlay",
            display_name="Plug-and-Play",
            category="Reweave/attention",
            description="Keeps the layout and the motion of the source: its features replace the "
            "edit's own in the first part of sampling. Use it with TokenFlow, or alone for "
            "single frames.",
            inputs=[
                io.Model.Input("model", tooltip=MODEL_TOOLTIP),
                sockets.inversion_input("The clip whose layout is kept, from Invert Video."),
                io.Float.Input(
                    "inject_attention_until",
                    default=0.5,
                    min=0.0,
                    max=1.0,
                    step=0.05,
                    tooltip="Part of the sampling steps (0..1) in which the source decides what "
                    "belongs together. Higher keeps shapes more strictly, lower lets them change. "
                    "Good: 0.5; for new shapes: 0.3.",
                ),
                io.Float.Input(
                    "inject_features_until",
                    default=0.8,
                    min=0.0,
                    max=1.0,
                    step=0.05,
                    tooltip="Part of the sampling steps (0..1) in which the source decides where "
                    "things are. Higher keeps the layout more strictly, lower lets it move. "
                    "Good: 0.8; for strong styles: 0.6.",
                ),
                sockets.mask_input(),
            ],
            outputs=[model_output("the source's layout")],
        )

    @classmethod
    def execute(
        cls,
        model: Any,
        inversion: Inversion,
        inject_attention_until: float,
        inject_features_until: float,
        mask: Tensor | None = None,
    ) -> io.NodeOutput:
        edit = plug_and_play.PlugAndPlay(
            inversion, inject_attention_until, inject_features_until, mask
        )
        return io.NodeOutput(host.attach(model, check_plug_and_play(edit)))


class TokenFlow(io.ComfyNode):
    """Consistent edits of a clip."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="Reweave_TokenFlow",
            display_name="TokenFlow",
            category="Reweave/attention",
            description="Edits a whole clip consistently: key frames are edited together, all "
            "other frames take their appearance from them along the motion of the source.",
            inputs=[
                io.Model.Input("model", tooltip=MODEL_TOOLTIP),
                sockets.inversion_input("The clip whose motion is followed, from Invert Video."),
                sockets.interval_input(),
                sockets.keyframe_seed_input(),
                sockets.key_frames_input(),
                sockets.rule_input(),
                sockets.frames_per_pass_input(8),
                io.Int.Input(
                    "max_joint_key_frames",
                    default=0,
                    min=0,
                    max=1024,
                    tooltip="Most key frames that are edited together (0 = all, as published). A "
                    "limit keeps memory constant on long clips; far apart frames then agree a "
                    "little less. Good: 0 up to about 100 frames, then 8.",
                ),
                sockets.NNFieldSocket.Input(
                    "nn_field",
                    optional=True,
                    tooltip="A field made before by Nearest-Neighbour Field from the same model "
                    "and inversion: saves its computation, and its key frames and rule are used "
                    "instead of this node's. Good: nothing connected.",
                ),
                sockets.mask_input(),
            ],
            outputs=[model_output("TokenFlow")],
        )

    @classmethod
    def execute(
        cls,
        model: Any,
        inversion: Inversion,
        interval: int,
        keyframe_seed: int,
        key_frames: str,
        rule: str,
        frames_per_pass: int,
        max_joint_key_frames: int,
        nn_field: NNField | None = None,
        mask: Tensor | None = None,
    ) -> io.NodeOutput:
        check_choice("TokenFlow", "key_frames", key_frames, DRAWS)
        fixed = key_frames == DRAWS[1]
        edit = tokenflow.TokenFlow(
            inversion,
            interval,
            keyframe_seed,
            fixed,
            rule,
            frames_per_pass,
            max_joint_key_frames,
            nn_field,
            mask,
        )
        edit = check_token_flow(edit, host.supported_sites(model, edit.name))
        if nn_field is not None:
            host.say("key frames and rule come from the connected nearest-neighbour field")
        return io.NodeOutput(host.attach(model, edit))
