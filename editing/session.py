"""One sampling call: which edits act together, at which step, on which source features.

Created when sampling starts and dropped when it ends; nothing of it outlives the call.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..kernels.schedule import sigma_space_from_vp
from .anchor_attention import AnchorAttention, anchor_step
from .extended_attention import ExtendedAttention, extended_step, injected_step
from .keyframes import StepPlan
from .latent_guidance import LatentGuidance
from .plug_and_play import PlugAndPlay, record_source
from .protocol import Call, Edit, StepSource
from .source_field import source_step
from .step_cache import StepCache, on_device
from .tokenflow import TokenFlow, tokenflow_step
from .types import Inversion, Position


def combine(edits: Sequence[Edit], new: Edit) -> tuple[Edit, ...]:
    """The edits of a model with one more.

    Raises: ValueError, naming both nodes, when the two cannot act together.
    """
    for edit in edits:
        if type(edit) is type(new):
            raise ValueError(
                f"{new.name}: this MODEL already has a {edit.name} edit. "
                "Use one node of this kind per model: remove one of the two."
            )
        if edit.owns_attention and new.owns_attention:
            raise ValueError(
                f"{new.name} and {edit.name} both decide what the self-attentions return and "
                f"cannot act on one MODEL (TokenFlow attends across its key frames by itself). "
                f"Remove {edit.name} or {new.name}, or give each its own branch of the graph."
            )
    both = (*edits, new)
    keys = {source.key: edit.name for edit in both if (source := source_of(edit))}
    if len(keys) > 1:
        raise ValueError(
            f"{' and '.join(keys.values())} are connected to two different inversions. "
            "Connect the same INVERSION to all Reweave nodes of one MODEL."
        )
    return both


def source_of(edit: Edit) -> Inversion | None:
    """The inversion that an edit reads the source from, if it does."""
    return getattr(edit, "inversion", None)


@dataclass(frozen=True)
class Steps:
    """The sigmas of one sampling call."""

    sample_sigmas: Tensor
    """[T] descending, the last may be 0."""

    def step_of(self, sigma: float) -> tuple[int, int]:
        """(number of this step in this sampling call, steps of the call)."""
        table = self.sample_sigmas[:-1].double()
        reached = int((table >= sigma * (1 - 1e-3)).sum()) - 1
        return max(reached, 0), len(table)

    def next_sigma(self, sigma: float) -> float:
        """Where the step that evaluates `sigma` goes."""
        number, _ = self.step_of(sigma)
        return float(self.sample_sigmas[number + 1])


@dataclass(frozen=True)
class Schedule(Steps):
    """The same, on an inversion's trajectory."""

    inversion: Inversion

    def position(self, sigma: float) -> Position:
        """Raises: ValueError when the trajectory does not reach `sigma`."""
        found = self.inversion.locate(sigma)
        if found is None:
            low, high = float(self.inversion.sigmas[-1]), float(self.inversion.sigmas[0])
            raise ValueError(
                f"Reweave: the sampler asked for sigma {sigma:.4g}, the inversion covers "
                f"{low:.4g} to {high:.4g}. Connect the SIGMAS of Inversion Latent to the sampler."
            )
        return found


