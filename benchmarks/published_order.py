"""TokenFlow's published order of work, as the facts describe it: what the speed is compared with.

Every step carries three streams in one batch (source, negative, prompt). Key frames attend with
keys repeated once per key frame; the other frames search the full similarity matrix and gather
with indices expanded to the tokens' width. Nothing is cached. Same UNet, same attention backend.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import comfy.ldm.modules.attention as comfy_attention
import comfy.patcher_extension
import torch
from torch import Tensor

STREAMS = 3
Place = tuple[str, int, int]


class PublishedOrder:
    """An APPLY_MODEL wrapper that runs every evaluation as the published code does.

    Needs: both conditionings in one call, a frame count divisible by the interval, and sigmas
    of the inversion. Plug-and-Play injection is on in every step.
    """

    def __init__(
        self, patcher: Any, inversion: Any, key_frames: Tensor, interval: int, field: Any = None
    ) -> None:
        """key_frames [S,K]: those of every step of the inversion. With a field (NNField), its
        matches are taken, and `worst_choice` says how much less similar than the best one the
        worst of them is: rounding, where the field is right."""
        from reweave.editing.host.model import feature_layers, sites_of
        from reweave.editing.protocol import injection_sites

        self.inversion, self.key_frames, self.interval = inversion, key_frames, interval
        self.field, self.step, self.worst_choice = field, 0, 0.0
        self.layers: Any = feature_layers(patcher)
        sites = sites_of(patcher)
        self.sites = [tuple(site) for site in sites]
        self.injected = {tuple(site) for site in injection_sites(sites)}
        self.batch = -1
        """-1 in the pass of the key frames, else the number of the interval."""
        self.pivot_tokens: dict[Place, Tensor] = {}
        self.pivot_outputs: dict[Place, Tensor] = {}
        self.blend: dict[Place, tuple[Tensor, Tensor | None]] = {}

    def __deepcopy__(self, memo: dict) -> PublishedOrder:
        return self

    def on(self, patcher: Any) -> Any:
        """A clone of the MODEL that samples in the published order."""
        clone = patcher.clone()
        kind = comfy.patcher_extension.WrappersMP.APPLY_MODEL
        clone.add_wrapper_with_key(kind, "published_order", self)
        return clone

    def __call__(
        self, executor: Any, x: Tensor, t: Tensor, concat: Any, context: Tensor, control: Any,
        options: dict[str, Any], **extra: Any,
    ) -> Tensor:  # fmt: skip
        step = self.inversion.locate(float(options["sigmas"][0]))
        source = self.inversion.sigma_space(step, float(options["sigmas"][0]))
        frames = len(x) // 2
        self.step = step.index
        prompts = [self.inversion.context, context[:1], context[frames : frames + 1]]

        def run(part: Tensor) -> Tensor:
            rows = torch.cat([source[part], x[part], x[frames + part]])
            told = torch.cat([prompt.expand(len(part), -1, -1) for prompt in prompts])
            inner = self._options(options, len(part))
            return executor(rows, t[: len(rows)].expand(len(rows)), None, told, None, inner)

        with self._features():
            self.batch = -1
            run(self.key_frames[step.index])
            out = torch.empty_like(x)
            for batch in range(frames // self.interval):
                self.batch = batch
                part = torch.arange(self.interval) + self.batch * self.interval
                edited = run(part)[len(part) :]
                out[part], out[frames + part] = edited.chunk(2)
        return out

    def _options(self, options: dict[str, Any], frames: int) -> dict[str, Any]:
        inner = dict(options, cond_or_uncond=[0, 1, 0], sigmas=options["sigmas"][:frames])
        inner["patches"] = {"attn1_patch": [self._tokens]}
        inner["patches_replace"] = {"attn1": dict.fromkeys(self.sites, self._attention)}
        return inner

    @contextmanager
    def _features(self) -> Iterator[None]:
        """The source's conv features overwrite those of the two other streams."""

        def hook(_module: Any, _inputs: tuple, out: Tensor) -> Tensor:
            frames = len(out) // STREAMS
            out = out.clone()
            out[frames : 2 * frames] = out[:frames]
            out[2 * frames :] = out[:frames]
            return out

        handle = self.layers.register_forward_hook(hook)
        try:
            yield
        finally:
            handle.remove()

    def _tokens(self, n: Tensor, context: Tensor, value: Tensor, extra: dict) -> tuple:
        """norm1's output: stored for the key frames, searched for the others."""
        place = (*extra["block"], extra["block_index"])
        source = n[: len(n) // STREAMS]
        if self.batch < 0:
            self.pivot_tokens[place] = source
            return n, context, value
        self.blend[place] = self._search(place, source)
        return n[:0], context[:0], value[:0]

    def _search(self, place: Place, source: Tensor) -> tuple[Tensor, Tensor | None]:
        """The whole similarity matrix with both key frames, then its maxima."""
        key = self.pivot_tokens[place]
        wanted = [self.batch, self.batch - 1] if self.batch else [0]
        tokens, length = source.flatten(0, 1), key.shape[1]
        references = key[wanted].flatten(0, 1)
        tokens = tokens / tokens.norm(dim=-1, keepdim=True)
        references = references / references.norm(dim=-1, keepdim=True)
        similarity = tokens @ references.T
        parts = similarity.split(length, dim=1)
        found = [part.argmax(dim=-1) for part in parts]
        if self.field is not None:
            found = [self._given(place, r, parts[r], best) for r, best in enumerate(found)]
        return found[0], found[1] if self.batch else None

    def _given(self, place: Place, which: int, similarity: Tensor, best: Tensor) -> Tensor:
        """The field's matches in place of our own."""
        first = self.batch * self.interval
        index = self.field.index[place, self.step][first : first + self.interval, which]
        index = index.long().flatten()
        lost = similarity.gather(1, best[:, None]) - similarity.gather(1, index[:, None])
        self.worst_choice = max(self.worst_choice, float(lost.max()))
        return index

    def _attention(self, q: Tensor, k: Tensor, v: Tensor, extra: dict) -> Tensor:
        place = (*extra["block"], extra["block_index"])
        if self.batch >= 0:
            return self._gathered(place)

        def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            return comfy_attention.optimized_attention(
                q, k, v, extra["n_heads"], attn_precision=extra["attn_precision"],
                transformer_options=extra,
            )  # fmt: skip

        out = _extended(q, k, v, place in self.injected, attend)
        self.pivot_outputs[place] = out.unflatten(0, (STREAMS, -1))
        return out

    def _gathered(self, place: Place) -> Tensor:
        """Key-frame outputs through indices as wide as the tokens, blended by full weights."""
        tokens, (current, previous) = self.pivot_outputs[place], self.blend[place]
        length, width = tokens.shape[2:]

        def gather(key_frame: int, index: Tensor) -> Tensor:
            wide = index[None, :, None].repeat(STREAMS, 1, width)
            found = tokens[:, key_frame].gather(1, wide)
            return found.view(STREAMS, self.interval, length, width)

        out = gather(self.batch, current)
        if previous is not None:
            other = gather(self.batch - 1, previous)
            weights = _shares(self.interval)[None, :, None, None].expand_as(out).contiguous()
            out = weights * out + (1 - weights) * other
        return out.flatten(0, 1)


def _extended(
    q: Tensor, k: Tensor, v: Tensor, injected: bool, attend: Callable[..., Tensor]
) -> Tensor:
    """The source per frame; the others to all key frames, keys repeated for each of them."""
    frames, length = len(q) // STREAMS, q.shape[1]
    if injected:
        q, k = q.clone(), k.clone()
        for stream in (1, 2):
            rows = slice(stream * frames, (stream + 1) * frames)
            q[rows], k[rows] = q[:frames], k[:frames]
    parts = [attend(q[:frames], k[:frames], v[:frames])]
    for stream in (1, 2):
        rows = slice(stream * frames, (stream + 1) * frames)
        keys = k[rows].reshape(1, frames * length, -1).repeat(frames, 1, 1)
        values = v[rows].reshape(1, frames * length, -1).repeat(frames, 1, 1)
        parts.append(attend(q[rows], keys, values))
    return torch.cat(parts)


def _shares(interval: int) -> Tensor:
    """Share of the interval's own key frame, per frame of the interval [B]."""
    offset = torch.arange(interval) - interval // 2
    near, far = offset.abs().float(), (offset + interval).float()
    return torch.sigmoid(far / (near + far))
