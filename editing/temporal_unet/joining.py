"""Joins a temporal network to an image UNet for one call, by hooks that are removed afterwards."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .features import Features, fuse
from .network import TunedAttention
from .plan import site_modules, transformer_blocks
from .windows import in_windows, windows

Hook = Callable[..., Any]


@dataclass(frozen=True)
class Joint:
    """One call of the image UNet: what its rows are, and what is fused."""

    features: Features
    branches: int
    """Clips in the batch: rows are [branches * frames, ...]."""
    frames: Tensor | None = None
    """[f] int64, the frames of this call; None = the whole clip."""
    strength: float = 1.0
    sites: tuple[str, ...] | None = None
    """Where features are fused; None = everywhere."""


@contextmanager
def joined(unet: nn.Module, joint: Joint) -> Iterator[None]:
    """Inside, calls of `unet` (ComfyUI's block layout) act with the temporal network."""
    net = joint.features.net
    handles = []
    try:
        for site, module in site_modules(unet, net.architecture).items():
            if joint.sites is None or site in joint.sites:
                handles.append(module.register_forward_hook(_fusing(joint, site)))
        if net.architecture.published:
            handles += _tune(unet, joint)
        yield
    finally:
        for handle in handles:
            handle.remove()


def _fusing(joint: Joint, site: str) -> Hook:
    def hook(_module: nn.Module, _inputs: tuple, out: Tensor) -> Tensor:
        x = out.unflatten(0, (joint.branches, -1))
        return fuse(joint.features, site, x, joint.frames, joint.strength).flatten(0, 1)

    return hook


def _tune(unet: nn.Module, joint: Joint) -> list[Any]:
    """The Tune-A-Video parts: norms over all frames, and the transformers' changes."""
    handles = transformer_hooks(unet, joint)
    for norm in _joint_norms(unet):
        handles.append(norm.register_forward_pre_hook(_frames_as_rows(joint)))
        handles.append(norm.register_forward_hook(_rows_as_frames(joint)))
    return handles


def transformer_hooks(unet: nn.Module, joint: Joint) -> list[Any]:
    """First and previous frame, tuned queries, frame attention. The caller removes the handles.

    On clips longer than trained the frame attention runs in windows; the first frame and the norms
    remain those of the whole clip.
    """
    handles: list[Any] = []
    for name, block in transformer_blocks(unet):
        tuned, block_ = joint.features.net.tuned[name], _any(block)
        assert isinstance(tuned, TunedAttention)
        attn1, attn2 = block_.attn1, block_.attn2
        handles += [
            attn1.register_forward_pre_hook(_first_and_previous(joint), with_kwargs=True),
            attn1.to_q.register_forward_hook(_query(joint, tuned.self_query)),
            attn2.to_q.register_forward_hook(_query(joint, tuned.cross_query)),
            block.register_forward_hook(_frame_attention(joint, tuned)),
        ]
    return handles


def _any(module: nn.Module) -> Any:
    return module


def _joint_norms(unet: nn.Module) -> Iterator[nn.Module]:
    """The group norms whose statistics run over all frames: ResBlocks and the last one."""
    for module in unet.modules():
        if type(module).__name__ == "ResBlock":
            block = _any(module)
            yield block.in_layers[0]
            yield block.out_layers[0]
    yield _any(unet).out[0]


def _frames_as_rows(joint: Joint) -> Hook:
    def hook(_module: nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor]:
        """[N*F,C,h,w] -> [N,C,F*h,w]: one picture of all frames, one set of statistics."""
        x = inputs[0].unflatten(0, (joint.branches, -1))
        return (x.transpose(1, 2).flatten(2, 3),)

    return hook


def _rows_as_frames(joint: Joint) -> Hook:
    def hook(_module: nn.Module, _inputs: tuple, out: Tensor) -> Tensor:
        frames = len(joint.frames) if joint.frames is not None else joint.features.frames
        return out.unflatten(2, (frames, -1)).transpose(1, 2).flatten(0, 1).contiguous()

    return hook


def _first_and_previous(joint: Joint) -> Hook:
    def hook(_module: nn.Module, inputs: tuple[Tensor, ...], options: dict) -> Any:
        """Sparse-causal: frame f attends to frames 0 and f-1 (0 for the first)."""
        n = inputs[0]
        if options.get("context") is not None and options["context"] is not n:
            return None  # another node chose the keys
        tokens = n.unflatten(0, (joint.branches, -1))
        before = torch.cat([tokens[:, :1], tokens[:, :-1]], 1)
        context = torch.cat([tokens[:, :1].expand_as(tokens), before], 2).flatten(0, 1)
        return inputs[:1], {**options, "context": context, "value": context}

    return hook


def _query(joint: Joint, tuned: nn.Module) -> Hook:
    def hook(_module: nn.Module, inputs: tuple[Tensor], out: Tensor) -> Tensor:
        own = tuned(inputs[0])
        return out + own if joint.features.net.adds_to_queries else own

    return hook


def _frame_attention(joint: Joint, tuned: TunedAttention) -> Hook:
    features = joint.features

    def hook(_module: nn.Module, _inputs: tuple, out: Tensor) -> Tensor:
        tokens = out.unflatten(0, (joint.branches, -1))  # [N,F,L,C]
        spans = windows(tokens.shape[1], features.window, features.overlap)

        def one(_number: int, span: range) -> Tensor:
            return tuned.change(tokens[:, span.start : span.stop])[:, None]

        return (tokens + in_windows(spans, one)[:, 0]).flatten(0, 1)

    return hook
