#!/usr/bin/env python3
"""Set up, try, test and serve Reweave. Needs nothing but Python 3.10 to 3.13.

python dev.py demo     set everything up and edit the bundled clip in the real ComfyUI
python dev.py test     set everything up and run all checks and tests
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import signal
import sys
import time
from pathlib import Path

# A portable Python (with a ._pth file), or PYTHONSAFEPATH, leaves the script's folder out.
sys.path.insert(0, str(Path(__file__).resolve().parent))

from demo.fresh_machine import run, set_up
from demo.preconditions import Failure, require_port, require_python

ROOT = Path(__file__).resolve().parent
RESULTS = ROOT / "benchmarks" / "results"
TABLES = (ROOT / "README.md", ROOT / "docs" / "benchmarks.md")
QUICK = "not slow and not server and not browser"
DEFAULT_PORT = 8188


def table(result: dict, whole: bool) -> str:
    """Return a benchmark's result file as a Markdown table with what it was measured on.

    Without `whole`: only the rows that have a goal, where there are any.
    """
    words = {True: "yes", False: "no", None: "not measured"}
    lines = ["| metric | value | goal | reached |", "|---|---|---|---|"]
    aimed = [row for row in result["rows"] if row.get("goal")]
    for row in result["rows"] if whole or not aimed else aimed:
        number, unit, goal = row["value"], row.get("unit") or "", row.get("goal") or ""
        value = "not measured" if number is None else f"{number:.4g} {unit}".strip()
        reached = words[row["reached"]] if goal else ""
        lines.append(f"| {row['metric']} | {value} | {goal} | {reached} |")
    source = f"{result['device']}, torch {result['torch']}, commit {result['commit']}"
    lines += ["", f"Measured by `{result['command']}` on {source}, {result['date'][:10]}."]
    notes = result["notes"] if isinstance(result["notes"], list) else [result["notes"]]
    return "\n".join([*lines, *(["", " ".join(notes)] if whole and any(notes) else [])])


def fill_tables(page: str, results: Path) -> str:
    """Replace what stands between <!-- bench:NAME --> and <!-- /bench --> by NAME's table; all of
    its rows where the mark is <!-- bench:NAME all -->."""

    def fill(found: re.Match[str]) -> str:
        name, whole = found.group(1), bool(found.group(2))
        file, text = results / f"{name}.json", "Not measured yet."
        if file.exists():
            text = table(json.loads(file.read_text(encoding="utf-8")), whole)
        return f"<!-- bench:{name}{found.group(2)} -->\n{text}\n<!-- /bench -->"

    return re.sub(r"<!-- bench:(\w+)( all|) -->\n.*?<!-- /bench -->", fill, page, flags=re.S)


def lint_and_types(python: Path) -> list[str]:
    """Run the formatter's check, the linter and the type checker; return what failed."""
    commands = {
        "format": [python, "-m", "ruff", "format", "--check", "."],
        "lint": [python, "-m", "ruff", "check", "."],
        "types": [python, "-m", "pyright", "--pythonpath", python],
    }
    return [name for name, command in commands.items() if not passed(command, name)]


def passed(command: list[str | Path], name: str) -> bool:
    """Run one check, say how long it took, and tell whether it passed."""
    print(f"== {name}", flush=True)
    started, failure = time.monotonic(), ""
    try:
        run(command, name)
    except Failure as error:
        failure = str(error)
    print(f"== {name}: {failure or 'passed'} ({time.monotonic() - started:.1f} s)", flush=True)
    return not failure


def check(options: argparse.Namespace, *pytest_arguments: str) -> None:
    """Lint, types and the tests that `pytest_arguments` select; every check runs to its end."""
    python, host = set_up(options)
    os.environ["COMFYUI_PATH"] = str(host)
    failed = lint_and_types(python)
    if not passed([python, "-m", "pytest", *pytest_arguments], "tests"):
        failed.append("tests")
    if failed:
        raise Failure(f"not passed: {', '.join(failed)}")
    print("all passed", flush=True)


