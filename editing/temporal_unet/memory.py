"""What a training takes, before it is begun."""

from __future__ import annotations

from dataclasses import dataclass

from .network import TemporalNetwork
from .windows import padded_count


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes on the device that trains."""

    image_model: float
    """The training's copy of the image UNet; and the MODEL, where it does not leave the device."""
    trained: float
    """Weights in training, their gradients and AdamW's two moments, float32."""
    activations: float
    """What the backward pass needs: an estimate."""

    @property
    def total(self) -> float:
        return self.image_model + self.trained + self.activations

    @property
    def text(self) -> str:
        parts = (
            f"image model {self.image_model / 1e9:.2g} GB, trained weights and optimizer "
            f"{self.trained / 1e9:.2g} GB, activations about {self.activations / 1e9:.2g} GB"
        )
        return f"the training ({parts})"


KEPT = {
    ("paper", True): 6.0,
    ("paper", False): 20.0,
    ("published", True): 7.0,
    ("published", False): 32.0,
}
"""Values that the backward pass keeps per value of a part's output, with checkpoints (True) or
without: measured on the demo checkpoint by benchmarks/temporal_unet.py, rounded up."""


def memory_plan(
    net: TemporalNetwork,
    image_model: float,
    clip: tuple[int, int, int],
    checkpointing: bool,
    item: int = 4,
) -> MemoryPlan:
    """
    Args:
        net: may lie on the meta device: only its sizes count.
        image_model: bytes of all image UNets on the device.
        clip: (F, h, w) of the latents.
        item: bytes of a value in the arithmetic.
    """
    frames, height, width = clip
    plan = net.plan
    padded = padded_count(frames, plan.multiple)
    values, level = 0.0, 0
    # the temporal UNet keeps the picture's size and halves the frames, the image UNet the reverse
    for part in (*plan.encoder, *plan.decoder):
        level += {"down": 1, "up": -1}.get(part.kind, 0)
        per_position = padded / 2**level + frames / 4**level
        values += part.outputs * height * width * per_position
    trained = 16.0 * sum(weight.numel() for weight in net.trainable().values())
    return MemoryPlan(
        image_model, trained, KEPT[net.architecture.kind, checkpointing] * values * item
    )
