"""The bundled real footage: frames, training crops, captions and the frames held out for
measuring."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from .styles import STYLES, apply_style

CLIP = Path(__file__).resolve().parent / "clips" / "big_buck_bunny.mp4"
HOLD_OUT = 8
SUBJECTS = ("a white rabbit", "a grey rabbit", "a big rabbit", "a rabbit")
PLACES = ("in a green meadow", "on the green grass", "in front of a cave", "")
STYLE_NAMES = tuple(STYLES)


@lru_cache(maxsize=2)
def frames(path: Path = CLIP) -> Tensor:
    """Every frame of a clip, uint8 [F, 3, H, W] in RGB; ValueError when the file is missing or
    holds no picture."""
    import av

    if not path.is_file():
        raise ValueError(f"footage not found: {path} (expected the bundled clip or a video file)")
    with av.open(str(path)) as container:
        pictures = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    if not pictures:
        raise ValueError(f"no video frames in {path}")
    return torch.stack([torch.from_numpy(picture) for picture in pictures]).movedim(-1, 1)


def split(count: int) -> tuple[list[int], list[int]]:
    """Frame numbers for training and, every 8th, for measuring."""
    held = [i for i in range(count) if i % HOLD_OUT == HOLD_OUT - 1]
    return [i for i in range(count) if i % HOLD_OUT != HOLD_OUT - 1], held


def resized(pictures: Tensor, height: int, width: int, shift: Tensor | None = None) -> Tensor:
    """uint8 [N, 3, H0, W0] cut to the wanted aspect and scaled: float32 [N, 3, height, width] in
    0..1.

    shift [N] in 0..1 moves the cut from one end to the other; 0.5 (the middle) when missing.
    """
    full_height, full_width = pictures.shape[-2:]
    scale = min(full_height / height, full_width / width)
    cut_height, cut_width = round(height * scale), round(width * scale)
    places = torch.full((len(pictures),), 0.5) if shift is None else shift
    rows = []
    for picture, place in zip(pictures, places.tolist(), strict=True):
        top = round((full_height - cut_height) * place)
        left = round((full_width - cut_width) * place)
        rows.append(picture[:, top : top + cut_height, left : left + cut_width])
    return F.interpolate(torch.stack(rows).float() / 255, (height, width), mode="area")


def training_crops(
    n: int, height: int, width: int, generator: torch.Generator
) -> tuple[Tensor, list[str]]:
    """n training frames [n, 3, height, width], cut at random places and mirrored half the time,
    with captions.

    Half of the pictures keep the clip's own look, the others wear one of the styles.
    """
    clip = frames()
    train = torch.tensor(split(len(clip))[0])
    chosen = train[torch.randint(len(train), (n,), generator=generator)]
    pictures = resized(clip[chosen], height, width, torch.rand(n, generator=generator))
    mirrored = torch.rand(n, generator=generator) < 0.5
    pictures[mirrored] = pictures[mirrored].flip(-1)
    styles = torch.randint(1, len(STYLE_NAMES), (n,), generator=generator)
    styles[torch.rand(n, generator=generator) < 0.5] = 0
    for index in styles.unique().tolist():
        rows = styles == index
        pictures[rows] = apply_style(pictures[rows], STYLE_NAMES[index])
    return pictures, [random_caption(STYLE_NAMES[i], generator) for i in styles.tolist()]


def random_caption(style: str, generator: torch.Generator) -> str:
    """A caption of the footage in a style; 10 % are empty."""
    if torch.rand((), generator=generator) < 0.1:
        return ""
    subject, place = (int(torch.randint(4, (), generator=generator)) for _ in range(2))
    return caption(style, subject, place)


def caption(style: str = "none", subject: int = 0, place: int = 0) -> str:
    """For example 'a white rabbit in a green meadow, watercolor'."""
    text = f"{SUBJECTS[subject]} {PLACES[place]}".strip()
    return text if style == "none" else f"{text}, {style}"
