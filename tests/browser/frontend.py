"""The real ComfyUI page in headless Chromium. Needs playwright; the browser is the system's own."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from playwright.sync_api import ConsoleMessage, Page, Route, sync_playwright

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
# The page asks for files that a new user does not have yet.
ABSENT_AT_FIRST = ("/user.css", "/userdata/", "/userdata?")
SETTINGS = {
    "Comfy.TutorialCompleted": True,  # or the templates dialog covers the page
    "Comfy.Release.Status": "skip",
    "Comfy.Graph.CanvasInfo": False,
    "Comfy.Graph.CanvasMenu": False,
    "Comfy.Minimap.Visible": False,
    "LiteGraph.Canvas.MinFontSizeForLOD": 0,  # text in a picture of the whole graph
}
ARRANGE = """() => {
    for (const widget of app.graph.nodes.flatMap(n => n.widgets ?? []))
        if (widget.name === "control_after_generate") widget.value = "fixed"  // a template repeats
    app.graph.arrange(60)
    app.graph.setDirtyCanvas(true, true)
}"""
# Where the graph lies on the page, with a margin: x, y, width, height.
PLACE = """() => {
    const bar = LiteGraph.NODE_TITLE_HEIGHT  // drawn above a node's position
    const boxes = app.graph.nodes.map(n => [n.pos[0], n.pos[1] - bar, n.size[0], n.size[1] + bar])
    const [ox, oy] = app.canvas.ds.offset, s = app.canvas.ds.scale, m = 12
    const x = Math.min(...boxes.map(b => b[0])), y = Math.min(...boxes.map(b => b[1]))
    const r = Math.max(...boxes.map(b => b[0] + b[2])), d = Math.max(...boxes.map(b => b[1] + b[3]))
    const left = Math.max(0, (x + ox) * s - m), top = Math.max(0, (y + oy) * s - m)
    return {x: left, y: top, width: Math.min(innerWidth - left, (r - x) * s + 2 * m),
            height: Math.min(innerHeight - top, (d - y) * s + 2 * m)}
}"""
# The first workflow is open: a graph that is loaded earlier is lost to the page's own start.
READY = """() => window.app?.graph && window.LiteGraph
    && window.app.extensionManager?.workflow?.activeWorkflow
    && Object.keys(LiteGraph.registered_node_types).length > 100"""
PROMPT = """async () => {
    const graph = (await app.graphToPrompt()).output
    for (const node of Object.values(graph)) {
        const declared = LiteGraph.registered_node_types[node.class_type]?.nodeData?.input
        if (!declared) continue
        const known = {...declared.required, ...declared.optional}
        node.inputs = Object.fromEntries(Object.entries(node.inputs).filter(([k]) => k in known))
    }
    return graph
}"""
UNKNOWN = """() => app.graph.nodes
    .filter(n => !(n.type in LiteGraph.registered_node_types)).map(n => n.type)"""


def find_chromium() -> str | None:
    """Return the path of an installed Chromium or Chrome."""
    return next((path for name in NAMES if (path := shutil.which(name))), None)


class Frontend:
    """One open page of the frontend at `url`, and every error that it showed."""

    def __init__(self, page: Page, url: str) -> None:
        self.page = page
        self.url = url
        self.errors: list[str] = []
        self.errors_at_start: list[str] = []
        page.on("pageerror", lambda error: self.errors.append(f"pageerror: {error}"))
        page.on("console", self._listen)
        page.route("**/*", self._stay_here)

    def open(self, settings: dict[str, Any] | None = None) -> None:
        """Load the page with `settings` besides SETTINGS, and wait until the editor is ready."""
        for name, value in {**SETTINGS, **(settings or {})}.items():
            body, headers = json.dumps(value), {"Content-Type": "application/json"}
            self.page.request.post(f"{self.url}/api/settings/{name}", data=body, headers=headers)
        # hundreds of files, each through `_stay_here`: slow on a busy machine
        self.page.goto(self.url, wait_until="domcontentloaded", timeout=120_000)
        self.page.wait_for_function(READY, timeout=120_000)
        self.errors_at_start = list(self.errors)

    def load(self, workflow: dict[str, Any]) -> None:
        """Open a workflow in UI format."""
        self.page.evaluate("(w) => app.loadGraphData(w, true, true)", workflow)

    def load_api(self, graph: dict[str, Any], name: str) -> None:
        """Open a graph in API format, its nodes side by side; seeds stay as they are."""
        self.page.evaluate("([g, n]) => app.loadApiJson(g, n)", [graph, name])
        self.page.wait_for_timeout(500)  # widgets settle before sizes are read
        self.page.evaluate(ARRANGE)

    def workflow(self) -> dict[str, Any]:
        """Return the open graph in UI format."""
        return self.page.evaluate("() => JSON.parse(JSON.stringify(app.graph.serialize()))")

    def prompt(self) -> dict[str, Any]:
        """Return the open graph in API format, as the page would queue it.

        Without the values of the page's own previews, which the server ignores.
        """
        return self.page.evaluate(PROMPT)

    def unknown_nodes(self) -> list[str]:
        """Return the types in the open graph that the host does not know."""
        return self.page.evaluate(UNKNOWN)

    def picture(self, file: Path) -> None:
        """Write a JPEG of the whole graph without menus."""
        execute = "(c) => app.extensionManager.command.execute(c)"
        hidden = self.page.evaluate("() => app.extensionManager.focusMode === true")
        if not hidden:
            self.page.evaluate(execute, "Workspace.ToggleFocusMode")
        self.page.evaluate(execute, "Comfy.Canvas.FitView")
        self.page.wait_for_timeout(1000)
        place = self.page.evaluate(PLACE)
        self.page.screenshot(path=file, type="jpeg", quality=85, clip=place)

    def _listen(self, message: ConsoleMessage) -> None:
        source = message.location.get("url", "")
        own = not source or source.startswith(self.url)
        absent = "404" in message.text and any(part in source for part in ABSENT_AT_FIRST)
        foreign = "Content Security Policy" in message.text  # the page called another host
        if message.type == "error" and own and not (absent or foreign):
            self.errors.append(f"console: {message.text} ({source})")

    def _stay_here(self, route: Route) -> None:
        """Let requests to the server through and stop all others: a test asks no foreign host."""
        address = urlsplit(route.request.url)
        if address.scheme in ("data", "blob") or address.netloc == urlsplit(self.url).netloc:
            route.continue_()
        else:
            route.abort()


@contextmanager
def open_frontend(
    url: str, chromium: str, settings: dict[str, Any] | None = None
) -> Iterator[Frontend]:
    """Open the frontend at `url` in a new browser, with these settings of ComfyUI's page."""
    arguments = ["--no-sandbox", "--use-gl=swiftshader", "--disable-dev-shm-usage"]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=arguments)
        try:
            frontend = Frontend(browser.new_page(viewport={"width": 1600, "height": 1000}), url)
            frontend.open(settings)
            yield frontend
        finally:
            browser.close()
