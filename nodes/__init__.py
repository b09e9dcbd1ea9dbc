"""The nodes: schemas only, one file per stage. What they do is in editing/."""

from __future__ import annotations

from comfy_api.v0_0_2 import ComfyExtension, io

from .attention import ExtendedAttention, PlugAndPlay, TokenFlow
from .compositing import RestoreBackground
from .guidance import AnchorAttention, LatentGuidance
from .inversion import (
    CheckInversion,
    InversionLatent,
    InvertVideo,
    KeyFrameInversion,
    LoadInversion,
    SaveInversion,
)
from .tokens import (
    ExtractTokens,
    LoadNNField,
    NNField,
    PreviewNNField,
    PreviewTokens,
    SaveNNField,
)

NODES: list[type[io.ComfyNode]] = [
    InvertVideo,
    InversionLatent,
    SaveInversion,
    LoadInversion,
    CheckInversion,
    KeyFrameInversion,
    ExtractTokens,
    PreviewTokens,
    NNField,
    SaveNNField,
    LoadNNField,
    PreviewNNField,
    ExtendedAttention,
    PlugAndPlay,
    TokenFlow,
    AnchorAttention,
    LatentGuidance,
    RestoreBackground,
]


class ReweaveExtension(ComfyExtension):
    """What ComfyUI registers."""

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return NODES
