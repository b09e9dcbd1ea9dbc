"""The nodes: schemas only, one file per stage. What they do is in editing/."""

from __future__ import annotations

from comfy_api.v0_0_2 import ComfyExtension, io

from .atlas import FitAtlas, LoadAtlas, RenderAtlas, SaveAtlas
from .atlas_editing import AggregateKeyframes, EditKeyframes, PropagateKeyframe
from .attention import ExtendedAttention, PlugAndPlay, TokenFlow
from .compositing import RestoreBackground
from .evaluate import CompareVideos, ConsistencyReport
from .guidance import AnchorAttention, LatentGuidance
from .inversion import (
    CheckInversion,
    InversionLatent,
    InvertVideo,
    LoadInversion,
    SaveInversion,
)
from .key_frames import KeyFrameInversion
from .temporal import (
    ApplyTemporalUNet,
    LoadTemporalUNet,
    SaveTemporalUNet,
    TrainTemporalUNet,
)
from .textures import AtlasTextures, MapToAtlas, UnmapFromAtlas
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
    FitAtlas,
    SaveAtlas,
    LoadAtlas,
    AtlasTextures,
    MapToAtlas,
    UnmapFromAtlas,
    RenderAtlas,
    PropagateKeyframe,
    EditKeyframes,
    AggregateKeyframes,
    ConsistencyReport,
    CompareVideos,
    TrainTemporalUNet,
    ApplyTemporalUNet,
    SaveTemporalUNet,
    LoadTemporalUNet,
]


class ReweaveExtension(ComfyExtension):
    """What ComfyUI registers."""

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return NODES
