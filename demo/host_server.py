"""Start the real ComfyUI with this pack, queue a graph on it and follow it to its end.

`dev.py serve`, the demo and the server and browser tests use it. Standard library only, except
`HostServer.run`, which needs aiohttp: the host brings it.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

PACK = Path(__file__).resolve().parent.parent
PACK_NAME = "reweave"
DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))
"""To this machine without the proxy that the environment or the system may name."""
FINAL = ("execution_success", "execution_error", "execution_interrupted")

Graph = dict[str, dict[str, Any]]
Listener = Callable[[str, dict[str, Any]], None]


class HostError(RuntimeError):
    """The server did not start, refused a graph, or a node of the graph failed."""


@dataclass
class Run:
    """What one queued graph did."""

    prompt_id: str
    outputs: dict[str, dict[str, Any]]
    """node id -> its UI output, as in the host's history."""
    messages: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    seconds: float = 0.0

    def cached(self) -> set[str]:
        """Return the ids of the nodes that were answered from the host's cache."""
        return {
            n for kind, data in self.messages if kind == "execution_cached" for n in data["nodes"]
        }

    def files(self, node: str) -> list[dict[str, str]]:
        """Return every {filename, subfolder, type} that a node reported."""
        lists = [v for v in self.outputs.get(node, {}).values() if isinstance(v, list)]
        return [entry for v in lists for entry in v if isinstance(entry, dict)]


def free_port() -> int:
    """Return a port that nobody listens on at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def link_folder(link: Path, target: Path) -> None:
    """Let `link` lead to the folder `target`: a symlink, on Windows a junction."""
    if os.path.lexists(link):
        if link.resolve() == target.resolve():
            return
        link.rmdir() if sys.platform == "win32" else link.unlink()
    if sys.platform == "win32":
        import _winapi

        _winapi.CreateJunction(str(target), str(link))
    else:
        link.symlink_to(target, target_is_directory=True)


def prepare_base(base: Path, host: Path, pack: Path = PACK) -> Path:
    """Lay out a ComfyUI base directory that holds this pack and sees the host's models.

    The pack is linked under a fixed name, so that a clone may have any folder name. Returns the
    extra-model-paths file. The host's own models are read, never written.
    """
    for name in ("custom_nodes", "input", "output", "temp", "user"):
        (base / name).mkdir(parents=True, exist_ok=True)
    link_folder(base / "custom_nodes" / PACK_NAME, pack)
    models = host / "models"
    folders = sorted(p.name for p in models.iterdir() if p.is_dir())
    # JSON strings are YAML strings: a Windows path needs its backslashes escaped, and a folder
    # may be called 1.5, on or @eaDir.
    lines = ["host:", f"  base_path: {json.dumps(str(models))}"]
    config = base / "extra_model_paths.yaml"
    lines += [f"  {json.dumps(name)}: {json.dumps(name)}" for name in folders]
    config.write_text("\n".join([*lines, ""]), encoding="utf-8")
    return config


def server_command(
    python: str | Path, host: Path, base: Path, port: int, extra: Sequence[str] = ()
) -> list[str]:
    """Return the command line that serves `base` (absolute) with the host in `host`."""
    config = prepare_base(base, host)
    return [
        str(python),
        str(host / "main.py"),
        *("--listen", "127.0.0.1", "--port", str(port)),
        *("--base-directory", str(base)),
        # --base-directory does not move the database, and the host's folder may be read-only.
        *("--database-url", f"sqlite:///{(base / 'user' / 'comfyui.db').as_posix()}"),
        *("--extra-model-paths-config", str(config)),
        *extra,
    ]


def server_environment() -> dict[str, str]:
    """Return this process's environment with waiting threads that sleep instead of spin."""
    return {**os.environ, "OMP_WAIT_POLICY": "PASSIVE", "PYTHONUNBUFFERED": "1"}


def device_arguments(python: str | Path) -> list[str]:
    """Return ["--cpu"] unless torch computes on a GPU: the host does not find out by itself.

    A GPU that is too old for this torch is there, but has no kernels.
    """
    probe = (
        "import torch\n"
        "gpu = 'cuda' if torch.cuda.is_available() else 'mps'\n"
        "print(torch.ones(2, device=gpu).sum().item() == 2)"
    )
    result = subprocess.run([str(python), "-c", probe], capture_output=True, text=True, check=False)
    return [] if result.stdout.strip() == "True" else ["--cpu"]


