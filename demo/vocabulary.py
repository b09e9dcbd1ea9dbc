"""The demo's text encoder: frozen random rows for the words that captions use.

CLIP's twelve layers are identities (their output projections are zero), so a caption becomes one
row per token plus one
per position, layer-normed. Rows are drawn from the token's number: every training and every
builder sees the same ones.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from .footage import PLACES, SUBJECTS
from .nets import HOST, host_module
from .scenes import COLOURS, PATTERNS, SHAPES, TEXTURES
from .styles import STYLES

WIDTH, LENGTH, VOCABULARY = 768, 77, 49408


def words() -> list[str]:
    """Every text that a caption may be made of."""
    extra = ["a on a background, in the with and", *SUBJECTS, *PLACES]
    return [*COLOURS, *PATTERNS, *SHAPES, *TEXTURES, *STYLES, *extra]


class TextEncoder:
    """Captions -> [77, 768], as ComfyUI's CLIPTextEncode returns them for the built checkpoint."""

    def __init__(self, comfyui: Path = HOST) -> None:
        self._tokenizer = host_module("comfy.sd1_clip", comfyui).SDTokenizer()
        self.positions = torch.randn(LENGTH, WIDTH, generator=torch.Generator().manual_seed(77))
        self._rows: dict[int, Tensor] = {}
        self._known: dict[str, Tensor] = {}

    def tokens(self, text: str) -> list[int]:
        """Token numbers of a caption, padded to 77."""
        return [int(pair[0]) for pair in self._tokenizer.tokenize_with_weights(text)[0]]

    def row(self, token: int) -> Tensor:
        """The frozen row [768] of one token."""
        if token not in self._rows:
            generator = torch.Generator().manual_seed(1000 + token)
            self._rows[token] = torch.randn(WIDTH, generator=generator)
        return self._rows[token]

    def __call__(self, text: str) -> Tensor:
        """[77, 768] float32."""
        if text not in self._known:
            rows = torch.stack([self.row(token) for token in self.tokens(text)])
            self._known[text] = F.layer_norm(rows + self.positions, (WIDTH,))
        return self._known[text]

    def weights(self, texts: Iterable[str]) -> dict[str, Tensor]:
        """What has to be stored: the used token numbers, their rows, and the positions."""
        used = sorted({token for text in texts for token in self.tokens(text)})
        rows = torch.stack([self.row(token) for token in used])
        return {
            "tokens": torch.tensor(used, dtype=torch.int32),
            "rows": rows,
            "positions": self.positions,
        }


def clip_state(text: dict[str, Tensor]) -> dict[str, Tensor]:
    """CLIP-L's state dict, in float16, from `TextEncoder.weights`."""
    prefix = "cond_stage_model.transformer.text_model."
    table = torch.zeros(VOCABULARY, WIDTH, dtype=torch.float16)
    table[text["tokens"].long()] = text["rows"].half()
    state = {
        f"{prefix}embeddings.token_embedding.weight": table,
        f"{prefix}embeddings.position_embedding.weight": text["positions"].half(),
    }
    for layer in range(12):
        state |= _identity_layer(f"{prefix}encoder.layers.{layer}.")
    state |= _norm(f"{prefix}final_layer_norm")
    return state


def _identity_layer(name: str) -> dict[str, Tensor]:
    """A transformer layer whose output projections are zero."""
    sizes = {f"self_attn.{part}_proj": (WIDTH, WIDTH) for part in ("q", "k", "v", "out")}
    sizes |= {"mlp.fc1": (4 * WIDTH, WIDTH), "mlp.fc2": (WIDTH, 4 * WIDTH)}
    state: dict[str, Tensor] = {}
    for part, size in sizes.items():
        state[f"{name}{part}.weight"] = torch.zeros(size, dtype=torch.float16)
        state[f"{name}{part}.bias"] = torch.zeros(size[0], dtype=torch.float16)
    return state | _norm(f"{name}layer_norm1") | _norm(f"{name}layer_norm2")


def _norm(name: str) -> dict[str, Tensor]:
    return {
        f"{name}.weight": torch.ones(WIDTH, dtype=torch.float16),
        f"{name}.bias": torch.zeros(WIDTH, dtype=torch.float16),
    }
