"""What is edited: rendered clips with ground truth, or a folder of real ones with prompts."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from demo.edit_clips import CLIPS, DEFAULT, EditClip, Rendered, render
from demo.footage import frames as read_frames
from demo.footage import resized

PROMPTS = "prompts.json"
OUTLINE = "another shape"
"""The kind of an edit that changes the object's outline, whatever else it changes."""
MOST_FRAMES = 48
LAYERS = ("foreground", "background")


@dataclass(frozen=True)
class Case:
    """One clip and its edit, in words."""

    name: str
    kind: str
    source: str
    target: str
    rendered: EditClip | None = None
    file: Path | None = None
    mask: Path | None = None
    start: int = 0
    frames: int = MOST_FRAMES
    layers: tuple[str, ...] = ()
    """What the words change: foreground, background; () = the object where a mask is given."""

    @property
    def key(self) -> str:
        """Changes when anything about the case does; its kind says nothing about its pixels."""
        known = {"source": self.source, "target": self.target, "start": self.start}
        known["frames"] = self.frames
        if self.rendered is not None:
            known["clip"] = repr(self.rendered)
        elif self.layers:
            known["layers"] = self.layers
        for path in (self.file, self.mask):
            if path is not None:
                known[path.name] = hashlib.sha256(path.read_bytes()).hexdigest()
        text = json.dumps(known, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Footage:
    """A case as tensors."""

    frames: Tensor
    """[F,3,H,W] in 0..1."""
    mask: Tensor | None
    """[F,1,H,W] in 0..1."""
    truth: Rendered | None


def rendered_cases(full: bool, limit: int) -> list[Case]:
    """The first eight, or all; at most `limit` (0: no limit)."""
    chosen = CLIPS if full else CLIPS[:DEFAULT]
    chosen = chosen[:limit] if limit > 0 else chosen
    return [
        Case(
            c.name, kind_of(c), c.source.caption, c.target.caption, rendered=c, frames=c.frames,
            layers=layers_of(c),
        )
        for c in chosen
    ]  # fmt: skip


def kind_of(clip: EditClip) -> str:
    """The row of a clip in the table by kind."""
    return clip.kind if clip.source.shape == clip.target.shape else OUTLINE


def layers_of(clip: EditClip) -> tuple[str, ...]:
    """The layers whose words change; a style is of both."""
    words = dict(zip(LAYERS, (("colour", "texture", "shape"), ("back", "pattern")), strict=True))
    return tuple(
        layer
        for layer, names in words.items()
        if any(getattr(clip.source, n) != getattr(clip.target, n) for n in (*names, "style"))
    )


def real_cases(folder: Path, limit: int) -> list[Case]:
    """Those that the folder's prompts.json names:

        [{"file": "dog.mp4", "source": "a dog on grass", "target": "a fox on grass",
          "mask": "dog_mask.mp4", "layers": ["foreground"], "start": 0, "frames": 32}, ...]

    mask (a picture or a video, white = object), layers (what the words change, for methods with
    layers), start and frames may be left out.

    Raises: ValueError naming what is missing.
    """
    prompts = folder / PROMPTS
    if not prompts.is_file():
        raise ValueError(f"expected {PROMPTS} in {folder}: a list of file, source and target")
    cases = []
    for number, entry in enumerate(json.loads(prompts.read_text(encoding="utf-8"))):
        lacking = {"file", "source", "target"} - set(entry)
        if lacking:
            raise ValueError(f"{PROMPTS}, entry {number}: {', '.join(sorted(lacking))} missing")
        file, mask = (folder / entry[k] if k in entry else None for k in ("file", "mask"))
        absent = [path.name for path in (file, mask) if path and not path.is_file()]
        if absent or file is None:
            raise ValueError(f"{PROMPTS}, entry {number}: no file {', '.join(absent)} in {folder}")
        name = f"{file.stem}: {entry['target']}"
        start, frames = int(entry.get("start", 0)), int(entry.get("frames", MOST_FRAMES))
        texts, layers = (entry["source"], entry["target"]), tuple(entry.get("layers", ()))
        if set(layers) - set(LAYERS) or (mask is None and LAYERS[0] in layers):
            raise ValueError(
                f"{PROMPTS}, entry {number}: layers are {' and '.join(LAYERS)}, and the "
                f"{LAYERS[0]} needs a mask; got {list(layers)}"
            )
        cases.append(Case(name, "real", *texts, None, file, mask, start, frames, layers))
    return cases[:limit] if limit > 0 else cases


def load(case: Case, size: tuple[int, int]) -> Footage:
    """The case's frames, (height, width) pixels.

    Raises: ValueError when a clip or its mask has fewer frames than asked for.
    """
    if case.rendered is not None:
        truth = render(case.rendered, size[0])
        return Footage(truth.frames, truth.mask, truth)
    assert case.file is not None
    rows = slice(case.start, case.start + case.frames)
    clip = read_frames(case.file)[rows]
    if len(clip) < 2:
        raise ValueError(f"{case.file.name}: no two frames from frame {case.start} on")
    return Footage(resized(clip, *size), _mask(case, size, len(clip)), None)


def _mask(case: Case, size: tuple[int, int], count: int) -> Tensor | None:
    if case.mask is None:
        return None
    shown = resized(read_frames(case.mask)[case.start :][:count], *size).mean(1, keepdim=True)
    if len(shown) == 1:
        shown = shown.expand(count, -1, -1, -1)
    if len(shown) != count:
        raise ValueError(f"{case.mask.name}: {len(shown)} frames for {count} of the clip")
    return shown


def described(case: Case) -> dict[str, object]:
    """For the result file."""
    entry: dict[str, object] = {"kind": case.kind, "source": case.source, "target": case.target}
    if case.rendered is not None:
        words = asdict(case.rendered)
        entry.update({name: words[name] for name in ("seed", "frames", "passer", "speed")})
    return entry


def thumbnails(frames: Tensor, count: int, side: int) -> Tensor:
    """`count` frames [count,3,side,w] spread over a clip [F,3,H,W]."""
    chosen = frames[torch.linspace(0, len(frames) - 1, count).round().long()]
    width = max(1, round(frames.shape[-1] * side / frames.shape[-2]))
    return F.interpolate(chosen, (side, width), mode="area")
