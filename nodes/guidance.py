"""Pix2Video's two halves: attention to an anchor, and latents that are pulled together."""

# pyright: reportIncompatibleMethodOverride=false
# ComfyUI calls execute() by keyword, with the inputs of the schema.

from __future__ import annotations

from typing import Any

from comfy_api.v0_0_2 import io
from torch import Tensor

from ..editing import anchor_attention, host, latent_guidance
from ..editing.checks import check_anchor_attention, check_latent_guidance, chosen_sites
from ..editing.types import Inversion, NNField
from . import sockets
from .attention import MODEL_TOOLTIP, model_output


def _refresh_inputs() -> list[io.Input]:
    """When a later frame becomes the anchor."""
    return [
        io.Int.Input(
            "refresh_every",
            default=0,
            min=0,
            max=9999,
            tooltip="Frames after which a later frame becomes the anchor (0 = never). The "
            "new anchor is drawn from the old one, so the look is handed on. Good: 0; "
            "where the view changes: 16 to 32.",
        ),
        io.Int.Input(
            "cross_fade",
            default=4,
            min=1,
            max=9999,
            tooltip="Frames over which a refreshed anchor takes over from the old one. "
            "Only with 'refresh_every'. Good: 4; a visible switch: more.",
        ),
    ]


def _pull_inputs() -> list[io.Input]:
    """How strongly frames are pulled, and for how long."""
    return [
        io.Float.Input(
            "strength",
            default=0.0122,
            min=0.0,
            max=10.0,
            step=0.001,
            round=0.0001,
            tooltip="Part of the distance that one step takes away (without unit, the same at "
            "every picture size). More flickers less and blurs more. Good: 0.0122 (as "
            "published at 512x512); small pictures: 0.05.",
        ),
        io.Float.Input(
            "until",
            default=0.52,
            min=0.0,
            max=1.0,
            step=0.02,
            tooltip="Part of the sampling steps (0..1) in which frames are pulled. Later "
            "steps draw detail; pulling there blurs. Good: 0.52 (26 of 50, as published).",
        ),
    ]


def _warp_inputs() -> list[io.Input]:
    """What the targets are moved along."""
    return [
        io.Image.Input(
            "source_frames",
            optional=True,
            tooltip="The source clip's pictures: the target is moved along their optical "
            "flow, so that moving things are pulled to where they came from. Good: the "
            "pictures that were encoded; nothing connected = pulled in place.",
        ),
        sockets.NNFieldSocket.Input(
            "nn_field",
            optional=True,
            tooltip="The same along a nearest-neighbour field, for target 'previous "
            "frame'. Good: nothing connected; a field where flow fails.",
        ),
    ]


