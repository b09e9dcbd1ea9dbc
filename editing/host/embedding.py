"""CLIP's view of pictures and prompts, for the measures: ComfyUI runs the encoders."""

from __future__ import annotations

from typing import Any

import comfy.model_management
import torch
from torch import Tensor

FRAMES_AT_ONCE = 16
NO_PROJECTION = (
    "this CLIP has no text projection (SD1.x checkpoints leave it out): load the whole CLIP with "
    "Load CLIP"
)


def embeddings(
    clip: Any, clip_vision: Any, prompt: str, source: Tensor, edited: Tensor
) -> dict[str, Any]:
    """The fields of Evidence that come from CLIP, with the reasons for those that do not.

    Args:
        clip: CLIP or None.
        clip_vision: CLIP_VISION or None.
        source, edited: [F,H,W,3] in 0..1.
    """
    found: dict[str, Any] = {}
    absent: dict[str, str] = {}
    if clip_vision is None:
        absent["picture embeddings"] = "no 'clip_vision' connected"
    else:
        found["source_embeddings"] = picture_embeddings(clip_vision, source)
        found["edited_embeddings"] = picture_embeddings(clip_vision, edited)
    if clip is None or not prompt.strip():
        absent["text embedding"] = "no 'clip' connected" if clip is None else "no prompt"
    elif clip_vision is not None:
        found["text_embedding"], why = text_embedding(clip, prompt)
        absent.update({"text embedding": why} if why else {})
    return {**found, "absent": absent}


def picture_embeddings(clip_vision: Any, frames: Tensor) -> Tensor:
    """Projected embeddings [F,D] float32 of frames [F,H,W,3] in 0..1, cut to the middle square.

    Raises: ValueError for an encoder that is no CLIP (it gives no embedding).
    """
    parts = []
    for some in frames.split(FRAMES_AT_ONCE):
        comfy.model_management.throw_exception_if_processing_interrupted()
        found = clip_vision.encode_image(some[..., :3])["image_embeds"]
        if found is None or found.ndim != 2:
            raise ValueError(
                "Consistency Report: expected 'clip_vision' to be a CLIP that gives picture "
                "embeddings, this model gives none. Load a CLIP ViT with Load CLIP Vision, or "
                "disconnect it."
            )
        parts.append(found.float().cpu())
    return torch.cat(parts)


def text_embedding(clip: Any, prompt: str) -> tuple[Tensor | None, str]:
    """The projected embedding [D] float32 of a prompt; or None, and why there is none.

    The encoder of an SD1.x checkpoint has no weights for the projection, and ComfyUI leaves them
    as the memory was: its projected output means nothing.
    """
    encoder = _encoder(clip.cond_stage_model)
    projection = getattr(getattr(encoder, "transformer", None), "text_projection", None)
    if projection is None or not _plausible(projection.weight.detach().float().cpu()):
        return None, NO_PROJECTION
    # a copy without 'clip skip': that of the graph is not meant for the measure
    plain = clip.clone()
    plain.clip_layer(None)
    _, pooled = plain.encode_from_tokens(plain.tokenize(prompt), return_pooled=True)
    if not encoder.return_projected_pooled:
        pooled = projection(pooled)
    return pooled[0].float().cpu(), ""


def _encoder(model: Any) -> Any:
    """The encoder whose pooled output ComfyUI gives: clip_g where there are two, else the one."""
    return getattr(model, "clip_g", None) or getattr(model, getattr(model, "clip", ""), None)


def _plausible(weight: Tensor) -> bool:
    """CLIP's projections have entries around 0.01 to 0.1; unset memory has zeros, or anything."""
    if not bool(torch.isfinite(weight).all()):
        return False
    spread = float(weight.std())
    return 1e-4 < spread < 1.0 and not torch.equal(weight, torch.eye(*weight.shape))
