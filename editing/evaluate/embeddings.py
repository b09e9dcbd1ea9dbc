"""What CLIP says: does the edit show the prompt, and does it stay one clip?

Cosines of projected embeddings; the encoders run in editing/host/embedding.py.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .types import HIGHER, Evidence, Metric

UNRELATED = 0.05
"""Mean cosine of text and pictures below which the two encoders are hardly one CLIP."""


def text_alignment(pictures: Tensor, text: Tensor) -> Tensor:
    """[F] cos(CLIP_text(P), CLIP_image(J_i)) (Pix2Video 4 "CLIP-Text", TCVE V-A, TokenFlow 5.2).

    Args:
        pictures: [F,D].
        text: [D].
    """
    return F.cosine_similarity(pictures.double(), text.double()[None], dim=1)


def neighbour_similarity(pictures: Tensor) -> Tensor:
    """[F-1] cos(CLIP_image(J_i), CLIP_image(J_{i+1})) (Pix2Video 4 "CLIP-Image")."""
    pictures = pictures.double()
    return F.cosine_similarity(pictures[:-1], pictures[1:], dim=1)


def frame_consistency(pictures: Tensor) -> Tensor:
    """[F] mean cosine of each frame with all others: their mean is the mean over all pairs (TCVE
    V-A, LOVEU-TGVE)."""
    unit = F.normalize(pictures.double(), dim=1)
    cosines = unit @ unit.T
    return (cosines.sum(1) - cosines.diagonal()) / (len(unit) - 1)


def embedding_metrics(evidence: Evidence) -> list[Metric]:
    """All three, of the edit and of the source."""
    needs = evidence.why_absent("picture embeddings", "no CLIP_VISION connected")
    if evidence.frames < 2 and evidence.edited_embeddings is not None:
        needs = "the clip has one frame only"
    edited, source = evidence.edited_embeddings, evidence.source_embeddings
    if edited is None or source is None or evidence.frames < 2:
        consistency = [
            Metric(name, "", paper, HIGHER, missing=needs)
            for name, paper in (("frame consistency", "TCVE V-A"), ("CLIP-Image", "Pix2Video 4"))
        ]
    else:
        consistency = [
            _measured(name, paper, by(edited), by(source))
            for name, paper, by in (
                ("frame consistency", "TCVE V-A", frame_consistency),
                ("CLIP-Image", "Pix2Video 4", neighbour_similarity),
            )
        ]
    return [*consistency, _text_metric(evidence)]


def _measured(name: str, paper: str, series: Tensor, own: Tensor, note: str = "") -> Metric:
    return Metric(name, "", paper, HIGHER, "CLIP", series=series, source_series=own, note=note)


def _text_metric(evidence: Evidence) -> Metric:
    name, paper = "text alignment", "TCVE V-A, Pix2Video 4"
    edited, text = evidence.edited_embeddings, evidence.text_embedding
    why = ""
    if edited is None:
        why = evidence.why_absent("picture embeddings", "no CLIP_VISION connected")
    elif text is None:
        why = evidence.why_absent("text embedding", "no CLIP or no prompt")
    elif edited.shape[1] != len(text):
        why = (
            f"the text encoder gives {len(text)} numbers, the picture encoder {edited.shape[1]}: "
            "they are not parts of the same CLIP"
        )
    if why or edited is None or text is None:
        return Metric(name, "", paper, HIGHER, missing=why)
    series = text_alignment(edited, text)
    source = evidence.source_embeddings
    own = torch.full_like(series, torch.nan) if source is None else text_alignment(source, text)
    note = ""
    if float(series.mean()) < UNRELATED:
        note = "near 0: text and picture encoder are probably not parts of the same CLIP"
    return _measured(name, paper, series, own, note)
