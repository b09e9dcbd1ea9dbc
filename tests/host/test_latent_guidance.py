"""Latent Guidance beyond the recording: units, targets, warps, the gradient, what it refuses."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from clips import SMALL, Spy, edited, run, same, sigmas_of, source, start_of
from reweave.editing import host
from reweave.editing.anchor_attention import AnchorAttention
from reweave.editing.latent_guidance import LatentGuidance, carried, pull, pull_through_network
from reweave.editing.plug_and_play import PlugAndPlay
from reweave.editing.tokenflow import TokenFlow
from reweave.editing.types import NNField
from reweave.editing.warping import FieldWarp, FlowWarp, flow_between, previous_tokens
from reweave.kernels.schedule import sigma_space_from_vp
from toy import conditioning, patcher, sample

FRAMES = 5


@pytest.fixture(scope="module")
def model():
    return patcher(SMALL)


@pytest.fixture(scope="module")
def inversion(model):
    return source(model, FRAMES)


def spread(out: torch.Tensor) -> float:
    """How much neighbouring frames differ."""
    return float((out[1:] - out[:-1]).square().mean().sqrt())


def test_neighbours_come_closer_and_the_first_frame_stays(model, inversion):
    plain = run(model, inversion)
    outs = [run(model, inversion, LatentGuidance(strength=s, until=0.7)) for s in (0, 0.05, 0.2)]
    assert same(outs[0], plain, 1e-6)
    assert spread(plain) > spread(outs[1]) > spread(outs[2])
    assert same(outs[2][:1], plain[:1])


def test_one_step_is_shifted_by_exactly_the_pull(model, inversion):
    sigmas, seen = sigmas_of(inversion)[:2], []
    plain = run(
        model, inversion, sigmas=sigmas, callback=lambda _step, x0, _x, _n: seen.append(x0.clone())
    )
    guided = run(model, inversion, LatentGuidance(strength=0.1, until=1.0), sigmas=sigmas)
    shift = pull(seen[0][1:], seen[0][:-1], 0.1, float(sigmas[1]))
    assert torch.allclose((guided - plain)[1:] * 0.18215, shift, atol=1e-4)
    assert float(shift.abs().max()) > 0.05


def test_a_still_step_carries_nothing():
    with pytest.raises(ValueError, match="carries no shift"):
        carried(torch.zeros(1), torch.ones(1), 2.0, 2.0)


def test_anchor_target_and_region(model, inversion):
    plain = run(model, inversion)
    aimed = LatentGuidance(strength=0.2, until=1.0, target="anchor frame", anchor=2)
    out = run(model, inversion, aimed)
    assert same(out[2:3], plain[2:3])
    apart = [float((x - x[2:3]).square().mean()) for x in (plain, out)]
    assert apart[1] < apart[0]
    region = torch.zeros(1, 64, 64)
    region[:, :, 32:] = 1
    first = sigmas_of(inversion)[:2]
    half = LatentGuidance(strength=0.2, until=1.0, region=region)
    part = run(model, inversion, half, sigmas=first)
    free = run(model, inversion, sigmas=first)
    assert same(part[..., :4], free[..., :4], 1e-6)
    assert not same(part[..., 4:], free[..., 4:], 1e-3)


def test_targets_follow_the_flow():
    """A picture that drifts by one latent pixel per frame is already where it belongs."""
    base = torch.randn(1, 4, 8, 16, generator=torch.Generator().manual_seed(0))
    x0 = torch.cat([base.roll(f, -1) for f in range(4)])[..., 4:12]
    flow = torch.zeros(4, 2, 64, 64)
    flow[1:, 0] = -8
    guidance = LatentGuidance(warp=FlowWarp(flow, torch.ones(4, 1, 64, 64)))
    targets, weight = guidance.aim(x0, None, 0)
    assert torch.allclose((targets * weight)[1:], (x0 * weight)[1:], atol=1e-5)
    assert bool((weight[1:, ..., 1:] == 1).all()) and bool((weight[..., :1] == 0).all())
    unmoved, _ = LatentGuidance().aim(x0, None, 0)
    assert float((unmoved - x0)[1:].abs().max()) > 1


def test_flow_of_pictures_finds_a_shift():
    noise = torch.rand(1, 3, 16, 24, generator=torch.Generator().manual_seed(1))
    big = F.interpolate(noise, (128, 192), mode="bicubic").clamp(0, 1).movedim(1, -1)
    clip = torch.cat([big[:, :, 10 + 3 * f : 138 + 3 * f] for f in range(3)])
    calls = []
    warp = flow_between(clip, torch.tensor([-1, 0, 1]), lambda: calls.append(1))
    inner = warp.flow[1:, :, 20:-20, 20:-20]
    assert abs(float(inner[:, 0].median()) - 3) < 0.2
    assert abs(float(inner[:, 1].median())) < 0.2
    assert len(calls) == 2 and not bool(warp.seen[0].any()) and bool(warp.seen[1].any())


def field_of(index: torch.Tensor, neighbours: torch.Tensor, grid: tuple[int, int]) -> NNField:
    site = ("input", 1, 0)
    return NNField(
        key_frames=torch.tensor([[0]]),
        neighbours=neighbours[None],
        weights=torch.ones(1, *neighbours.shape),
        index={(site, 0): index},
        grids={site: grid},
    )


def test_targets_follow_a_field():
    """Two frames' tokens meet in the key-frame token that both match."""
    index = torch.tensor([[[0, 1, 2, 3]], [[1, 2, 3, 3]], [[2, 3, 3, 3]]])
    neighbours = torch.zeros(3, 1, dtype=torch.long)
    assert previous_tokens(index, neighbours, 0).tolist() == [-1] * 4
    assert previous_tokens(index, neighbours, 1).tolist() == [1, 2, 3, 3]
    assert previous_tokens(index, neighbours, 2).tolist() == [1, 2, 2, 2]
    other = torch.tensor([[0], [1], [1]])
    assert previous_tokens(index, other, 1).tolist() == [-1] * 4
    x0 = torch.arange(12.0).view(3, 1, 1, 4)
    guidance = LatentGuidance(warp=FieldWarp(field_of(index, neighbours, (1, 4))))
    targets, weight = guidance.aim(x0, None, 0)
    assert targets[1, 0, 0].tolist() == [1, 2, 3, 3]
    assert weight[:, 0, 0, 0].tolist() == [0, 1, 1]


