"""The kernels against layers recorded from the published TokenFlow code (tests/goldens/README.md).

Every test holds a mutation: what the recording must not agree with.
"""

import pytest
import torch
import torch.nn.functional as F
from reweave.kernels.frame_attention import frame_attention
from reweave.kernels.nn_field import nn_field
from reweave.kernels.propagate import propagate
from reweave.tests.tolerances import assert_close, differ
from torch import Tensor

Golden = dict[str, Tensor]
INTERVALS = [("nn_b8", 8, 0), ("nn_b8", 8, 1), ("nn_b8", 8, 2), ("nn_b4", 4, 0), ("nn_b4", 4, 1)]


def extended(q: Tensor, k: Tensor, v: Tensor, heads: int, frames: Tensor) -> Tensor:
    """Rows [source K | uncond K | cond K]: the source per frame, the others over `frames`."""
    q, k, v = (x.unflatten(0, (3, -1)) for x in (q, k, v))
    own = torch.arange(q.shape[1])[:, None]
    source = frame_attention(q[:1], k[:1], v[:1], heads, own)
    edited = frame_attention(q[1:], k[1:], v[1:], heads, frames)
    return torch.cat([source, edited]).flatten(0, 1)


@pytest.mark.parametrize("injected", ["off", "on"])
@pytest.mark.parametrize("name", ["ext_k2", "ext_k13"])
def test_extended_attention(tf_layer: Golden, name: str, injected: str) -> None:
    g = {key.removeprefix(f"{name}."): value for key, value in tf_layer.items()}
    q, k, v = (g["x"] @ g[f"to_{one}.weight"].T for one in "qkv")
    keys, heads = len(q) // 3, int(g["heads"])
    if injected == "on":
        q, k = q[:keys].repeat(3, 1, 1), k[:keys].repeat(3, 1, 1)
    everyone = torch.arange(keys).expand(keys, keys)
    out = extended(q, k, v, heads, everyone)
    assert_close(out, g[f"out_pre_to_out_{injected}"])
    projected = F.linear(out, g["to_out.weight"], g["to_out.bias"])
    assert_close(projected, g[f"out_pnp_{injected}"])

    other = "on" if injected == "off" else "off"
    assert differ(out, g[f"out_pre_to_out_{other}"])
    assert differ(extended(q, k, v, heads, everyone[:, 1:]), g[f"out_pre_to_out_{injected}"])
    assert differ(extended(q, k, v, 2, everyone), g[f"out_pre_to_out_{injected}"])


@pytest.mark.parametrize("name, size, batch", INTERVALS)
def test_field_and_propagation(tf_layer: Golden, name: str, size: int, batch: int) -> None:
    g = {key.removeprefix(f"{name}."): value for key, value in tf_layer.items()}
    own = {key.removeprefix(f"batch{batch}."): value for key, value in g.items()}
    pivots, x = g["pivot_source_tokens"], own["x"]
    source = F.layer_norm(x[:size], x.shape[-1:], g["norm1.weight"], g["norm1.bias"], eps=1e-5)
    assert_close(source, own["source_tokens"])

    near = [batch, batch - 1] if batch else [batch]
    neighbours = torch.tensor([near] * size)
    index, _ = nn_field(source, pivots, neighbours)
    recorded = [own[which] for which in ("idx_current", "idx_previous")[: len(near)]]
    expected = torch.stack([i.view(size, -1) for i in recorded], dim=1).long()
    assert torch.equal(index, expected)
    assert not torch.equal(nn_field(source, pivots.roll(1, dims=1), neighbours)[0], expected)

    current = g[f"blend_weight_current.batch{batch}"] if batch else torch.ones(size)
    weight = torch.stack([current, 1 - current], dim=1)[:, : len(near)]
    tokens = g["kf_attn_out"].unflatten(0, (3, -1))
    hidden = x.unflatten(0, (3, size)) + propagate(tokens, index, neighbours, weight)
    assert_close(hidden.flatten(0, 1), own["x_after_attn1"])

    elsewhere = propagate(tokens, index, (neighbours + 1) % len(pivots), weight)
    assert differ((x.unflatten(0, (3, size)) + elsewhere).flatten(0, 1), own["x_after_attn1"])
    if batch:
        turned = propagate(tokens, index, neighbours, weight.flip(1))
        assert differ((x.unflatten(0, (3, size)) + turned).flatten(0, 1), own["x_after_attn1"])
