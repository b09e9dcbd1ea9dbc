"""The viewer of Compare Videos in the real page: played, dragged and stepped through.

Every frame of the clip has a grey of its own, so a picture of the viewer says which frame it shows.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import pytest
from reweave.demo.host_server import HostServer
from reweave.tests.browser.frontend import Frontend, find_chromium, open_frontend

pytestmark = pytest.mark.browser

ROOT = Path(__file__).resolve().parent.parent.parent
NEWEST = Path(os.environ.get("REWEAVE_FRONTEND_ROOT") or ROOT / ".cache" / "frontend" / "static")
"""The static folder of a newer comfyui-frontend-package than the one that is installed."""
FRAMES, FPS, WIDTH, HEIGHT = 12, 6.0, 96, 64
NODE = "10"
GRAPH: dict[str, Any] = {
    "1": {"class_type": "LoadVideo", "inputs": {"file": "greys.mp4"}},
    "2": {"class_type": "GetVideoComponents", "inputs": {"video": ["1", 0]}},
    "3": {"class_type": "ImageInvert", "inputs": {"image": ["2", 0]}},
    NODE: {
        "class_type": "Reweave_CompareVideos",
        "inputs": {
            "clip_a": ["2", 0],
            "clip_b": ["3", 0],
            "clip_c": ["2", 0],
            "fps": FPS,
            "labels": "greys, inverted, greys again",
            "keep": True,
            "filename_prefix": "reweave/greys",
        },
    },
}
VUE = "Comfy.VueNodes.Enabled"
PAGES = {
    "installed, old nodes": ("host_server", False),
    "installed, Vue nodes": ("host_server", True),
    "newest, old nodes": ("newest_server", False),
    "newest, Vue nodes": ("newest_server", True),
}
LOADED = """() => {
    const videos = [...document.querySelectorAll('.reweave-stage video')]
    return videos.length === 3 && videos.every(v => v.readyState >= 2 && !v.seeking)
}"""
TIMES = "() => [...document.querySelectorAll('.reweave-stage video')].map(v => v.currentTime)"


def grey(frame: int) -> int:
    return 40 + 15 * frame


def write_greys(file: Path) -> None:
    with av.open(str(file), "w") as container:
        stream = container.add_stream("h264", rate=round(FPS))
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        for frame in range(FRAMES):
            picture = np.full((HEIGHT, WIDTH, 3), grey(frame), dtype=np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())


def slowed(number: int) -> dict[str, Any]:
    """The graph with a second of work that no earlier page has left in the server's cache.

    The page forgets results that arrive before it has noted the prompt, and would have none to
    show when the workflow is opened again.
    """
    scaling = {"upscale_method": "lanczos", "crop": "disabled", "height": 1024}
    large = {"image": ["2", 0], "width": 1536 + number, **scaling}
    small = {"image": ["4", 0], **scaling, "width": WIDTH, "height": HEIGHT}
    inputs = GRAPH[NODE]["inputs"] | {"clip_c": ["5", 0]}
    return {
        **GRAPH,
        "4": {"class_type": "ImageScale", "inputs": large},
        "5": {"class_type": "ImageScale", "inputs": small},
        NODE: {**GRAPH[NODE], "inputs": inputs},
    }


@pytest.fixture(scope="module")
def newest_server(comfyui: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[HostServer]:
    if not (NEWEST / "index.html").is_file():
        pytest.skip("no newer frontend (REWEAVE_FRONTEND_ROOT: its static folder)")
    extra = ("--cpu", "--disable-api-nodes", "--front-end-root", str(NEWEST))
    with HostServer(comfyui, tmp_path_factory.mktemp("newest"), extra=extra) as server:
        yield server


@pytest.fixture(scope="module", params=PAGES)
def page(request: pytest.FixtureRequest) -> Iterator[Frontend]:
    """The page with the graph run to its end, in one frontend and one renderer of nodes."""
    chromium = find_chromium()
    if chromium is None:
        pytest.skip("no Chromium found (on Debian: apt install chromium)")
    name, vue = PAGES[request.param]
    server: HostServer = request.getfixturevalue(name)
    write_greys(server.base / "input" / "greys.mp4")
    with open_frontend(server.url, chromium, {VUE: vue}) as frontend:
        frontend.load_api(slowed(list(PAGES).index(request.param)), "compare")
        frontend.page.evaluate("() => app.queuePrompt(0)")
        frontend.page.wait_for_function(LOADED, timeout=60_000)
        frontend.page.evaluate("() => app.extensionManager.command.execute('Comfy.Canvas.FitView')")
        frontend.page.wait_for_timeout(1200)
        yield frontend
        frontend.page.request.post(f"{server.url}/api/settings/{VUE}", data=False)  # for others


@pytest.fixture
def viewer(page: Frontend) -> Iterator[Frontend]:
    """The page with the viewer at its start; afterwards there is no error."""
    page.errors.clear()
    page.page.evaluate(
        """(id) => { const v = app.graph.getNodeById(Number(id)).reweaveViewer
             v.setMode('wipe'); v.setWipe(0.5); v.setPair(0, 0); v.setPair(1, 1)
             v.player.setLoop(true); v.player.seek(0) }""",
        NODE,
    )
    settle(page)
    yield page
    page.page.evaluate(f"() => app.graph.getNodeById({NODE})?.reweaveViewer.player.pause()")
    # a page newer than its server misses routes and says so in the console
    ours = [x for x in page.errors if x.startswith("pageerror") or "/extensions/" in x]
    assert not ours


def settle(frontend: Frontend) -> None:
    frontend.page.wait_for_function(LOADED)
    frontend.page.wait_for_timeout(150)  # the new frame reaches the screen


def picture(frontend: Frontend, tmp_path: Path) -> np.ndarray:
    """The stage as it is on the screen [H,W] grey."""
    file = tmp_path / "stage.png"
    frontend.page.locator(".reweave-stage").screenshot(path=file)
    found = cv2.imread(str(file), cv2.IMREAD_GRAYSCALE)
    assert found is not None
    return found


def level(shown: np.ndarray, x: float) -> float:
    """Median grey of a strip at the share x of the width, in the middle of the height."""
    rows, columns = shown.shape
    at = round(x * columns)
    return float(np.median(shown[rows // 2 - 6 : rows // 2 + 6, at - 3 : at + 4]))


def press(frontend: Frontend, key: str) -> None:
    frontend.page.locator(".reweave-compare").press(key)
    settle(frontend)


def counter(frontend: Frontend) -> str:
    return frontend.page.locator(".reweave-bar output").inner_text()


def state(frontend: Frontend) -> dict[str, Any]:
    return frontend.page.evaluate(
        f"""() => {{ const v = app.graph.getNodeById({NODE}).reweaveViewer
             return {{wipe: v.wipe, mode: v.mode, playing: v.player.playing, loop: v.player.loop,
                      frame: v.player.frame}} }}"""
    )


def test_the_right_renderer_shows_the_viewer(viewer: Frontend, request: pytest.FixtureRequest):
    vue = PAGES[request.node.callspec.params["page"]][1]
    inside = viewer.page.evaluate(
        "() => Boolean(document.querySelector('.reweave-compare').closest('[data-node-id]'))"
    )
    assert inside == vue
    assert viewer.page.locator(".reweave-compare").count() == 1
    labels = viewer.page.locator(".reweave-stage figcaption").all_inner_texts()
    assert labels == ["greys", "inverted", "greys again"][: len(labels)] and len(labels) >= 2


def test_dragging_moves_the_wipe_and_nothing_else(viewer: Frontend, tmp_path: Path):
    box = viewer.page.locator(".reweave-stage").bounding_box()
    assert box is not None and box["width"] > 100 and box["height"] > 60
    place = viewer.page.evaluate(f"() => [...app.graph.getNodeById({NODE}).pos]")
    for share in (0.8, 0.25):
        y = box["y"] + box["height"] / 2
        viewer.page.mouse.move(box["x"] + box["width"] * 0.5, y)
        viewer.page.mouse.down()
        viewer.page.mouse.move(box["x"] + box["width"] * (share + 0.5) / 2, y)
        viewer.page.mouse.move(box["x"] + box["width"] * share, y)
        viewer.page.mouse.up()
        settle(viewer)
        assert state(viewer)["wipe"] == pytest.approx(share, abs=0.02)
        shown = picture(viewer, tmp_path)
        assert level(shown, share - 0.06) == pytest.approx(grey(0), abs=6)
        assert level(shown, share + 0.06) == pytest.approx(255 - grey(0), abs=6)
    viewer.page.mouse.move(box["x"] + box["width"] * 0.9, box["y"] + box["height"] / 2)
    assert state(viewer)["wipe"] == pytest.approx(0.25, abs=0.02), "let go"
    assert viewer.page.evaluate(f"() => [...app.graph.getNodeById({NODE}).pos]") == place


def test_the_slider_moves_the_wipe_by_keyboard(viewer: Frontend):
    slider = viewer.page.get_by_label("wipe between the clips")
    slider.focus()
    for _ in range(5):
        slider.press("ArrowRight")
    assert state(viewer)["wipe"] == pytest.approx(0.55)
    assert state(viewer)["frame"] == 0, "the arrows are the slider's own here"


def test_frames_are_stepped_exactly_in_both_clips(viewer: Frontend, tmp_path: Path):
    keys = (("ArrowRight", 1), (".", 2), ("ArrowRight", 3), (",", 2), ("ArrowLeft", 1))
    for key, frame in (*keys, ("End", FRAMES - 1), ("ArrowRight", FRAMES - 1), ("Home", 0)):
        press(viewer, key)
        shown = picture(viewer, tmp_path)
        assert counter(viewer) == f"{frame + 1} / {FRAMES}"
        assert level(shown, 0.25) == pytest.approx(grey(frame), abs=6), key
        assert level(shown, 0.75) == pytest.approx(255 - grey(frame), abs=6), key
    viewer.page.get_by_title("One frame forward").click()
    settle(viewer)
    assert state(viewer)["frame"] == 1


def test_it_plays_in_sync_and_loops(viewer: Frontend):
    viewer.page.get_by_title("Play or pause").click()
    seen, apart = [], []
    for _ in range(40):
        times = viewer.page.evaluate(TIMES)
        seen.append(times[0])
        apart.append(max(abs(time - times[0]) for time in times[1:]))
        viewer.page.wait_for_timeout(80)
    steps = np.diff(seen)
    assert (steps > 0).mean() > 0.5, "it does not play"
    assert (steps < -0.5).sum() >= 1, "it never turned round"
    assert max(seen) > 0.7 * FRAMES / FPS
    # the turn itself may be seen half-way: all others within a frame
    assert np.quantile(apart, 0.9) <= 1 / FPS
    viewer.page.get_by_title("Play or pause").click()
    settle(viewer)
    first, *others = viewer.page.evaluate(TIMES)
    assert all(time == pytest.approx(first, abs=1e-3) for time in others)
    assert not state(viewer)["playing"]


def test_without_loop_it_stops_at_the_end(viewer: Frontend, tmp_path: Path):
    press(viewer, "l")
    press(viewer, "End")
    press(viewer, "ArrowLeft")
    assert state(viewer)["frame"] == FRAMES - 2
    viewer.page.locator(".reweave-compare").press(" ")
    viewer.page.wait_for_function(
        f"""() => {{ const player = app.graph.getNodeById({NODE}).reweaveViewer.player
              return !player.playing && player.frame === {FRAMES - 1} }}""",
        timeout=10_000,
    )
    settle(viewer)
    assert state(viewer)["loop"] is False and state(viewer)["frame"] == FRAMES - 1
    assert level(picture(viewer, tmp_path), 0.25) == pytest.approx(grey(FRAMES - 1), abs=6)


def test_difference_is_black_where_clips_are_equal(viewer: Frontend, tmp_path: Path):
    press(viewer, "3")
    assert state(viewer)["mode"] == "difference"
    assert level(picture(viewer, tmp_path), 0.5) > 200, "four times 175 of 255"
    viewer.page.get_by_label("Right clip").select_option(label="greys again")
    settle(viewer)
    assert level(picture(viewer, tmp_path), 0.5) < 12
    viewer.page.get_by_label("Left clip").select_option(label="inverted")
    settle(viewer)
    assert level(picture(viewer, tmp_path), 0.5) > 200


def test_side_by_side_shows_all_clips_whole(viewer: Frontend, tmp_path: Path):
    press(viewer, "2")
    boxes = [figure.bounding_box() for figure in viewer.page.locator(".reweave-stage figure").all()]
    assert len(boxes) == 3 and all(
        box and box["width"] > 40 and box["height"] > 20 for box in boxes
    )
    corners = {(round(box["x"]), round(box["y"])) for box in boxes if box}
    assert len(corners) == 3
    shown = picture(viewer, tmp_path)
    rows, columns = shown.shape
    upper = shown[rows // 4 - 3 : rows // 4 + 3]
    assert np.median(upper[:, columns // 4]) == pytest.approx(grey(0), abs=6)
    assert np.median(upper[:, columns * 3 // 4]) == pytest.approx(255 - grey(0), abs=6)
    press(viewer, "1")
    assert state(viewer)["mode"] == "wipe"


def test_the_viewer_is_no_part_of_the_graph(viewer: Frontend):
    inputs = viewer.prompt()[NODE]["inputs"]
    assert set(inputs) == set(GRAPH[NODE]["inputs"])
    saved = next(node for node in viewer.workflow()["nodes"] if node["id"] == int(NODE))
    assert len(saved["widgets_values"]) == 4, "fps, labels, keep, filename_prefix"


def leave_and_come_back(frontend: Frontend) -> None:
    """Open another workflow in a tab of its own, then the first one's tab again."""
    frontend.load({"nodes": [], "links": [], "version": 0.4})
    frontend.page.wait_for_function("() => !document.querySelector('.reweave-compare')")
    assert frontend.workflow()["nodes"] == []
    frontend.page.locator(".workflow-tabs").get_by_text("compare").click()
    frontend.page.wait_for_function("() => app.graph.nodes.length > 0")


