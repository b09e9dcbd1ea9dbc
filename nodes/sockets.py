"""The pack's own sockets, each defined once, and inputs that several nodes share.

Ids of outputs end in _out: ComfyUI wants them to differ from those of the inputs.
"""

from __future__ import annotations

from comfy_api.v0_0_2 import io

from ..editing.keyframes import DRAWS, RULES

Inversion = io.Custom("REWEAVE_INVERSION")
Tokens = io.Custom("REWEAVE_TOKENS")
NNFieldSocket = io.Custom("REWEAVE_NN_FIELD")
Atlas = io.Custom("REWEAVE_ATLAS")
TemporalUNetSocket = io.Custom("REWEAVE_TEMPORAL_UNET")


def inversion_input(tooltip: str, optional: bool = False) -> io.Input:
    """The clip's way into noise."""
    return Inversion.Input("inversion", optional=optional, tooltip=tooltip)


def inversion_output() -> io.Output:
    """An inversion, for every node that reads the source."""
    return Inversion.Output(
        "inversion_out",
        display_name="inversion",
        tooltip="The clip's latents at every noise level. Connect it to TokenFlow, Plug-and-Play, "
        "Inversion Latent and the check and save nodes.",
    )


def start_outputs() -> list[io.Output]:
    """Where sampling starts: the LATENT and its SIGMAS."""
    return [
        io.Latent.Output(
            "latent_out",
            display_name="latent",
            tooltip="The frames as noise: the latent_image of SamplerCustom, with add_noise off.",
        ),
        io.Sigmas.Output(
            "sigmas_out",
            display_name="sigmas",
            tooltip="The noise levels that go with this latent. Connect them to SamplerCustom.",
        ),
    ]


def atlas_input(tooltip: str, optional: bool = False) -> io.Input:
    """A clip as a few textures."""
    return Atlas.Input("atlas", optional=optional, tooltip=tooltip)


def atlas_output() -> io.Output:
    """An atlas, for every node that paints on textures."""
    return Atlas.Output(
        "atlas_out",
        display_name="atlas",
        tooltip="The clip as textures, with the place of every pixel on them. Connect it to Atlas "
        "Textures, Map To Atlas, Render Atlas and the other atlas nodes.",
    )


def flow_input() -> io.Input:
    """Optical flow of other packs: FLOW or OPTICAL_FLOW, [F-1,H,W,2] pixels."""
    return io.MultiType.Input(
        "flow_field",
        types=[io.Custom("FLOW"), io.Custom("OPTICAL_FLOW")],
        optional=True,
        tooltip="Optical flow from another pack: pixels (x, y) from each frame to the next. Good: "
        "nothing connected; RAFT flow for large or fast motion.",
    )


def layer_input() -> io.Input:
    """One layer of an atlas, by name."""
    return io.String.Input(
        "layer",
        default="foreground",
        tooltip="Name of the atlas's layer that is meant; no unit. Good: 'foreground', the object; "
        "a one-layer atlas has only 'background'.",
    )


def temporal_unet_output() -> io.Output:
    """A trained temporal UNet."""
    return TemporalUNetSocket.Output(
        "temporal_unet_out",
        display_name="temporal_unet",
        tooltip="The network that was trained on the clip. Connect it to Apply Temporal UNet and "
        "Save Temporal UNet.",
    )


def filename_input() -> io.Input:
    """Name of a saved file."""
    return io.String.Input(
        "filename",
        default="clip",
        tooltip="Name of the file, without folder; a file of that name is replaced. "
        "Good: the name of the clip.",
    )


INTERVAL = (
    "Frames per key frame: one key frame is drawn in every run of this many frames. Smaller "
    "follows fast motion better and costs more time and memory. Good: 8; fast motion: 4."
)


def interval_input(tooltip: str = INTERVAL) -> io.Input:
    """Frames per key frame."""
    return io.Int.Input("interval", default=8, min=1, max=1024, tooltip=tooltip)


def keyframe_seed_input() -> io.Input:
    """Which draw of key frames."""
    return io.Int.Input(
        "keyframe_seed",
        default=1,
        min=0,
        max=0xFFFFFFFF,
        tooltip="Which frames are drawn as key frames (a number without unit). The same number "
        "gives the same key frames, so caches stay valid. Good: 1; change it only if a key frame "
        "falls on a blurred frame.",
    )


HOW_DRAWN = (
    "'random per step' draws new key frames at every step, which averages their flaws out (as "
    "published). 'fixed' takes the middle frame of every interval at all steps: fewer surprises, "
    "sometimes visible seams. Good: 'random per step'."
)


def key_frames_input(tooltip: str = HOW_DRAWN, optional: bool = False) -> io.Input:
    """How key frames are drawn."""
    return io.Combo.Input(
        "key_frames", options=list(DRAWS), default=DRAWS[0], optional=optional, tooltip=tooltip
    )


def rule_input() -> io.Input:
    """Which key frames a frame is built from."""
    return io.Combo.Input(
        "rule",
        options=list(RULES),
        default=RULES[0],
        tooltip="Which two key frames a frame is built from. 'published code': those of its own "
        "and the previous interval. 'paper': the nearest before and after it, by real distance. "
        "Good: 'published code'; try 'paper' when motion looks stepped.",
    )


def frames_per_pass_input(default: int) -> io.Input:
    """Memory knob."""
    return io.Int.Input(
        "frames_per_pass",
        default=default,
        min=0,
        max=1024,
        tooltip="Frames that run through the model at once (0 = all). Fewer needs less memory; "
        f"the result is the same. Good: {default}; out of memory: 4 or less.",
    )


def max_gigabytes_input(
    what: str, default: float = 4.0, good: str = "at most half of the free RAM"
) -> io.Input:
    """Memory limit of a stored payload, or of a training."""
    return io.Float.Input(
        "max_gigabytes",
        default=default,
        min=0.1,
        max=1024.0,
        step=0.5,
        tooltip=f"Most memory that {what} may take, in gigabytes (10^9 bytes). The plan is shown "
        f"on the node, and refused before any work if it is larger. Good: {default:g}; {good}.",
    )


def sites_input(empty: str) -> io.Input:
    """Which self-attentions."""
    return io.String.Input(
        "sites",
        default="",
        tooltip="Which self-attentions of the model, as names like output.4.0 (block.number.index) "
        f"with commas between them; no unit. Good: empty = {empty}.",
    )


def mask_input() -> io.Input:
    """Region that may change."""
    return io.Mask.Input(
        "mask",
        optional=True,
        tooltip="White = may change, black = stays as in the source (0..1). One mask for all "
        "frames, or one per frame. Good: a mask a little larger than the object; nothing "
        "connected = the whole picture.",
    )