def test_gradient_of_a_linear_network_is_known():
    """With x0 = a x the gradient of half the squared distance is a (a x - target)."""
    generator = torch.Generator().manual_seed(0)
    x, target = (torch.randn(2, 1, 3, 3, generator=generator) for _ in range(2))
    aim = lambda x0: (target, torch.ones(2, 1, 3, 3))  # noqa: E731
    with torch.inference_mode(False):
        x, target = x.clone(), target.clone()
        x0, shift = pull_through_network(lambda point: 0.5 * point, aim, x, 0.1, 3.0, 2.0)
    assert torch.allclose(x0, 0.5 * x)
    expected = -0.1 * (10.0 * 5.0) ** 0.5 * 0.5 * (0.5 * x - target)
    assert torch.allclose(shift, expected, atol=1e-6)


@pytest.mark.parametrize("anchored", [False, True])
def test_gradient_mode_lowers_the_paper_s_distance(model, inversion, anchored):
    edits = [AnchorAttention()] if anchored else []
    gradient = LatentGuidance(strength=0.02, until=1.0, mode="gradient")
    with torch.inference_mode():
        plain = run(model, inversion, *edits)
        out = run(model, inversion, *edits, gradient)
        again = run(model, inversion, *edits)
    assert spread(out) < spread(plain)
    assert torch.equal(again, plain), "the model was not left as it was"
    left = sum(len(getattr(part, "weight_function", [])) for part in model.model.modules())
    assert left == 0


def test_memory_plan_covers_what_a_gradient_keeps(model, inversion):
    """The factor of the plan, against the bytes that autograd really keeps."""
    kept: dict[int, int] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    gradient = LatentGuidance(strength=0.02, until=1.0, mode="gradient")
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        run(model, inversion, gradient, sigmas=sigmas_of(inversion)[:2])
    planned = host.gradient_bytes(model, (FRAMES, 4, 8, 8))
    assert 0.4 * planned < sum(kept.values()) < 1.1 * planned


