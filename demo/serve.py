"""Serve the real ComfyUI with this pack in the foreground, until Ctrl+C. Standard library only.

python demo/serve.py --comfyui DIR --base DIR [--port N]
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
from pathlib import Path

PACK = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(PACK))

from demo.host_server import device_arguments, server_command, server_environment


def main() -> int:
    """Serve; return the server's exit code."""
    parser = argparse.ArgumentParser(description="serve ComfyUI with Reweave")
    parser.add_argument("--comfyui", type=Path, required=True)
    parser.add_argument("--base", type=Path, required=True)
    parser.add_argument("--port", type=int, default=8188)
    options = parser.parse_args()
    base = options.base.resolve()
    base.mkdir(parents=True, exist_ok=True)
    extra = device_arguments(sys.executable)
    command = server_command(sys.executable, options.comfyui.resolve(), base, options.port, extra)
    for clip in sorted((PACK / "demo" / "clips").glob("*.mp4")):
        shutil.copyfile(clip, base / "input" / clip.name)
    print(f"ComfyUI with Reweave: http://127.0.0.1:{options.port}  (stop it with Ctrl+C)")
    print(f"outputs go to {base / 'output'}", flush=True)
    if os.name == "posix":
        os.execve(command[0], command, server_environment())  # one process less to stop
    return subprocess.call(command, env=server_environment())


if __name__ == "__main__":
    sys.exit(main())
