"""The key-frame loop of StableVideo: progress, previews, and what is finished is kept."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import comfy.model_management
import comfy.utils
import numpy as np
import torch
from PIL import Image
from torch import Tensor

from .. import storage
from ..atlas.key_frames import Box
from ..atlas.propagation import BACKDROPS, KeyFrame, Task, edit_in_turn
from ..atlas.requests import (
    Choice,
    Cropping,
    EditRequest,
    check_pictures,
    check_request,
    choose_places,
    drawing_size,
    named,
    resized,
    visible_layer,
)
from ..atlas.sdedit import Schedule
from ..atlas.types import Atlas, Layer
from ..types import digest
from .content_keys import control_key, model_key, vae_key
from .drawing import Tools, decode, encode, latent_shape, outlines, sample, schedules
from .model import require_supported
from .notices import say, warn
from .paths import cache_folder, mark_used, trim_cache

NODE = "Edit Key Frames"
KIND = "edited key frame"
PREVIEW = 512
"""Pixels of the longest side of a preview."""


@dataclass(frozen=True)
class Edited:
    """Finished key frames as ComfyUI hands them on."""

    image: Tensor
    """[K,H,W,3] 0..1, what the model drew, black outside of the box."""
    mask: Tensor
    """[K,H,W] 0..1, the object's alpha within the box."""
    key_frames: str
    """Their frame numbers, in the order of editing."""
    preview: Tensor
    """[K,H,W,3] 0..1, laid over the clip's own frames."""


def edit_clip(
    tools: Tools, atlas: Atlas, request: EditRequest, image: Tensor, hint: Tensor | None = None
) -> Edited:
    """What Edit Key Frames does.

    Args:
        image: [F,H,W,3] the clip. hint: [F,H,W,3] pictures for the ControlNet, or None.

    Raises: ValueError for what cannot be edited, before any model is loaded.
    """
    check_request(NODE, request)
    require_supported(tools.model, NODE)
    with named(NODE):
        layer = visible_layer(atlas, request.choice.layer)
        frames = check_pictures(atlas, image, atlas.frames, "one per frame of the clip")
        hints = None
        if hint is not None:
            hints = check_pictures(atlas, hint, atlas.frames, "one per frame of the clip", "hint")
        places, coverage = choose_places(layer, request)
    if hints is not None and tools.control_net is None:
        warn("'hint' is not used: nothing is connected to 'control_net'")
    if tools.control_net is None and request.carriage.backdrop == BACKDROPS[0]:
        warn(
            "the model sees the object on black and has no ControlNet that outlines it; without "
            "one, 'backdrop' source pixels and 'noise_strength' 0.3 to 0.5 are better"
        )
    numbers = ", ".join(str(frame) for frame, _ in places)
    say(f"key frames {numbers}; together they show {coverage:.0%} of the layer")
    keys = edit_key_frames(tools, frames, layer, places, request, hints)
    return _assembled(keys, frames, layer, numbers)


def _assembled(keys: Sequence[KeyFrame], frames: Tensor, layer: Layer, numbers: str) -> Edited:
    size = (frames.shape[2], frames.shape[3])
    image = torch.stack([key.box.paste(key.picture, size) for key in keys])
    mask = torch.stack([k.box.paste(k.box.cut(layer.alpha[k.frame]), size) for k in keys])
    source = torch.stack([frames[key.frame] for key in keys])
    shown = torch.lerp(source, image, mask.to(source))
    return Edited(image.movedim(1, -1), mask[:, 0], numbers, shown.movedim(1, -1))


def edit_key_frames(
    tools: Tools,
    frames: Tensor,
    layer: Layer,
    places: Sequence[tuple[int, Box]],
    request: EditRequest,
    hints: Tensor | None = None,
) -> list[KeyFrame]:
    """Edits key frames in turn. What is finished is kept in the cache: after a cancel, the next run
    goes on where this one stopped.

    Args:
        frames: [F,3,H,W] 0..1.
        places: (frame, box) of every key frame, in the order of editing.
        hints: [F,3,H,W] pictures for the ControlNet; None: outlines of the object (Canny).

    Raises: ValueError for settings that cannot work.
    """
    with named(NODE):
        run = _Run(tools, layer, request, hints, len(places))
    return list(edit_in_turn(frames, layer, places, request.carriage.on(layer), run.make))


