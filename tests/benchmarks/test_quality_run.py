"""The quality benchmark: where it runs, and a run of it on two small frames."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
SIZE = 64


def test_the_device_is_the_one_that_comfyui_was_told_to_use(
    parts: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "a GPU")
    for on_cpu, name in ((True, parts.common.processor()), (False, "a GPU")):
        host = SimpleNamespace(args=SimpleNamespace(cpu=on_cpu))
        monkeypatch.setitem(sys.modules, "comfy.cli_args", host)
        assert parts.common.device() == name


def test_a_benchmark_that_looks_for_a_gpu_can_be_told_to_use_it():
    for file in (ROOT / "benchmarks").glob("*.py"):
        text = file.read_text(encoding="utf-8")
        if "cuda.is_available" in text and file.stem not in ("common", "kernels"):
            assert '"--gpu"' in text and "load_pack(CHOSEN.gpu)" in text, file.name


HOST = Path(os.environ.get("COMFYUI_PATH", ROOT / ".host" / "ComfyUI"))
RUN = ["source through the VAE", "plain", "TokenFlow + PlugAndPlay", "Pix2Video + PlugAndPlay"]
SCRIPT = """
import json, sys
from contextlib import redirect_stdout
from dataclasses import replace
from io import StringIO
from pathlib import Path

folder, names = Path(sys.argv[1]), json.loads(sys.argv[2])
sys.argv = ["quality.py", "--steps", "2", "--size", "64", "64"]
for name in [*names, "never"]:
    sys.argv += ["--method", name]
import common, quality, quality_tables
from quality_pipelines import nodes

found = {"inputs": {name: [e.id for e in n.GET_SCHEMA().inputs] for name, n in nodes().items()}}
runs = []
def counted(name, method):
    def run(job):
        runs.append(name)
        return method.run(job)
    return replace(method, run=run)
for name in names:
    quality.METHODS[name] = counted(name, quality.METHODS[name])
asked = []
refusing = lambda model: asked.append(1) or "it needs more"
quality.METHODS["never"] = replace(quality.METHODS["plain"], needs=refusing)
(case,) = quality.rendered_cases(False, 1)
case = replace(case, rendered=replace(case.rendered, frames=2), frames=2)
quality.rendered_cases = lambda full, limit: [case]
quality.KEPT = folder / "cells"
common.ROOT, common.RESULTS = folder, folder / "results"
quality.RESULTS = common.RESULTS
for name in ("PAGE", "README"):
    copy = folder / getattr(quality_tables, name).name
    copy.write_text(getattr(quality_tables, name).read_text("utf-8"), "utf-8")
    setattr(quality_tables, name, copy)
for stage in ("first", "second", "written"):
    runs.clear(), asked.clear()
    quality.CHOSEN.write = stage == "written"
    with redirect_stdout(StringIO()) as said:
        quality.main()
    found[stage] = {"runs": list(runs), "asked": len(asked), "said": said.getvalue()}
    found[stage]["files"] = sorted(p.name for p in folder.rglob("*.*") if p.is_file())

plain = quality.Setup(Path("x"), "abc", 12, 2.0, (128, 128))
found["keys"] = [plain.key, quality.setup().key.split("64x64")[1]]
quality.HOST, quality.DEMO = folder, folder / "x.safetensors"
for kind in ("checkpoints", "clip_vision"):
    (folder / "models" / kind).mkdir(parents=True)
    (folder / "models" / kind / "x.safetensors").write_bytes(b"one")
quality.CHOSEN.checkpoint = quality.CHOSEN.clip_vision = "x.safetensors"
quality.CHOSEN.gpu = True
found["keys"].append(quality.beyond())
quality.backbone = lambda: folder / "models" / "clip_vision" / "x.safetensors"
(folder / "models" / "clip_vision" / "x.safetensors").write_bytes(b"two")
found["keys"].append(quality.beyond())
found["errors"] = []
for change in ({"size": [64, 128]}, {"size": [60, 60]}, {"clip": "none.safetensors"}):
    kept = dict(vars(quality.CHOSEN))
    vars(quality.CHOSEN).update(change)
    try:
        quality.setup()
    except ValueError as error:
        found["errors"].append(str(error))
    vars(quality.CHOSEN).update(kept)
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Three runs of the benchmark on two frames of 64x64, in a process of their own."""
    if not (HOST / "models" / "checkpoints" / "reweave_demo.safetensors").is_file():
        pytest.skip("no demo checkpoint: run `python dev.py setup`")
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(tmp_path_factory.mktemp("run")), json.dumps(RUN)],
        env={**os.environ, "PYTHONPATH": str(ROOT / "benchmarks")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert not done.returncode, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
def test_a_second_run_computes_nothing_but_asks_again_what_could_not_be_run(ran: dict[str, Any]):
    assert ran["first"]["runs"] == RUN and ran["first"]["asked"] == 1
    assert ran["second"]["runs"] == [] and ran["second"]["asked"] == 1
    for stage in ("first", "second"):
        said = ran[stage]["said"]
        assert "| target colour coverage \u2191, 1 clips | 0 |" in said
        assert "not a whole default run: no page and no result file was written" in said
        assert not {"quality.json", "quality.jpg"} & set(ran[stage]["files"])
    cells = {f"{name}.json" for name in (*RUN, "never")}
    assert cells <= set(ran["first"]["files"])


@pytest.mark.slow
def test_pages_are_written_from_a_partial_run_when_it_is_asked_for(ran: dict[str, Any]):
    written = ran["written"]
    assert written["runs"] == [] and {"quality.json", "quality.jpg"} <= set(written["files"])
    for page in ("quality.md", "README.md"):
        assert f"filled the tables of {page}" in written["said"]


@pytest.mark.slow
def test_device_and_judges_are_in_the_key_where_there_are_any(ran: dict[str, Any]):
    plain, _, gpu, lpips = ran["keys"]
    assert plain == "abc_12_2_128x128_current"
    digits = {key.removesuffix("_lpips").removeprefix("_gpu_clip_vision-") for key in (gpu, lpips)}
    assert len(digits) == 2 and all(len(text) == 12 for text in digits), "the file's content"
    assert lpips.endswith("_lpips") and gpu.startswith("_gpu")


@pytest.mark.slow
def test_sizes_and_judges_that_cannot_be_are_refused(ran: dict[str, Any]):
    square, eight, clip = ran["errors"]
    assert square.startswith("rendered clips are square, --size asks for 128x64: give the same")
    assert eight.startswith("--size 60 60: give multiples of 8")
    assert clip.startswith("--clip: no none.safetensors in ") and clip.endswith("text_encoders")


@pytest.mark.slow
def test_the_pipelines_name_inputs_that_their_nodes_have(ran: dict[str, Any]):
    tree = ast.parse((ROOT / "benchmarks" / "quality_pipelines.py").read_text(encoding="utf-8"))
    calls = [
        node for node in ast.walk(tree)
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "called"
    ]  # fmt: skip
    assert len(calls) >= 7
    for call in calls:
        assert isinstance(call.args[0], ast.Constant)
        given = {word.arg for word in call.keywords if word.arg}
        assert given <= set(ran["inputs"][call.args[0].value]), call.args[0].value
    assert {"foreground", "background"} <= set(ran["inputs"]["RenderAtlas"])
