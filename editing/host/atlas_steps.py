"""Propagate Key Frame and Aggregate Key Frames: progress, device and what is said on the node."""

from __future__ import annotations

import torch
from torch import Tensor

from ..atlas.aggregation import METHODS, training_bytes
from ..atlas.requests import Carriage, GivenKeyFrames, check_carriage, named, read_key_frames
from ..atlas.steps import (
    UNSEEN,
    Aggregated,
    Propagated,
    Training,
    aggregate_key_frames,
    propagate,
)
from ..atlas.types import Atlas
from ..checks import check_choice, check_range
from .notices import say
from .progress import progress
from .training_device import training_device

PROPAGATE = "Propagate Key Frame"
AGGREGATE = "Aggregate Key Frames"


def propagate_key_frame(
    atlas: Atlas, given: GivenKeyFrames, target: int, how: Carriage, source: Tensor | None
) -> Propagated:
    """What Propagate Key Frame does; see `steps.propagate`.

    Raises: ValueError for key frames that do not fit the clip, or show nothing that the target
        frame shows.
    """
    check_carriage(PROPAGATE, how)
    with named(PROPAGATE):
        layer, keys = read_key_frames(atlas, given)
        found = propagate(atlas, layer, keys, target, how.on(layer), source)
    say(f"{found.share:.0%} of the object in frame {target} is known")
    return found


def aggregate_clip(
    atlas: Atlas, given: GivenKeyFrames, how: Carriage, method: str, unseen: str, training: Training
) -> Aggregated:
    """What Aggregate Key Frames does; see `steps.aggregate_key_frames`.

    Raises: ValueError for key frames that do not fit the clip.
    """
    check_carriage(AGGREGATE, how)
    check_choice(AGGREGATE, "method", method, METHODS)
    check_choice(AGGREGATE, "unseen", unseen, UNSEEN)
    check_range(AGGREGATE, "iterations", training.iterations, 1)
    with named(AGGREGATE):
        layer, keys = read_key_frames(atlas, given)
    if method == "network":
        height, width = how.on(layer).size
        gigabytes = training_bytes((height, width)) / 1e9
        say(f"training on {width}x{height} texels takes about {gigabytes:.2g} GB")
    tick = progress(training.iterations)

    def step(number: int, loss: float) -> None:
        tick(number + 1)
        if number % 25 == 0:
            say(f"iteration {number + 1} of {training.iterations}: loss {loss:.4f}")

    device = training_device() if method == "network" else torch.device("cpu")
    found = aggregate_key_frames(
        layer,
        keys,
        how.on(layer),
        method,
        unseen,
        Training(training.iterations, training.training_seed, device),
        step,
    )
    shown = float((found.coverage > 0).float().mean())
    say(f"{len(keys)} key frames; {shown:.0%} of the texture is edited")
    return found
