"""Invert Video's cache: the same clip and settings once, anything else again; cancelled runs."""

from __future__ import annotations

import comfy.model_management
import comfy.weight_adapter
import pytest
import torch
from clips import SMALL, clip_latents, same, source
from comfy_extras.nodes_model_advanced import ModelComputeDtype, ModelSamplingDiscrete, RescaleCFG
from comfy_extras.nodes_model_merging import ModelMergeSimple
from reweave.editing import host
from reweave.editing.host import InversionRequest
from reweave.editing.host.content_keys import model_key
from reweave.editing.host.feature_cache import step_cache
from reweave.editing.tokenflow import TokenFlow
from toy import conditioning, patcher

SCALE = 0.18215
WEIGHT = "diffusion_model.output_blocks.1.1.transformer_blocks.0.attn1.to_q.weight"


@pytest.fixture(scope="module")
def model():
    return patcher(SMALL)


def clip(frames: int = 2, seed: int = 5) -> dict[str, torch.Tensor]:
    return {"samples": clip_latents(frames, seed=seed) / SCALE}


@pytest.fixture
def spied(model):
    """A function that inverts and returns (inversion, rows of every call of the UNet)."""
    unet = model.get_model_object("diffusion_model")
    calls = []
    handle = unet.register_forward_pre_hook(lambda module, inputs: calls.append(len(inputs[0])))

    def invert(latent=None, prompt=1, on=model, **settings):
        calls.clear()
        request = InversionRequest(**({"steps": 4, "saved_steps": 4} | settings))
        found = host.invert_clip(on, conditioning(prompt), latent or clip(), request)
        return found, list(calls)

    yield invert
    handle.remove()


def test_the_same_inversion_is_not_made_twice(spied, user_folders):
    first, calls = spied()
    assert calls == [2] * 4
    again, calls = spied()
    assert calls == [] and again.key == first.key
    assert torch.equal(again.latents, first.latents) and again.convention == first.convention
    assert len(list((user_folders / "user" / "reweave").rglob("*.safetensors"))) == 1
    assert not list(user_folders.rglob("*.tmp"))


@pytest.mark.parametrize(
    "change", [{"prompt": 2}, {"steps": 8}, {"convention": "target"}, {"half": False},
               {"latent": clip(seed=9)}, {"saved_steps": 2}]
)  # fmt: skip
def test_other_settings_are_another_inversion(spied, change):
    spied()
    assert spied(**change)[1]


SAMPLINGS = [("eps", False), ("v_prediction", False), ("v_prediction", True), ("x0", False)]


def test_another_model_sampling_is_another_inversion(model, spied):
    spied()
    for choice in SAMPLINGS[1:]:
        (other,) = ModelSamplingDiscrete().patch(model, *choice)
        first, calls = spied(on=other)
        assert calls, choice
        again, calls = spied(on=ModelSamplingDiscrete().patch(model, *choice)[0])
        assert not calls and torch.equal(again.latents, first.latents), choice


def diff(model, value: float, kind: str = "diff", **strengths):
    """The MODEL with a weight patch of that kind, as loaders of diffs and locons make it."""
    clone = model.clone()
    weight = model.get_model_object(WEIGHT)
    clone.add_patches({WEIGHT: (kind, (torch.full_like(weight, value),))}, **strengths)
    return clone


@pytest.fixture(scope="module")
def patched(model):
    """Name -> a MODEL of the same network that differs in its weight patches alone."""
    one, another = patcher(SMALL, seed=3), patcher(SMALL, seed=4)
    merge = ModelMergeSimple().merge
    return {
        "plain": model,
        "diff": diff(model, 0.1),
        "another diff": diff(model, 0.2),
        "less of it": diff(model, 0.1, strength_patch=0.5),
        "set": diff(model, 0.1, "set"),
        "merged": merge(model, one, 0.5)[0],
        "merged with another": merge(model, another, 0.5)[0],
        "merged with less": merge(model, one, 0.75)[0],
        "merged with a patched one": merge(model, diff(one, 0.1), 0.5)[0],
        "merged with a less patched one": merge(model, diff(one, 0.1, strength_patch=0.5), 0.5)[0],
    }


def test_other_weight_patches_are_another_inversion(patched, spied):
    """However deep their tensors and strengths lie: LoCon diffs, merges, merges of patched."""
    for name, model in patched.items():
        assert spied(on=model, steps=1, saved_steps=1)[1], name
    for name, model in patched.items():
        assert not spied(on=model, steps=1, saved_steps=1)[1], name


def test_other_weight_patches_are_another_model(patched):
    """In the fingerprint, which the step cache and the checks of an edit read too."""
    found = {host.fingerprint(model).patches for model in patched.values()}
    assert len(found) == len(patched) and "" in found
    keys = {model_key(model, conditioning(1)) for model in patched.values()}
    assert len(keys) == len(patched) and None not in keys


