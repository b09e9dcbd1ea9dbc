"""Methods of the quality benchmark that are more than edits on a MODEL, run through their nodes.

Everything that a node is not told here is its schema's default. Import it after `load_pack()`.
"""

from __future__ import annotations

import asyncio
from functools import cache
from typing import Any

from editing_runs import Job, sample
from reweave import comfy_entrypoint
from torch import Tensor

MOST_TRAINED = 16
"""Frames of a clip that TCVE is trained on."""


@cache
def nodes() -> dict[str, Any]:
    """The pack's node classes by name, as ComfyUI gets them."""

    async def listed() -> list[Any]:
        return await (await comfy_entrypoint()).get_node_list()

    return {node.__name__: node for node in asyncio.run(listed())}


def called(name: str, **given: Any) -> tuple:
    """The outputs of a node, with its defaults for what is not given."""
    node = nodes()[name]
    values: dict[str, Any] = {}
    for entry in node.GET_SCHEMA().inputs:
        options = entry.as_dict()
        if "default" in options:
            values[entry.id] = options["default"]
    return node.execute(**(values | given)).args


def stablevideo(job: Job) -> Tensor:
    """The layers that the words change, edited in key frames and carried through an atlas; the
    source's layout comes from partial noise, as there is no ControlNet."""
    frames, mask = job.frames.movedim(1, -1), None if job.mask is None else job.mask[:, 0]
    (atlas,) = called("FitAtlas", image=frames, mask=mask, steps=500)
    layers = job.layers or ("foreground" if mask is not None else "background",)
    textures = {layer: _edited_texture(job, frames, atlas, layer) for layer in layers}
    (out,) = called("RenderAtlas", atlas=atlas, image=frames, **textures)
    return out.movedim(-1, 1).clamp(0, 1)


def _edited_texture(job: Job, frames: Tensor, atlas: Any, layer: str) -> Tensor:
    pictures, masks, numbers = called(
        "EditKeyframes", model=job.model, vae=job.vae, positive=job.positive, negative=job.negative,
        image=frames, atlas=atlas, layer=layer, cfg=4.0, noise_strength=0.35, first_strength=0.75,
        resolution=max(frames.shape[1:3]), margin=24, minimum_side=64, backdrop="source pixels",
        uncovered="source pixels", mapping="fast",
    )  # fmt: skip
    return called(
        "AggregateKeyframes", atlas=atlas, image=pictures, mask=masks, key_frames=numbers,
        layer=layer, method="mean", unseen="original texture", mapping="fast",
    )[0]  # fmt: skip


def tcve(job: Job) -> Tensor:
    """A temporal UNet trained on the clip; inversion and edit both run with it, in windows.

    As published it is trained on every second frame, at most 16. Without gradient checkpointing
    the result is the same, sooner.
    """
    latent = {"samples": job.vae.encode(job.frames.movedim(1, -1))}
    trained, *_ = called(
        "TrainTemporalUNet", model=job.model, positive=job.negative,
        latent={"samples": latent["samples"][: 2 * MOST_TRAINED : 2]}, gradient_checkpointing=False,
    )  # fmt: skip
    (fused,) = called("ApplyTemporalUNet", model=job.model, temporal_unet=trained)
    steps = len(job.inversion.sigmas)
    inversion = called(
        "InvertVideo", model=fused, positive=job.negative, latent=latent, steps=steps,
        saved_steps=steps, storage="float32",
    )[0]  # fmt: skip
    out = sample(fused, inversion, [], job.positive, job.negative, job.cfg)
    return job.vae.decode(out).movedim(-1, 1).clamp(0, 1)
