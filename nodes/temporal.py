"""A temporal UNet: trained on one clip, applied to its edits, kept in files."""

# pyright: reportIncompatibleMethodOverride=false
# ComfyUI calls execute() by keyword, with the inputs of the schema.

from __future__ import annotations

from typing import Any

from comfy_api.v0_0_2 import io, ui

from ..editing import host
from ..editing.checks import check_choice, check_range
from ..editing.temporal_unet.curve import loss_curve
from ..editing.temporal_unet.payload import TemporalUNet
from ..editing.temporal_unet.plan import KINDS, LAYOUTS, Architecture, named_sites
from ..editing.temporal_unet.training import TrainingSettings
from . import sockets


def optimizer_inputs() -> list[io.Input]:
    """How long and how far."""
    return [
        io.Int.Input(
            "steps",
            default=100,
            min=1,
            max=10000,
            tooltip="Training steps. More follow the clip's motion more closely, take "
            "longer, and in the end resist the edit; raising it later goes on from where "
            "the last run stopped. Good: 100 (as published); 400 for a small checkpoint, such "
            "as the demo's.",
        ),
        io.Float.Input(
            "learning_rate",
            default=3e-5,
            min=0.0,
            max=1.0,
            step=1e-6,
            round=1e-7,
            tooltip="How far the weights go in every step (a number without unit). Good: "
            "0.00003; a small model or few steps: 0.001; a loss that jumps: lower.",
        ),
        io.Int.Input(
            "training_seed",
            default=33,
            min=0,
            max=0xFFFFFFFF,
            tooltip="First weights and noise levels (a number without unit). The same "
            "number gives the same training. Good: 33; another one is another try.",
        ),
    ]


def network_inputs() -> list[io.Input]:
    """What is trained."""
    return [
        io.Combo.Input(
            "architecture",
            options=list(KINDS),
            default=KINDS[0],
            tooltip="'paper': only the temporal parts are trained, the image model runs as "
            "it is; works with every other node. 'published': the published code's "
            "network, which also changes the image model's attentions. Good: 'paper'.",
        ),
        io.Combo.Input(
            "layout",
            options=list(LAYOUTS),
            default=LAYOUTS[0],
            tooltip="For 'published' only: 'published code' mixes up picture rows in two "
            "places, as the published results did; 'correct' does not. Good: 'published "
            "code'; where stripes appear: 'correct'.",
        ),
        io.Boolean.Input(
            "down_units",
            default=False,
            tooltip="For 'paper' only: fuses in the encoder too, as the paper's figure "
            "shows. Stronger, slower, needs more memory. Good: off.",
        ),
    ]


def resource_inputs() -> list[io.Input]:
    """Memory, time and safety."""
    return [
        io.Boolean.Input(
            "gradient_checkpointing",
            default=True,
            tooltip="Needs much less memory and about a fifth more time; the result is "
            "the same. Good: on; off for small clips or large GPUs.",
        ),
        io.Int.Input(
            "snapshot_every",
            default=0,
            min=0,
            max=10000,
            tooltip="Steps between two snapshots on disk, from which a crashed training "
            "goes on; a stopped one always leaves one (0 = only then). Good: 0; long "
            "trainings: 100.",
        ),
        sockets.max_gigabytes_input("the training", 24.0, "what your GPU has"),
    ]


