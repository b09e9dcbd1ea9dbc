"""Fit Atlas in the host: progress, pictures while it runs, cancelling, and going on later."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import comfy.model_management
import comfy.utils
import torch
from PIL import Image
from torch import Tensor

from ..atlas.fitting import Progress, fit
from ..atlas.pictures import fit_picture
from ..atlas.preparing import NODE, FitRequest, check_request, fit_key, planned_bytes, prepare
from ..atlas.published import load_published
from ..atlas.types import Atlas
from .notices import say
from .paths import cache_folder, trim_cache
from .training_device import training_device

PREVIEW_SIDE = 512
ON_GPU = {"frames_per_step": 16, "patches": 32}
"""A GPU looks at more points in the same time."""


def fit_clip(
    image: Tensor, mask: Tensor | None, request: FitRequest, flow_field: Tensor | None = None
) -> Atlas:
    """What Fit Atlas does.

    Args:
        image: [F,H,W,3]. mask: [K,H,W] or None. flow_field: [F-1,H,W,2] pixels or None.

    Raises: ValueError for what cannot be fitted; the host's interrupt, after keeping what is done.
    """
    check_request(image, mask, request)
    device = training_device()
    if device.type == "cuda":
        request = replace(request, settings=replace(request.settings, **ON_GPU))
    layers = 1 if mask is None or request.layers != "foreground and background" else 2
    say(f"fitting {len(image)} frames takes {planned_bytes(image, request, layers) / 1e9:.2g} GB")
    key = fit_key(image, mask, request, flow_field)
    snapshot = cache_folder() / "atlas_fits" / f"{key}.safetensors"
    problem = prepare(image, mask, request, flow_field, device, _tell_flow)
    if snapshot.is_file():
        say("going on with this fit where it was interrupted")
    watcher = Watcher(problem.clip, request.settings.steps)
    try:
        atlas = fit(problem, request.settings, watcher, alive, snapshot)
    finally:
        trim_cache(keep=snapshot)
    if watcher.last is not None:
        say(progress_text(watcher.last))
    return atlas


def alive() -> None:
    """Raises the host's interrupt when the artist cancelled."""
    comfy.model_management.throw_exception_if_processing_interrupted()


class Watcher:
    """Shows how far a fit is: bar, numbers, and a picture."""

    def __init__(self, clip: Tensor, steps: int) -> None:
        self.clip = clip
        self.bar = comfy.utils.ProgressBar(max(1, steps))
        self.last: Progress | None = None

    def __call__(self, progress: Progress) -> None:
        self.last = progress
        preview: tuple[str, Any, int] | None = None
        if self.bar.hook is not None:
            picture = (fit_picture(progress.fitted, self.clip) * 255).byte().cpu().numpy()
            preview = ("JPEG", Image.fromarray(picture), PREVIEW_SIDE)
        self.bar.update_absolute(min(progress.step, max(1, progress.steps)), preview=preview)
        say(progress_text(progress))


def progress_text(progress: Progress) -> str:
    """Likeness in words."""
    names = ("foreground", "background") if len(progress.layers) == 2 else ("whole picture",)
    each = ", ".join(
        f"{name} {value:.1f} dB" for name, value in zip(names, progress.layers, strict=False)
    )
    return f"step {progress.step} of {progress.steps}: {progress.psnr:.1f} dB ({each})"


def read_published(folder: Path, frames: int, resolution: int, node: str) -> Atlas:
    """What Load Atlas does with a published folder. Raises: ValueError naming the node."""
    bar = comfy.utils.ProgressBar(1)

    def tell(done: int, count: int) -> None:
        alive()
        bar.update_absolute(done, count)

    device = comfy.model_management.get_torch_device()
    try:
        with torch.inference_mode(False):
            return load_published(folder, frames, resolution, device, tell)
    except ValueError as error:
        raise ValueError(f"{node}: {error}") from error


def _tell_flow(done: int, count: int) -> None:
    alive()
    if done % 10 == 0 or done == count:
        say(f"{NODE}: optical flow, {done} of {count} pairs of frames")
