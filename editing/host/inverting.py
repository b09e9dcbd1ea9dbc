"""Runs the inversion through CFGGuider.sample, so that LoRA and ControlNet act in it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import comfy.model_management
import comfy.patcher_extension
import comfy.samplers
import latent_preview
import torch
from torch import Tensor

from ..inversion import CONVENTIONS, final_sigma, invert
from ..latent_guidance import LatentGuidance
from ..protocol import Pass, run_in_parts
from ..session import source_of
from ..types import Inversion, digest
from .attach import edits_of
from .call import ModelCall, Room
from .model import describe, fingerprint, format_name, require_supported
from .notices import say
from .paths import cache_folder, trim_cache

NODE = "Invert Video"
KEY = "reweave_inversion"
W = comfy.patcher_extension.WrappersMP


@dataclass(frozen=True)
class InversionRequest:
    """What Invert Video was asked for."""

    steps: int = 50
    """Levels that the inversion visits (50, 500 or 1000 are usual)."""
    saved_steps: int = 50
    """Levels that are kept, for an edit of so many steps."""
    convention: str = "target"
    half: bool = True
    """Keep the latents in float16."""
    frames_per_pass: int = 16


class InversionSampler(comfy.samplers.Sampler):
    """A sampler that walks up the noise levels and keeps what it passes."""

    def __init__(self, request: InversionRequest, sigma_min: float, saved: set[int]) -> None:
        self.request, self.sigma_min, self.saved = request, sigma_min, saved
        self.kept: dict[int, Tensor] = {}
        self.clean: Tensor | None = None

    def sample(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        model_wrap: Any,
        sigmas: Tensor,
        extra_args: dict,
        callback: Callable | None,
        noise: Tensor,
        latent_image: Tensor | None = None,
        denoise_mask: Tensor | None = None,
        disable_pbar: bool = False,
    ) -> Tensor:
        """`sigmas` ascending; returns the noisiest latents. Called by ComfyUI."""
        assert latent_image is not None
        clean = latent_image.float()
        levels = sigmas.tolist()
        denoised: list[Tensor] = []

        def predict(x: Tensor, sigma: float) -> Tensor:
            result = model_wrap(x, torch.full((len(x),), sigma, device=x.device), **extra_args)
            denoised[:] = [result]
            return result

        def keep(number: int, latents: Tensor) -> None:
            dtype = torch.float16 if self.request.half else torch.float32
            if number in self.saved:
                self.kept[number] = latents.to("cpu", dtype)
            if callback is not None:
                callback(number, denoised[0], latents, len(levels))

        start = final_sigma(self.request.convention, self.sigma_min)
        invert(predict, clean, levels, self.request.convention, start, keep)
        self.clean = clean.cpu()
        return clean


class Recorder:
    """Keeps the conditioning that the model really saw, and cuts the clip into passes."""

    def __init__(self, frames_per_pass: int, plain: bool) -> None:
        self.frames_per_pass, self.plain = frames_per_pass, plain
        self.context: Tensor | None = None
        self.pooled: Tensor | None = None
        self.room = Room()

    def __call__(
        self,
        executor: Callable,
        x: Tensor,
        t: Tensor,
        c_concat: Tensor | None = None,
        c_crossattn: Tensor | None = None,
        control: dict | None = None,
        transformer_options: dict[str, Any] | None = None,
        **extra: Any,
    ) -> Tensor:
        options = transformer_options or {}
        if self.context is None and c_crossattn is not None:
            self.context, self.pooled = _one_if_equal(c_crossattn), _one_if_equal(extra.get("y"))
        if not self.plain:
            return executor(x, t, c_concat, c_crossattn, control, options, **extra)
        call = ModelCall(
            executor, x, t, c_concat, c_crossattn, control, options, extra, [], room=self.room
        )
        frames = torch.arange(call.frames)
        return run_in_parts(call, frames, self.frames_per_pass, Pass)[1].flatten(0, 1)

    def __deepcopy__(self, memo: dict) -> Recorder:
        return self


def _one_if_equal(rows: Tensor | None) -> Tensor | None:
    """[F,...] -> [1,...] where all frames were told the same; on the CPU."""
    if rows is None:
        return None
    same = bool((rows == rows[:1]).all())
    return (rows[:1] if same else rows).detach().cpu().clone()


def invert_clip(
    patcher: Any, positive: list, latent: dict[str, Any], request: InversionRequest
) -> Inversion:
    """Inverts a clip, or finds the same inversion in the cache on disk.

    Args:
        patcher: MODEL. positive: CONDITIONING. latent: LATENT with samples [F,C,h,w].

    Raises: ValueError for unsupported models, edits or settings.
    """
    samples = latent["samples"]
    check_request(patcher, samples, request)
    sampling = patcher.get_model_object("model_sampling")
    sigmas = levels(sampling, request.steps)
    saved = saved_levels(sampling, request, sigmas)
    key = cache_key(patcher, positive, samples, request)
    path = cache_folder() / "inversions" / f"{key}.safetensors" if key else None
    found = _from_cache(path)
    if found is not None:
        say("this clip was inverted before with the same settings; taken from the cache")
        return found
    plan = len(saved) * samples.numel() * (2 if request.half else 4) / 1e6
    say(f"inverting {len(samples)} frames in {len(sigmas)} steps; keeps {plan:.0f} MB")
    inversion = _run(patcher, positive, samples, request, sigmas, saved)
    if path is not None:
        try:
            inversion.save(path)
            trim_cache(keep=path)
        except ValueError as error:
            say(f"the inversion is not cached: {error}")
    return inversion


def _from_cache(path: Path | None) -> Inversion | None:
    """The inversion in the cache; an unreadable file there counts as absent."""
    if path is None or not path.is_file():
        return None
    try:
        found = Inversion.load(path)
    except ValueError:
        path.unlink(missing_ok=True)
        return None
    path.touch()
    return found


def check_request(patcher: Any, samples: Tensor, request: InversionRequest) -> None:
    """Raises: ValueError for what cannot be inverted."""
    require_supported(patcher, NODE)
    fed = [
        edit.name
        for edit in edits_of(patcher)
        if source_of(edit) is not None or isinstance(edit, LatentGuidance)
    ]
    if fed:
        raise ValueError(
            f"{NODE}: this MODEL carries {' and '.join(fed)}, which acts on an edit, not on the "
            "source. "
            f"Connect the MODEL from before {fed[0]}."
        )
    if samples.ndim != 4:
        raise ValueError(
            f"{NODE}: expected image latents [frames, channels, h, w], got {samples.ndim} "
            "dimensions. Encode the frames with a VAE Encode of an image model."
        )
    if not bool(torch.isfinite(samples).all()):
        raise ValueError(f"{NODE}: the latents hold NaN or infinity. Try --fp32-vae.")
    if request.convention not in CONVENTIONS:
        raise ValueError(
            f"{NODE}: expected 'evaluation' to be one of {', '.join(CONVENTIONS)}; got "
            f"{request.convention!r}. Choose one of these in the node's list."
        )


def levels(sampling: Any, steps: int) -> list[float]:
    """Ascending sigmas of ddim_uniform with `steps` steps, without 0."""
    table = comfy.samplers.calculate_sigmas(sampling, "ddim_uniform", steps)
    return [float(sigma) for sigma in table.flip(0) if float(sigma) > 0]


def saved_levels(sampling: Any, request: InversionRequest, sigmas: list[float]) -> list[int]:
    """Numbers of the levels that an edit of `saved_steps` steps visits.

    Raises: ValueError when the inversion does not pass them all.
    """
    wanted = levels(sampling, min(request.saved_steps, request.steps))
    near = [min(range(len(sigmas)), key=lambda i: abs(sigmas[i] - sigma)) for sigma in wanted]
    if any(abs(sigmas[i] - s) > 1e-3 * s for i, s in zip(near, wanted, strict=True)):
        raise ValueError(
            f"{NODE}: an inversion of {request.steps} steps does not pass the levels of an edit "
            f"of {request.saved_steps} steps. Choose steps as a multiple of saved_steps "
            "(50, 500 or 1000 with 50 saved steps)."
        )
    return near


def cache_key(
    patcher: Any, positive: list, samples: Tensor, request: InversionRequest
) -> str | None:
    """Content key, or None where something acts that has no content hash (ControlNet, hooks)."""
    parts: list[Tensor | str] = [samples.float(), str(fingerprint(patcher)), describe(patcher)]
    if not fingerprint(patcher).base or edits_of(patcher):
        return None
    options = patcher.model_options.get("transformer_options", {})
    if options.get("patches") or options.get("patches_replace") or patcher.wrappers:
        return None
    for embedding, settings in positive:
        parts.append(embedding)
        for name, value in sorted(settings.items()):
            if isinstance(value, Tensor):
                parts.append(value)
            elif value is None or isinstance(value, str | int | float | bool | tuple):
                parts.append(f"{name}={value}")
            else:
                return None
    whole = replace(request, frames_per_pass=0)
    return digest(*parts, str(whole), str(patcher.model_dtype()), patcher.load_device.type)


def _run(
    patcher: Any,
    positive: list,
    samples: Tensor,
    request: InversionRequest,
    sigmas: list[float],
    saved: list[int],
) -> Inversion:
    sampling = patcher.get_model_object("model_sampling")
    clone = patcher.clone()
    recorder = Recorder(request.frames_per_pass, plain=not edits_of(patcher))
    clone.add_wrapper_with_key(W.APPLY_MODEL, KEY, recorder)
    guider = comfy.samplers.CFGGuider(clone)
    guider.inner_set_conds({"positive": positive})
    guider.set_cfg(1.0)
    kept = {*saved, len(sigmas) - 1}
    sampler = InversionSampler(request, float(sampling.sigmas[0]), kept)
    guider.sample(
        torch.zeros_like(samples),
        samples,
        sampler,
        torch.tensor(sigmas),
        callback=latent_preview.prepare_callback(clone, len(sigmas)),
        disable_pbar=True,
        seed=0,
    )
    return _collect(patcher, request, sampler, recorder, sigmas, saved)


def _collect(
    patcher: Any,
    request: InversionRequest,
    sampler: InversionSampler,
    recorder: Recorder,
    sigmas: list[float],
    saved: list[int],
) -> Inversion:
    """The payload, noisiest level first."""
    order = sorted(saved, reverse=True)
    table = torch.tensor([sigmas[i] for i in order], dtype=torch.float32)
    sampling = patcher.get_model_object("model_sampling")
    assert sampler.clean is not None and recorder.context is not None
    beyond = order[0] != len(sigmas) - 1
    return Inversion(
        latents=torch.stack([sampler.kept[i] for i in order]),
        clean=sampler.clean,
        sigmas=table,
        timesteps=sampling.timestep(table).long().cpu(),
        context=recorder.context,
        pooled=recorder.pooled,
        convention=request.convention,
        final_sigma=final_sigma(request.convention, float(sampling.sigmas[0])),
        noisiest=sampler.kept[len(sigmas) - 1] if beyond else None,
        noisiest_sigma=sigmas[-1] if beyond else 0.0,
        latent_format=format_name(patcher),
        fingerprint=fingerprint(patcher),
    )
