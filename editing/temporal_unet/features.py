"""Temporal features of one clip at one noise level: computed once, shared by all branches."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .network import Runner, TemporalNetwork
from .windows import in_windows, padded_count, reflected, windows


class Features:
    """What the temporal UNet says about a clip."""

    def __init__(
        self,
        net: TemporalNetwork,
        clip: Tensor,
        window: int = 0,
        overlap: int = 0,
        run: Runner | None = None,
    ) -> None:
        """
        Args:
            clip: [B,F,C,h,w] latents in variance-preserving space, all frames of the clip.
            window: frames that are looked at together (0 = all): as many as in training.
            overlap: frames that two windows share.
        """
        self.net, self.window, self.overlap = net, window, overlap
        self.frames = clip.shape[1]
        self.size = (clip.shape[-2], clip.shape[-1])
        self.spans = windows(self.frames, window, overlap)
        self._raw = [self._window(clip, span, run) for span in self.spans]
        self._attended: dict[tuple[str, int, int], Tensor] = {}

    def _window(self, clip: Tensor, span: range, run: Runner | None) -> dict[str, Tensor]:
        count = padded_count(len(span), self.net.plan.multiple)
        frames = span.start + reflected(len(span), count)
        return self.net.features(clip[:, frames.to(clip.device)], run)

    def attended(self, site: str, height: int, width: int) -> Tensor:
        """[B,C,F,height,width]: aligned with the image features of a site, frames attended to."""
        key = (site, height, width)
        if key not in self._attended:
            unit = self.net.unit_at(site)

            def one(number: int, span: range) -> Tensor:
                count = padded_count(len(span), self.net.plan.multiple)
                temporal = self._unflattened(self._raw[number][site], site, height)
                return unit.attended(resized(temporal, (count, height, width)))[:, :, : len(span)]

            self._attended[key] = in_windows(self.spans, one)
        return self._attended[key]

    def _unflattened(self, rows: Tensor, site: str, height: int) -> Tensor:
        """[B*h*w,C,F'] -> [B,C,F',h,w]; the published code takes a wrong h in the decoder.

        It un-flattens with the height of the image features that it fuses with, so rows of the
        picture end up side by side; the middle block and full-size stages are not concerned.
        """
        h, w = self.size
        if self.net.architecture.layout == "published code" and site.startswith("up"):
            if h * w % height:
                raise ValueError(
                    "Train and Apply Temporal UNet: the layout 'published code' cannot fuse "
                    f"latents of {w}x{h} (their {h * w} positions do not divide into rows of "
                    f"{height}). Train with the layout 'correct', or resize the clip to a multiple "
                    "of 64 pixels."
                )
            h, w = height, h * w // height
        return rows.unflatten(0, (-1, h, w)).permute(0, 3, 4, 1, 2)


def resized(temporal: Tensor, size: tuple[int, int, int]) -> Tensor:
    """[B,C,F',h',w'] -> [B,C,*size], nearest neighbours."""
    if temporal.shape[2:] == size:
        return temporal
    return F.interpolate(temporal, size, mode="nearest")


def fuse(
    features: Features, site: str, x: Tensor, frames: Tensor | None, strength: float
) -> Tensor:
    """Image features with the temporal ones.

    Args:
        x: [N,f,C,h,w] image features of a site.
        frames: [f] int64, which frames of the clip these are; None = all of them.
        strength: 1 = as trained, 0 = nothing.

    Returns: [N,f,C,h,w]. A run of frames is fused as a clip of its own.
    """
    unit = features.net.unit_at(site)
    attended = features.attended(site, *x.shape[-2:])
    if frames is not None:
        attended = attended[:, :, frames.to(attended.device)]
    volume = x.transpose(1, 2)
    spans = windows(x.shape[1], features.window, features.overlap)

    def one(_number: int, span: range) -> Tensor:
        part = slice(span.start, span.stop)
        return unit.change(volume[:, :, part], attended[:, :, part])

    change = in_windows(spans, one)
    return torch.add(x, change.transpose(1, 2), alpha=strength)
