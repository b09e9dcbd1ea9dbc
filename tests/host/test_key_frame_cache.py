"""What is finished is kept: a second run, another setting, Cancel in the middle."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import comfy.model_management
import pytest
import torch
from clips import SMALL
from reweave.editing.host import keyframe_editing
from reweave.editing.host.drawing import Tools
from small_edit import CLIP, SmallVAE, changed, edited, small_tools, spy_on_drawing
from torch import Tensor
from toy import conditioning, patcher


@pytest.fixture(scope="module")
def tools() -> Tools:
    return small_tools()


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    return spy_on_drawing(monkeypatch)


def test_finished_key_frames_are_not_drawn_again(tools: Tools, drawn: list) -> None:
    first = edited(tools)
    again = edited(tools)
    assert len(drawn) == 3 and torch.equal(again.image, first.image)
    longer = edited(tools, changed("choice", key_frames="0, 2, 3, 5"))
    assert len(drawn) == 4 and torch.equal(longer.image[:3], first.image)


@pytest.mark.parametrize(
    ("part", "values"),
    [
        ("sampling", {"cfg": 3.0}),
        ("sampling", {"steps": 5}),
        ("sampling", {"edit_seed": 7}),
        ("sampling", {"resolution": 128}),
        ("carriage", {"texture_size": 100}),
        ("cropping", {"margin": 3}),
        ("cropping", {"jitter_seed": 1}),
    ],
)
def test_other_settings_are_another_result(
    tools: Tools, drawn: list, part: str, values: dict[str, Any]
) -> None:
    edited(tools)
    edited(tools, changed(part, **values))
    assert len(drawn) == 6


def test_other_inputs_are_another_result(tools: Tools, drawn: list) -> None:
    edited(tools)
    edited(replace(tools, positive=conditioning(5)))
    edited(replace(tools, negative=conditioning(5)))
    edited(replace(tools, model=patcher(SMALL, seed=1)))
    other = SmallVAE()
    assert other.first_stage_model is not None
    next(other.first_stage_model.parameters()).data.mul_(2)
    edited(replace(tools, vae=other))
    edited(tools, image=CLIP * 0.9)
    assert len(drawn) == 18


def test_cancel_keeps_what_is_finished(
    tools: Tools, drawn: list, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = edited(tools, changed("sampling", edit_seed=3)).image
    files = sorted((keyframe_editing.cache_folder() / "key_frames").glob("*"))
    assert len(files) == 3 and len(drawn) == 3
    for file in files:
        file.unlink()

    monkeypatch.setattr(keyframe_editing, "sample", cancelling(keyframe_editing.sample, after=2))
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        edited(tools, changed("sampling", edit_seed=3))
    assert len(drawn) == 6  # the third was begun
    assert len(list((keyframe_editing.cache_folder() / "key_frames").glob("*"))) == 2

    assert torch.equal(edited(tools, changed("sampling", edit_seed=3)).image, whole)
    assert len(drawn) == 7  # and only the third was drawn again


def cancelling(real: Callable, after: int) -> Callable:
    """`sample`, with a press on Cancel during the call number `after`."""
    calls = []

    def spy(tools: Tools, schedule: Any, x: Tensor, asked: Any, control: Any, step: Any) -> Tensor:
        calls.append(1)

        def pressed(done: int) -> None:
            step(done)
            if len(calls) == after + 1:
                comfy.model_management.interrupt_current_processing()

        return real(tools, schedule, x, asked, control, pressed)

    return spy


def test_a_spoilt_file_in_the_cache_counts_as_absent(tools: Tools, drawn: list) -> None:
    first = edited(tools).image
    file = next((keyframe_editing.cache_folder() / "key_frames").glob("*"))
    file.write_bytes(b"\x10\x00")
    assert torch.equal(edited(tools).image, first) and len(drawn) == 4


def test_a_model_without_content_hash_is_not_cached(tools: Tools, drawn: list) -> None:
    vae = SmallVAE()
    vae.first_stage_model = None
    edited(replace(tools, vae=vae))
    edited(replace(tools, vae=vae))
    assert len(drawn) == 6
