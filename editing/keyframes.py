"""Which frames TokenFlow edits jointly, and which of them each frame is built from."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

RULES = ("published code", "paper")
DRAWS = ("random per step", "fixed")


@dataclass(frozen=True)
class StepPlan:
    """Who is edited and who is built from whom, at one step."""

    key_frames: Tensor
    """[K] int64 frame numbers."""
    neighbours: Tensor
    """[F,R] int64 indices into key_frames."""
    weights: Tensor
    """[F,R] float32."""


def draw_key_frames(
    frames: int, interval: int, steps: int, seed: int, fixed: bool = False
) -> Tensor:
    """One key frame per interval, drawn again at every step (TokenFlow section 4.2).

    A generator with `seed` draws one integer per interval and step, as the published code
    does; a shorter last interval takes its draw modulo its length, so that no frame is
    dropped. `fixed` takes the middle frame of every interval at all steps.

    Returns: [steps,K] int64, ascending, K = ceil(frames / interval).
    """
    starts = torch.arange(0, frames, interval)
    lengths = torch.clamp(frames - starts, max=interval)
    if fixed:
        return (starts + lengths // 2).expand(steps, -1).contiguous()
    generator = torch.Generator().manual_seed(seed)
    size = (len(starts),)
    draws = [torch.randint(interval, size, generator=generator) for _ in range(steps)]
    return torch.stack([starts + draw % lengths for draw in draws])


def only_frames(node: str, knob: str, given: Tensor, frames: int, chosen: Tensor) -> Tensor:
    """What was given for a clip, for some of its frames.

    Args:
        given: [F,...] pictures or masks, one per frame; one for all stays as it is.
        frames: F.
        chosen: [K] int64 frame numbers.

    Raises: ValueError for another number of pictures or masks.
    """
    given = given[None] if given.ndim == 2 else given
    if len(given) not in (1, frames):
        raise ValueError(
            f"{node}: expected '{knob}' to hold {frames} frames (the inversion's) or 1, got "
            f"{len(given)}. Connect what belongs to the frames that went into Invert Video."
        )
    return given if len(given) == 1 else given[chosen.to(given.device)]


def neighbours_and_weights(
    key_frames: Tensor, frames: int, interval: int, rule: str
) -> tuple[Tensor, Tensor]:
    """The two key frames that every frame is built from, and their shares.

    Args:
        key_frames: [K] ascending, one per interval.
        frames: F.
        interval: frames per interval.
        rule: "published code" takes the frame's own interval and the previous one, with
            weights by the distance to the intervals' nominal centres; "paper" takes the
            closest past and future key frame with weights by the real distances
            (section 4.2, equation 5: w = sigmoid(d- / (d+ + d-)) on the future one).

    Returns: neighbours [F,2] int64 (indices into key_frames), weights [F,2] float32.
    Raises: ValueError for an unknown rule.
    """
    if rule == "published code":
        return _published_rule(frames, interval)
    if rule == "paper":
        return _paper_rule(key_frames, frames)
    raise ValueError(
        f"TokenFlow: expected 'rule' to be one of {', '.join(RULES)}; got {rule!r}. "
        "Choose one of these in the node's rule list."
    )


def _published_rule(frames: int, interval: int) -> tuple[Tensor, Tensor]:
    frame = torch.arange(frames)
    current = frame // interval
    previous = (current - 1).clamp(min=0)
    offset = frame % interval - interval // 2
    to_current, to_previous = offset.abs().float(), (offset + interval).float()
    share = torch.sigmoid(to_previous / (to_current + to_previous))
    share = torch.where(current == 0, torch.ones_like(share), share)
    return torch.stack([current, previous], 1), torch.stack([share, 1 - share], 1)


def _paper_rule(key_frames: Tensor, frames: int) -> tuple[Tensor, Tensor]:
    frame = torch.arange(frames)
    future = torch.searchsorted(key_frames, frame)
    past = torch.searchsorted(key_frames, frame, right=True) - 1
    last = len(key_frames) - 1
    only_one = (past < 0) | (future > last) | (past == future)
    past, future = past.clamp(min=0), future.clamp(max=last)
    past = torch.where(only_one, torch.minimum(past, future), past)
    future = torch.where(only_one, past, future)
    to_past = (frame - key_frames[past]).abs().float()
    to_future = (frame - key_frames[future]).abs().float()
    share = torch.sigmoid(to_past / (to_past + to_future).clamp(min=1))
    share = torch.where(only_one, torch.ones_like(share), share)
    return torch.stack([future, past], 1), torch.stack([share, 1 - share], 1)


def joint_groups(key_frames: int, most: int) -> list[tuple[int, int]]:
    """Runs of key frames that attend together, each at most `most` long (0: one run of all).

    Neighbouring runs overlap by half, so that every pair of consecutive key frames lies
    inside one run.

    Returns: [start, end) pairs.
    """
    if most <= 0 or key_frames <= most:
        return [(0, key_frames)]
    most = max(most, 2)
    stride = max(most - max(most // 2, 1), 1)
    starts = [*range(0, key_frames - most, stride), key_frames - most]
    return [(start, start + most) for start in starts]


def assign_groups(neighbours: Tensor, groups: list[tuple[int, int]]) -> list[Tensor]:
    """Which frames each run of key frames serves: the run in which both lie most centrally.

    Args:
        neighbours: [F,R] indices of key frames.
        groups: as `joint_groups` returns them.

    Returns: one [f] int64 tensor of frames per group; together every frame once.
    """
    low, high = neighbours.min(1).values, neighbours.max(1).values
    margins = [torch.minimum(low - start, end - 1 - high) for start, end in groups]
    chosen = torch.stack(margins).argmax(0)
    return [torch.nonzero(chosen == number).flatten() for number in range(len(groups))]
