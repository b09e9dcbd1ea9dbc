"""A layered atlas of a clip in minutes: what Neural Layered Atlases (2021) learns in hours.

Closed-form start from optical flow, then gradient steps on the motions and alphas in turns with
passes that solve the textures. The losses are the published ones (losses.py).
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .. import storage
from .explicit import FittedLayer
from .objective import Objective, Problem, sample
from .solving import fill_textures, improve_textures
from .starting import exported, start, sure_members, usable
from .types import Atlas

LOGGER = logging.getLogger("reweave")
PASS_EVERY = 50
"""Gradient steps between two passes over the textures."""
SNAPSHOT_EVERY = 500
STILL = 1e-5
"""Gradients (per pixel of motion) below this hardly move a node: it has nothing to go by."""
KIND = "atlas fit"


@dataclass(frozen=True)
class FitSettings:
    """How an atlas is fitted; the result is a function of these, the clip, the masks and flow."""

    steps: int = 1500
    texture_detail: float = 1.5
    """Texels per pixel of the reference frame."""
    stop_at: float = 0.0
    """Decibels (PSNR of the whole clip) at which the gradient steps end; 0 = never."""
    fit_seed: int = 1
    frames_per_step: int = 8
    patches: int = 16
    """Sampled squares per frame and step."""
    final_passes: int = 8
    """Passes over the textures at the end."""


@dataclass(frozen=True)
class Progress:
    """What a fit tells while it runs."""

    step: int
    steps: int
    psnr: float
    """Decibels, of the whole clip."""
    layers: tuple[float, ...]
    """Decibels where each layer is seen."""
    fitted: list[FittedLayer]


class Fit:
    """A fit under way."""

    def __init__(self, problem: Problem, settings: FitSettings) -> None:
        self.problem, self.settings = problem, settings
        self.layers, motions = start(problem, settings.texture_detail)
        layers = self.layers
        self.step = 0
        self.solved_at = -1
        """Step before which the textures were last solved."""
        self.done = settings.steps == 0
        clip = problem.clip
        self.optimizer = torch.optim.Adam(
            _groups(layers, max(clip.shape[2:])),
            betas=(0.9, 0.99),
            fused=clip.device.type in ("cpu", "cuda"),
        )
        self.rates = [group["lr"] for group in self.optimizer.param_groups]
        self.objective = Objective(problem, layers, motions)

    def advance(self) -> None:
        """One gradient step."""
        settings, progress = self.settings, self.step / max(1, self.settings.steps)
        for group, rate in zip(self.optimizer.param_groups, self.rates, strict=True):
            group["lr"] = rate * decay(progress)
        seed = settings.fit_seed * 1_000_003 + self.step
        points = sample(self.problem.clip, settings.frames_per_step, settings.patches, seed)
        loss = self.objective(points, progress, forward=self.step % 2 == 0)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.step += 1
        self.done = self.step >= settings.steps

    def solve(self) -> Progress:
        """One pass over the textures; the likeness is that before the pass."""
        with torch.no_grad():
            clip, considered = self.problem.clip, self.problem.considered
            whole, each = improve_textures(self.layers, clip, considered)
        decibels = [-10 * math.log10(max(error, 1e-10)) for error in (whole, *each)]
        self.solved_at = self.step
        self.done |= 0 < self.settings.stop_at <= decibels[0]
        steps = self.settings.steps
        return Progress(self.step, steps, decibels[0], tuple(decibels[1:]), self.layers)

    def save(self, path: Path) -> None:
        """Raises ValueError when the file cannot be written."""
        tensors: dict[str, Tensor] = {}
        for number, layer in enumerate(self.layers):
            tensors |= {f"{number}/{name}": part for name, part in _parts(layer).items()}
        for number, moments in self.optimizer.state_dict()["state"].items():
            tensors |= {f"adam/{number}/{name}": part for name, part in moments.items()}
        plain = {"step": self.step, "solved_at": self.solved_at, "done": self.done}
        storage.save(path, KIND, {name: part.detach() for name, part in tensors.items()}, plain)

    def load(self, path: Path) -> None:
        """Goes on where `save` left off. Raises: ValueError for another fit's file."""
        tensors, plain = storage.load(path, KIND)
        own = {
            f"{number}/{name}": part
            for number, layer in enumerate(self.layers)
            for name, part in _parts(layer).items()
        }
        moments: dict[int, dict[str, Tensor]] = {}
        for name in [name for name in tensors if name.startswith("adam/")]:
            _, number, moment = name.split("/")
            moments.setdefault(int(number), {})[moment] = tensors.pop(name)
        fits = {name: part.shape for name, part in own.items()} == {
            name: part.shape for name, part in tensors.items()
        }
        if not fits or not {"step", "solved_at", "done"} <= set(plain):
            raise ValueError(f"{path.name} is the state of another fit.")
        with torch.no_grad():
            for name, part in own.items():
                part.copy_(tensors[name])
        self.optimizer.load_state_dict(self.optimizer.state_dict() | {"state": moments})
        self.step, self.solved_at, self.done = plain["step"], plain["solved_at"], plain["done"]


