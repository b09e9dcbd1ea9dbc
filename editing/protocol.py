"""What a method is (Edit), where it acts (Site), and one inner call of the UNet (Pass).

Letters: N conditioning branches, F frames of the clip, f frames of one pass, L tokens,
C channels, K key frames, h w latent size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor

Attention = Callable[[Tensor, Tensor, Tensor, int], Tensor]
"""(q [B,L,C], k [B,M,C], v [B,M,C], heads) -> [B,L,C]: the attention the host has chosen."""


class Site(NamedTuple):
    """One self-attention of the UNet, in the order in which the UNet runs them."""

    block: str
    """"input", "middle" or "output"."""
    number: int
    """Index of the block within its kind."""
    transformer: int
    """Index of the transformer block inside its attention module (SDXL has up to ten)."""

    def __str__(self) -> str:
        return f"{self.block}.{self.number}.{self.transformer}"


def decoder_sites(sites: Sequence[Site]) -> list[Site]:
    """All self-attentions of the decoder (on SD1.5: output blocks 3 to 11)."""
    return [site for site in sites if site.block == "output"]


def injection_sites(sites: Sequence[Site]) -> list[Site]:
    """Every decoder self-attention except the first module's (on SD1.5: output 4 to 11)."""
    decoder = decoder_sites(sites)
    return [site for site in decoder if site.number != decoder[0].number]


def feature_block(sites: Sequence[Site]) -> int | None:
    """Output block whose ResBlock carries the conv features (on SD1.5: output_blocks.4.0)."""
    numbers = sorted({site.number for site in decoder_sites(sites)})
    return numbers[1] if len(numbers) > 1 else None


class Pass:
    """One inner call of the UNet on some frames. The base class changes nothing.

    A subclass says at which sites it owns the self-attention, sees the tokens there and
    answers with tokens. All tensors are split by branch and frame.
    """

    source = False
    """True: runs on the inversion's own latents and conditioning, one branch, no control."""

    def __init__(self, frames: Tensor) -> None:
        self.frames = frames
        """[f] int64, which frames of the clip."""
        self.grids: dict[Site, tuple[int, int]] = {}
        """Token grid (h, w) of every owned site; the host fills it in."""

    def owns(self, site: Site) -> bool:
        """Whether this pass answers the self-attention of this site itself."""
        return False

    def projects(self, site: Site) -> tuple[bool, bool]:
        """Whether (q and k, v) are needed at a site that this pass owns."""
        return True, True

    def see_tokens(self, site: Site, tokens: Tensor) -> None:
        """Receives norm1's output [N,f,L,C] at every owned site, before q, k and v."""

    def attend(
        self, site: Site, q: Tensor, k: Tensor, v: Tensor, heads: int, attention: Attention
    ) -> Tensor:
        """q, k, v [N,f,L,C] ([N,f,0,C] where not projected) -> tokens [N,f,L,C] before to_out."""
        raise RuntimeError(f"{type(self).__name__} owns {site} but does not answer it")

    def wants_features(self) -> bool:
        """Whether `features` must be called in this pass."""
        return False

    def features(self, h: Tensor) -> Tensor:
        """Receives the conv features [N,f,C,h,w] of the feature block and may replace them."""
        return h


class Call(Protocol):
    """One evaluation of the model by the sampler, as the host offers it to a method."""

    sigma: float
    branches: int
    frames: int
    sites: list[Site]
    x: Tensor
    """[F,C,h,w] the sampler's latents, sigma space, where the model computes."""

    def ran_out_of_memory(self, error: BaseException) -> bool:
        """Whether the error says that a pass was too large, and a smaller one may be tried."""
        ...

    def run(self, pass_: Pass) -> Tensor:
        """One inner UNet call -> denoised latents [N,f,C,h,w] (N = 1 for a source pass)."""
        ...

    def frames_that_fit(self, wanted: int) -> int:
        """Frames per pass: `wanted` (0 = all), or fewer after memory ran out."""
        ...

    def make_room(self, frames: int) -> None:
        """Called after memory ran out: from now on passes have `frames` frames."""
        ...


@dataclass(frozen=True)
class Edit:
    """Base of all methods: frozen settings plus read-only inputs."""

    @property
    def name(self) -> str:
        """The display name of the node that made this edit."""
        raise RuntimeError("an edit must name its node")

    @property
    def owns_attention(self) -> bool:
        """Whether this edit decides what the self-attentions return (at most one may)."""
        return False

    def check_clip(self, frames: int, size: tuple[int, ...], steps: int) -> None:
        """Called before sampling `frames` latents of `size` (C,h,w) in `steps` steps.

        Raises: ValueError where the settings do not fit such a clip.
        """


def require_several(node: str, frames: int) -> None:
    """Raises: ValueError for a single frame, in an edit that lets frames look at each other."""
    if frames < 2:
        raise ValueError(
            f"{node}: expected at least 2 frames, got {frames}: a single frame has no other to "
            "look at. Load more frames (ImageFromBatch gives one where 'batch_index' lies behind "
            "the clip's end), or remove this node."
        )


@dataclass
class StepSource:
    """What one step needs of the source video, and nothing else. Lives one step long.

    Empty parts were not asked for. Sizes are for the latent grid of each site.
    """

    index: dict[Site, Tensor] = field(default_factory=dict)
    """[F,R,L] int16 (int32 where L > 32767): token of the neighbouring key frame that matches."""
    similarity: dict[Site, Tensor] = field(default_factory=dict)
    """[F,R,L] float32 cosine similarity of that match (only when asked for)."""
    queries: dict[Site, Tensor] = field(default_factory=dict)
    """[K or F,L,C] source queries at the injection sites."""
    keys: dict[Site, Tensor] = field(default_factory=dict)
    """[K or F,L,C] source keys at the injection sites."""
    features: Tensor | None = None
    """[F,C,h,w] source conv features of every frame."""
    key_features: Tensor | None = None
    """[K,C,h,w] source conv features of the key frames, from their own pass."""


@contextmanager
def all_or_nothing(call: Call, message: str) -> Iterator[None]:
    """Around a pass that no one may cut: out of memory becomes a ValueError with this message."""
    try:
        yield
    except RuntimeError as error:
        # Latent Guidance's gradient needs the room itself, and says so
        if torch.is_grad_enabled() or not call.ran_out_of_memory(error):
            raise
        raise ValueError(message) from error


P = TypeVar("P", bound="Pass")


def run_in_parts(
    call: Call,
    frames: Tensor,
    frames_per_pass: int,
    make: Callable[[Tensor], P],
    finished: Callable[[P], None] | None = None,
) -> tuple[list[P], Tensor]:
    """Runs passes over runs of frames; halves them when the device runs out of memory.

    Args:
        frames: [F] frame numbers, at least one.
        frames_per_pass: 0 = all in one pass. Changes memory, never the result.
        make: builds the pass of one run of frames.
        finished: called with every pass that went through, before the next one is built.

    Returns: the passes, and their results joined along frames [N,F,C,h,w].
    """
    done: list[P] = []
    results: list[Tensor] = []
    rest = frames
    while len(rest):
        size = call.frames_that_fit(frames_per_pass) or len(rest)
        pass_ = make(rest[:size])
        try:
            results.append(call.run(pass_))
        except RuntimeError as error:
            if len(pass_.frames) == 1 or not call.ran_out_of_memory(error):
                raise
            call.make_room(len(pass_.frames) // 2)
            continue
        done.append(pass_)
        if finished is not None:
            finished(pass_)
        rest = rest[size:]
    return done, torch.cat(results, 1)
