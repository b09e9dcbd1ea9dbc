"""Inversion: a clip's way into noise, where an edit starts, and whether it leads back."""

# pyright: reportIncompatibleMethodOverride=false
# ComfyUI calls execute() by keyword, with the inputs of the schema.

from __future__ import annotations

from typing import Any

from comfy_api.v0_0_2 import io, ui
from torch import Tensor

from ..editing import host, inversion, report
from ..editing import types as payloads
from ..editing.checks import check_choice, check_range
from . import sockets

FILES = "inversions"


class InvertVideo(io.ComfyNode):
    """A clip into noise."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="Reweave_InvertVideo",
            display_name="Invert Video",
            category="Reweave/inversion",
            description="Finds the noise from which the model draws exactly this clip. Every edit "
            "of the clip starts here. The same clip is not inverted twice.",
            inputs=[
                io.Model.Input(
                    "model",
                    tooltip="The diffusion model (SD1.x, SD2.x or SDXL), with LoRAs, without "
                    "TokenFlow or Plug-and-Play. Good: straight from the checkpoint loader.",
                ),
                io.Conditioning.Input(
                    "positive",
                    tooltip="A prompt that describes what the clip shows now, not the edit. "
                    "Good: one plain sentence.",
                ),
                io.Latent.Input(
                    "latent",
                    tooltip="The frames of the clip from VAE Encode, one latent per frame. "
                    "Good: 16 to 48 frames at the model's own picture size.",
                ),
                io.Int.Input(
                    "steps",
                    default=50,
                    min=1,
                    max=1000,
                    tooltip="Noise levels that are visited. More follows the clip more exactly and "
                    "takes longer. Good: 50; when Check Inversion complains: 500.",
                ),
                io.Int.Input(
                    "saved_steps",
                    default=50,
                    min=1,
                    max=1000,
                    tooltip="Sampling steps that an edit will have (at most 'steps'); only these "
                    "levels are kept. 'steps' must be a multiple of it, and both divisors of "
                    "1000, as the schedule's levels are. Good: 50; quick tries: 25.",
                ),
                io.Combo.Input(
                    "evaluation",
                    options=list(inversion.CONVENTIONS),
                    default=inversion.CONVENTIONS[0],
                    tooltip="Which noise level the model is told at each step. 'current' comes "
                    "back most exactly; 'published' repeats the published numbers; 'target' is the "
                    "same for a clip without any noise. Good: 'current'.",
                ),
                io.Combo.Input(
                    "storage",
                    options=list(inversion.STORAGE),
                    default=inversion.STORAGE[0],
                    tooltip="Precision in which the latents are kept. 'float32' takes twice the "
                    "memory and is hardly better. Good: 'float16'.",
                ),
                sockets.frames_per_pass_input(16),
            ],
            outputs=[sockets.inversion_output(), *sockets.start_outputs()],
        )

    @classmethod
    def execute(
        cls,
        model: Any,
        positive: list,
        latent: dict[str, Any],
        steps: int,
        saved_steps: int,
        evaluation: str,
        storage: str,
        frames_per_pass: int,
    ) -> io.NodeOutput:
        check_choice("Invert Video", "storage", storage, inversion.STORAGE)
        check_range("Invert Video", "steps", steps, 1, 1000)
        check_range("Invert Video", "saved_steps", saved_steps, 1, 1000)
        half = storage == inversion.STORAGE[0]
        request = host.InversionRequest(steps, saved_steps, evaluation, half, frames_per_pass)
        found = host.invert_clip(model, positive, latent, request)
        return io.NodeOutput(found, *host.start_of(found))


class InversionLatent(io.ComfyNode):
    """Where an edit starts."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="Reweave_InversionLatent",
            display_name="Inversion Latent",
            category="Reweave/inversion",
            description="The latents and noise levels from which sampling goes on: from the full "
            "noise, or from a later step for an edit that stays nearer to the clip (SDEdit).",
            inputs=[
                sockets.inversion_input("The inverted clip, from Invert Video or Load Inversion."),
                io.Int.Input(
                    "start_at_step",
                    default=0,
                    min=0,
                    max=999,
                    tooltip="Sampling steps that are skipped at the noisy end. Higher stays nearer "
                    "to the clip and is faster. Good: 0 with Plug-and-Play; a third of all "
                    "steps without it.",
                ),
                io.Combo.Input(
                    "mode",
                    options=list(inversion.START_MODES),
                    default=inversion.START_MODES[0],
                    tooltip="'trajectory': the inverted latents, which lead back to the clip. "
                    "'extracted noise': the clip with the noise found at the noisiest level, for "
                    "SDEdit as published. 'one shared noise': the clip with the same random noise "
                    "on all frames. Good: 'trajectory'; without Plug-and-Play, from a later step: "
                    "'extracted noise'.",
                ),
                io.Int.Input(
                    "noise_number",
                    default=0,
                    min=0,
                    max=0xFFFFFFFF,
                    tooltip="Which random noise 'one shared noise' takes (a number without unit); "
                    "the other modes ignore it. Good: 0; another number gives another variation.",
                ),
            ],
            outputs=sockets.start_outputs(),
        )

    @classmethod
    def execute(
        cls, inversion: payloads.Inversion, start_at_step: int, mode: str, noise_number: int
    ) -> io.NodeOutput:
        return io.NodeOutput(*host.start_of(inversion, start_at_step, mode, noise_number))