class HostServer:
    """A ComfyUI process on this machine. Use it as a context manager.

    host: the folder with main.py. base: its base directory, made where absent.
    """

    def __init__(
        self,
        host: Path,
        base: Path,
        python: str | Path = sys.executable,
        port: int | None = None,
        extra: Sequence[str] = ("--cpu",),
    ) -> None:
        self.host = host.resolve()
        self.base = base.resolve()
        self.port = port or free_port()
        self.python = python
        self.extra = tuple(extra)
        self.log = self.base / "server.log"
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """The address of the server, without a slash at the end."""
        return f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> HostServer:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self, timeout: float = 240.0) -> None:
        """Start the process and wait until it answers; safe to call twice.

        Raises HostError with the end of its log.
        """
        if self._process is not None:
            return
        self.base.mkdir(parents=True, exist_ok=True)
        command = server_command(self.python, self.host, self.base, self.port, self.extra)
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(
                command, stdout=log, stderr=subprocess.STDOUT, env=server_environment()
            )
        try:
            self._wait(self._process, timeout)
        except BaseException:  # Ctrl+C too: what was started is ended
            self.stop()
            raise

    def _wait(self, process: subprocess.Popen[bytes], timeout: float) -> None:
        deadline = time.monotonic() + timeout
        while not self._answers():
            if process.poll() is not None:
                raise HostError(f"ComfyUI stopped while it started:\n{self.log_tail()}")
            if time.monotonic() > deadline:
                raise HostError(f"ComfyUI gave no answer in {timeout:.0f} s:\n{self.log_tail()}")
            time.sleep(0.25)

    def stop(self) -> None:
        """End the process; safe to call twice."""
        if self._process is None:
            return
        self._process.terminate()
        try:
            self._process.wait(15)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process = None

    def log_tail(self, lines: int = 40) -> str:
        """Return the end of the server's log."""
        text = self.log.read_text(encoding="utf-8", errors="replace") if self.log.exists() else ""
        return "\n".join(text.splitlines()[-lines:])

    def get(self, path: str) -> bytes:
        """Return the body of GET `path`. Raises urllib.error.HTTPError on 4xx and 5xx."""
        with DIRECT.open(self.url + path, timeout=30) as answer:
            return answer.read()

    def get_json(self, path: str) -> Any:
        """Return the decoded JSON body of GET `path`."""
        return json.loads(self.get(path))

    def add_input(self, source: Path) -> None:
        """Copy a file into the server's input folder, where Load Video and Load Image look."""
        shutil.copyfile(source, self.base / "input" / source.name)

    def path_of(self, entry: dict[str, str]) -> Path:
        """Return where a reported {filename, subfolder, type} lies on disk."""
        return self.base / entry["type"] / entry.get("subfolder", "") / entry["filename"]

    def run(self, graph: Graph, listener: Listener | None = None, timeout: float = 1800.0) -> Run:
        """Queue an API-format graph and wait for its end.

        listener is called with (type, data) for every JSON message of the websocket. Raises
        HostError when the server refuses the graph, drops one of its branches (node_errors), or a
        node fails; the message names the node.
        """
        import asyncio

        try:
            return asyncio.run(asyncio.wait_for(self._follow(graph, listener), timeout))
        except asyncio.TimeoutError as error:
            raise HostError(f"no end after {timeout:.0f} s:\n{self.log_tail()}") from error

    async def _follow(self, graph: Graph, listener: Listener | None) -> Run:
        import aiohttp

        client, started = str(uuid.uuid4()), time.monotonic()
        address = f"{self.url}/ws?clientId={client}"
        messages: list[tuple[str, dict[str, Any]]] = []
        # The socket is opened before the graph is queued, or its first messages would be lost.
        async with (
            aiohttp.ClientSession() as session,
            session.ws_connect(address, max_msg_size=0) as socket_,
        ):
            body = {"prompt": graph, "client_id": client}
            async with session.post(f"{self.url}/prompt", json=body) as answer:
                prompt_id = accepted(answer.status, await answer.json(content_type=None), graph)
            async for message in socket_:
                if message.type != aiohttp.WSMsgType.TEXT:
                    continue
                event = json.loads(message.data)
                kind, data = event["type"], event.get("data") or {}
                if data.get("prompt_id") not in (None, prompt_id):
                    continue
                messages.append((kind, data))
                if listener is not None:
                    listener(kind, data)
                if kind in FINAL:
                    check_end(kind, data, graph)
                    break
            else:
                raise HostError(f"ComfyUI closed the connection:\n{self.log_tail()}")
            outputs = await self._outputs(session, prompt_id)
        return Run(prompt_id, outputs, messages, time.monotonic() - started)

    async def _outputs(self, session: Any, prompt_id: str) -> dict[str, dict[str, Any]]:
        import asyncio

        for _ in range(100):  # the history is written shortly after the last message
            async with session.get(f"{self.url}/history/{prompt_id}") as answer:
                history = await answer.json()
            if prompt_id in history:
                return history[prompt_id]["outputs"]
            await asyncio.sleep(0.1)
        raise HostError(f"the host's history has no entry for prompt {prompt_id}")

    def _answers(self) -> bool:
        try:
            self.get("/system_stats")
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            return False
        return True


def title(graph: Graph, node: str | None) -> str:
    """Return "Title (node 3, Class)" as a person would look for it."""
    entry = graph.get(node or "", {})
    kind = entry.get("class_type", "unknown class")
    return f"{entry.get('_meta', {}).get('title', kind)} (node {node}, {kind})"


def accepted(status: int, answer: Any, graph: Graph) -> str:
    """Return the prompt id of an answer to POST /prompt, or raise HostError with all its reasons.

    The host answers 200 when one output of the graph is valid and drops the others silently:
    here that is a failure too.
    """
    answer = answer or {}
    reasons = [
        f"{title(graph, node)}: {error.get('message')}: {error.get('details')}"
        for node, found in (answer.get("node_errors") or {}).items()
        for error in found.get("errors", [])
    ]
    if status == 200 and not reasons:
        return answer["prompt_id"]
    error = answer.get("error") or {}
    head = error.get("message", "a part of the graph is invalid") if error else f"HTTP {status}"
    raise HostError("\n  ".join([f"ComfyUI refused the graph: {head}", *reasons]))


def check_end(kind: str, data: dict[str, Any], graph: Graph) -> None:
    """Raise HostError unless a graph's last message says success."""
    if kind == "execution_success":
        return
    where = title(graph, data.get("node_id"))
    if kind == "execution_interrupted":
        raise HostError(f"interrupted in {where}")
    what = f"{data.get('exception_type')}: {str(data.get('exception_message')).strip()}"
    trace = "".join(data.get("traceback") or [])
    raise HostError(f"{where} failed: {what}\n{trace}")
