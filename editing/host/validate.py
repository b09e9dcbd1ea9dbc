"""Checks before the model is loaded: what cannot work is said before minutes of work."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..checks import mask_without_source
from ..latent_guidance import LatentGuidance
from ..plug_and_play import PlugAndPlay
from ..protocol import Edit
from ..session import source_of
from ..types import Inversion, Position
from .guiding import check_gradient
from .guiding import check_sampler as check_guided_sampler
from .model import fingerprint, format_name, is_compiled, require_supported
from .notices import warn

NOISY_SAMPLERS = (
    "ancestral",
    "sde",
    "lcm",
    "ddpm",
    "dpm_fast",
    "dpm_adaptive",
    "seeds",
    "sa_solver",
)
"""Parts of sampler names that add fresh noise, or choose their own sigmas."""


def check_sampling(
    guider: Any,
    edits: Sequence[Edit],
    noise: Tensor,
    latent: Tensor,
    sampler: Any,
    sigmas: Tensor,
    denoise_mask: Tensor | None,
) -> Inversion | None:
    """The inversion that these edits read, after all checks of one sampling call.

    Raises: ValueError naming the node and the knob to turn.
    """
    names = " and ".join(edit.name for edit in edits)
    patcher = guider.model_patcher
    require_supported(patcher, names)
    check_conditioning(names, guider.conds, guider.model_options)
    if not bool(torch.isfinite(latent).all()):
        raise ValueError(
            f"{names}: the latents hold NaN or infinity. "
            "Check the VAE (try --fp32-vae) and the node that made them."
        )
    for edit in edits:
        if isinstance(edit, PlugAndPlay) and edit.inject_features_until and is_compiled(patcher):
            raise ValueError(
                "Plug-and-Play: the UNet is compiled (torch.compile), which hides the features it "
                "injects. Remove the compile node, or set 'inject_features_until' to 0."
            )
        edit.check_clip(len(noise), tuple(noise.shape[1:]), len(sigmas) - 1)
        if isinstance(edit, LatentGuidance):
            check_guided_sampler(edit, sampler)
            if edit.mode == "gradient":
                if any("control" in cond for group in guider.conds.values() for cond in group):
                    raise ValueError(
                        f"{edit.name}: mode 'gradient' cannot act with a ControlNet, which has no "
                        "gradient here. Use mode 'closed form', or remove the ControlNet."
                    )
                check_gradient(edit, patcher, tuple(noise.shape))
    inversion = next((found for edit in edits if (found := source_of(edit))), None)
    if inversion is None:
        for edit in edits:
            if getattr(edit, "mask", None) is not None:
                raise mask_without_source(edit.name)
        return None
    check_sampler(names, sampler, any(getattr(edit, "mask", None) is not None for edit in edits))
    check_same_clip(names, patcher, inversion, noise)
    check_schedule(names, inversion, sigmas)
    check_start(names, inversion, noise, latent, float(sigmas[0]))
    if denoise_mask is not None:
        check_noise_mask(names, noise)
    return inversion


def check_sampler(names: str, sampler: Any, masked: bool) -> None:
    """Refuses samplers that add noise of their own, or step by what no mask has locked."""
    function = getattr(sampler, "sampler_function", None)
    name = getattr(function, "__name__", "").removeprefix("sample_")
    if any(part in name for part in NOISY_SAMPLERS):
        raise ValueError(
            f"{names}: the sampler {name!r} adds noise or chooses its own steps, so the source "
            "cannot be followed. Use euler or ddim (heun and dpm_2 work approximately)."
        )
    if masked and "cfg_pp" in name:
        raise ValueError(
            f"{names}: the sampler {name!r} steps by the negative prompt's own prediction, which a "
            "'mask' does not lock. Use euler or ddim, or disconnect the mask."
        )


def check_conditioning(names: str, conds: dict[str, list], options: dict[str, Any]) -> None:
    """Refuses what cuts a clip into areas or windows."""
    told = [cond for group in conds.values() for cond in group or []]
    # ComfyUI makes an area of mask bounds only once sampling has begun
    if any("area" in cond or cond.get("set_area_to_bounds") for cond in told):
        raise ValueError(
            f"{names}: area conditioning (Conditioning Set Area, or Conditioning Set Mask with "
            "mask bounds) is not supported yet. Use a MASK on the Reweave node instead."
        )
    if any("gligen" in cond for cond in told):
        raise ValueError(
            f"{names}: GLIGEN prompts (GLIGENTextboxApply) are not supported yet: their boxes "
            "cannot be cut into passes. Use a MASK on the Reweave node instead."
        )
    if options.get("context_handler") is not None:
        raise ValueError(
            f"{names}: context windows are not supported yet, all frames of the clip must be "
            "sampled together. Remove the Context Windows node and lower 'frames_per_pass'."
        )
    if options.get("multigpu_clones"):
        raise ValueError(f"{names}: multi-GPU models are not supported yet. Remove that node.")


def check_noise_mask(names: str, noise: Tensor) -> None:
    """Refuses a latent with a noise mask where sampling begins at the inverted latent.

    ComfyUI would keep that noisy latent outside the mask to the end.
    """
    if not bool(noise.any()):
        raise ValueError(
            f"{names}: the LATENT has a noise mask (Set Latent Noise Mask), but it is the inverted "
            "clip, which is noise outside that mask too. Remove the node, and connect the MASK to "
            "'mask' of TokenFlow, Plug-and-Play or Anchor Attention."
        )


def check_same_clip(names: str, patcher: Any, inversion: Inversion, noise: Tensor) -> None:
    """The latents must be the inverted clip, the model the one it was inverted with."""
    if len(noise) != inversion.frames:
        raise ValueError(
            f"{names}: the inversion has {inversion.frames} frames, the latent batch {len(noise)}. "
            "Connect the LATENT of Inversion Latent to the sampler, or invert the same frames."
        )
    expected, came = tuple(inversion.clean.shape[1:]), tuple(noise.shape[1:])
    if expected != came:
        raise ValueError(
            f"{names}: the inversion's latents are {_size(expected)}, the sampler's {_size(came)}. "
            "Resize the clip before Invert Video, and connect the LATENT of Inversion Latent."
        )
    if format_name(patcher) != inversion.latent_format:
        raise ValueError(
            f"{names}: the inversion was made for {inversion.latent_format} latents, this model "
            f"uses {format_name(patcher)}. Load the checkpoint that inverted the clip."
        )
    now, then = fingerprint(patcher), inversion.fingerprint
    if now.other_base(then) and now.other_rounding(then):
        warn(
            f"this MODEL's weights are {now.dtype}, those that inverted the clip {then.dtype}: it "
            "cannot be told whether they are one checkpoint; the edit works, the structure may "
            "drift"
        )
    elif now.other_base(then):
        raise ValueError(
            f"{names}: this MODEL's base weights differ from those that inverted the clip "
            f"({now.base[:8]} and {then.base[:8]}). Load the same checkpoint, or run Invert Video "
            "with this one."
        )
    if now.patches != then.patches:
        warn("the LoRA differs from the inversion's; the edit works, the structure may drift")


def check_schedule(names: str, inversion: Inversion, sigmas: Tensor) -> None:
    """Every sigma that starts a step must be one of the trajectory."""
    for number, sigma in enumerate(sigmas[:-1].tolist()):
        found = inversion.locate(sigma)
        if found is None or not found.exact:
            low, high = float(inversion.sigmas[-1]), float(inversion.sigmas[0])
            raise ValueError(
                f"{names}: step {number + 1} of {len(sigmas) - 1} starts at sigma {sigma:.4g}, "
                f"which the inversion ({len(inversion.sigmas)} steps, {low:.4g} to {high:.4g}) "
                "does not hold. Connect the SIGMAS of Invert Video or Inversion Latent to "
                "SamplerCustom, or use the scheduler ddim_uniform with as many steps as Invert "
                "Video's 'saved_steps'."
            )


def check_start(
    names: str, inversion: Inversion, noise: Tensor, latent: Tensor, sigma: float
) -> None:
    """Fresh noise on top of a latent that is already noisy gives mush."""
    if not bool(noise.any()):
        return
    # latents are unscaled here: directions are compared, not sizes
    came = latent.cpu().float().flatten()
    start = inversion.at(inversion.locate(sigma) or Position(0)).flatten()
    noisy = float(torch.nn.functional.cosine_similarity(start, came, dim=0))
    clean = float(torch.nn.functional.cosine_similarity(inversion.clean.float().flatten(), came, 0))
    if noisy > 0.98 and noisy > clean:
        raise ValueError(
            f"{names}: the sampler adds noise to latents that are already inverted. "
            "Switch 'add_noise' off in the sampler."
        )


def _size(shape: Iterable[int]) -> str:
    return "x".join(str(part) for part in shape)
