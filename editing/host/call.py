"""One evaluation of the model, cut into inner calls on some frames.

ComfyUI's rows are [n_cond * F, ...], ours [N, F, ...]; this file owns that conversion.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import comfy.ldm.modules.attention as comfy_attention
import comfy.model_management
import torch
from torch import Tensor

from ..protocol import Pass, Site
from ..types import Inversion
from .memory import ran_out_of_memory
from .notices import say

Options = dict[str, Any]
WHOLE_CLIP = "reweave_temporal"
"""In the options while a temporal UNet acts: it looks along all frames, so no pass is cut."""
CLIP = "reweave_clip"
"""In the options of an inner call: all latents [F,C,h,w], sigma space, that its rows are from."""


class Room:
    """How many frames a pass may have, learned when memory runs out."""

    def __init__(self) -> None:
        self.most = 0
        """0 = no limit known."""


class ModelCall:
    """What the sampler asked for (see `protocol.Call`), with `run` for inner calls."""

    def __init__(
        self,
        executor: Callable[..., Tensor],
        x: Tensor,
        t: Tensor,
        c_concat: Tensor | None,
        context: Tensor | None,
        control: dict[str, list] | None,
        options: Options,
        extra: dict[str, Any],
        sites: list[Site],
        feature_layers: torch.nn.Module | None = None,
        inversion: Inversion | None = None,
        room: Room | None = None,
    ) -> None:
        self._room = room or Room()
        self._whole = WHOLE_CLIP in options
        self._executor, self._rows, self._t = executor, x, t
        self._c_concat, self._context, self._control = c_concat, context, control
        self._options, self._extra = options, extra
        self._feature_layers, self._inversion = feature_layers, inversion
        self._source_latents: Tensor | None = None
        self.sites = sites
        self.branches = len(options["cond_or_uncond"])
        self.frames = len(x) // self.branches
        self.sigma = float(options["sigmas"][0])
        self.x = x[: self.frames]

    def run(self, pass_: Pass) -> Tensor:
        """One inner UNet call -> denoised [N,f,C,h,w] (N = 1 for a source pass)."""
        branches = 1 if pass_.source else self.branches
        frames = pass_.frames.tolist()
        arguments, extra = self._source(frames) if pass_.source else self._edit(frames)
        options = self._inner_options(pass_, frames, branches)
        with feature_hook(self._feature_layers, pass_, branches):
            out = self._executor(*arguments, options, **extra)
        return out.unflatten(0, (branches, len(frames)))

    def ran_out_of_memory(self, error: BaseException) -> bool:
        """A pass that must not be cut cannot be halved either: the error goes to the artist."""
        return not self._whole and ran_out_of_memory(error)

    def frames_that_fit(self, wanted: int) -> int:
        """Frames per pass: `wanted` (0 = all), or fewer after memory ran out."""
        if self._whole:
            return 0
        most = self._room.most
        return most if most and (wanted == 0 or most < wanted) else wanted

    def make_room(self, frames: int) -> None:
        """From now on passes of this sampling call have at most `frames` frames."""
        comfy.model_management.soft_empty_cache()
        self._room.most = frames
        say(f"out of memory: going on with {frames} frames per pass")

    def _slice(self, value: Any, rows: Tensor) -> Any:
        whole = torch.is_tensor(value) and value.ndim > 0 and len(value) == len(self._rows)
        return value[rows.to(value.device)] if whole else value

    def _edit(self, frames: list[int]) -> tuple[list, dict[str, Any]]:
        rows = torch.tensor([c * self.frames + f for c in range(self.branches) for f in frames])
        control = None
        if self._control is not None:  # the UNet pops these lists: new ones for every call
            control = {k: [self._slice(v, rows) for v in vs] for k, vs in self._control.items()}
        plain = (self._rows, self._t, self._c_concat, self._context)
        extra = {k: self._slice(v, rows) for k, v in self._extra.items()}
        return [*(self._slice(v, rows) for v in plain), control], extra

    def _source(self, frames: list[int]) -> tuple[list, dict[str, Any]]:
        inversion = self._inversion
        if inversion is None:
            raise RuntimeError("a source pass without an inversion")
        if self._source_latents is None:
            position = inversion.locate(self.sigma)
            if position is None:
                raise RuntimeError("a source pass off the trajectory")
            self._source_latents = inversion.sigma_space(position, self.sigma).to(self._rows)
        rows = torch.tensor(frames)
        extra = {k: self._slice(v, rows) for k, v in self._extra.items()}
        if inversion.pooled is not None:
            extra["y"] = per_frame(inversion.pooled, frames).to(self._rows.device)
        context = per_frame(inversion.context, frames).to(self._rows)
        arguments = [
            self._source_latents[rows.to(self._rows.device)],
            self._slice(self._t, rows),
            self._slice(self._c_concat, rows),
            context,
            None,
        ]
        return arguments, extra

    def _inner_options(self, pass_: Pass, frames: list[int], branches: int) -> Options:
        options = dict(self._options)
        if pass_.source:
            options = {k: v for k, v in options.items() if k not in ("patches", "patches_replace")}
            options["cond_or_uncond"], options["uuids"] = [0], options["uuids"][:1]
        options["sigmas"] = options["sigmas"][: len(frames)]
        # the convention of AnimateDiff-Evolved, read by packs that hold per-frame embeds
        options["ad_params"] = {"sub_idxs": frames, "full_length": self.frames}
        options[CLIP] = self._source_latents if pass_.source else self.x
        owned = [site for site in self.sites if pass_.owns(site)]
        if owned:
            install(options, pass_, owned, branches)
        return options


def per_frame(value: Tensor, frames: list[int]) -> Tensor:
    """Rows of [1 or F,...] for some frames."""
    return value.expand(len(frames), *value.shape[1:]) if len(value) == 1 else value[frames]


def install(options: Options, pass_: Pass, owned: list[Site], branches: int) -> None:
    """Puts the pass into a copy of the options: our patch last, our replace outermost.

    Raises: ValueError when another node replaces a self-attention that the pass must own.
    """
    replaced = {k: dict(v) for k, v in options.get("patches_replace", {}).items()}
    attn1 = replaced.setdefault("attn1", {})
    for site in owned:
        foreign = attn1.get(tuple(site)) or attn1.get((site.block, site.number))
        if foreign is not None:
            owner = getattr(foreign, "__module__", None) or type(foreign).__module__
            raise ValueError(
                f"Reweave: the self-attention at {site} is replaced by another node (code in "
                f"{owner}), but this edit must answer it itself. Remove that node from the MODEL "
                "(PAG, SAG and reference-only nodes do this), or remove ours."
            )
        attn1[tuple(site)] = _replace(pass_, site, branches)
    patches = {k: list(v) for k, v in options.get("patches", {}).items()}
    patches["attn1_patch"] = [*patches.get("attn1_patch", []), _patch(pass_, branches)]
    options["patches"], options["patches_replace"] = patches, replaced


def check_tokens(n: Tensor, pass_: Pass, site: Site, branches: int, extra: Options) -> None:
    """Raises: ValueError when another node has merged, cut or tiled the tokens before our patch."""
    height, width = extra["activations_shape"][-2:]
    wanted = (branches * len(pass_.frames), height * width)
    if tuple(n.shape[:2]) != wanted:
        raise ValueError(
            f"Reweave: the self-attention at {site} gets {tuple(n.shape[:2])} (rows, tokens) "
            f"where this edit needs all {wanted}: another node merges or tiles its tokens. Remove "
            "that node from the MODEL (Tome Patch Model and HyperTile do this), or remove ours."
        )


def _patch(pass_: Pass, branches: int) -> Callable:
    """Sees norm1's output and leaves out the projections that the pass does not need."""

    def attn1_patch(n: Tensor, context: Tensor, value: Tensor, extra: Options) -> tuple:
        kind, number = extra["block"]
        site = Site(kind, number, extra["block_index"])
        if not pass_.owns(site):
            return n, context, value
        check_tokens(n, pass_, site, branches, extra)
        pass_.grids[site] = tuple(extra["activations_shape"][-2:])
        pass_.see_tokens(site, n.unflatten(0, (branches, -1)))
        qk, v = pass_.projects(site)
        kept = (n, context) if qk else (n[:0], context[:0])
        return *kept, value if v else value[:0]

    return attn1_patch


