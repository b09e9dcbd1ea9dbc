"""Inputs of the key-frame nodes, by what they decide."""

from __future__ import annotations

from comfy_api.v0_0_2 import io

from ..editing.atlas.aggregation import METHODS
from ..editing.atlas.propagation import BACKDROPS, CARRIED, MAPPINGS, UNCOVERED
from ..editing.atlas.requests import FIRST, SAMPLERS
from ..editing.atlas.sdedit import SCHEDULES
from ..editing.atlas.steps import UNSEEN
from . import sockets


def carried_input() -> io.Input:
    """What the next key frame is told."""
    return io.Combo.Input(
        "carried",
        options=list(CARRIED),
        default=CARRIED[0],
        tooltip="What the next key frame is told: the mean of all finished key frames, weighted "
        "by how much each has seen, or the previous one alone (as published). Good: 'all finished "
        "key frames'.",
    )


def mapping_input() -> io.Input:
    """How a key frame is written to the texture."""
    return io.Combo.Input(
        "mapping",
        options=list(MAPPINGS),
        default=MAPPINGS[0],
        tooltip="How a key frame is written to the texture. 'fast' splats it, 'exact' "
        "triangulates its pixels (slow, differs by less than a texel), 'published' is exact with "
        "the half-texel shift and the dark rims of the published code. Good: 'fast'.",
    )


def texture_size_input() -> io.Input:
    """Size of the texture that carries the edit."""
    return io.Int.Input(
        "texture_size",
        default=0,
        min=0,
        max=8192,
        tooltip="Longest side of the texture that carries the edit, in pixels (texels); 0 = the "
        "atlas's own. Larger keeps more detail and takes longer. Good: 0; published: 2000.",
    )


def key_frame_inputs() -> list[io.Input]:
    """Pictures that were edited, and which frames they are."""
    return [
        sockets.atlas_input("The clip's atlas, from Fit Atlas or Load Atlas."),
        io.Image.Input(
            "image",
            tooltip="Edited key frames, whole frames at the clip's size, one or several. Good: "
            "the pictures of Edit Key Frames, or of your own KSampler.",
        ),
        io.String.Input(
            "key_frames",
            default="0",
            tooltip="Which frames of the clip these pictures are, counted from 0, with commas "
            "between them; no unit. Good: the text of Edit Key Frames, or for example 0, 8, 16.",
        ),
        sockets.layer_input(),
    ]


def mask_input() -> io.Input:
    """Which part of an edited key frame counts."""
    return io.Mask.Input(
        "mask",
        optional=True,
        tooltip="White = use this part of the picture (0..1), one mask per picture at the same "
        "size; the layer's alpha limits it further. Good: the masks of Edit Key Frames; nothing "
        "connected = all of the object.",
    )


def drawing_inputs() -> list[io.Input]:
    """What draws, and what is drawn."""
    return [
        io.Model.Input(
            "model",
            tooltip="The diffusion model (SD1.x, SD2.x or SDXL), with LoRAs and IPAdapters. Good: "
            "straight from the checkpoint loader.",
        ),
        io.Vae.Input("vae", tooltip="The VAE of that model. Good: from the checkpoint loader."),
        io.Conditioning.Input(
            "positive",
            tooltip="What the object shall be. Good: a prompt for the object alone, ending in "
            "'no background'.",
        ),
        io.Conditioning.Input(
            "negative", tooltip="What it shall not be. Good: 'lowres, worst quality, low quality'."
        ),
        io.Image.Input(
            "image",
            tooltip="The frames of the clip that the atlas was made from, at the same size.",
        ),
        sockets.atlas_input("The clip's atlas, from Fit Atlas or Load Atlas."),
    ]


def choice_inputs() -> list[io.Input]:
    """Which layer and which key frames."""
    return [
        sockets.layer_input(),
        io.String.Input(
            "key_frames",
            default="",
            tooltip="Frames to edit, counted from 0, with commas between them, in the order of "
            "editing; no unit. Neighbours in the list must show some of the same side. Good: "
            "empty = chosen automatically.",
        ),
        io.Int.Input(
            "most_key_frames",
            default=3,
            min=1,
            max=64,
            tooltip="How many key frames an automatic choice takes at most, in frames; fewer when "
            "they show 95 % of the object. Good: 3; an object that turns: 5.",
        ),
        io.Float.Input(
            "overlap",
            default=0.4,
            min=0.05,
            max=1.0,
            step=0.05,
            tooltip="Part of every automatic key frame (0..1) that earlier ones must have seen. "
            "Higher keeps the edit more consistent and reaches less of the object. Good: 0.4.",
        ),
    ]


def sampling_inputs() -> list[io.Input]:
    """How a key frame is drawn."""
    return [
        io.Int.Input(
            "edit_seed",
            default=1,
            min=0,
            max=0xFFFFFFFF,
            tooltip="Which noise the key frames are drawn from (a number without unit): key frame "
            "n takes edit_seed + n. Good: 1; another number gives another edit.",
        ),
        io.Int.Input(
            "steps",
            default=20,
            min=1,
            max=1000,
            tooltip="Sampling steps of the whole schedule; later key frames run 'noise_strength' "
            "of them. Good: 20, or another divisor of 1000.",
        ),
        io.Float.Input(
            "cfg",
            default=9.0,
            min=0.0,
            max=100.0,
            step=0.5,
            tooltip="How strongly the prompt pulls (a factor without unit). Good: 9 as published; "
            "5 to 7 looks more natural.",
        ),
        io.Combo.Input(
            "sampler",
            options=list(SAMPLERS),
            default=SAMPLERS[0],
            tooltip="Both take the published DDIM steps exactly and give the same picture. Good: "
            "'euler'.",
        ),
    ]


