"""The process around the real ComfyUI: proxies, folder names, and a start that is interrupted."""

from __future__ import annotations

import http.server
import json
import sys
import threading
from pathlib import Path

import pytest
import yaml
from reweave.demo.host_server import HostServer, prepare_base

SLEEPS = "import time\ntime.sleep(60)\n"


class Answer(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(json.dumps({"ok": True}).encode())

    def log_message(self, format: str, *args: object) -> None:
        """Nothing: the test's output is not a web server's."""


def test_this_machine_is_asked_without_the_proxy(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("http_proxy", "HTTP_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")  # nobody listens there
    monkeypatch.delenv("no_proxy", raising=False)
    with http.server.HTTPServer(("127.0.0.1", 0), Answer) as web:
        threading.Thread(target=web.serve_forever, daemon=True).start()
        server = HostServer(tmp_path, tmp_path / "base", port=web.server_address[1])
        assert server.get_json("/system_stats") == {"ok": True}
        web.shutdown()


def test_any_name_of_a_models_folder_is_text_for_the_host(tmp_path: Path) -> None:
    names = ["checkpoints", "1.5", "123", "on", "2024-01-01", "!old", "[backup]", "@eaDir", "a: b"]
    for name in names:
        (tmp_path / "host" / "models" / name).mkdir(parents=True)
    config = prepare_base(tmp_path / "base", tmp_path / "host", tmp_path)
    read = yaml.safe_load(config.read_text(encoding="utf-8"))["host"]
    assert {name: read[name] for name in names} == {name: name for name in names}


def test_a_start_that_is_interrupted_leaves_no_process(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "models").mkdir()
    (tmp_path / "main.py").write_text(SLEEPS)
    started = []

    def interrupted(server: HostServer) -> bool:
        started.append(server._process)
        raise KeyboardInterrupt

    monkeypatch.setattr(HostServer, "_answers", interrupted)
    server = HostServer(tmp_path, tmp_path / "base", python=sys.executable)
    with pytest.raises(KeyboardInterrupt):
        server.start()
    assert started[0] is not None and started[0].poll() is not None
