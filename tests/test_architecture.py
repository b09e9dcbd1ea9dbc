"""The rules of the layout, read from the source with ast: direction, names, sizes, twins."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACK = ("nodes", "editing", "kernels")
HOST_MODULES = {
    *("comfy", "comfy_api", "comfy_api_nodes", "comfy_config", "comfy_execution", "comfy_extras"),
    *("execution", "folder_paths", "latent_preview", "node_helpers", "server"),
}
# What each package may import from the pack, besides itself.
MAY_IMPORT = {"nodes": {"editing", "kernels"}, "editing": {"kernels"}, "kernels": set[str]()}
UNSEEDED = {"rand", "randn", "randint", "randperm", "normal", "bernoulli", "multinomial"}
UNSEEDED_LIKE = {"rand_like", "randn_like", "randint_like"}  # these take no generator at all


def python_files(*folders: str) -> list[Path]:
    return [p for folder in folders for p in sorted((ROOT / folder).rglob("*.py"))]


def every_python_file() -> list[Path]:
    folders = python_files(*PACK, "demo", "benchmarks", "tests")
    return [*sorted(ROOT.glob("*.py")), *folders]


def label(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def imports(tree: ast.Module) -> Iterator[tuple[int, int, str]]:
    """Yield (line, level, dotted module) of each import; level 0 is absolute."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, 0, name.name) for name in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.lineno, node.level, node.module
        elif isinstance(node, ast.ImportFrom):
            yield from ((node.lineno, node.level, name.name) for name in node.names)


def target(path: Path, level: int, module: str) -> tuple[str, ...]:
    """Resolve a relative import in `path` to its parts below the repository root."""
    package = path.relative_to(ROOT).parent.parts
    assert level - 1 <= len(package), f"{label(path)}: import leaves the pack: {module}"
    return (*package[: len(package) - (level - 1)], *module.split("."))


def faults_in_imports(path: Path, tree: ast.Module) -> list[str]:
    here = path.relative_to(ROOT).parts
    may_see_host = here[0] == "nodes" or (here[0] == "editing" and here[1].startswith("host"))
    faults = []
    for line, level, module in imports(tree):
        first = module.split(".")[0]
        where = f"{label(path)}:{line}"
        if level == 0:
            if first in (*PACK, "demo", "benchmarks", "tests", "reweave"):
                faults.append(f"{where}: '{module}' is ours, import it relatively")
            if first in HOST_MODULES and not may_see_host:
                faults.append(f"{where}: '{module}' belongs to nodes/ and editing/host* only")
            continue
        reached = target(path, level, module)[0]
        if reached != here[0] and reached not in MAY_IMPORT[here[0]]:
            faults.append(f"{where}: {here[0]} must not import {reached}")
    return faults


def faults_in_sizes(path: Path, text: str, tree: ast.Module) -> list[str]:
    lines = text.count("\n")
    limit = 100 if "_triton" in path.parts else 60
    faults = [f"{label(path)}: {lines} lines, 350 are allowed"] if lines > 350 else []
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            size = (node.end_lineno or node.lineno) - node.lineno + 1
            if size > limit:
                faults.append(
                    f"{label(path)}:{node.lineno}: {node.name} has {size} lines, {limit} allowed"
                )
    return faults


def faults_in_randomness(path: Path, tree: ast.Module) -> list[str]:
    """Find draws from torch's global generator: a user's other nodes depend on its state."""
    faults = []
    for node in ast.walk(tree):
        if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
            continue
        name, owner = node.func.attr, node.func.value
        if not (isinstance(owner, ast.Name) and owner.id == "torch"):
            continue
        seeded = any(keyword.arg == "generator" for keyword in node.keywords)
        if name == "manual_seed" or name in UNSEEDED_LIKE or (name in UNSEEDED and not seeded):
            faults.append(f"{label(path)}:{node.lineno}: torch.{name} uses the global generator")
    return faults


def parsed(paths: list[Path]) -> Iterator[tuple[Path, str, ast.Module]]:
    for path in paths:
        text = path.read_text(encoding="utf-8")
        yield path, text, ast.parse(text, filename=str(path))