class AnchorAttention(io.ComfyNode):
    """Frames that look at an anchor and at the frame before."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="Reweave_AnchorAttention",
            display_name="Anchor Attention",
            category="Reweave/guidance",
            description="Each frame takes its appearance from an anchor frame and from the frame "
            "before it (Pix2Video). All frames run in one call per step. Give it a structure "
            "source: a depth ControlNet, or Plug-and-Play.",
            inputs=[
                io.Model.Input("model", tooltip=MODEL_TOOLTIP),
                io.Int.Input(
                    "anchor",
                    default=0,
                    min=0,
                    max=9999,
                    tooltip="Number of the frame that sets the look of all frames (the first is "
                    "0). Good: 0, or a frame that shows the object whole.",
                ),
                io.Combo.Input(
                    "keys",
                    options=list(anchor_attention.KEYS),
                    default=anchor_attention.KEYS[0],
                    tooltip="What a frame looks at. The anchor alone loses what it does not show; "
                    "the previous frame alone lets the edit fade. Good: 'anchor and previous'.",
                ),
                io.Boolean.Input(
                    "own_tokens",
                    default=False,
                    tooltip="Whether a frame also looks at itself. On keeps more of each frame's "
                    "own detail and agrees less. Good: off (as published).",
                ),
                *_refresh_inputs(),
                sockets.frames_per_pass_input(16),
                sockets.sites_input("all of the decoder"),
                io.Latent.Input(
                    "edited_anchor",
                    optional=True,
                    tooltip="The anchor frame, edited in any other way (one latent of the clip's "
                    "size): it comes out as it is, and the other frames follow it. Good: nothing "
                    "connected; connect a still that you like.",
                ),
                sockets.inversion_input("The source clip, only needed with a mask.", optional=True),
                sockets.mask_input(),
            ],
            outputs=[model_output("frames that look at their anchor")],
        )

    @classmethod
    def execute(
        cls,
        model: Any,
        anchor: int,
        keys: str,
        own_tokens: bool,
        refresh_every: int,
        cross_fade: int,
        frames_per_pass: int,
        sites: str,
        edited_anchor: dict[str, Any] | None = None,
        inversion: Inversion | None = None,
        mask: Tensor | None = None,
    ) -> io.NodeOutput:
        name = "Anchor Attention"
        edit = anchor_attention.AnchorAttention(
            anchor,
            keys,
            own_tokens,
            refresh_every,
            cross_fade,
            frames_per_pass,
            chosen_sites(name, sites, host.supported_sites(model, name)),
            host.model_latents(model, edited_anchor),
            inversion,
            mask,
        )
        return io.NodeOutput(host.attach(model, check_anchor_attention(edit)))


class LatentGuidance(io.ComfyNode):
    """Frames whose predictions are pulled together."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="Reweave_LatentGuidance",
            display_name="Latent Guidance",
            category="Reweave/guidance",
            description="Pulls what the model predicts for a frame towards its prediction for "
            "the frame before, in the first part of sampling (Pix2Video): less flicker. Needs "
            "the sampler euler or ddim.",
            inputs=[
                io.Model.Input("model", tooltip=MODEL_TOOLTIP),
                *_pull_inputs(),
                io.Combo.Input(
                    "target",
                    options=list(latent_guidance.TARGETS),
                    default=latent_guidance.TARGETS[0],
                    tooltip="What a frame is pulled to: the frame before, the anchor frame, or "
                    "the frame before as it is at one fixed step (needs several extra runs up to "
                    "that step). Good: 'previous frame'.",
                ),
                io.Combo.Input(
                    "mode",
                    options=list(latent_guidance.MODES),
                    default=latent_guidance.MODES[0],
                    tooltip="'closed form' pulls the prediction directly, as the published code. "
                    "'gradient' goes through the network, as the paper writes it: much slower, "
                    "and it keeps all activations in memory. Good: 'closed form'.",
                ),
                io.Int.Input(
                    "anchor",
                    default=0,
                    min=0,
                    max=9999,
                    tooltip="Number of the frame that all frames are pulled to, for target "
                    "'anchor frame' (the first is 0). Good: the anchor of Anchor Attention.",
                ),
                io.Int.Input(
                    "target_step",
                    default=25,
                    min=0,
                    max=9999,
                    tooltip="Step of the previous frame that a frame is pulled to, for target "
                    "'fixed step' (the first is 0). Good: half of the steps.",
                ),
                *_warp_inputs(),
                io.Mask.Input(
                    "mask",
                    optional=True,
                    tooltip="White = frames are pulled together, black = not (0..1). One mask for "
                    "all frames, or one per frame. Good: the edited object; nothing connected = "
                    "the whole picture.",
                ),
            ],
            outputs=[model_output("guided latents")],
        )

    @classmethod
    def execute(
        cls,
        model: Any,
        strength: float,
        until: float,
        target: str,
        mode: str,
        anchor: int,
        target_step: int,
        source_frames: Tensor | None = None,
        nn_field: NNField | None = None,
        mask: Tensor | None = None,
    ) -> io.NodeOutput:
        edit = latent_guidance.LatentGuidance(
            strength, until, target, mode, anchor, target_step, mask
        )
        edit = host.warped(check_latent_guidance(edit), source_frames, nn_field)
        return io.NodeOutput(host.attach(model, edit))
