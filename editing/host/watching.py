"""Looking at the source through the model: tokens, fields, and whether the inversion is good."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor

from .. import tokens
from ..checks import check_draw, check_memory, check_range, chosen_sites
from ..keyframes import DRAWS
from ..protocol import Call
from ..report import InversionReport, as_encoded, psnr
from ..types import Inversion, NNField, TokenStore
from .feature_cache import field_bytes, token_bytes
from .model import fingerprint, latent_format, supported_sites
from .notices import say
from .validate import check_same_clip
from .walking import play_back, walk_source


def extract(
    patcher: Any,
    inversion: Inversion,
    sites: str,
    step_count: int,
    frames_per_pass: int,
    max_gigabytes: float,
) -> TokenStore:
    """What Extract Tokens does.

    Raises: ValueError for unknown sites, another model, or a plan above the limit.
    """
    node = "Extract Tokens"
    available = supported_sites(patcher, node)
    check_same_clip(node, patcher, inversion, inversion.clean)
    check_range(node, "step_count", step_count, 1)
    chosen = chosen_sites(node, sites, available) or tokens.default_sites(available)
    steps = tokens.spread_steps(len(inversion.sigmas), step_count)
    planned = token_bytes(patcher, chosen, inversion.clean, len(steps))
    what = f"the tokens (sites: {len(chosen)}, steps: {len(steps)})"
    say(check_memory(node, what, planned, max_gigabytes, "Lower 'step_count', name fewer 'sites'"))
    walk = _walk(patcher, inversion, node, frames_per_pass)
    found = tokens.extract_tokens(walk, inversion, chosen, steps, frames_per_pass)
    return replace(found, fingerprint=fingerprint(patcher))


def field_of(
    patcher: Any | None,
    inversion: Inversion | None,
    store: TokenStore | None,
    interval: int,
    keyframe_seed: int,
    key_frames: str,
    rule: str,
    frames_per_pass: int,
    max_gigabytes: float,
) -> NNField:
    """What Nearest-Neighbour Field does: exact from a model, clean from tokens.

    Raises: ValueError when neither or both are connected, and for settings that cannot work.
    """
    node = "Nearest-Neighbour Field"
    check_draw(node, interval, key_frames, rule)
    exact = patcher is not None and inversion is not None
    some = patcher is not None or inversion is not None
    if exact == (store is not None) or some != exact:
        named = {"model": patcher, "inversion": inversion, "tokens": store}
        came = ", ".join(name for name, value in named.items() if value is not None) or "nothing"
        raise ValueError(
            f"{node}: expected either 'model' and 'inversion' (the exact field, for TokenFlow) or "
            f"'tokens' (a field for viewing) to be connected; got {came}. Connect one of the two."
        )
    fixed = key_frames == DRAWS[1]
    knob = "Use a shorter or smaller clip, or an inversion with fewer saved steps"
    if store is not None:
        planned = 8.0 * sum(part.shape[0] * part.shape[1] for part in store.tokens.values())
        say(check_memory(node, "its matches", planned, max_gigabytes, knob))
        return tokens.clean_field(store, interval, keyframe_seed, rule, fixed)
    assert inversion is not None
    supported_sites(patcher, node)
    check_same_clip(node, patcher, inversion, inversion.clean)
    steps = range(len(inversion.sigmas))
    planned = field_bytes(patcher, inversion.clean, len(steps))
    say(check_memory(node, "its matches", planned, max_gigabytes, knob))
    walk = _walk(patcher, inversion, node, frames_per_pass)
    field = tokens.propagated_field(
        walk, inversion, steps, interval, keyframe_seed, rule, fixed, frames_per_pass
    )
    return replace(field, fingerprint=fingerprint(patcher))


def check_inversion(patcher: Any, vae: Any, inversion: Inversion, image: Tensor) -> InversionReport:
    """What Check Inversion does: plays the inversion back and compares pictures.

    Args:
        image: [F,H,W,3] the clip that was encoded, 0..1.

    Raises: ValueError when model, inversion and pictures do not belong together.
    """
    node = "Check Inversion"
    supported_sites(patcher, node)
    check_same_clip(node, patcher, inversion, inversion.clean)
    if len(image) != inversion.frames:
        raise ValueError(
            f"{node}: the inversion has {inversion.frames} frames, 'image' {len(image)}. "
            "Connect the pictures that were encoded for Invert Video."
        )
    clean = latent_format(inversion.latent_format).process_out(inversion.clean.float())
    own = vae.decode(clean)[..., :3].float().cpu()  # --gpu-only decodes to the GPU
    given = as_encoded(node, image[..., :3].float().cpu(), own.shape[1], own.shape[2])
    back = vae.decode(play_back(patcher, inversion, node))[..., :3].float().cpu()
    return InversionReport(
        round_trip=psnr(back, own),
        autoencoder=psnr(own, given),
        steps=len(inversion.sigmas),
        convention=inversion.convention,
    )


def _walk(
    patcher: Any, inversion: Inversion, node: str, frames_per_pass: int
) -> Callable[[Sequence[int], Callable[[int, Call], None]], None]:
    def walk(steps: Sequence[int], visit: Callable[[int, Call], None]) -> None:
        walk_source(patcher, inversion, steps, visit, node, frames_per_pass)

    return walk