def start_inputs() -> list[io.Input]:
    """What a key frame starts from, and what holds its shape."""
    return [
        io.Float.Input(
            "noise_strength",
            default=0.8,
            min=0.0,
            max=1.0,
            step=0.05,
            tooltip="Noise on what later key frames start from (0..1). Lower stays nearer to the "
            "finished key frames. Good: 0.8 as published; 0.3 to 0.5 without a ControlNet.",
        ),
        io.Combo.Input(
            "schedule",
            options=list(SCHEDULES),
            default=SCHEDULES[0],
            tooltip="'clean' adds the noise that the sampler expects. 'published' adds more, as "
            "the published code does. Good: 'clean'.",
        ),
        io.Combo.Input(
            "first_key_frame",
            options=list(FIRST),
            default=FIRST[0],
            tooltip="What the first key frame starts from. 'noise' needs a ControlNet to keep the "
            "shape (as published); 'source pixels' keeps it by itself. Good: 'automatic' = noise "
            "with a ControlNet, source pixels without.",
        ),
        io.Float.Input(
            "first_strength",
            default=0.8,
            min=0.0,
            max=1.0,
            step=0.05,
            tooltip="Noise on the source's pixels, when the first key frame starts from them "
            "(0..1). Higher changes more and keeps less of the shape. Good: 0.6 to 0.8.",
        ),
        io.Int.Input(
            "resolution",
            default=512,
            min=64,
            max=4096,
            step=64,
            tooltip="Short side of the picture that the model draws, in pixels. Good: what the "
            "model was trained on, 512 for SD1.5, 1024 for SDXL.",
        ),
        io.Float.Input(
            "control_strength",
            default=1.0,
            min=0.0,
            max=10.0,
            step=0.05,
            tooltip="How strongly the ControlNet holds the shape (0..1 and more). Good: 1.",
        ),
    ]


def loop_inputs() -> list[io.Input]:
    """How one key frame leads to the next."""
    return [
        carried_input(),
        mapping_input(),
        io.Combo.Input(
            "uncovered",
            options=list(UNCOVERED),
            default=UNCOVERED[0],
            tooltip="What a key frame starts from where no earlier one was seen. Good: 'source "
            "pixels'; 'black' as published.",
        ),
        io.Combo.Input(
            "backdrop",
            options=list(BACKDROPS),
            default=BACKDROPS[0],
            tooltip="What the model sees around the object. Good: 'black' with a ControlNet, as "
            "published; 'source pixels' without one, and with a prompt for the whole picture.",
        ),
        texture_size_input(),
    ]


def crop_inputs() -> list[io.Input]:
    """What part of a frame the model sees."""
    return [
        io.Int.Input(
            "margin",
            default=30,
            min=0,
            max=1024,
            tooltip="Room around the object in the picture that the model sees, in pixels of the "
            "clip. Good: 30 in clips 768 pixels wide; less in smaller ones.",
        ),
        io.Int.Input(
            "minimum_side",
            default=129,
            min=1,
            max=4096,
            tooltip="Sides that this picture has at least, in pixels of the clip, where the clip "
            "is large enough. Good: 129 in clips 768 pixels wide; less in smaller ones.",
        ),
        io.Boolean.Input(
            "jitter",
            default=False,
            tooltip="Shows the model a random part of the box, 95 to 100 % of its sides (as "
            "published); 'edit_seed' decides which. Good: off.",
        ),
    ]


def method_inputs() -> list[io.Input]:
    """How several key frames become one texture."""
    return [
        io.Combo.Input(
            "method",
            options=list(METHODS),
            default=METHODS[0],
            tooltip="'mean' weights by coverage, 'median' takes the middle of those that "
            "saw a place, 'published median' the lower one of all with black for unseen, "
            "'network' trains the paper's network. Good: 'mean'; 'median' when one key "
            "frame went wrong.",
        ),
        io.Combo.Input(
            "unseen",
            options=list(UNSEEN),
            default=UNSEEN[0],
            tooltip="What the texture shows where no key frame has seen it. Good: "
            "'original texture'; 'black' as published.",
        ),
    ]


def training_inputs() -> list[io.Input]:
    """How the aggregation network is trained."""
    return [
        io.Int.Input(
            "iterations",
            default=500,
            min=1,
            max=100000,
            tooltip="Training steps of 'network'; the other methods ignore it. Good: 500 "
            "on a GPU (as published); 100 steps for a look on a CPU.",
        ),
        io.Int.Input(
            "training_seed",
            default=1,
            min=0,
            max=0xFFFFFFFF,
            tooltip="Which random start 'network' takes (a number without unit). Good: 1.",
        ),
    ]
