"""Key frames edited through an atlas: one at a time, all in one node, and as one texture."""

# pyright: reportIncompatibleMethodOverride=false
# ComfyUI calls execute() by keyword, with the inputs of the schema.

from __future__ import annotations

from typing import Any

from comfy_api.v0_0_2 import io, ui
from torch import Tensor

from ..editing.atlas import types as payloads
from ..editing.atlas.aggregation import loss_curve
from ..editing.atlas.propagation import CARRIED
from ..editing.atlas.requests import (
    Carriage,
    Choice,
    Cropping,
    EditRequest,
    GivenKeyFrames,
    Sampling,
)
from ..editing.atlas.steps import Training
from ..editing.host import atlas_steps, keyframe_editing
from ..editing.host.drawing import Tools
from . import key_frame_inputs as inputs


class PropagateKeyframe(io.ComfyNode):
    """An edit carried to another frame."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="Reweave_PropagateKeyframe",
            display_name=atlas_steps.PROPAGATE,
            category="Reweave/atlas",
            description="Shows what edited key frames look like from another frame of the clip: "
            "the picture to start that frame's own edit from. For loops wired with KSampler and "
            "ControlNet nodes; Edit Key Frames does the whole loop.",
            inputs=[
                *inputs.key_frame_inputs(),
                io.Int.Input(
                    "target_frame",
                    default=8,
                    min=0,
                    max=100000,
                    tooltip="The frame that the edit is carried to, counted from 0 (a frame "
                    "number, in frames). Good: one that shows at least a third of the same side.",
                ),
                inputs.carried_input(),
                inputs.mapping_input(),
                inputs.texture_size_input(),
                inputs.mask_input(),
                io.Image.Input(
                    "source",
                    optional=True,
                    tooltip="The frames of the clip: shown where no key frame is known. Nothing "
                    "connected = black there, as published.",
                ),
            ],
            outputs=[
                io.Image.Output(
                    "image_out",
                    display_name="image",
                    tooltip="The object on black, as the target frame sees the edit: encode it "
                    "and sample with some noise on it.",
                ),
                io.Mask.Output(
                    "mask_out",
                    display_name="mask",
                    tooltip="White where the edit is known in the target frame (0..1).",
                ),
            ],
        )

    @classmethod
    def execute(
        cls,
        atlas: payloads.Atlas,
        image: Tensor,
        key_frames: str,
        layer: str,
        target_frame: int,
        carried: str,
        mapping: str,
        texture_size: int,
        mask: Tensor | None = None,
        source: Tensor | None = None,
    ) -> io.NodeOutput:
        given = GivenKeyFrames(image, mask, key_frames, layer)
        how = Carriage(carried, mapping, texture_size)
        found = atlas_steps.propagate_key_frame(atlas, given, target_frame, how, source)
        return io.NodeOutput(found.picture, found.mask, ui=ui.PreviewImage(found.picture, cls=cls))


class EditKeyframes(io.ComfyNode):
    """The whole loop."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="Reweave_EditKeyframes",
            display_name=keyframe_editing.NODE,
            category="Reweave/atlas",
            description="Edits the object in a few key frames, one after the other: each starts "
            "from what the finished ones look like from its side. A cancelled run keeps the key "
            "frames that are finished and goes on from there.",
            is_output_node=True,
            inputs=[
                *inputs.drawing_inputs(),
                *inputs.choice_inputs(),
                *inputs.sampling_inputs(),
                *inputs.start_inputs(),
                *inputs.loop_inputs(),
                *inputs.crop_inputs(),
                io.ControlNet.Input(
                    "control_net",
                    optional=True,
                    tooltip="Holds the object's shape (canny, depth, scribble ...). Good: a canny "
                    "ControlNet of the same model family; without one, lower 'noise_strength'.",
                ),
                io.Image.Input(
                    "hint",
                    optional=True,
                    tooltip="Pictures for the ControlNet, one per frame of the clip and of its "
                    "size. Nothing connected = Canny outlines of the object alone, as published.",
                ),
            ],
            outputs=[
                io.Image.Output(
                    "image_out",
                    display_name="image",
                    tooltip="The edited key frames, whole frames, black outside of the object's "
                    "box. Connect it to Aggregate Key Frames.",
                ),
                io.Mask.Output(
                    "mask_out",
                    display_name="mask",
                    tooltip="The object in each key frame (0..1), within the box that was edited.",
                ),
                io.String.Output(
                    "key_frames_out",
                    display_name="key_frames",
                    tooltip="Which frames they are, in the order in which they were edited.",
                ),
            ],
        )

    @classmethod
    def execute(
        cls,
        model: Any,
        vae: Any,
        positive: list,
        negative: list,
        image: Tensor,
        atlas: payloads.Atlas,
        layer: str,
        key_frames: str,
        most_key_frames: int,
        overlap: float,
        edit_seed: int,
        steps: int,
        cfg: float,
        sampler: str,
        noise_strength: float,
        schedule: str,
        first_key_frame: str,
        first_strength: float,
        resolution: int,
        control_strength: float,
        carried: str,
        mapping: str,
        uncovered: str,
        backdrop: str,
        texture_size: int,
        margin: int,
        minimum_side: int,
        jitter: bool,
        control_net: Any = None,
        hint: Tensor | None = None,
    ) -> io.NodeOutput:
        tools = Tools(model, vae, positive, negative, control_net)
        sampling = Sampling(
            steps=steps,
            cfg=cfg,
            sampler=sampler,
            noise_strength=noise_strength,
            first_strength=first_strength,
            schedule=schedule,
            first=first_key_frame,
            resolution=resolution,
            control_strength=control_strength,
            edit_seed=edit_seed,
        )
        request = EditRequest(
            Choice(layer, key_frames, most_key_frames, overlap),
            Carriage(carried, mapping, texture_size, uncovered, backdrop),
            sampling,
            Cropping(margin, minimum_side, edit_seed if jitter else None),
        )
        found = keyframe_editing.edit_clip(tools, atlas, request, image, hint)
        shown = ui.PreviewImage(found.preview, cls=cls)
        return io.NodeOutput(found.image, found.mask, found.key_frames, ui=shown)