def test_a_workflow_that_is_opened_again_shows_its_clips(viewer: Frontend):
    leave_and_come_back(viewer)
    viewer.page.wait_for_function(LOADED, timeout=60_000)
    assert viewer.page.locator(".reweave-compare").count() == 1
    assert counter(viewer) == f"1 / {FRAMES}"


def test_a_file_that_is_gone_is_said(viewer: Frontend):
    viewer.page.evaluate(
        f"""() => {{ const v = app.graph.getNodeById({NODE}).reweaveViewer
              window.reweaveKept = v.clips
              v.show(v.clips.map(c => ({{...c, url: '/view?filename=gone.mp4&type=temp'}}))) }}"""
    )
    note = viewer.page.locator(".reweave-note")
    note.wait_for(state="visible")
    assert '"greys' in note.inner_text() or '"inverted' in note.inner_text()
    assert note.inner_text().endswith("the file is gone. Queue the graph again.")
    viewer.page.evaluate(
        f"() => app.graph.getNodeById({NODE}).reweaveViewer.show(window.reweaveKept)"
    )
    settle(viewer)


SHOWN_INSIDE = """() => {
    const [inside] = (app.rootGraph ?? app.graph).subgraphs.values()
    return inside?.nodes.find(n => n.reweaveViewer)?.reweaveViewer.player?.frames
}"""


def test_a_viewer_in_a_subgraph_shows_its_clips_again_too(viewer: Frontend):
    """The last test of the page: its graph is another one afterwards."""
    viewer.page.evaluate(
        f"() => {{ app.graph.convertToSubgraph(new Set([app.graph.getNodeById({NODE})])) }}"
    )
    viewer.page.evaluate("() => app.queuePrompt(0)")
    viewer.page.wait_for_function(SHOWN_INSIDE, timeout=60_000)
    leave_and_come_back(viewer)
    viewer.page.wait_for_function(SHOWN_INSIDE, timeout=20_000)
    assert viewer.page.evaluate(SHOWN_INSIDE) == FRAMES