def fit(
    problem: Problem,
    settings: FitSettings,
    watch: Callable[[Progress], None],
    alive: Callable[[], None] = lambda: None,
    snapshot: Path | None = None,
) -> Atlas:
    """Fits an atlas.

    Deterministic for a seed on the CPU; on a GPU sums may differ in their last bits.

    Args:
        watch: called after every pass over the textures.
        alive: called before every step; raises to end the fit.
        snapshot: where the state is kept, so that an interrupted fit goes on; the result is the
            same as without the interruption.

    Raises: what the callbacks raise.
    """
    with torch.inference_mode(False), torch.enable_grad():
        problem = usable(problem)
        run = Fit(problem, settings)
        if not _resume(run, snapshot):
            fill_textures(run.layers, problem.clip, sure_members(problem))
        _walk(run, watch, alive, snapshot)
        for _ in range(settings.final_passes):
            alive()
            watch(run.solve())
        return exported(run.layers, problem)


def _walk(
    run: Fit,
    watch: Callable[[Progress], None],
    alive: Callable[[], None],
    snapshot: Path | None,
) -> None:
    """All gradient steps; whatever the callbacks raise, the state is kept."""
    try:
        while not run.done:
            alive()
            if run.step % PASS_EVERY == 0 and run.solved_at != run.step:
                watch(run.solve())
            else:
                run.advance()
            if run.step % SNAPSHOT_EVERY == 0 and run.solved_at == run.step:
                _keep(run, snapshot)
    finally:
        _keep(run, snapshot)


def _keep(run: Fit, snapshot: Path | None) -> None:
    """Writes the state; a fit does not end because it cannot be kept (a full disk)."""
    if snapshot is None:
        return
    try:
        run.save(snapshot)
    except ValueError as error:
        LOGGER.warning("Reweave: this fit cannot go on later if it is cancelled: %s", error)


def _resume(run: Fit, snapshot: Path | None) -> bool:
    """Whether there was something to go on with; an unreadable file counts as absent."""
    if snapshot is None or not snapshot.is_file():
        return False
    try:
        run.load(snapshot)
    except ValueError:
        snapshot.unlink(missing_ok=True)
        return False
    return True


def decay(progress: float) -> float:
    """Learning rates fall as a cosine from 1 to 5 %."""
    return 0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))


def _groups(layers: list[FittedLayer], longest: int) -> list[dict[str, Any]]:
    """Adam's groups; motions are in pixels, so their rates grow with the picture."""
    for layer in layers:
        for value in layer.parameters():
            value.requires_grad_()
    logits = [layer.logits for layer in layers if layer.logits is not None]
    return [
        {"params": [layer.affine for layer in layers], "lr": 1e-4 * longest, "eps": STILL},
        {
            "params": [lattice for layer in layers for lattice in layer.lattices],
            "lr": 5e-4 * longest,
            "eps": STILL,
        },
        *([{"params": logits, "lr": 5e-2}] if logits else []),
    ]


def _parts(layer: FittedLayer) -> dict[str, Tensor]:
    """Everything of a layer that a snapshot holds, by name."""
    named = {f"lattice{number}": lattice for number, lattice in enumerate(layer.lattices)}
    for name in ("base", "centre", "half", "affine", "texture", "coverage", "logits"):
        value = getattr(layer, name)
        if value is not None:
            named[name] = value
    return named
