"""What travels between the temporal nodes: trained weights and where they belong."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .. import storage
from ..types import Fingerprint, digest
from .network import TemporalNetwork
from .plan import Architecture, Plan


@dataclass(frozen=True)
class TemporalUNet:
    """A temporal UNet that was tuned on one clip."""

    weights: dict[str, Tensor]
    """State dict of a TemporalNetwork, float16, CPU."""
    plan: Plan
    """Channels of every part; it fits image UNets with the same plan."""
    architecture: Architecture
    frames: int
    """Frames it was tuned on: longer clips are done in windows of so many; 0 = unknown."""
    adds_to_queries: bool = False
    """Whether tuned query weights are changes to the image UNet's, or replace them."""
    prompt: str = ""
    """What the clip shows, where it is known."""
    losses: tuple[float, ...] = ()
    """Of every training step."""
    steps: int = 0
    """Training steps; 0 = untrained."""
    learning_rate: float = 0.0
    training_seed: int = 0
    fingerprint: Fingerprint = field(default_factory=Fingerprint)
    """The image model that it was trained beside."""

    KIND = "temporal UNet"

    @cached_property
    def key(self) -> str:
        """Content key: equal for equal weights and architecture."""
        parts = [value for _, value in sorted(self.weights.items())]
        return digest(*parts, str(self.architecture), str(self.frames), str(self.adds_to_queries))

    @property
    def bytes(self) -> int:
        return sum(value.nbytes for value in self.weights.values())

    def save(self, path: Path) -> None:
        """Two bytes per weight. Raises: ValueError when the file cannot be written."""
        plain = {
            name: getattr(self, name)
            for name in (
                *("frames", "adds_to_queries", "prompt", "losses"),
                *("steps", "learning_rate", "training_seed"),
            )
        }
        plain |= {
            "plan": self.plan.as_json(),
            "architecture": asdict(self.architecture),
            "fingerprint": asdict(self.fingerprint),
        }
        storage.save(path, self.KIND, self.weights, plain)

    @classmethod
    def load(cls, path: Path) -> TemporalUNet:
        """Raises: ValueError when the file is missing, corrupt, foreign or holds no training."""
        weights, plain = storage.load(path, cls.KIND)
        plan = Plan.from_json(plain.pop("plan"))
        architecture = Architecture(**plain.pop("architecture"))
        fingerprint = Fingerprint(**plain.pop("fingerprint", {}))
        plain["losses"] = tuple(plain.get("losses", ()))
        found = cls(
            weights=weights, plan=plan, architecture=architecture, fingerprint=fingerprint, **plain
        )
        found.check(path.name)
        return found

    def check(self, name: str) -> None:
        """Raises: ValueError when weights are missing, or were never trained."""
        expected = shapes(self.plan, self.architecture)
        wrong = [n for n, s in expected.items() if tuple(self.weights[n].shape) != s]
        if wrong:
            raise ValueError(
                f"{name}: {wrong[0]} has the shape {tuple(self.weights[wrong[0]].shape)}, expected "
                f"{expected[wrong[0]]}. The file is damaged: train again and save it."
            )
        if self.steps == 0:
            raise ValueError(
                f"{name} holds an untrained temporal UNet (0 steps), which changes nothing. "
                "Train it with Train Temporal UNet and save it again."
            )

    def network(self, layers: Any = nn) -> TemporalNetwork:
        """The network with these weights, on the CPU; `layers` as in TemporalNetwork."""
        with torch.device("meta"):  # the weights come from here, not from an initialisation
            net = TemporalNetwork(self.plan, self.architecture, layers)
        net.requires_grad_(False).load_state_dict(
            {name: value.clone() for name, value in self.weights.items()}, assign=True
        )
        net.adds_to_queries = self.adds_to_queries
        return net.eval()


def shapes(plan: Plan, architecture: Architecture) -> dict[str, tuple[int, ...]]:
    """Name -> shape of every weight."""
    with torch.device("meta"):
        net = TemporalNetwork(plan, architecture)
    return {name: tuple(value.shape) for name, value in net.state_dict().items()}


def at_rest(net: TemporalNetwork, queries: dict[str, Tensor]) -> dict[str, Tensor]:
    """Trained weights in float16 on the CPU; tuned queries as changes to the image UNet's.

    Args:
        queries: name -> the image UNet's own query weights ("published" only, else empty).
    """
    found = {}
    for name, value in net.state_dict().items():
        value = value.detach().float().cpu()
        if name in queries:
            value = value - queries[name].float().cpu()
        found[name] = value.to(torch.float16)
    return found