@pytest.mark.parametrize("frames_per_pass", [0, 2])
def test_with_the_other_edits(model, inversion, frames_per_pass):
    guidance = LatentGuidance(strength=0.1, until=1.0)
    for edits in (
        [AnchorAttention(frames_per_pass=frames_per_pass)],
        [TokenFlow(inversion, interval=4, frames_per_pass=frames_per_pass)],
        [PlugAndPlay(inversion)],
    ):
        without = run(model, inversion, *edits)
        out = run(model, inversion, *edits, guidance)
        assert spread(out) < spread(without)
        assert same(run(model, inversion, guidance, *edits), out)


@pytest.mark.parametrize("mode", ["closed form", "gradient"])
def test_what_a_mask_locks_is_not_pulled(model, inversion, mode):
    """At no step: the network spreads a gradient over the whole frame."""
    mask = torch.zeros(1, 64, 64)
    mask[:, :, :32] = 1
    edits = [PlugAndPlay(inversion, mask=mask), LatentGuidance(0.3, 1.0, mode=mode)]
    seen = []
    out = run(
        model, inversion, *edits, callback=lambda step, x0, x, n: seen.append(x[..., 4:].clone())
    )
    for step, x in enumerate(seen):
        sigma = float(inversion.sigmas[step])
        assert same(x, sigma_space_from_vp(inversion.latents[step], sigma)[..., 4:], 1e-5)
    assert same(out[..., 4:], (inversion.clean / 0.18215)[..., 4:], 1e-5)


def test_a_given_anchor_is_not_pulled(model, inversion):
    given = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(3))
    edits = [AnchorAttention(anchor=2, edited_anchor=given), LatentGuidance(0.3, 1.0)]
    assert torch.allclose(run(model, inversion, *edits)[2:3] * 0.18215, given, atol=1e-4)


@pytest.mark.parametrize(
    ("edit", "frames", "options", "words"),
    [
        (LatentGuidance(), 1, {}, "Latent Guidance: expected at least 2 frames, got 1"),
        (
            LatentGuidance(target="anchor frame", anchor=7),
            5,
            {},
            r"'anchor' to be a frame of the clip \(0 to 4\), got 7",
        ),
        (
            LatentGuidance(target="fixed step", target_step=9),
            5,
            {},
            r"'target_step' to be a step of the schedule \(0 to 2\), got 9",
        ),
        (LatentGuidance(), 5, {"sampler": "heun"}, "the sampler euler or ddim .* got heun"),
        (LatentGuidance(), 5, {"sampler": "dpmpp_2m"}, "got dpmpp_2m"),
        (LatentGuidance(region=torch.ones(3, 8, 8)), 5, {}, "mask of 1 or 5 frames, got 3"),
        (
            LatentGuidance(warp=FlowWarp(torch.zeros(3, 2, 64, 64), torch.zeros(3, 1, 64, 64))),
            5,
            {},
            "'source_frames' to hold the clip's 5 frames, got 3",
        ),
    ],
)
def test_refusals_before_any_call(model, edit, frames, options, words):
    inversion, spy = source(model, frames), Spy()
    with pytest.raises(ValueError, match=words):
        sample(
            spy.on(edited(model, edit)),
            start_of(inversion),
            sigmas_of(inversion),
            conditioning(),
            **options,
        )
    assert not spy.calls


def test_gradient_refuses_quantised_weights_and_too_little_memory(model, inversion, monkeypatch):
    import comfy.model_management

    gradient = LatentGuidance(mode="gradient")
    monkeypatch.setattr(comfy.model_management, "get_free_memory", lambda *_a, **_k: 1)
    with pytest.raises(ValueError, match=r"keeps about .* GB in memory, .* GB are free"):
        run(model, inversion, gradient)
    monkeypatch.undo()
    small = patcher(SMALL)
    for weight in small.model.diffusion_model.out.parameters():
        weight.data = weight.data.to(torch.float8_e4m3fn)
    with pytest.raises(ValueError, match=r"needs float weights, .*float8_e4m3fn"):
        run(small, inversion, gradient)
