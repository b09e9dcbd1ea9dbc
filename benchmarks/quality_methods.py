"""The methods that the quality benchmark compares: add one here and it is in every table.

An entry is a function Job -> edited frames [F,3,H,W] in 0..1. Everything that belongs to a method,
such as a training on the clip, happens inside of it and counts into its time. `needs` says why a
method cannot run with a job's models; it is then named in the table instead of left out.
Import it after `load_pack()`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from editing_runs import Job, sample
from quality_pipelines import stablevideo, tcve
from reweave.editing.anchor_attention import AnchorAttention
from reweave.editing.latent_guidance import LatentGuidance
from reweave.editing.plug_and_play import PlugAndPlay
from reweave.editing.tokenflow import TokenFlow
from torch import Tensor


@dataclass(frozen=True)
class Method:
    """One row of the table."""

    run: Callable[[Job], Tensor]
    about: str
    needs: Callable[[Any], str] = lambda model: ""
    """Given the MODEL, why the method cannot run; empty where it can."""


def edited(job: Job, *edits: Any) -> Tensor:
    """Sampling with edits on the model, decoded."""
    latent = sample(job.model, job.inversion, edits, job.positive, job.negative, job.cfg)
    return job.vae.decode(latent).movedim(-1, 1).clamp(0, 1)


def injection(job: Job) -> PlugAndPlay:
    """As published for TokenFlow."""
    return PlugAndPlay(job.inversion, 0.5, 0.8)


SOURCE = "source through the VAE"
METHODS: dict[str, Method] = {
    SOURCE: Method(lambda job: job.decoded, "no edit: what the VAE alone costs"),
    "plain": Method(edited, "every frame by itself, from the inversion"),
    "PlugAndPlay": Method(
        lambda job: edited(job, injection(job)), "every frame by itself, the source's layout"
    ),
    "TokenFlow": Method(
        lambda job: edited(job, TokenFlow(job.inversion)), "key frames edited jointly, propagated"
    ),
    "TokenFlow + PlugAndPlay": Method(
        lambda job: edited(job, TokenFlow(job.inversion), injection(job)), "as in the paper"
    ),
    "Pix2Video + PlugAndPlay": Method(
        lambda job: edited(job, injection(job), AnchorAttention(), LatentGuidance()),
        "anchor and previous frame; the paper's depth ControlNet replaced by the source's layout",
    ),
    "StableVideo": Method(
        stablevideo,
        "atlas of the true mask, key frames edited from partial noise, carried through the atlas; "
        "no ControlNet",
    ),
    "TCVE": Method(tcve, "temporal UNet, trained 100 steps on every second frame; no other edit"),
}
