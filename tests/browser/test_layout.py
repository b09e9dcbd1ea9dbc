"""Templates as a person sees them: nothing overlaps, every stage has its group, the note is the
guide's. No browser is needed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from reweave.tests.browser.layout import EDIT, STAGES, arrange, note_of, overlaps

ROOT = Path(__file__).resolve().parent.parent.parent
WORKFLOWS = sorted((ROOT / "workflows").glob("*.json"))
GUIDE = (ROOT / "docs" / "templates.md").read_text(encoding="utf-8")


def node(number: int, kind: str, size: tuple[int, int] = (200, 100)) -> dict[str, Any]:
    return {"id": number, "type": kind, "pos": [0, 0], "size": list(size)}


@pytest.fixture
def drawn() -> dict[str, Any]:
    """A clip that is scaled before and after a texture is edited."""
    kinds = ["LoadVideo", "ImageScale", "Reweave_FitAtlas", "Reweave_AtlasTextures", "ImageScale"]
    kinds += ["VAEEncode", "KSampler", "VAEDecode", "SaveVideo"]
    nodes = [node(i + 1, kind) for i, kind in enumerate(kinds)]
    links = [[i, i, 0, i + 1, 0, "*"] for i in range(1, len(kinds))]
    return arrange({"nodes": nodes, "links": links, "groups": []}, "what it does")


def stage_at(workflow: dict[str, Any], number: int) -> str:
    """Title of the one group that holds a node."""
    (found,) = [n for n in workflow["nodes"] if n["id"] == number]
    x, y = found["pos"]
    (title,) = [
        group["title"]
        for group in workflow["groups"]
        for left, top, width, height in [group["bounding"]]
        if left <= x
        and x + found["size"][0] <= left + width
        and top <= y
        and y + found["size"][1] <= top + height
    ]
    return title


def test_a_node_never_lies_left_of_what_it_reads(drawn: dict[str, Any]) -> None:
    titles = [stage_at(drawn, number) for number in range(1, 10)]
    assert titles == sorted(titles)
    assert titles[1] == STAGES[0][0] and titles[4] == titles[5] == STAGES[EDIT][0]
    assert drawn["nodes"][-1]["widgets_values"] == ["what it does"]
    assert not overlaps(drawn)


def test_overlaps_are_seen() -> None:
    close = {**node(2, "b"), "pos": [150, 100]}
    assert overlaps({"nodes": [node(1, "a"), close, {**node(3, "c"), "pos": [500, 0]}]}) == [(1, 2)]


def test_a_template_without_a_section_has_no_note() -> None:
    with pytest.raises(KeyError, match="no_such_template"):
        note_of("no_such_template", GUIDE)


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda p: p.stem)
def test_every_template_is_laid_out_and_explained(path: Path) -> None:
    workflow = json.loads(path.read_text(encoding="utf-8"))
    (card,) = [n for n in workflow["nodes"] if n["type"] == "MarkdownNote"]
    again = f"run tests/browser/dump_api.py {path.stem}"
    assert card["widgets_values"][0] == note_of(path.stem, GUIDE), again
    assert not overlaps(workflow), again
    for entry in workflow["nodes"]:
        if entry is not card:
            assert stage_at(workflow, entry["id"]), again
