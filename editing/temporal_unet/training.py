"""Training a temporal network on one clip: one noise level per step, plain error of the noise."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from math import isfinite
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .features import Features
from .joining import Joint, joined
from .network import TemporalNetwork, checkpointed

Predict = Callable[[Tensor, int], Tensor]
"""(noisy [F,C,h,w] in variance-preserving space, timestep) -> the image UNet's output."""
MOMENTS = ("step", "exp_avg", "exp_avg_sq")
"""What AdamW remembers of a weight."""


@dataclass(frozen=True)
class TrainingSettings:
    """The published hyper-parameters; nothing here changes what a step computes but these."""

    steps: int = 100
    learning_rate: float = 3e-5
    training_seed: int = 33
    weight_decay: float = 1e-2
    clip_norm: float = 1.0
    checkpointing: bool = True
    """Compute activations again in the backward pass: less memory, more time, same result."""


@dataclass
class Trainer:
    """Weights in training, with everything that a resumed run needs to go on as if unbroken."""

    net: TemporalNetwork
    unet: nn.Module
    """The frozen image UNet (ComfyUI's block layout), its weights ordinary tensors."""
    predict: Predict
    """Calls `unet`."""
    latents: Tensor
    """[F,C,h,w] float32, the clip in the model's latent space."""
    alphas_cumprod: Tensor
    """[T] signal power at every timestep."""
    settings: TrainingSettings = field(default_factory=TrainingSettings)
    predicts_v: bool = False
    """Whether the image UNet predicts v (SD2.x 768) rather than the noise."""
    half: torch.dtype | None = None
    """Precision of the arithmetic (mixed precision); weights and moments stay float32."""

    def __post_init__(self) -> None:
        settings = self.settings
        self.weights = self.net.trainable()
        for name, weight in self.net.named_parameters():
            weight.requires_grad_(name in self.weights)
        self.optimizer = torch.optim.AdamW(
            self.weights.values(),
            lr=settings.learning_rate,
            betas=(0.9, 0.999),
            weight_decay=settings.weight_decay,
            eps=1e-8,
        )
        self.generator = torch.Generator().manual_seed(settings.training_seed)
        self.losses: list[float] = []

    @property
    def done(self) -> int:
        return len(self.losses)

    def step(self) -> float:
        """One step on a drawn noise level -> loss."""
        timestep = int(torch.randint(len(self.alphas_cumprod), (), generator=self.generator))
        noise = torch.randn(self.latents.shape, generator=self.generator)
        return self.step_on(timestep, noise)

    def step_on(self, timestep: int, noise: Tensor) -> float:
        """One step on this noise level; noise [F,C,h,w] -> loss.

        Raises: ValueError when the loss or the gradient is no number; the weights stay as they
            were.
        """
        self.optimizer.zero_grad(set_to_none=True)
        value = self._backward(timestep, noise.to(self.latents))
        norm = torch.nn.utils.clip_grad_norm_(self.weights.values(), self.settings.clip_norm)
        self._require_number("gradient", float(norm))
        self.optimizer.step()
        self.losses.append(value)
        return value

    def _backward(self, timestep: int, noise: Tensor) -> float:
        """Mean squared error of what the model should say at this noise level, and gradients."""
        signal = self.alphas_cumprod[timestep].to(self.latents)
        root, rest = signal.sqrt(), (1 - signal).sqrt()
        noisy = root * self.latents + rest * noise
        target = root * noise - rest * self.latents if self.predicts_v else noise
        run = checkpointed if self.settings.checkpointing else None
        with self._mixed():
            joint = Joint(Features(self.net, noisy[None], run=run), 1)
        # the hooks stay until the backward pass is through: checkpoints run parts again
        with joined(self.unet, joint):
            with self._mixed():
                loss = F.mse_loss(self.predict(noisy, timestep).float(), target)
            value = float(loss.detach())
            self._require_number("loss", value)
            loss.backward()
        return value

    def _require_number(self, what: str, value: float) -> None:
        if not isfinite(value):
            raise ValueError(
                f"Train Temporal UNet: the {what} is {value} at step {self.done + 1}. Lower "
                "'learning_rate' (3e-05 is usual), and check the latents."
            )

    def _mixed(self) -> Any:
        device = self.latents.device.type
        return torch.autocast(device, self.half) if self.half else nullcontext()

    def state(self) -> dict[str, Any]:
        """Tensors by name and the losses, for a snapshot."""
        tensors = {f"weight/{name}": value.detach() for name, value in self.weights.items()}
        names = list(self.weights)
        for number, values in self.optimizer.state_dict()["state"].items():
            for key, value in values.items():
                tensors[f"{key}/{names[number]}"] = torch.as_tensor(value)
        tensors["generator"] = self.generator.get_state()
        return {"tensors": tensors, "losses": list(self.losses)}

    def resume(self, tensors: dict[str, Tensor], losses: list[float]) -> None:
        """Goes on from `state()`.

        Raises: KeyError, TypeError, ValueError or RuntimeError when it is not of this network;
            nothing is changed then.
        """
        weights, moments = {}, {}
        for number, (name, weight) in enumerate(self.weights.items()):
            weights[name] = _alike(tensors, f"weight/{name}", weight.shape)
            if any(f"{key}/{name}" in tensors for key in MOMENTS):
                shapes = ((), weight.shape, weight.shape)
                moments[number] = {
                    key: _alike(tensors, f"{key}/{name}", shape).clone()
                    for key, shape in zip(MOMENTS, shapes, strict=True)
                }
        generator = torch.Generator()
        generator.set_state(tensors["generator"])
        known = [float(loss) for loss in losses]
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": moments, "param_groups": groups})
        with torch.no_grad():
            for name, weight in self.weights.items():
                weight.copy_(weights[name])
        self.generator, self.losses = generator, known


def _alike(tensors: dict[str, Tensor], name: str, shape: Sequence[int]) -> Tensor:
    """The tensor of that name. Raises: KeyError, or ValueError for another shape."""
    found = tensors[name]
    if tuple(found.shape) != tuple(shape):
        raise ValueError(f"{name} has the shape {tuple(found.shape)}, expected {tuple(shape)}")
    return found
