"""Temporal UNets by name: files of our own, and folders of the published training script."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from ..temporal_unet.payload import TemporalUNet
from ..temporal_unet.plan import Architecture
from ..temporal_unet.published_files import NAMES, load_published
from .files import file_stamp, load_payload
from .model import weights_fingerprint
from .notices import say
from .paths import files_folder, input_folder, list_files

FILES = "temporal_unets"
NODE = "Load Temporal UNet"
UNKNOWN_STEPS = -1
"""Of a network that another program trained."""


def list_temporal() -> list[str]:
    """Saved files, newest first, then folders of the published training script."""
    return [*list_files(FILES), *sorted(_folders())]


def temporal_stamp(name: str) -> str:
    """Changes when the file or the folder's weights do; "absent" where there is nothing."""
    folder = _folders().get(name)
    if folder is None:
        return file_stamp(FILES, name, NODE)
    found = [path.stat() for path in folder.rglob("diffusion_pytorch_model.*")]
    return "/".join(f"{entry.st_mtime_ns}/{entry.st_size}" for entry in found)


def load_temporal(name: str, layout: str) -> TemporalUNet:
    """A temporal UNet by name.

    Args:
        layout: of the features in a published folder (see LAYOUTS); our own files know theirs.

    Raises: ValueError when it is missing, corrupt, foreign or untrained.
    """
    folder = _folders().get(name)
    if folder is None:
        return load_payload(TemporalUNet, FILES, name, NODE)
    try:
        found = load_published(folder)
    except ValueError as error:
        raise ValueError(f"{NODE}: {error}") from error
    say(f"{name}: a published TCVE network; its own frame count is unknown, clips run in one piece")
    return TemporalUNet(
        # copies: what is read from safetensors keeps the file mapped, which Windows does not like
        weights={k: v.to(torch.float16, copy=True) for k, v in found.weights.items()},
        plan=found.plan,
        architecture=Architecture("published", layout),
        frames=0,
        adds_to_queries=False,
        steps=UNKNOWN_STEPS,
        fingerprint=weights_fingerprint(found.probes),
    )


def _folders() -> dict[str, Path]:
    """Name -> folder in output/reweave or input/reweave that holds a diffusers-format UNet."""
    found: dict[str, Path] = {}
    for root in (input_folder(FILES), files_folder(FILES)):
        for folder in sorted(root.glob("*/")):
            places = [place / name for place in (folder / "unet", folder) for name in NAMES]
            if any(place.is_file() for place in places):
                found[folder.name] = folder
    return found


def prompt_text(graph: dict[str, Any] | None, node: str | None, socket: str) -> str:
    """The text behind a CONDITIONING input, from the queued graph; empty where there is none.

    Follows links upwards from `socket` of `node` to the first input called text. A node with an
    input of the socket's own name (ControlNet Apply) passes it on beside others: only that one is
    followed there.
    """
    entry = (graph or {}).get(node or "", {})
    waiting, seen = [entry.get("inputs", {}).get(socket)], set()
    while waiting:
        link = waiting.pop(0)
        if not is_link(link) or link[0] in seen:
            continue
        seen.add(link[0])
        inputs = (graph or {}).get(link[0], {}).get("inputs", {})
        if isinstance(inputs.get("text"), str):
            return inputs["text"]
        own = inputs.get(socket)
        waiting += [own] if is_link(own) else inputs.values()
    return ""


def is_link(value: Any) -> bool:
    """Whether an input of a queued graph comes from another node."""
    return isinstance(value, list) and len(value) == 2
