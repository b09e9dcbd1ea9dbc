"""What travels between nodes: frozen dataclasses that say shape, range and space."""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..kernels.schedule import sigma_space_from_vp
from . import storage
from .protocol import Site

SIGMA_TOLERANCE = 1e-3
"""Relative: a sigma closer than this to one of the trajectory is that one."""


@dataclass(frozen=True)
class Fingerprint:
    """What a model was when something was computed with it."""

    base: str = ""
    """Hash of a few base weights; empty when they could not be read."""
    patches: str = ""
    """Hash of the LoRA and other weight patches; empty when there are none."""
    dtype: str = field(default="", repr=False)
    """Precision in which the base weights were loaded; empty in older files, and outside of repr,
    of which the keys of caches and fields are made."""

    HASHED_EXACTLY = ("float16", "float32")
    """`base` is made of float16: the same checkpoint has the same hash in both."""

    def other_base(self, then: Fingerprint) -> bool:
        """Whether the base weights differ, or are the same in a precision that rounds them."""
        return bool(self.base and then.base and self.base != then.base)

    def other_rounding(self, then: Fingerprint) -> bool:
        """Whether one was loaded in a precision in which the same checkpoint hashes otherwise."""
        known = bool(self.dtype and then.dtype and self.dtype != then.dtype)
        return known and not {self.dtype, then.dtype} <= set(self.HASHED_EXACTLY)


@dataclass(frozen=True)
class Position:
    """Where a sigma lies on a trajectory: between `index` and `index + 1`."""

    index: int
    fraction: float = 0.0
    """0 = exactly at `index`; otherwise the way towards the next, less noisy, entry."""

    @property
    def exact(self) -> bool:
        return self.fraction == 0.0


def digest(*parts: Tensor | str) -> str:
    """Short content hash of tensors and texts."""
    value = hashlib.sha256()
    for part in parts:
        if isinstance(part, Tensor):
            data = part.detach().cpu().contiguous()
            value.update(f"{data.dtype}{tuple(data.shape)}".encode())
            value.update(data.view(torch.uint8).numpy().tobytes() if data.numel() else b"")
        else:
            value.update(part.encode())
    return value.hexdigest()[:32]


@dataclass(frozen=True)
class Inversion:
    """A clip's way into noise: its latents at every sigma of an editing schedule."""

    latents: Tensor
    """[S,F,C,h,w] variance-preserving space (std about 1), float32 or float16, CPU."""
    clean: Tensor
    """[F,C,h,w] the clip itself in the model's latent space (VAE latent times scale)."""
    sigmas: Tensor
    """[S] float32, descending, without 0."""
    timesteps: Tensor
    """[S] int64, the model's step numbers of `sigmas`."""
    context: Tensor
    """[1 or F,Lc,Cc] the conditioning that the clip was inverted with."""
    pooled: Tensor | None = None
    """[1 or F,D] pooled and size conditioning (SDXL), else None."""
    convention: str = "current"
    """How the noise was evaluated: "current", "target" or "published" (see inversion.py)."""
    final_sigma: float = 0.0
    """The level that `clean` was taken to be at; an edit's schedule ends here."""
    noisiest: Tensor | None = None
    """[F,C,h,w] VP latents at `noisiest_sigma` where the inversion went beyond sigmas[0]."""
    noisiest_sigma: float = 0.0
    latent_format: str = "SD15"
    """Name of ComfyUI's latent format class."""
    fingerprint: Fingerprint = field(default_factory=Fingerprint)

    KIND = "inversion"

    @property
    def frames(self) -> int:
        return self.latents.shape[1]

    @property
    def key(self) -> str:
        """Content key: equal for equal latents, schedule and conditioning."""
        parts = [self.latents[0], self.clean, self.sigmas, self.context]
        return digest(*parts, self.convention, self.latent_format, str(self.fingerprint))

    def locate(self, sigma: float) -> Position | None:
        """Position of `sigma` on the trajectory, None outside of it."""
        table = self.sigmas.double()
        nearest = int((table - sigma).abs().argmin())
        if abs(float(table[nearest]) - sigma) <= SIGMA_TOLERANCE * sigma:
            return Position(nearest)
        above = int((table > sigma).sum())
        if above == 0 or sigma <= 0:
            return None
        low = float(table[above]) if above < len(table) else self.final_sigma
        return Position(
            above - 1, (float(table[above - 1]) - sigma) / (float(table[above - 1]) - low)
        )

    def at(self, position: Position) -> Tensor:
        """[F,C,h,w] float32 VP latents there; linear in VP space between two entries."""
        here = self.latents[position.index].float()
        if position.exact:
            return here
        last = position.index + 1 == len(self.latents)
        after = self.clean.float() if last else self.latents[position.index + 1].float()
        return torch.lerp(here, after, position.fraction)

    def sigma_space(self, position: Position, sigma: float) -> Tensor:
        """[F,C,h,w] the same in ComfyUI's space: x = z0 + sigma * noise."""
        return sigma_space_from_vp(self.at(position), sigma)

    def save(self, path: Path) -> None:
        """Raises ValueError when the file cannot be written."""
        tensors = {name: value for name, value in vars(self).items() if isinstance(value, Tensor)}
        plain = {k: v for k, v in vars(self).items() if k not in tensors and v is not None}
        storage.save(path, self.KIND, tensors, plain | {"fingerprint": asdict(self.fingerprint)})

    @classmethod
    def load(cls, path: Path) -> Inversion:
        """Raises ValueError when the file is missing, corrupt or foreign."""
        tensors, plain = storage.load(path, cls.KIND)
        plain["fingerprint"] = Fingerprint(**plain.get("fingerprint", {}))
        try:
            return cls(**tensors, **plain)
        except TypeError as error:
            raise ValueError(
                f"Loading the inversion: {path.name} lacks parts of an inversion ({error}). "
                "Run Invert Video again and save it."
            ) from error