class AggregateKeyframes(io.ComfyNode):
    """Key frames as one texture."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="Reweave_AggregateKeyframes",
            display_name=atlas_steps.AGGREGATE,
            category="Reweave/atlas",
            description="Makes one texture of all edited key frames: by mean, by median, or with "
            "a small network that is trained until the texture looks right from every key frame. "
            "Render Atlas turns it into frames.",
            inputs=[
                *inputs.key_frame_inputs(),
                *inputs.method_inputs(),
                inputs.mapping_input(),
                inputs.texture_size_input(),
                *inputs.training_inputs(),
                inputs.mask_input(),
            ],
            outputs=[
                io.Image.Output(
                    "texture_out",
                    display_name="texture",
                    tooltip="The layer's edited texture. Connect it to Render Atlas.",
                ),
                io.Mask.Output(
                    "coverage_out",
                    display_name="coverage",
                    tooltip="White where a key frame has seen the texture (0..1).",
                ),
                io.Image.Output(
                    "plot_out",
                    display_name="plot",
                    tooltip="The loss of 'network' over its training: it should fall and flatten.",
                ),
            ],
        )

    @classmethod
    def execute(
        cls,
        atlas: payloads.Atlas,
        image: Tensor,
        key_frames: str,
        layer: str,
        method: str,
        unseen: str,
        mapping: str,
        texture_size: int,
        iterations: int,
        training_seed: int,
        mask: Tensor | None = None,
    ) -> io.NodeOutput:
        given = GivenKeyFrames(image, mask, key_frames, layer)
        how = Carriage(CARRIED[0], mapping, texture_size)
        training = Training(iterations, training_seed)
        found = atlas_steps.aggregate_clip(atlas, given, how, method, unseen, training)
        picture = found.texture.movedim(0, -1)[None]
        plot = loss_curve(found.losses)
        return io.NodeOutput(picture, found.coverage, plot, ui=ui.PreviewImage(picture, cls=cls))
