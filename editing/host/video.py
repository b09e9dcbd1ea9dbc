"""Clips as mp4 files that carry the workflow, by ComfyUI's own video output."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import comfy.model_management
import folder_paths
import torch.nn.functional as F
from comfy.cli_args import args
from comfy_api.v0_0_2 import InputImpl, Types
from torch import Tensor


def workflow_metadata(hidden: Any) -> dict[str, Any] | None:
    """What ComfyUI reads a workflow back from; None where the user asked for files without."""
    if args.disable_metadata or hidden is None:
        return None
    found = dict(hidden.extra_pnginfo or {})
    if hidden.prompt is not None:
        found["prompt"] = hidden.prompt
    return found or None


def even(frames: Tensor) -> Tensor:
    """Frames [F,H,W,3] whose sides are even, as h264 needs: the last row or column twice."""
    height, width = frames.shape[1:3]
    if height % 2 == 0 and width % 2 == 0:
        return frames[..., :3]
    moved = frames[..., :3].movedim(-1, 1)
    return F.pad(moved, (0, width % 2, 0, height % 2), mode="replicate").movedim(1, -1)


def write_clips(
    clips: list[Tensor], fps: float, prefix: str, keep: bool, metadata: dict[str, Any] | None
) -> list[dict[str, str]]:
    """Writes every clip as one mp4 (h264), under a common number.

    Args:
        clips: [F,H,W,3] each, in 0..1.
        prefix: folder and name below ComfyUI's output folder, or below temp without `keep`.

    Returns: {filename, subfolder, type} per clip, as ComfyUI's /view wants them.
    Raises: ValueError for a prefix that leads out of that folder, or when nothing can be written.
    """
    check_prefix(prefix)
    root = folder_paths.get_output_directory() if keep else folder_paths.get_temp_directory()
    height, width = clips[0].shape[1:3]
    folder, name, counter, subfolder, _ = folder_paths.get_save_image_path(
        prefix, root, width, height
    )
    found = []
    for letter, clip in zip("abcdefgh", clips, strict=False):
        comfy.model_management.throw_exception_if_processing_interrupted()
        file = f"{name}_{counter:05}_{letter}.mp4"
        _write(Path(folder) / file, even(clip), fps, metadata)
        kind = "output" if keep else "temp"
        found.append({"filename": file, "subfolder": subfolder, "type": kind})
    return found


def check_prefix(prefix: str) -> None:
    """Raises: ValueError when a prefix names no file below ComfyUI's own folder, on any system: a
    workflow travels between them."""
    places = (PurePosixPath(prefix), PureWindowsPath(prefix))  # the second knows C:x and \x too
    if any(not place.name or place.anchor or ".." in place.parts for place in places):
        raise ValueError(
            f"Compare Videos: expected 'filename_prefix' to be a name, with folders if you like "
            f"(reweave/compare), got {prefix!r}. Leave out '..' and drives."
        )


def _write(path: Path, frames: Tensor, fps: float, metadata: dict[str, Any] | None) -> None:
    """Under a temporary name first, so that nothing half-written stays."""
    video = InputImpl.VideoFromComponents(
        Types.VideoComponents(images=frames, audio=None, frame_rate=Fraction(fps))
    )
    temporary = path.with_name(f".{path.stem}.part.mp4")
    try:
        video.save_to(str(temporary), metadata=metadata)
        temporary.replace(path)
    except OSError as error:
        raise ValueError(
            f"Compare Videos: {path.name} was not written ({error}). Free some space or choose "
            "another 'filename_prefix', then queue again."
        ) from error
    finally:
        temporary.unlink(missing_ok=True)