@dataclass(frozen=True)
class TokenStore:
    """Self-attention input tokens of the source, for viewing and custom matching."""

    tokens: dict[tuple[Site, int], Tensor]
    """(site, step) -> [F,L,C] float16, CPU. Step = index into the inversion's sigmas."""
    grids: dict[Site, tuple[int, int]]
    """site -> token grid (h, w)."""
    sigmas: Tensor
    """[S] of the inversion."""
    inversion_key: str = ""
    fingerprint: Fingerprint = field(default_factory=Fingerprint)

    @property
    def steps(self) -> list[int]:
        return sorted({step for _, step in self.tokens})


@dataclass(frozen=True)
class NNField:
    """For every frame: which token of which key frame its tokens came from."""

    key_frames: Tensor
    """[S,K] int64, the key frames of each step."""
    neighbours: Tensor
    """[S,F,R] int64 indices into the step's key frames."""
    weights: Tensor
    """[S,F,R] float32, sum to 1 over R."""
    index: dict[tuple[Site, int], Tensor]
    """(site, step) -> [F,R,L] int16 (int32 where L > 32767)."""
    grids: dict[Site, tuple[int, int]]
    """site -> token grid (h, w)."""
    similarity: dict[tuple[Site, int], Tensor] = field(default_factory=dict)
    """(site, step) -> [F,R,L] float16 cosine, where it was asked for."""
    origin: str = "propagated"
    """"propagated": exact, from the two-pass scheme; "clean": from unedited tokens."""
    rule: str = "published code"
    interval: int = 8
    keyframe_seed: int = 1
    inversion_key: str = ""
    fingerprint: Fingerprint = field(default_factory=Fingerprint)
    """Of the model whose tokens were matched; empty in older files."""

    KIND = "correspondence field"

    @property
    def frames(self) -> int:
        return self.neighbours.shape[1]

    @property
    def steps(self) -> list[int]:
        return sorted({step for _, step in self.index})

    def covers(self, steps: list[int], sites: list[Site]) -> bool:
        """Whether every asked (site, step) is there."""
        return all((site, step) in self.index for site in sites for step in steps)

    def save(self, path: Path) -> None:
        """Raises ValueError when the file cannot be written."""
        tensors = {n: getattr(self, n) for n in ("key_frames", "neighbours", "weights")}
        for name, table in (("index", self.index), ("similarity", self.similarity)):
            tensors |= {f"{name}/{site}/{step}": value for (site, step), value in table.items()}
        plain: dict[str, Any] = {
            n: getattr(self, n)
            for n in ("origin", "rule", "interval", "keyframe_seed", "inversion_key")
        }
        plain["fingerprint"] = asdict(self.fingerprint)
        plain["grids"] = {str(site): list(grid) for site, grid in self.grids.items()}
        storage.save(path, self.KIND, tensors, plain)

    @classmethod
    def load(cls, path: Path) -> NNField:
        """Raises ValueError when the file is missing, corrupt or foreign."""
        tensors, plain = storage.load(path, cls.KIND)
        tables: dict[str, dict[tuple[Site, int], Tensor]] = {"index": {}, "similarity": {}}
        for name in [n for n in tensors if "/" in n]:
            table, site, step = name.split("/")
            tables[table][parse_site(site), int(step)] = tensors.pop(name)
        grids = {parse_site(site): tuple(grid) for site, grid in plain.pop("grids").items()}
        plain["fingerprint"] = Fingerprint(**plain.get("fingerprint", {}))
        return cls(**tensors, **tables, grids=grids, **plain)


def parse_site(text: str) -> Site:
    """Inverse of str(site).

    Raises: ValueError when the text is not block.number.index.
    """
    parts = text.split(".")
    if len(parts) != 3 or parts[0] not in ("input", "middle", "output"):
        raise ValueError(
            f"Sites: expected names like output.4.0 (block.number.index), got {text!r}. "
            "Leave the field empty for the default."
        )
    return Site(parts[0], int(parts[1]), int(parts[2]))


def compact(index: Tensor) -> Tensor:
    """Token indices at rest: int16, or int32 where a frame has more than 32767 tokens."""
    return index.to(torch.int16 if int(index.max()) <= 32767 else torch.int32)


def some_frames(inversion: Inversion, frames: Tensor) -> Inversion:
    """The inversion of some of the clip's frames ([f] int64 frame numbers)."""

    def rows(value: Tensor | None) -> Tensor | None:
        return value if value is None or len(value) == 1 else value[frames]

    context = rows(inversion.context)
    assert context is not None
    return replace(
        inversion,
        latents=inversion.latents[:, frames],
        clean=inversion.clean[frames],
        noisiest=None if inversion.noisiest is None else inversion.noisiest[frames],
        context=context,
        pooled=rows(inversion.pooled),
    )
