"""Pix2Video's published order of work, as the facts describe it: what speed and memory are
compared with.

Frame after frame, all steps of one before the next, one picture per call of the network. The
inversion runs both conditionings though its guidance is 1. The edit keeps the self-attention
tokens of every step, site and branch of the anchor, of the previous and of the current frame.
"""

from __future__ import annotations

import itertools
from typing import Any

import torch
from torch import Tensor

Place = tuple[str, int, int]
Features = dict[tuple[int, int, Place], Tensor]
"""(branch, step, place) -> tokens [1,L,C]."""


class PublishedOrder:
    """Inverts and edits a clip with calls of the bare network, float32."""

    def __init__(self, unet: Any, sampling: Any, contexts: tuple[Tensor, Tensor, Tensor]) -> None:
        """contexts: empty, source and edit prompt, each [1,77,C]."""
        self.unet, self.sampling = unet, sampling
        self.empty, self.source, self.prompt = contexts
        self.most_bytes = 0
        """Most bytes of kept tokens at any time."""

    def noise(
        self, x: Tensor, sigma: float, context: Tensor, options: dict | None = None
    ) -> Tensor:
        """The predicted noise of one latent [1,C,h,w] in sigma space."""
        level = torch.tensor([sigma])
        scaled = self.sampling.calculate_input(level, x)
        timestep = self.sampling.timestep(level).float()
        return self.unet(scaled, timestep, context, transformer_options=options or {})

    def invert(self, clean: Tensor, levels: list[float]) -> Tensor:
        """clean [F,C,h,w], ascending levels -> latents at the last level, sigma space."""
        out = []
        for frame in clean.split(1):
            x, level = frame, 0.0
            for sigma in levels:
                at = x * ((1 + sigma**2) / (1 + level**2)) ** 0.5
                self.noise(at, sigma, self.empty)  # thrown away: the guidance is 1
                x = x + (sigma - level) * self.noise(at, sigma, self.source)
                level = sigma
            out.append(x)
        return torch.cat(out)

    def edit(
        self, start: Tensor, sigmas: list[float], cfg: float, strength: float, until: int
    ) -> Tensor:
        """start [F,C,h,w] at sigmas[0]; descending sigmas -> latents at the last one."""
        anchor: Features = {}
        previous: Features = {}
        targets: list[Tensor] = []
        out = []
        for number, frame in enumerate(start.split(1)):
            own: Features = {}
            x, predictions = frame, []
            for step, (sigma, below) in enumerate(itertools.pairwise(sigmas)):
                eps = [
                    self.noise(
                        x, sigma, context, self._options(branch, step, own, anchor, previous)
                    )
                    for branch, context in enumerate((self.empty, self.prompt))
                ]
                guided = eps[0] + cfg * (eps[1] - eps[0])
                x0 = x - sigma * guided
                x = x + (below - sigma) * guided
                if number and step < until:
                    x = x - strength * (1 + below**2) ** 0.5 * (x0 - targets[step])
                predictions.append(x0)
            held = sum(t.nbytes for kept in (own, anchor, previous) for t in kept.values())
            self.most_bytes = max(self.most_bytes, held)
            anchor = anchor or own
            previous, targets = own, predictions
            out.append(x)
        return torch.cat(out)

    def _options(
        self, branch: int, step: int, own: Features, anchor: Features, previous: Features
    ) -> dict[str, Any]:
        def tokens(n: Tensor, context: Tensor, value: Tensor, extra: dict) -> tuple:
            place = (*extra["block"], extra["block_index"])
            own[branch, step, place] = n
            if not anchor or place[0] != "output":
                return n, context, value
            keys = torch.cat([anchor[branch, step, place], previous[branch, step, place]], 1)
            return n, keys, keys

        return {"patches": {"attn1_patch": [tokens]}}