def bench(options: argparse.Namespace) -> None:
    """Run the named benchmarks (all without names), or only fill the tables of the pages.

    With one name, further options are that benchmark's own.
    """
    if options.readme:
        for page in TABLES:
            text = fill_tables(page.read_text(encoding="utf-8"), RESULTS)
            page.write_text(text, encoding="utf-8", newline="\n")
            print(f"filled the tables of {page.name} from {RESULTS.relative_to(ROOT)}")
        return
    scripts = (ROOT / "benchmarks").glob("[!_]*.py")
    call = re.compile(r"^\s+write_result\(", re.M)
    found = sorted(p.stem for p in scripts if call.search(p.read_text("utf-8")))
    unknown = sorted(set(options.names) - set(found))
    if unknown:
        raise Failure(f"no benchmark {', '.join(unknown)}; there are: {', '.join(found)}")
    python, host = set_up(options)
    os.environ["COMFYUI_PATH"] = str(host)
    for name in options.names or found:
        run([python, ROOT / "benchmarks" / f"{name}.py", *options.rest], f"benchmark {name}")


def demo(options: argparse.Namespace) -> None:
    """Edit the bundled clip in a real server and write the results to output/."""
    require_port(options.port or 0)
    python, host = set_up(options)
    port = ["--port", str(options.port)] if options.port else []
    run([python, ROOT / "demo" / "run_demo.py", "--comfyui", host, *port], "the demo")


def serve(options: argparse.Namespace) -> None:
    """Start the host with the pack in the foreground."""
    port = options.port or DEFAULT_PORT
    require_port(port)
    python, host = set_up(options)
    script, base = ROOT / "demo" / "serve.py", ROOT / ".host" / "base"
    run([python, script, "--comfyui", host, "--base", base, "--port", str(port)], "ComfyUI")


def clear_cache(options: argparse.Namespace) -> None:
    """Delete what can be computed again: cached inversions and source features."""
    host = Path(options.comfyui).expanduser() if options.comfyui else ROOT / ".host" / "ComfyUI"
    bases = (host, *(ROOT / ".host" / name for name in ("base", "demo")))
    folders = [base / "user" / "reweave" / "cache" for base in bases]
    for folder in folders:
        files = [path for path in folder.rglob("*") if path.is_file()]
        if files:
            size = sum(path.stat().st_size for path in files) / 1e6
            shutil.rmtree(folder)
            print(f"deleted {len(files)} files, {size:.0f} MB, from {folder}")
    print("nothing of the cache is left in:", *(f"  {folder}" for folder in folders), sep="\n")
    if not options.comfyui:
        print("another ComfyUI's cache: python dev.py clear-cache --comfyui DIR")


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="dev.py", description="set up, try, test, serve Reweave")
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument("--python", help="use this environment as it is instead of making .venv")
    shared.add_argument(
        "--comfyui",
        metavar="DIR",
        default=os.environ.get("COMFYUI_PATH"),
        help="use this ComfyUI instead of downloading one (or set COMFYUI_PATH)",
    )
    shared.add_argument("--port", type=int, help="of the server (serve: 8188, demo: a free one)")
    commands = parser.add_subparsers(dest="command", required=True)
    add = commands.add_parser
    add("setup", parents=[shared], help="environment, ComfyUI and demo checkpoint")
    add("demo", parents=[shared], help="edit the bundled clip, write the results to output/")
    tests = add("test", parents=[shared], help="lint, types and all tests")
    tests.add_argument("pytest", nargs="*", help="arguments for pytest, after --")
    add("check", parents=[shared], help="lint, types and the quick tests")
    benchmarks = add("bench", parents=[shared], help="run benchmarks")
    benchmarks.add_argument("names", nargs="*", metavar="NAME", help="all without a name")
    benchmarks.add_argument("--readme", action="store_true", help="fill the README's tables only")
    add("serve", parents=[shared], help="start ComfyUI with the pack")
    add("clear-cache", parents=[shared], help="delete cached inversions and source features")
    options, options.rest = parser.parse_known_args(arguments)
    one_benchmark = options.command == "bench" and len(options.names) == 1
    if options.rest and not one_benchmark:
        parser.error(f"unrecognized arguments: {' '.join(options.rest)}")
    return options


def main(arguments: list[str]) -> int:
    """Run one command; return the exit code."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # what was started is ended too
    try:
        require_python(sys.version_info[:2])
        options = parse(arguments)
        {
            "setup": set_up,
            "demo": demo,
            "test": lambda o: check(o, *o.pytest),
            "check": lambda o: check(o, "-m", QUICK),
            "bench": bench,
            "serve": serve,
            "clear-cache": clear_cache,
        }[options.command](options)
    except Failure as failure:
        print(f"\ndev.py: {failure}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
