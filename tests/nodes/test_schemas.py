"""What saved workflows and artists rely on: ids, inputs, defaults, sockets, and every tooltip."""

from __future__ import annotations

import asyncio
import json
import re
from pathlib import Path
from typing import Any

import pytest
from comfy_api.v0_0_2 import io
from reweave import comfy_entrypoint
from reweave.nodes import NODES

SNAPSHOT = Path(__file__).with_name("schemas.json")
"""Ids are forever: change this file on purpose only (see CONTRIBUTING.md)."""
FILE_LISTS = {
    "Reweave_LoadAtlas",
    "Reweave_LoadInversion",
    "Reweave_LoadNNField",
    "Reweave_LoadTemporalUNet",
}
PAGES = Path(__file__).resolve().parents[2] / "js" / "docs"


def summary(node: type[io.ComfyNode]) -> dict[str, Any]:
    """The parts of a schema that a saved workflow is bound to."""
    schema = node.GET_SCHEMA()
    inputs = {}
    for entry in schema.inputs or []:
        options = entry.as_dict()
        kept = {key: options[key] for key in ("default", "min", "max") if key in options}
        if "options" in options and schema.node_id not in FILE_LISTS:
            kept["options"] = options["options"]
        inputs[entry.id] = [entry.get_io_type(), bool(entry.optional), kept]
    return {
        "display_name": schema.display_name,
        "category": schema.category,
        "output_node": schema.is_output_node,
        "inputs": inputs,
        "outputs": [[out.display_name, out.get_io_type()] for out in schema.outputs or []],
    }


def test_the_extension_lists_every_node() -> None:
    async def listed() -> list:
        return await (await comfy_entrypoint()).get_node_list()

    assert asyncio.run(listed()) == NODES
    assert len({node.GET_SCHEMA().node_id for node in NODES}) == len(NODES)


def test_schemas_are_as_recorded() -> None:
    recorded = json.loads(SNAPSHOT.read_text(encoding="utf-8"))
    now = {node.GET_SCHEMA().node_id: summary(node) for node in NODES}
    assert json.loads(json.dumps(now)) == recorded
    assert [list(recorded[name]["inputs"]) for name in recorded] == [
        list(entry["inputs"]) for entry in now.values()
    ], "the order of inputs binds the values of saved workflows"


@pytest.mark.parametrize("node", NODES, ids=lambda node: node.__name__)
def test_everything_is_explained(node: type[io.ComfyNode]) -> None:
    schema = node.GET_SCHEMA()
    assert re.fullmatch(rf"Reweave_{node.__name__}", schema.node_id)
    assert len(schema.description) > 60 and schema.category.startswith("Reweave/")
    for entry in schema.inputs or []:
        assert entry.tooltip and len(entry.tooltip) > 25, entry.id
        assert entry.id not in ("seed", "noise_seed"), "the frontend would randomize it"
        if isinstance(entry, io.WidgetInput):
            assert "Good:" in entry.tooltip, f"{entry.id}: a good value is missing"
    for out in schema.outputs or []:
        assert out.tooltip and out.display_name, out.id


NUMBERS = [
    (node.GET_SCHEMA().node_id, entry)
    for node in NODES
    for entry in node.GET_SCHEMA().inputs or []
    if isinstance(entry, io.Int.Input | io.Float.Input)
]
UNIT = re.compile(r"frames|steps|levels|pixels|gigabytes|0\.\.1|without unit|step\b", re.IGNORECASE)


@pytest.mark.parametrize(("node", "entry"), NUMBERS, ids=lambda part: getattr(part, "id", part))
def test_numbers_have_a_unit_and_limits(node: str, entry: Any) -> None:
    assert UNIT.search(entry.tooltip), f"{node}.{entry.id}: {entry.tooltip}"
    assert entry.min <= entry.default <= entry.max


@pytest.mark.parametrize("node", NODES, ids=lambda node: node.__name__)
def test_help_pages_name_every_input_and_say_what_to_do(node: type[io.ComfyNode]) -> None:
    schema = node.GET_SCHEMA()
    page = (PAGES / f"{schema.node_id}.md").read_text(encoding="utf-8")
    assert page.startswith(f"# {schema.display_name}\n")
    for heading in ("## When to use it", "## What to try when it looks wrong"):
        assert heading in page
    for entry in schema.inputs or []:
        assert f"| `{entry.id}` |" in page, f"{entry.id} is missing"
    for out in schema.outputs or []:
        assert f"`{out.display_name}`" in page, f"{out.display_name} is missing"
