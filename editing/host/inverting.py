"""Runs the inversion through CFGGuider.sample, so that LoRA and ControlNet act in it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import comfy.model_management
import comfy.patcher_extension
import comfy.samplers
import latent_preview
import torch
from torch import Tensor

from .. import storage
from ..inversion import final_sigma, invert
from ..protocol import Pass, run_in_parts
from ..types import Inversion, digest
from .attach import declared_rows, edits_of
from .call import ModelCall, Room
from .content_keys import model_key
from .inversion_request import InversionRequest, check_request, levels, saved_levels
from .model import fingerprint, format_name
from .notices import say
from .paths import cache_folder, cache_limit, mark_used, trim_cache

KEY = "reweave_inversion"
W = comfy.patcher_extension.WrappersMP


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

    Raises: ValueError for unsupported models, edits, conditionings or settings.
    """
    samples = latent["samples"]
    check_request(patcher, positive, samples, request)
    sampling = patcher.get_model_object("model_sampling")
    sigmas = levels(sampling, request.steps)
    saved = saved_levels(sampling, request, sigmas)
    key = cache_key(patcher, positive, samples, request, sigmas)
    path = cache_folder() / "inversions" / f"{key}.safetensors" if key else None
    found = _from_cache(path)
    if found is not None:
        say("this clip was inverted before with the same settings; taken from the cache")
        return found
    plan = len(saved) * samples.numel() * (2 if request.half else 4) / 1e6
    say(f"inverting {len(samples)} frames in {len(sigmas)} steps; keeps {plan:.0f} MB")
    inversion = _run(patcher, positive, samples, request, sigmas, saved)
    if path is not None and 1e6 * plan > cache_limit():
        say("the inversion is not cached: it is larger than the cache (REWEAVE_CACHE_GIGABYTES)")
    elif path is not None:
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
        storage.discard(path)
        return None
    mark_used(path)
    return found


def cache_key(
    patcher: Any,
    positive: list,
    samples: Tensor,
    request: InversionRequest,
    sigmas: list[float],
) -> str | None:
    """Content key, or None where something acts that has no content hash (ControlNet, hooks)."""
    key = model_key(patcher, positive)
    if key is None:
        return None
    whole = replace(request, frames_per_pass=0)
    return digest(key, samples.float(), torch.tensor(sigmas), str(whole))


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
    plain = not edits_of(patcher)
    recorder = Recorder(request.frames_per_pass, plain)
    clone.add_wrapper_with_key(W.APPLY_MODEL, KEY, recorder)
    if plain:  # edits declare their own passes
        declaring = declared_rows(request.frames_per_pass)
        clone.add_wrapper_with_key(W.PREPARE_SAMPLING, KEY, declaring)
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
