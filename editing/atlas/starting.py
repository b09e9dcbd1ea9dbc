"""Where a fit starts, in closed form, and the payload that it ends in."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from .explicit import FittedLayer, dense, new_layer, texture_size
from .flow import Flow
from .layered_flow import LayerMotion, layer_motions
from .motion import chained, used_area
from .objective import Problem
from .registration import registered
from .types import Atlas, Layer


def usable(problem: Problem) -> Problem:
    """The same in tensors that gradients may touch (the host runs nodes in inference mode)."""

    def own(value: Tensor) -> Tensor:
        return value.clone() if value.is_inference() else value

    flow = Flow(*(own(value) for value in vars(problem.flow).values()))
    considered = None if problem.considered is None else own(problem.considered)
    masks = [own(mask) for mask in problem.masks]
    return replace(problem, clip=own(problem.clip), masks=masks, flow=flow, considered=considered)


def sure_members(problem: Problem) -> list[Tensor]:
    """[F,1,H,W] float per layer, front to back: 1 where a pixel surely shows that layer."""
    free = torch.ones_like(problem.clip[:, :1])
    if problem.considered is not None:
        free = free * problem.considered
    members = []
    for mask in problem.masks:
        members.append((mask > 0.6).float() * free)
        free = free * (mask < 0.05)
    return [*members, free]


def start(
    problem: Problem, texture_detail: float
) -> tuple[list[FittedLayer], list[tuple[LayerMotion, LayerMotion]]]:
    """The layers where affine motions put them, and how each moves from frame to frame."""
    clip = problem.clip
    size, device = (clip.shape[2], clip.shape[3]), clip.device
    layers, found = [], []
    for number, member in enumerate(sure_members(problem)):
        sure = member[:, 0].cpu() > 0.5
        motions = registered(clip, chained(problem.flow, sure), sure)
        last = number == len(problem.masks)
        used = torch.ones_like(sure) if last else problem.masks[number][:, 0].cpu() > 0.5
        area = used_area(motions, used)
        mask = None if last else problem.masks[number].cpu()
        texture = texture_size(area[1], texture_detail)
        layers.append(new_layer(motions, area, size, texture, mask).to(device))
        found.append(layer_motions(clip, problem.flow, motions))
    return layers, found


def exported(layers: list[FittedLayer], problem: Problem) -> Atlas:
    """The payload, on the CPU."""
    clip = problem.clip
    size = (clip.shape[2], clip.shape[3])
    parts: list[list[tuple[Tensor, Tensor]]] = [[] for _ in layers]
    for frame in range(len(clip)):
        seen = dense(layers, torch.tensor([frame], device=clip.device), size)
        for number, part in enumerate(parts):
            last = number == len(layers) - 1
            alpha = torch.ones_like(clip[:1, :1]) if last else seen.alphas[number]
            part.append((seen.uvs[number].cpu(), alpha.cpu()))
    made = [
        Layer(
            uv=torch.cat([uv for uv, _ in part]),
            texture=layer.texture.clamp(0, 1).cpu(),
            alpha=torch.cat([alpha for _, alpha in part]),
            coverage=layer.coverage.cpu(),
        )
        for layer, part in zip(layers, parts, strict=True)
    ]
    return Atlas(tuple(made), layer_names(len(made)))


def layer_names(count: int) -> tuple[str, ...]:
    """Front to back."""
    fronts = ["foreground", *(f"foreground {number}" for number in range(2, count))]
    return (*fronts[: count - 1], "background")