class SaveInversion(io.ComfyNode):
    """An inversion to a file."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="Reweave_SaveInversion",
            display_name="Save Inversion",
            category="Reweave/inversion",
            description="Writes an inversion to output/reweave/inversions, to go on with it later "
            "or on another machine. Shows the path and the size.",
            is_output_node=True,
            inputs=[
                sockets.inversion_input("The inversion to keep, from Invert Video."),
                sockets.filename_input(),
            ],
            outputs=[],
        )

    @classmethod
    def execute(cls, inversion: payloads.Inversion, filename: str) -> io.NodeOutput:
        text = host.save_payload(inversion, FILES, filename, "Save Inversion")
        return io.NodeOutput(ui=ui.PreviewText(text))


class LoadInversion(io.ComfyNode):
    """An inversion from a file."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="Reweave_LoadInversion",
            display_name="Load Inversion",
            category="Reweave/inversion",
            description="Reads an inversion that Save Inversion wrote. It needs the checkpoint "
            "that it was made with.",
            inputs=[
                io.Combo.Input(
                    "file",
                    options=host.list_files(FILES),
                    tooltip="A file in output/reweave/inversions or input/reweave/inversions, "
                    "newest first. Good: the one saved for this clip and checkpoint. Press R to "
                    "refresh the list.",
                ),
            ],
            outputs=[sockets.inversion_output(), *sockets.start_outputs()],
        )

    @classmethod
    def fingerprint_inputs(cls, file: str) -> str:
        return host.file_stamp(FILES, file, "Load Inversion")

    @classmethod
    def execute(cls, file: str) -> io.NodeOutput:
        found = host.load_payload(payloads.Inversion, FILES, file, "Load Inversion")
        return io.NodeOutput(found, *host.start_of(found))


class CheckInversion(io.ComfyNode):
    """Does the inversion lead back?"""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="Reweave_CheckInversion",
            display_name="Check Inversion",
            category="Reweave/inversion",
            description="Plays the inversion back without an edit and measures how much of the "
            "clip is lost, frame by frame, with advice when it is too much.",
            is_output_node=True,
            inputs=[
                io.Model.Input(
                    "model",
                    tooltip="The model that inverted the clip; edits on it are not used. Good: "
                    "the one connected to Invert Video.",
                ),
                io.Vae.Input(
                    "vae",
                    tooltip="Turns latents into pictures. Good: the VAE that encoded the clip.",
                ),
                sockets.inversion_input("The inversion to check, from Invert Video."),
                io.Image.Input(
                    "image",
                    tooltip="The pictures that were encoded, after any resizing: what the clip "
                    "should come back as. Good: the input of VAE Encode.",
                ),
            ],
            outputs=[
                io.String.Output(
                    "report_out",
                    display_name="report",
                    tooltip="Likeness of every frame in decibels (PSNR), and advice in words.",
                ),
                io.Image.Output(
                    "plot_out",
                    display_name="plot",
                    tooltip="The same as a picture: frames from left to right, decibels upwards. "
                    "From 30 dB on, the inversion is good.",
                ),
            ],
        )

    @classmethod
    def execute(
        cls, model: Any, vae: Any, inversion: payloads.Inversion, image: Tensor
    ) -> io.NodeOutput:
        found = host.check_inversion(model, vae, inversion, image)
        picture = report.plot(found)
        host.say(found.text.split("\n\n")[0])
        return io.NodeOutput(found.text, picture, ui=ui.PreviewImage(picture, cls=cls))
