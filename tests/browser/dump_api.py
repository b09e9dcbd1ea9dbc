"""Make workflows/NAME.json and NAME.jpg from tests/api/NAME.json, in the real frontend.

    .venv/bin/python tests/browser/dump_api.py [NAME ...]     all of tests/api without a name

Its note is the template's section of docs/templates.md. The API graph is rewritten as the page
would queue it (every widget's value is there), so that the two files agree.
tests/browser/test_frontend.py asserts that they still do.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import uuid
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.append(str(ROOT))

from frontend import Frontend, find_chromium, open_frontend  # noqa: E402
from layout import arrange, note_of  # noqa: E402

from demo.host_server import HostServer  # noqa: E402  (a script's path lacks the root)

API, WORKFLOWS = ROOT / "tests" / "api", ROOT / "workflows"
GUIDE = ROOT / "docs" / "templates.md"


def write(file: Path, content: dict[str, Any]) -> None:
    file.parent.mkdir(exist_ok=True)
    text = json.dumps(content, indent=1, ensure_ascii=False) + "\n"
    file.write_text(text, encoding="utf-8", newline="\n")
    print(f"wrote {file.relative_to(ROOT)}")


def in_order_of(graph: dict[str, Any], source: dict[str, Any]) -> dict[str, Any]:
    """Return `graph` in the order of `source`: a person reads it from source to result."""
    order = {node: i for i, node in enumerate(source)}
    return dict(sorted(graph.items(), key=lambda item: order.get(item[0], len(order))))


def dump(frontend: Frontend, name: str) -> None:
    """Write the three files of one workflow. Raises ValueError for nodes that nobody knows."""
    source = json.loads((API / f"{name}.json").read_text(encoding="utf-8"))
    frontend.load_api(source, name)
    unknown = frontend.unknown_nodes()
    if unknown:
        raise ValueError(f"{name}: the host does not know {', '.join(unknown)}")
    write(API / f"{name}.json", in_order_of(frontend.prompt(), source))
    note = note_of(name, GUIDE.read_text(encoding="utf-8"))
    for _ in range(2):  # the page may give nodes other sizes when they are loaded
        frontend.load(arrange(frontend.workflow(), note))
        frontend.page.wait_for_timeout(500)
    WORKFLOWS.mkdir(exist_ok=True)
    frontend.picture(WORKFLOWS / f"{name}.jpg")
    workflow = frontend.workflow()
    workflow["id"] = str(uuid.uuid5(uuid.NAMESPACE_OID, name))  # no new id for an old graph
    write(WORKFLOWS / f"{name}.json", workflow)


def main() -> int:
    """Dump the named workflows."""
    parser = argparse.ArgumentParser(description="make workflows/ from tests/api/")
    parser.add_argument("names", nargs="*", help="all without a name")
    names = parser.parse_args().names or sorted(p.stem for p in API.glob("*.json"))
    chromium = find_chromium()
    if chromium is None:
        print("no Chromium found; on Debian: apt install chromium", file=sys.stderr)
        return 1
    host = Path(os.environ.get("COMFYUI_PATH") or ROOT / ".host" / "ComfyUI")
    with tempfile.TemporaryDirectory() as base:
        with HostServer(host, Path(base), extra=("--cpu", "--disable-api-nodes")) as server:
            for file in sorted((ROOT / "demo" / "clips").glob("*")):
                server.add_input(file)
            with open_frontend(server.url, chromium) as frontend:
                for name in names:
                    dump(frontend, name)
    return 0


if __name__ == "__main__":
    sys.exit(main())
