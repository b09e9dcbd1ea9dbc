"""Every workflow in the real frontend: it opens without errors and means what its API twin says."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from reweave.demo.host_server import PACK_NAME, HostServer
from reweave.tests.browser.frontend import Frontend, find_chromium, open_frontend

pytestmark = pytest.mark.browser

ROOT = Path(__file__).resolve().parent.parent.parent
WORKFLOWS = sorted((ROOT / "workflows").glob("*.json"))
STOCK: dict[str, Any] = {
    "1": {
        "class_type": "EmptyImage",
        "inputs": {"width": 64, "height": 48, "batch_size": 2, "color": 255},
    },
    "2": {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": "x"}},
}


# Of the module, not the session: while playwright runs, no other test may start an event loop.
@pytest.fixture(scope="module")
def frontend(host_server: HostServer) -> Iterator[Frontend]:
    chromium = find_chromium()
    if chromium is None:
        pytest.skip("no Chromium found (on Debian: apt install chromium)")
    with open_frontend(host_server.url, chromium) as opened:
        yield opened


@pytest.fixture
def errors(frontend: Frontend) -> list[str]:
    """The errors that the page shows from here on."""
    frontend.errors.clear()
    return frontend.errors


def meaning(graph: dict[str, Any]) -> dict[str, Any]:
    """Return what the server acts on: classes and inputs, without titles."""
    return {node: (entry["class_type"], entry["inputs"]) for node, entry in graph.items()}


def test_the_page_opens_without_errors_of_ours(frontend: Frontend) -> None:
    """The page has some of its own: version 1.32.9 stores a setting that it has not declared."""
    ours = f"/extensions/{PACK_NAME}/"
    assert not [error for error in frontend.errors_at_start if ours in error]


def test_a_stock_graph_survives_the_way_through_the_page(
    frontend: Frontend, errors: list[str]
) -> None:
    frontend.load_api(STOCK, "stock")
    workflow = frontend.workflow()
    frontend.load({"nodes": [], "links": [], "version": 0.4})
    assert frontend.prompt() == {}
    frontend.load(workflow)
    assert meaning(frontend.prompt()) == meaning(STOCK)
    assert not frontend.unknown_nodes()
    assert not errors


def test_unknown_nodes_and_page_errors_are_noticed(frontend: Frontend, errors: list[str]) -> None:
    workflow = {"nodes": [{"id": 1, "type": "Reweave_Nothing", "pos": [0, 0], "size": [99, 99]}]}
    frontend.load({**workflow, "links": [], "version": 0.4})
    assert frontend.unknown_nodes() == ["Reweave_Nothing"]
    frontend.page.evaluate("() => { setTimeout(() => { throw new Error('on purpose') }, 0) }")
    frontend.page.wait_for_timeout(200)
    assert any("on purpose" in error for error in errors)
    frontend.page.keyboard.press("Escape")


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda p: p.stem)
def test_every_workflow_opens_and_agrees_with_its_api_twin(
    frontend: Frontend, errors: list[str], path: Path
) -> None:
    frontend.load(json.loads(path.read_text(encoding="utf-8")))
    frontend.page.wait_for_timeout(500)
    assert not frontend.unknown_nodes()
    twin = json.loads((ROOT / "tests" / "api" / path.name).read_text(encoding="utf-8"))
    assert meaning(frontend.prompt()) == meaning(twin), (
        f"{path.name} and its API twin differ: run tests/browser/dump_api.py {path.stem}"
    )
    assert not errors