def _replace(pass_: Pass, site: Site, branches: int) -> Callable:
    """Answers one self-attention with the pass's tokens, before to_out."""

    def attn1_replace(q: Tensor, k: Tensor, v: Tensor, extra: Options) -> Tensor:
        def attention(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
            precision = extra["attn_precision"]
            return comfy_attention.optimized_attention(
                q, k, v, heads, attn_precision=precision, transformer_options=extra
            )

        count = len(pass_.frames)
        q, k, v = (split(part, branches, count) for part in (q, k, v))
        return pass_.attend(site, q, k, v, extra["n_heads"], attention).flatten(0, 1)

    return attn1_replace


def split(part: Tensor, branches: int, frames: int) -> Tensor:
    """[N*f,L,C] -> [N,f,L,C]; parts that were not projected become [N,f,0,C]."""
    if len(part) == 0:
        return part.new_empty(branches, frames, 0, part.shape[-1])
    return part.unflatten(0, (branches, frames))


@contextmanager
def feature_hook(layers: torch.nn.Module | None, pass_: Pass, branches: int) -> Iterator[None]:
    """Shows the pass the output of the feature block's layers, for this inner call only."""
    if layers is None or not pass_.wants_features():
        yield
        return

    def hook(_module: torch.nn.Module, _inputs: tuple, out: Tensor) -> Tensor:
        return pass_.features(out.unflatten(0, (branches, -1))).flatten(0, 1)

    handle = layers.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()
