"""Which folder of the cache belongs to a clip, a model and a draw of key frames."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor

from ..plug_and_play import PlugAndPlay
from ..protocol import Edit, Site, injection_sites
from ..step_cache import StepCache
from ..tokenflow import TokenFlow
from ..types import digest
from .model import fingerprint, sampling_parts, sites_of, unet_of
from .paths import cache_folder, cache_limit, mark_used, trim_cache
from .temporal_unet import temporal_key


def step_cache(patcher: Any, edits: Sequence[Edit], latent: Tensor) -> StepCache | None:
    """The cache of TokenFlow's source features, planned to fit; None where it is not used."""
    flow = next((edit for edit in edits if isinstance(edit, TokenFlow)), None)
    if flow is None:
        return None
    plan = flow.plan(0) if flow.nn_field is None else flow.nn_field
    draw = [flow.interval, flow.keyframe_seed, flow.fixed_key_frames, flow.rule]
    parts: list[Tensor | str] = [
        flow.inversion.key,
        str(fingerprint(patcher)),
        str(patcher.model_dtype()),
        str(compute_dtype(patcher)),
        patcher.load_device.type,
        str(draw),
        *sampling_parts(patcher),
    ]
    if temporal_key(patcher):
        parts.append(temporal_key(patcher))
    tables = [plan.key_frames, plan.neighbours, plan.weights]
    if flow.nn_field is not None:
        parts.append(flow.nn_field.origin)
        tables += [value for _, value in sorted(flow.nn_field.index.items())[:4]]
    folder = cache_folder() / "steps" / digest(*parts, *tables)
    cache = StepCache(folder)
    injects = any(isinstance(edit, PlugAndPlay) for edit in edits)
    field, features, queries = plan_bytes(patcher, flow, latent, injects)
    limit, planned = cache_limit() / 2, field + features + queries
    if planned > limit:
        cache, planned = replace(cache, keeps_queries=False), field + features
    if planned > limit:
        cache, planned = replace(cache, keeps_features=False), field
    if planned > limit:
        return None
    trim_cache(keep=folder, planned=planned)
    mark_used(folder)  # reading its files does not
    return cache


def compute_dtype(patcher: Any) -> Any:
    """In what the UNet computes where that is not its weights' dtype (Model Compute Dtype)."""
    name = "manual_cast_dtype"
    return patcher.object_patches.get(name, getattr(patcher.model, name, None))


def plan_bytes(
    patcher: Any, flow: TokenFlow, latent: Tensor, injects: bool
) -> tuple[float, float, float]:
    """Bytes of all steps: (field, conv features, key frames' queries and keys)."""
    sites, steps = sites_of(patcher), len(flow.inversion.sigmas)
    item = patcher.model_dtype().itemsize
    frames = flow.inversion.frames
    key_frames = -(-frames // flow.interval)
    tokens = {site: _tokens(patcher, site, latent) for site in sites}
    field = 2.0 * frames * sum(n * _index_bytes(n) for n in tokens.values()) * steps
    if not injects:
        return field, 0.0, 0.0
    chosen = injection_sites(sites)
    width = {site: _width(patcher, site) for site in chosen}
    pictures = frames + key_frames  # the key frames' own pass is kept too
    features = (
        float(pictures * tokens[chosen[0]] * width[chosen[0]] * item * steps) if chosen else 0.0
    )
    queries = 2.0 * key_frames * sum(tokens[s] * width[s] for s in chosen) * item * steps
    return field, features, queries


def token_bytes(patcher: Any, sites: Sequence[Site], clean: Tensor, steps: int) -> float:
    """Bytes of the float16 tokens of `sites` at `steps` steps; clean [F,C,h,w]."""
    per_frame = sum(_tokens(patcher, site, clean) * _width(patcher, site) for site in sites)
    return 2.0 * per_frame * len(clean) * steps


def field_bytes(patcher: Any, clean: Tensor, steps: int) -> float:
    """Bytes of a field with similarities, at rest, over every site; clean [F,C,h,w].

    Two neighbours, each with an index (2 or 4 bytes) and a float16 similarity.
    """
    counts = [_tokens(patcher, site, clean) for site in sites_of(patcher)]
    each = sum(2.0 * count * (_index_bytes(count) + 2) for count in counts)
    return each * len(clean) * steps


def _index_bytes(tokens: int) -> int:
    """Of one token index at rest (see `compact`)."""
    return 2 if tokens <= 32768 else 4


def _tokens(patcher: Any, site: Site, latent: Tensor) -> int:
    level = _level(patcher, site)
    return -(-latent.shape[-2] // level) * -(-latent.shape[-1] // level)


def _level(patcher: Any, site: Site) -> int:
    """Downsampling of a site: resolution changes are counted through the UNet's blocks."""
    unet = unet_of(patcher)
    names = [[type(module).__name__ for module in block] for block in unet.input_blocks]
    depth = sum("Downsample" in block for block in names)
    if site.block == "middle":
        return 2**depth
    if site.block == "input":
        return 2 ** sum("Downsample" in block for block in names[: site.number + 1])
    up = [[type(module).__name__ for module in block] for block in unet.output_blocks]
    return 2 ** (depth - sum("Upsample" in block for block in up[: site.number]))


def _width(patcher: Any, site: Site) -> int:
    unet = unet_of(patcher)
    blocks = {"input": unet.input_blocks, "middle": [unet.middle_block]}
    block = blocks.get(site.block, unet.output_blocks)[site.number]
    module = next(m for m in block if type(m).__name__ == "SpatialTransformer")
    return module.transformer_blocks[site.transformer].attn1.to_q.out_features