def node_ids() -> list[str]:
    source = "\n".join(p.read_text(encoding="utf-8") for p in python_files("nodes"))
    return sorted(set(re.findall(r"node_id\s*=\s*f?[\"'](Reweave_\w+)[\"']", source)))


def workflow_names() -> list[str]:
    return sorted(p.stem for p in (ROOT / "workflows").glob("*.json"))


def test_packages_import_downwards_relatively_and_the_host_in_its_place_only() -> None:
    faults = [
        f for path, _, tree in parsed(python_files(*PACK)) for f in faults_in_imports(path, tree)
    ]
    assert not faults, "\n".join(faults)


def test_nothing_imports_nodes_but_the_entry_point() -> None:
    faults = []
    for path, _, tree in parsed(every_python_file()):
        inside = path.relative_to(ROOT).parts
        if inside[0] in ("nodes", "tests") or inside == ("__init__.py",):
            continue
        for line, level, module in imports(tree):
            reached = target(path, level, module) if level else tuple(module.split("."))
            if reached[0] == "nodes" or reached[:2] == ("reweave", "nodes"):
                faults.append(f"{label(path)}:{line}: imports nodes")
    assert not faults, "\n".join(faults)


def test_the_entry_point_imports_nothing_of_ours_at_load_time() -> None:
    tree = ast.parse((ROOT / "__init__.py").read_text(encoding="utf-8"))
    at_load = [n for n in tree.body if isinstance(n, ast.Import | ast.ImportFrom)]
    names = {n.module if isinstance(n, ast.ImportFrom) else n.names[0].name for n in at_load}
    assert names == {"__future__", "typing"}


def test_files_and_functions_keep_their_size() -> None:
    faults = [
        f
        for path, text, tree in parsed(every_python_file())
        for f in faults_in_sizes(path, text, tree)
    ]
    assert not faults, "\n".join(faults)


def test_the_pack_never_draws_from_the_global_generator() -> None:
    faults = [
        f for path, _, tree in parsed(python_files(*PACK)) for f in faults_in_randomness(path, tree)
    ]
    assert not faults, "\n".join(faults)


def test_every_node_has_a_help_page_and_every_page_a_node() -> None:
    pages = sorted(p.stem for p in (ROOT / "js" / "docs").glob("Reweave_*.md"))
    assert pages == node_ids()


def test_every_workflow_has_a_thumbnail_and_an_api_twin() -> None:
    names = workflow_names()
    assert sorted(p.stem for p in (ROOT / "workflows").glob("*.jpg")) == names
    twins = {p.stem for p in (ROOT / "tests" / "api").glob("*.json")}
    assert set(names) <= twins, f"no tests/api twin: {sorted(set(names) - twins)}"


SAMPLES = {
    "kernels/x.py": ("from ..editing import types", "kernels must not import editing"),
    "editing/x.py": ("from ..nodes import sockets", "editing must not import nodes"),
    "editing/y.py": ("import comfy.samplers", "nodes/ and editing/host* only"),
    "editing/atlas/z.py": ("from comfy import utils", "nodes/ and editing/host* only"),
    "nodes/x.py": ("from kernels.nn_field import nn_field", "import it relatively"),
}


@pytest.mark.parametrize("name", SAMPLES)
def test_the_rules_see_a_broken_import(name: str) -> None:
    source, message = SAMPLES[name]
    faults = faults_in_imports(ROOT / name, ast.parse(source))
    assert len(faults) == 1 and message in faults[0]


def test_the_rules_see_long_functions_and_global_randomness() -> None:
    long = "def f():\n" + "    a = 1\n" * 60
    assert faults_in_sizes(ROOT / "kernels/x.py", long, ast.parse(long))
    assert not faults_in_sizes(ROOT / "kernels/_triton/x.py", long, ast.parse(long))
    tree = ast.parse("torch.randn(3)\ntorch.rand(2, generator=g)\ntorch.randn_like(x)")
    assert len(faults_in_randomness(ROOT / "kernels/x.py", tree)) == 2