class TrainTemporalUNet(io.ComfyNode):
    """A temporal UNet for one clip."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="Reweave_TrainTemporalUNet",
            display_name="Train Temporal UNet",
            category="Reweave/temporal",
            description="Teaches a small network how this clip moves, beside the image model, "
            "which stays as it is (TCVE). Takes minutes; save the result. Shows the loss, can be "
            "stopped and goes on where it was.",
            hidden=[io.Hidden.prompt, io.Hidden.unique_id],
            inputs=[
                io.Model.Input(
                    "model",
                    tooltip="The diffusion model (SD1.x, SD2.x or SDXL) with the LoRAs of the "
                    "edit, without Reweave edits. Its weights are not changed. Good: straight "
                    "from the checkpoint loader.",
                ),
                io.Conditioning.Input(
                    "positive",
                    tooltip="A prompt that describes what the clip shows now, not the edit. "
                    "Good: one plain sentence.",
                ),
                io.Latent.Input(
                    "latent",
                    tooltip="The frames of the clip from VAE Encode. Good: 8 to 16 frames, a "
                    "multiple of 8, at the model's own picture size.",
                ),
                *optimizer_inputs(),
                *network_inputs(),
                *resource_inputs(),
            ],
            outputs=[
                sockets.temporal_unet_output(),
                io.Image.Output(
                    "loss_curve_out",
                    display_name="loss_curve",
                    tooltip="The loss of every step and its running mean, as a picture.",
                ),
            ],
        )

    @classmethod
    def execute(
        cls,
        model: Any,
        positive: list,
        latent: dict[str, Any],
        steps: int,
        learning_rate: float,
        training_seed: int,
        architecture: str,
        layout: str,
        down_units: bool,
        gradient_checkpointing: bool,
        snapshot_every: int,
        max_gigabytes: float,
    ) -> io.NodeOutput:
        check_choice("Train Temporal UNet", "architecture", architecture, KINDS)
        check_choice("Train Temporal UNet", "layout", layout, LAYOUTS)
        request = host.TrainingRequest(
            Architecture(
                architecture, layout if architecture == KINDS[1] else "correct", down_units
            ),
            TrainingSettings(
                steps, learning_rate, training_seed, checkpointing=gradient_checkpointing
            ),
            snapshot_every,
            max_gigabytes,
            host.prompt_text(
                getattr(cls.hidden, "prompt", None),
                getattr(cls.hidden, "unique_id", None),
                "positive",
            ),
        )
        found = host.train_temporal(model, positive, latent, request)
        picture = loss_curve(found.losses, found.steps)
        return io.NodeOutput(found, picture, ui=ui.PreviewImage(picture, cls=cls))


class ApplyTemporalUNet(io.ComfyNode):
    """The clip's motion on a MODEL."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="Reweave_ApplyTemporalUNet",
            display_name="Apply Temporal UNet",
            category="Reweave/temporal",
            description="Lets the model draw all frames of the clip with the motion that was "
            "trained. Use it for the inversion and for the edit; combines with TokenFlow, "
            "Plug-and-Play, ControlNet and LoRAs.",
            inputs=[
                io.Model.Input(
                    "model",
                    tooltip="The diffusion model that the temporal UNet was trained with. This "
                    "model is left as it is; the output carries the temporal UNet. Good: straight "
                    "from the checkpoint loader.",
                ),
                sockets.TemporalUNetSocket.Input(
                    "temporal_unet",
                    tooltip="From Train Temporal UNet or Load Temporal UNet. Good: one trained on "
                    "this very clip.",
                ),
                io.Float.Input(
                    "strength",
                    default=1.0,
                    min=0.0,
                    max=2.0,
                    step=0.05,
                    tooltip="How much of the temporal features is fused (0..1, above 1 = more than "
                    "trained); 0 is as if not connected. Good: 1.",
                ),
                io.String.Input(
                    "sites",
                    default="",
                    tooltip="Where features are fused, as names like middle, up0 (no unit), with "
                    "commas between them. Good: empty = everywhere that was trained.",
                ),
                io.Int.Input(
                    "window_overlap",
                    default=4,
                    min=0,
                    max=64,
                    tooltip="Frames that two windows share in clips longer than the trained one "
                    "(half a window at most). More is smoother and slower. Good: 4.",
                ),
            ],
            outputs=[
                io.Model.Output(
                    "model_out",
                    display_name="model",
                    tooltip="The model with the temporal UNet. Connect it to Invert Video, to the "
                    "sampler or to the next Reweave node.",
                )
            ],
        )

    @classmethod
    def execute(
        cls,
        model: Any,
        temporal_unet: TemporalUNet,
        strength: float,
        sites: str,
        window_overlap: int,
    ) -> io.NodeOutput:
        node = "Apply Temporal UNet"
        check_range(node, "strength", strength, 0, 2)
        check_range(node, "window_overlap", window_overlap, 0)
        chosen = named_sites(node, sites, temporal_unet.plan, temporal_unet.architecture)
        edit = host.TemporalEdit(temporal_unet, strength, chosen, window_overlap)
        return io.NodeOutput(host.apply_temporal(model, edit))


class SaveTemporalUNet(io.ComfyNode):
    """A temporal UNet to a file."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="Reweave_SaveTemporalUNet",
            display_name="Save Temporal UNet",
            category="Reweave/temporal",
            description="Writes a trained temporal UNet to output/reweave/temporal_unets, two "
            "bytes per weight, with its loss curve and what it was trained on. Shows the path and "
            "the size.",
            is_output_node=True,
            inputs=[
                sockets.TemporalUNetSocket.Input(
                    "temporal_unet", tooltip="The trained network, from Train Temporal UNet."
                ),
                sockets.filename_input(),
            ],
            outputs=[],
        )

    @classmethod
    def execute(cls, temporal_unet: TemporalUNet, filename: str) -> io.NodeOutput:
        text = host.save_payload(temporal_unet, host.TEMPORAL_FILES, filename, "Save Temporal UNet")
        return io.NodeOutput(ui=ui.PreviewText(text))


class LoadTemporalUNet(io.ComfyNode):
    """A temporal UNet from a file, or from the published training script's folder."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="Reweave_LoadTemporalUNet",
            display_name="Load Temporal UNet",
            category="Reweave/temporal",
            description="Reads a temporal UNet that Save Temporal UNet wrote, or the output folder "
            "of the published TCVE training (its unet/ in diffusers format). It needs the "
            "checkpoint that it was trained with.",
            inputs=[
                io.Combo.Input(
                    "file",
                    options=host.list_temporal(),
                    tooltip="A file or a published folder in output/reweave/temporal_unets or "
                    "input/reweave/temporal_unets, newest first. Good: the one trained on this "
                    "clip. Press R to refresh the list.",
                ),
                io.Combo.Input(
                    "layout",
                    options=list(LAYOUTS),
                    default=LAYOUTS[0],
                    tooltip="For published folders only: how their features are laid out; files "
                    "of this pack know theirs. Good: 'published code', which they were trained "
                    "with.",
                ),
            ],
            outputs=[sockets.temporal_unet_output()],
        )

    @classmethod
    def fingerprint_inputs(cls, file: str, layout: str) -> str:
        return f"{host.temporal_stamp(file)}/{layout}"

    @classmethod
    def execute(cls, file: str, layout: str) -> io.NodeOutput:
        check_choice("Load Temporal UNet", "layout", layout, LAYOUTS)
        return io.NodeOutput(host.load_temporal(file, layout))
