"""Result files of the benchmarks: benchmarks/results/<name>.json, one row per measured number."""

from __future__ import annotations

import json
import math
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parent.parent
RESULTS = Path(__file__).resolve().parent / "results"
FIELDS = ("metric", "value", "unit", "goal", "reached")


def commit() -> str:
    """The checked-out commit, with "+" when files differ from it; "unknown" outside git."""
    try:
        found = subprocess.run(
            ["git", "describe", "--always", "--dirty=+", "--abbrev=12", "--exclude=*"],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return found.stdout.strip()


def command() -> str:
    """How this benchmark can be called again; of files and folders elsewhere only the names."""
    given = [Path(part).name if Path(part).is_absolute() else part for part in sys.argv[1:]]
    return f"python benchmarks/{Path(sys.argv[0]).name} {shlex.join(given)}".strip()


def device() -> str:
    """The GPU's name, or the processor's where there is none or ComfyUI was told not to use it."""
    host = sys.modules.get("comfy.cli_args")
    if host is not None and host.args.cpu:
        return processor()
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return "Apple GPU (MPS)" if torch.backends.mps.is_available() else processor()


def processor() -> str:
    """The processor's name with its number of cores."""
    name, info = platform.processor() or platform.machine(), Path("/proc/cpuinfo")
    if info.is_file():
        lines = info.read_text(encoding="utf-8").splitlines()
        name = next((x.split(":")[1].strip() for x in lines if x.startswith("model name")), name)
    return f"{name}, {os.cpu_count()} cores"


def write_result(
    name: str, rows: Sequence[Mapping[str, Any]], notes: str | Sequence[str] = ""
) -> Path:
    """Print the rows and write benchmarks/results/<name>.json -> its path.

    A row is {metric, value, unit, goal, reached}: goal is text such as ">= 28" or empty, reached
    is true, false, or None where there is no goal or no GPU. Raises: ValueError for other fields.
    """
    for row in rows:
        if set(row) != set(FIELDS):
            raise ValueError(f"a result row has the fields {FIELDS}, got {tuple(row)}")
    record = {
        "name": name,
        "commit": commit(),
        "device": device(),
        "torch": torch.__version__,
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "command": command(),
        "rows": [dict(row) for row in rows],
        "notes": notes if isinstance(notes, str) else list(notes),
    }
    for row in rows:
        print(line(row))
    RESULTS.mkdir(parents=True, exist_ok=True)
    path, temporary = RESULTS / f"{name}.json", RESULTS / f".{name}.{os.getpid()}.tmp"
    temporary.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    temporary.replace(path)
    print(f"wrote {path.relative_to(ROOT).as_posix()}")
    return path


def row(metric: str, value: float | None, unit: str, goal: str = "") -> dict[str, Any]:
    """One line of the result; goal such as "<= 0.85", empty where there is none."""
    reached = None
    if goal and value is not None:
        sign, number = goal.split()[:2]
        reached = value <= float(number) if sign == "<=" else value >= float(number)
    return {"metric": metric, "value": value, "unit": unit, "goal": goal, "reached": reached}


def mean(values: Sequence[float | None]) -> float | None:
    """The mean of what is known and finite; None where nothing is."""
    known = [value for value in values if value is not None and math.isfinite(value)]
    return sum(known) / len(known) if known else None


def line(row: Mapping[str, Any]) -> str:
    """One row as text."""
    value = row["value"]
    shown = f"{value:.4g}" if isinstance(value, float) else str(value)
    verdict = {True: "reached", False: "NOT reached", None: ""}[row["reached"]]
    goal = f"goal {row['goal']}" if row["goal"] else ""
    return f"{row['metric']:60s} {shown:>10s} {row['unit']:6s} {goal:18s} {verdict}".rstrip()