class Session:
    """The state of one sampling call."""

    def __init__(
        self,
        edits: Sequence[Edit],
        schedule: Schedule | None,
        cache: StepCache | None = None,
        steps: Steps | None = None,
    ) -> None:
        """`schedule` is None only when no edit reads a source; `steps` then says the sigmas."""
        self.flow = next((e for e in edits if isinstance(e, TokenFlow)), None)
        self.injection = next((e for e in edits if isinstance(e, PlugAndPlay)), None)
        self.extended = next((e for e in edits if isinstance(e, ExtendedAttention)), None)
        self.anchored = next((e for e in edits if isinstance(e, AnchorAttention)), None)
        self.guidance = next((e for e in edits if isinstance(e, LatentGuidance)), None)
        self.edits, self.schedule, self.cache = tuple(edits), schedule, cache
        self.steps = schedule or steps
        self.fixed_targets: Tensor | None = None
        """[F,C,h,w] predictions of Latent Guidance's fixed step, once they are known."""
        self.watched_step: int | None = None
        """The step whose predictions are looked for."""
        self._observed: Tensor | None = None
        self.source_passes = 0
        self._source: tuple[float, StepSource] | None = None

    def evaluate(self, call: Call) -> Tensor:
        """One evaluation of the model -> denoised latents [N,F,C,h,w]."""
        source = self._source_at(call)
        if self.flow is not None:
            return tokenflow_step(self.flow, self._plan(call.sigma), source, call)
        if self.anchored is not None:
            return anchor_step(self.anchored, source, call)
        if self.extended is not None:
            return extended_step(self.extended, source, call)
        return injected_step(source, call)

    def aim(self, x0: Tensor, sigma: float) -> tuple[Tensor, Tensor]:
        """Targets and weights of Latent Guidance at one step (see `LatentGuidance.aim`).

        What a mask locks, and an anchor that was given, are not pulled.
        """
        assert self.guidance is not None and self.steps is not None
        if self.schedule is not None:
            index = self.schedule.position(sigma).index
        else:  # without the source's schedule, an edit of as many steps is the best guess
            index = self.steps.step_of(sigma)[0]
        targets, weight = self.guidance.aim(x0, self.fixed_targets, index)
        if self.anchored is not None and self.anchored.edited_anchor is not None:
            weight = weight.clone()
            weight[self.anchored.anchor] = 0
        return targets, self.opened(weight)

    def opened(self, values: Tensor) -> Tensor:
        """Values [F,c,h,w] that are 0 where the masks lock the clip."""
        masks = self._masks()
        if not masks or self.schedule is None:
            return values
        return values * latent_mask(masks, values.shape[-2:]).to(values)

    def observe(self, step: int, x0: Tensor) -> None:
        """Keeps the raw predictions of the step that is looked for."""
        if step == self.watched_step:
            self._observed = x0.detach().clone()

    def settle(self) -> float:
        """The predictions just seen become the targets -> their relative change (1 at first)."""
        found, before = self._observed, self.fixed_targets
        assert found is not None
        self.fixed_targets = found
        if before is None:
            return 1.0
        return float((found - before).norm() / found.norm().clamp(min=1e-12))

    def _masks(self) -> list[Tensor]:
        return [mask for edit in self.edits if (mask := getattr(edit, "mask", None)) is not None]

    def _plan(self, sigma: float) -> StepPlan:
        assert self.flow is not None and self.schedule is not None
        return self.flow.plan(self.schedule.position(sigma).index)

    def _source_at(self, call: Call) -> StepSource:
        """Source features of this step: computed once, whatever the calls it is split into."""
        if self.schedule is None:
            return StepSource()
        if self._source is None or self._source[0] != call.sigma:
            with torch.no_grad():
                self._source = (call.sigma, self._find_source(call))
        return self._source[1]

    def _find_source(self, call: Call) -> StepSource:
        assert self.schedule is not None
        attention = features = False
        if self.injection is not None:
            step = self.schedule.step_of(call.sigma)
            attention = self.injection.injects_attention(*step)
            features = self.injection.injects_features(*step)
        if self.flow is None:
            self.source_passes += int(attention or features)
            most = self.anchored.frames_per_pass if self.anchored else 0
            return record_source(call, torch.arange(call.frames), attention, features, most)
        position = self.schedule.position(call.sigma)
        known = StepSource()
        if position.exact:
            known = self._known(self.flow, position.index)
        return self._complete(known, call, position, attention, features)

    def _known(self, flow: TokenFlow, step: int) -> StepSource:
        """What the connected field or the cache on disk holds of this step."""
        known = self.cache.load(step) if self.cache else StepSource()
        if flow.nn_field is not None:
            index = flow.nn_field.index
            known.index = {site: value for (site, at), value in index.items() if at == step}
        return known

    def _complete(
        self, known: StepSource, call: Call, position: Position, attention: bool, features: bool
    ) -> StepSource:
        """Computes what is missing, keeps it for the next run, drops what this step skips."""
        assert self.flow is not None
        without_field = not all(site in known.index for site in call.sites)
        without_features = features and (known.features is None or known.key_features is None)
        without_queries = attention and not known.queries
        found = known
        if without_field or without_features or without_queries:
            self.source_passes += 1
            plan = self._plan(call.sigma)
            fresh = source_step(
                plan,
                call,
                attention,
                features,
                self.flow.frames_per_pass,
                field=without_field or without_features,
            )
            found = StepSource(
                index=fresh.index if without_field else known.index,
                queries=fresh.queries or known.queries,
                keys=fresh.keys or known.keys,
                features=fresh.features if fresh.features is not None else known.features,
                key_features=fresh.key_features if features else known.key_features,
            )
            if self.cache and position.exact and self.cache.gains(known, found):
                self.cache.save(position.index, found)
        return StepSource(
            index=found.index,
            queries=on_device(found.queries, call.x.device) if attention else {},
            keys=on_device(found.keys, call.x.device) if attention else {},
            features=found.features if features else None,
            key_features=found.key_features if features else None,
        )

    def locked(self, denoised: Tensor, x: Tensor, sigma: float) -> Tensor:
        """Outside the masks the source's own trajectory is followed exactly.

        A step goes from x to x + (x - D) / sigma * (next - sigma); the D that lands on the
        source's latent at the next sigma is solved for and blended in through the soft mask.

        Args:
            denoised: [F,C,h,w] the prediction after guidance: rescaling nodes look at whole frames.
            x: [F,C,h,w] the sampler's latents, sigma space.
        """
        masks = self._masks()
        if not masks or self.schedule is None:
            return denoised
        inversion = self.schedule.inversion
        target_sigma = self.schedule.next_sigma(sigma)
        if target_sigma <= inversion.final_sigma:
            target = sigma_space_from_vp(inversion.clean.float(), inversion.final_sigma)
        else:
            at = self.schedule.position(target_sigma)
            target = inversion.sigma_space(at, target_sigma)
        locked = x - sigma * (target.to(x) - x) / (target_sigma - sigma)
        open_region = latent_mask(masks, denoised.shape[-2:]).to(denoised)
        return torch.lerp(locked.to(denoised), denoised, open_region)


def latent_mask(masks: Sequence[Tensor], size: Sequence[int]) -> Tensor:
    """Region that may change, at latent size, with a soft seam.

    Args:
        masks: each [F or 1,H,W] in 0..1; where any of them is 1 the clip may change.

    Returns: [F or 1,1,h,w].
    """
    small = [F.interpolate(mask[:, None].float(), tuple(size), mode="area") for mask in masks]
    joined = small[0]
    for mask in small[1:]:
        joined = torch.maximum(joined, mask)
    return joined.clamp(0, 1)