class _Run:
    """One run of the node: its progress, and the keys of what it has made."""

    def __init__(
        self, tools: Tools, layer: Layer, request: EditRequest, hints: Tensor | None, count: int
    ) -> None:
        self.tools, self.layer, self.request, self.hints = tools, layer, request, hints
        self.schedules = schedules(tools.model, request.sampling)
        self.steps = len(self.schedules[0].sigmas) - 1
        self.bar, self.count = comfy.utils.ProgressBar(self.steps * count), count
        self.key = self._settings_key()

    def make(self, task: Task) -> Tensor:
        """One edited picture [3,h,w], drawn now or found in the cache."""
        comfy.model_management.throw_exception_if_processing_interrupted()
        hint = None if self.hints is None else task.box.cut(self.hints[task.frame])
        self.key = self._task_key(task, hint)
        path = (
            None if self.key is None else cache_folder() / "key_frames" / f"{self.key}.safetensors"
        )
        found = _from_cache(path)
        picture = self._draw(task, hint) if found is None else found
        if found is None and path is not None:
            _to_cache(path, picture)
        word = "edited" if found is None else "finished before, from the cache"
        say(f"key frame {task.number + 1} of {self.count} (frame {task.frame}): {word}")
        alpha = task.box.cut(self.layer.alpha[task.frame]).to(picture)
        done = self.steps * (task.number + 1)
        self.bar.update_absolute(done, preview=_preview(picture * alpha))
        return picture

    def _draw(self, task: Task, hint: Tensor | None) -> Tensor:
        size = drawing_size(task.box, self.request.sampling.resolution)
        start, schedule = self._start(task)
        shape = latent_shape(self.tools.model, size)
        seed = self.request.sampling.edit_seed + task.number
        noise = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
        clean = None if start is None else encode(self.tools, resized(start, size))
        outline = outlines(resized(task.crop, size)) if hint is None else resized(hint, size)
        control = outline if self.tools.control_net is not None else None
        done = self.steps * task.number
        latents = sample(
            self.tools,
            schedule,
            schedule.start(clean, noise),
            self.request.sampling,
            control,
            lambda step: self.bar.update_absolute(done + step),
        )
        return resized(decode(self.tools, latents), (task.box.height, task.box.width))

    def _start(self, task: Task) -> tuple[Tensor | None, Schedule]:
        """The picture to start from, and the way from there."""
        from_noise, from_source, from_earlier = self.schedules
        if task.start is not None:
            return task.start, from_earlier
        first = self.request.sampling.first
        if first == "noise" or (first == "automatic" and self.tools.control_net is not None):
            return None, from_noise
        return task.crop, from_source

    def _settings_key(self) -> str | None:
        tools = self.tools
        parts = (
            model_key(tools.model, tools.positive, tools.negative),
            vae_key(tools.vae),
            control_key(tools.control_net),
        )
        if None in parts:
            say("finished key frames are not cached: a model here has no content hash")
            return None
        # which frames, and what part of them, is in the key of every task
        request = replace(self.request, choice=Choice(), cropping=Cropping())
        size = self.request.carriage.on(self.layer).size
        return digest(*(part or "" for part in parts), repr(request), repr(size))

    def _task_key(self, task: Task, hint: Tensor | None) -> str | None:
        """Of everything this key frame depends on, the ones before it included."""
        if self.key is None:
            return None
        uv = task.box.cut(self.layer.uv[task.frame].movedim(-1, 0))
        alpha = task.box.cut(self.layer.alpha[task.frame])
        parts = [task.crop, uv, alpha, *([] if hint is None else [hint])]
        return digest(self.key, *parts)


def _preview(picture: Tensor) -> tuple[str, Image.Image, int]:
    pixels = (picture.movedim(0, -1).clamp(0, 1) * 255).round().byte().cpu().numpy()
    return "JPEG", Image.fromarray(np.ascontiguousarray(pixels)), PREVIEW


def _from_cache(path: Path | None) -> Tensor | None:
    """The picture in the cache; an unreadable file there counts as absent."""
    if path is None or not path.is_file():
        return None
    try:
        found = storage.load(path, KIND)[0]["picture"]
    except (ValueError, KeyError):
        storage.discard(path)
        return None
    mark_used(path)
    return found


def _to_cache(path: Path, picture: Tensor) -> None:
    try:
        storage.save(path, KIND, {"picture": picture}, {})
        trim_cache(keep=path)
    except ValueError as error:
        say(f"the key frame is not cached: {error}")