def test_both_have_cached_steps_of_their_own(model, patched):
    """TokenFlow's source features: kept for the network, its patches and its sampling."""
    inversion = source(model)
    others = [ModelSamplingDiscrete().patch(model, *choice)[0] for choice in SAMPLINGS]
    caches = [
        step_cache(other, [TokenFlow(inversion)], inversion.clean)
        for other in (*others[1:], *patched.values())
    ]
    assert None not in caches and len({str(cache) for cache in caches}) == len(caches)


def test_a_loras_scale_is_in_the_fingerprint(model):
    """Alpha is no tensor: it stands beside the two factors."""

    def with_alpha(alpha: float):
        clone, (wide, high) = model.clone(), model.get_model_object(WEIGHT).shape
        factors = {"up": torch.ones(wide, 2), "down": torch.ones(2, high)}
        adapter = comfy.weight_adapter.LoRAAdapter(
            set(), (factors["up"], factors["down"], alpha, None, None, None)
        )
        clone.add_patches({WEIGHT: adapter})
        return host.fingerprint(clone).patches

    assert with_alpha(1.0) == with_alpha(1.0) != with_alpha(2.0)


def wrapped(model):
    clone = model.clone()
    clone.set_model_unet_function_wrapper(lambda run, a: run(a["input"], a["timestep"], **a["c"]))
    return clone


UNKNOWN = {
    "a function around the UNet": wrapped,
    "guidance of another kind": lambda model: RescaleCFG().patch(model, 0.7)[0],
    "another precision": lambda model: ModelComputeDtype().patch(model, "bf16")[0],
}


@pytest.mark.parametrize("what", UNKNOWN)
def test_what_has_no_content_hash_is_not_cached(model, what, user_folders):
    """Other packs' functions cannot be told apart by content, nor can an exchanged part."""
    other = UNKNOWN[what](model)
    assert model_key(model, conditioning(1)) and model_key(other, conditioning(1)) is None


def test_a_function_around_the_unet_runs_every_time(model, spied, user_folders):
    spied()
    assert spied(on=wrapped(model))[1] and spied(on=wrapped(model))[1]
    assert len(list(user_folders.rglob("*.safetensors"))) == 1


def test_frames_per_pass_is_the_same_inversion(spied, model, user_folders):
    whole, calls = spied(latent=clip(5), half=False)
    assert spied(latent=clip(5), half=False, frames_per_pass=2)[1] == []
    for file in user_folders.rglob("*.safetensors"):
        file.unlink()
    cut, calls = spied(latent=clip(5), half=False, frames_per_pass=2)
    assert calls == [2, 2, 1] * 4
    assert same(cut.latents, whole.latents)


def test_a_broken_cache_file_is_made_again(spied, user_folders):
    first, _ = spied()
    (file,) = (user_folders / "user" / "reweave").rglob("*.safetensors")
    file.write_bytes(file.read_bytes()[:500])
    again, calls = spied()
    assert calls and torch.equal(again.latents, first.latents)


@pytest.mark.parametrize("call", [1, 3, 4])
def test_a_cancelled_inversion_leaves_nothing(model, spied, user_folders, call):
    """Cancel during a step: the next operation of the network sees the flag."""
    expected, _ = spied(half=False)
    for file in user_folders.rglob("*.safetensors"):
        file.unlink()
    unet, left = model.get_model_object("diffusion_model"), [call]
    before = state_of(model)

    def press(module, inputs):
        left[0] -= 1
        if left[0] == 0:
            comfy.model_management.interrupt_current_processing(True)

    handle = unet.register_forward_pre_hook(press)
    try:
        with pytest.raises(comfy.model_management.InterruptProcessingException):
            spied(half=False)
    finally:
        handle.remove()
        comfy.model_management.interrupt_current_processing(False)
    assert left == [0], "nothing ran after the press"
    assert not [path for path in user_folders.rglob("*") if path.is_file()]
    assert state_of(model) == before
    again, calls = spied(half=False)
    assert calls == [2] * 4 and torch.equal(again.latents, expected.latents)


def state_of(model) -> tuple:
    """What an inversion could leave behind on a MODEL and its network."""
    options = model.model_options["transformer_options"]
    hooks = sum(
        len(module._forward_hooks) + len(module._forward_pre_hooks)
        for module in model.model.modules()
    )
    places = (model.wrappers, model.callbacks, model.attachments, model.object_patches)
    weights = sum(float(weight.sum()) for weight in model.model.parameters())
    return dict(options), [dict(place) for place in places], dict(model.patches), hooks, weights
