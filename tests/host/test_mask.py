"""Outside of a MASK the source's own trajectory is followed, and the clip comes back."""

from __future__ import annotations

import comfy_extras.nodes_model_advanced
import pytest
import torch
from clips import SMALL, run, same, sigmas_of, source
from reweave.editing.plug_and_play import PlugAndPlay
from reweave.editing.tokenflow import TokenFlow
from reweave.kernels.schedule import sigma_space_from_vp
from toy import patcher


@pytest.fixture(scope="module")
def model():
    return patcher(SMALL)


def mask_of(frames: int = 1) -> torch.Tensor:
    """Open on the left half, closed on the right; in pixels."""
    mask = torch.zeros(frames, 64, 64)
    mask[:, :, :32] = 1
    return mask


@pytest.mark.parametrize("edit", ["flow", "injection", "both"])
@pytest.mark.parametrize("cfg", [1.0, 7.5])
def test_outside_follows_the_source_exactly(model, edit, cfg):
    inversion, mask = source(model), mask_of(1 if cfg == 1.0 else 5)
    flow = TokenFlow(inversion, interval=4, mask=mask if edit == "flow" else None)
    injection = PlugAndPlay(inversion, mask=None if edit == "flow" else mask)
    edits = {"flow": [flow], "injection": [injection], "both": [flow, injection]}[edit]
    seen = []
    out = run(
        model, inversion, *edits, cfg=cfg, callback=lambda step, x0, x, n: seen.append(x.clone())
    )
    for step, x in enumerate(seen):
        sigma = float(inversion.sigmas[step])
        expected = sigma_space_from_vp(inversion.latents[step], sigma)
        assert same(x[..., 4:], expected[..., 4:], 1e-5)
    clip = inversion.clean / 0.18215
    assert same(out[..., 4:], clip[..., 4:], 1e-5)
    assert not same(out[..., :4], clip[..., :4], 0.2)


def test_the_lock_of_a_mask_is_exact_under_rescaled_guidance(model):
    """RescaleCFG scales a whole frame by what is in it, locked region and all."""
    inversion = source(model)
    rescaled = comfy_extras.nodes_model_advanced.RescaleCFG().patch(model, 0.7)[0]
    seen = []
    run(
        rescaled, inversion, TokenFlow(inversion, interval=4, mask=mask_of()),
        callback=lambda step, x0, x, n: seen.append(x.clone()),
    )  # fmt: skip
    for step, x in enumerate(seen):
        expected = sigma_space_from_vp(inversion.latents[step], float(inversion.sigmas[step]))
        assert same(x[..., 4:], expected[..., 4:], 1e-5)


def test_a_sampler_that_no_mask_can_lock_is_refused(model):
    inversion = source(model)
    with pytest.raises(ValueError, match="'euler_cfg_pp' steps by .* disconnect the mask"):
        run(model, inversion, TokenFlow(inversion, mask=mask_of()), sampler="euler_cfg_pp")
    assert torch.isfinite(run(model, inversion, TokenFlow(inversion), sampler="euler_cfg_pp")).all()


def test_inside_is_edited_as_without_a_mask_at_the_first_step(model):
    inversion = source(model)
    one_step = inversion.sigmas[:2]
    free = run(model, inversion, TokenFlow(inversion), sigmas=one_step)
    masked = run(model, inversion, TokenFlow(inversion, mask=mask_of()), sigmas=one_step)
    assert torch.equal(masked[..., :4], free[..., :4])


def test_an_open_mask_changes_nothing(model):
    inversion = source(model)
    free = run(model, inversion, TokenFlow(inversion))
    assert torch.equal(
        run(model, inversion, TokenFlow(inversion, mask=torch.ones(1, 64, 64))), free
    )


def test_a_start_that_is_not_the_sources_is_locked_too(model):
    inversion = source(model)
    other = source(model, seed=30)
    start = sigma_space_from_vp(other.latents[1], float(inversion.sigmas[1])) / 0.18215
    edit = TokenFlow(inversion, interval=4, mask=mask_of())
    out = run(model, inversion, edit, latent=start, sigmas=sigmas_of(inversion)[1:])
    assert same(out[..., 4:], inversion.clean[..., 4:] / 0.18215, 1e-5)


def test_a_soft_mask_blends(model):
    inversion = source(model)
    one_step = inversion.sigmas[:2]
    free = run(model, inversion, TokenFlow(inversion), sigmas=one_step)
    half = TokenFlow(inversion, mask=torch.full((1, 64, 64), 0.25))
    source_next = sigma_space_from_vp(inversion.latents[1], float(one_step[1])) / 0.18215
    out = run(model, inversion, half, sigmas=one_step)
    assert same(out, torch.lerp(source_next, free, 0.25))
