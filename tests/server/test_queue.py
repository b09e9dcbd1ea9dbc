"""The queue goes on after an error of ours and after the Stop button; nothing half-made stays."""

from __future__ import annotations

import copy
import itertools
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from reweave.demo.host_server import HostError, HostServer

pytestmark = pytest.mark.server

Graph = dict[str, dict[str, Any]]
FRAMES, SIZE = 3, 64


def node(kind: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": kind, "inputs": inputs}


STOCK: Graph = {
    "model": node("CheckpointLoaderSimple", ckpt_name="reweave_demo.safetensors"),
    "prompt": node("CLIPTextEncode", text="a red ball", clip=["model", 1]),
    "empty": node("EmptyLatentImage", width=SIZE, height=SIZE, batch_size=1),
    "sampled": node(
        "KSampler", seed=0, steps=2, cfg=2.0, sampler_name="euler", scheduler="normal", denoise=1.0,
        model=["model", 0], positive=["prompt", 0], negative=["prompt", 0],
        latent_image=["empty", 0],
    ),
    "pixels": node("VAEDecode", samples=["sampled", 0], vae=["model", 2]),
    "shown": node("PreviewImage", images=["pixels", 0]),
}  # fmt: skip
"""One picture of the checkpoint by ComfyUI's own nodes."""

INVERTED: Graph = {
    "model": STOCK["model"],
    "prompt": STOCK["prompt"],
    "clip": node("EmptyImage", width=SIZE, height=SIZE, batch_size=FRAMES, color=0x406080),
    "latent": node("VAEEncode", pixels=["clip", 0], vae=["model", 2]),
    "inverted": node(
        "Reweave_InvertVideo", model=["model", 0], positive=["prompt", 0], latent=["latent", 0],
        steps=2, saved_steps=2, evaluation="target", storage="float16", frames_per_pass=0,
    ),
}  # fmt: skip

EDITED: Graph = INVERTED | {
    "edit": node(
        "Reweave_TokenFlow", model=["model", 0], inversion=["inverted", 0], interval=2,
        keyframe_seed=1, key_frames="random per step", rule="published code", frames_per_pass=0,
        max_joint_key_frames=0,
    ),
    "euler": node("KSamplerSelect", sampler_name="euler"),
    "sampled": node(
        "SamplerCustom", add_noise=False, noise_seed=0, cfg=1.5, model=["edit", 0],
        positive=["prompt", 0], negative=["prompt", 0], sampler=["euler", 0],
        sigmas=["inverted", 2], latent_image=["inverted", 1],
    ),
    "pixels": node("VAEDecode", samples=["sampled", 0], vae=["model", 2]),
    "shown": node("PreviewImage", images=["pixels", 0]),
}  # fmt: skip


def with_wrong_mask(graph: Graph) -> Graph:
    """The graph with a mask of two frames on TokenFlow."""
    graph = copy.deepcopy(graph) | {
        "white": node("EmptyImage", width=SIZE, height=SIZE, batch_size=2, color=0xFFFFFF),
        "mask": node("ImageToMask", image=["white", 0], channel="red"),
    }
    graph["edit"]["inputs"]["mask"] = ["mask", 0]
    return graph


def with_wrong_latent(graph: Graph) -> Graph:
    """The graph with two of the three latents at the sampler."""
    graph = copy.deepcopy(graph) | {
        "cut": node("LatentFromBatch", samples=["inverted", 1], batch_index=0, length=2)
    }
    graph["sampled"]["inputs"]["latent_image"] = ["cut", 0]
    return graph


def picture(server: HostServer, seed: int) -> bytes:
    """The pixels of the stock graph, really sampled."""
    graph = copy.deepcopy(STOCK)
    graph["sampled"]["inputs"]["seed"] = seed
    run = server.run(graph, timeout=300)
    assert "sampled" not in run.cached(), "answered from the cache: this says nothing"
    (entry,) = run.files("shown")
    with Image.open(server.path_of(entry)) as image:
        assert image.size == (SIZE, SIZE)
        return image.convert("RGB").tobytes()


def kept(server: HostServer) -> set[Path]:
    """Every file of ours that outlives a run, and every temporary one."""
    ours = (p for p in (server.base / "user" / "reweave").rglob("*") if p.is_file())
    return {*ours, *server.base.rglob("*.tmp")}


SEEDS = itertools.count(4)
"""A seed of its own for every test: the same graph twice is answered from the server's cache."""


@pytest.fixture
def goes_on(host_server: HostServer) -> Iterator[None]:
    """The stock graph gives the same picture before and after the test, bit for bit."""
    seed = next(SEEDS)
    before = picture(host_server, seed)
    assert len(set(before)) > 9, "an empty picture"
    yield
    assert picture(host_server, seed) == before
    queue = host_server.get_json("/queue")
    assert queue == {"queue_running": [], "queue_pending": []}


@pytest.mark.usefixtures("goes_on")
@pytest.mark.parametrize(
    ("broken", "where", "text"),
    [
        (
            with_wrong_mask,
            r"\(node edit, Reweave_TokenFlow\)",
            r"ValueError: TokenFlow: expected a mask of 1 or 3 frames \(the inversion's\), got 2\. "
            r"Cut the mask like the clip, or connect one mask",
        ),
        (
            with_wrong_latent,
            r"\(node sampled, SamplerCustom\)",
            "ValueError: TokenFlow: the inversion has 3 frames, the latent batch 2. "
            "Connect the LATENT of Inversion Latent",
        ),
    ],
    ids=["mask", "latent"],
)
def test_a_wrong_frame_count_stops_its_own_graph_only(
    host_server: HostServer, broken: Any, where: str, text: str
) -> None:
    with pytest.raises(HostError, match=f"{where} failed: {text}"):
        host_server.run(broken(EDITED), timeout=300)
    # the same graph without the mistake
    run = host_server.run(EDITED, timeout=300)
    assert len(run.files("shown")) == FRAMES


def inverting(steps: int) -> Graph:
    """A graph that only inverts, in so many steps."""
    graph = copy.deepcopy(INVERTED)
    graph["inverted"]["inputs"] |= {"steps": steps, "saved_steps": steps}
    return graph | {"text": node("PreviewAny", source=["inverted", 2])}


@pytest.mark.usefixtures("goes_on")
def test_stopping_invert_video_leaves_nothing_behind(host_server: HostServer) -> None:
    graph, seen = inverting(500), []

    def stop(kind: str, data: dict[str, Any]) -> None:
        if kind == "progress" and data.get("node") == "inverted":
            seen.append((data["value"], data["max"]))
            if len(seen) == 2:
                call = urllib.request.Request(f"{host_server.url}/interrupt", method="POST")
                urllib.request.urlopen(call, timeout=30).close()

    before = kept(host_server)
    with pytest.raises(HostError, match=r"interrupted in .*\(node inverted, Reweave_InvertVideo\)"):
        host_server.run(graph, stop, timeout=300)
    assert 2 <= len(seen) < 400 and seen[-1][1] == 500, f"it was not stopped midway: {seen[-1]}"
    assert kept(host_server) == before
    # an inversion that ends does leave a file there: the one above looked at the right place
    host_server.run(inverting(3), timeout=300)
    (file,) = kept(host_server) - before
    assert file.suffix == ".safetensors" and "inversions" in file.parts
