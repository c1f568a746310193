"""Models by hub name: each test runs a fresh interpreter against a hub on loopback, as a user with HF_ENDPOINT does."""

import os
import pty
import shutil
import subprocess
import sys
import termios
from collections.abc import Iterator
from pathlib import Path

import pytest

from dspark.runtime.loading import check_folder, load_tokenizer, model_fingerprint
from tests.runtime.hub_server import HubServer

COMMIT = "0123456789abcdef0123456789abcdef01234567"
NAME = "someone/tiny"
PROGRAM = """
import logging, sys
logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stdout)
from dspark.config import ModelSource
from dspark.errors import ModelLoadError
from dspark.runtime.hub import resolve_folder
name, revision, progress = sys.argv[1:]
try:
    print("FOLDER", resolve_folder(ModelSource(model=name, revision=revision or None), show_progress=progress == "yes"))
except ModelLoadError as error:
    print("REFUSED", error)
"""


@pytest.fixture
def hub(tiny_folder: Path, tmp_path: Path) -> Iterator[HubServer]:
    """A hub with the tiny model, and beside it what must never be fetched."""
    repository = Path(shutil.copytree(tiny_folder, tmp_path / "repository"))
    (repository / "pytorch_model.bin").write_bytes(b"cposix\nsystem\n")
    (repository / "modeling_evil.py").write_text("raise SystemExit\n")
    with HubServer(repository, NAME, COMMIT) as server:
        yield server


def environment(endpoint: str, home: Path, **extra: str) -> dict[str, str]:
    kept = {key: value for key, value in os.environ.items() if not key.startswith("HF_") and "proxy" not in key.lower()}
    return kept | {"HF_ENDPOINT": endpoint, "HF_HOME": str(home), "HF_HUB_DISABLE_TELEMETRY": "1"} | extra


def resolve(endpoint: str, home: Path, name: str = NAME, revision: str = COMMIT, **extra: str) -> str:
    command = [sys.executable, "-c", PROGRAM, name, revision, "no"]
    finished = subprocess.run(command, env=environment(endpoint, home, **extra), capture_output=True, text=True, timeout=120)
    assert finished.returncode == 0, finished.stderr
    return finished.stdout


def test_a_pinned_model_is_fetched_without_pickles_and_code_and_loads(hub: HubServer, tmp_path: Path, tiny_folder: Path) -> None:
    output = resolve(hub.url, tmp_path / "home")
    folder = Path(output.split("FOLDER ")[1].strip())
    assert folder.name == COMMIT
    assert {"config.json", "model.safetensors", "tokenizer.json", "chat_template.jinja"} <= hub.files_sent()
    assert not any(name.endswith((".bin", ".py")) for name in hub.files_sent())
    assert "not pinned" not in output
    check_folder(folder)
    assert model_fingerprint(folder) == model_fingerprint(tiny_folder)
    assert load_tokenizer(folder).get_vocab() == load_tokenizer(tiny_folder).get_vocab()


def test_a_cached_model_needs_no_hub(hub: HubServer, tmp_path: Path) -> None:
    first = resolve(hub.url, tmp_path / "home")
    assert resolve("http://127.0.0.1:9", tmp_path / "home", HF_HUB_OFFLINE="1") == first


def test_an_unpinned_name_is_served_and_its_commit_logged(hub: HubServer, tmp_path: Path) -> None:
    output = resolve(hub.url, tmp_path / "home", revision="")
    assert f"is not pinned; it is commit {COMMIT} now" in output
    assert "FOLDER" in output


def test_an_unknown_revision_is_named(hub: HubServer, tmp_path: Path) -> None:
    assert "REFUSED someone/tiny: the repository has no revision 'v9'" in resolve(hub.url, tmp_path / "home", revision="v9")


def test_an_unknown_commit_is_refused(hub: HubServer, tmp_path: Path) -> None:
    assert "has no revision" in resolve(hub.url, tmp_path / "home", revision="f" * 40)


def test_an_unknown_repository_is_refused(hub: HubServer, tmp_path: Path) -> None:
    assert "no such repository on the hub" in resolve(hub.url, tmp_path / "home", name="someone/else")


UNREACHABLE = [
    pytest.param({}, id="refused connection", marks=pytest.mark.slow),  # the hub's client tries again for 20 s
    pytest.param({"HF_HUB_OFFLINE": "1"}, id="offline mode"),
]


@pytest.mark.parametrize("extra", UNREACHABLE)
def test_a_hub_that_cannot_be_reached_is_the_reason(tmp_path: Path, extra: dict[str, str]) -> None:
    output = resolve("http://127.0.0.1:9", tmp_path / "home", **extra)
    assert "REFUSED someone/tiny: the hub cannot be reached and the cache does not hold the whole model" in output


@pytest.mark.parametrize(("progress", "expected"), [("yes", True), ("no", False)])
def test_a_terminal_sees_progress_when_asked_for(hub: HubServer, tmp_path: Path, progress: str, expected: bool) -> None:
    terminal, other_end = pty.openpty()
    termios.tcsetwinsize(other_end, (24, 120))
    command = [sys.executable, "-c", PROGRAM, NAME, COMMIT, progress]
    finished = subprocess.run(command, env=environment(hub.url, tmp_path / "home"), stdout=subprocess.PIPE, stderr=other_end, timeout=120)
    os.close(other_end)
    assert b"FOLDER" in finished.stdout
    assert (b"100%" in _read_all(terminal)) is expected


def _read_all(terminal: int) -> bytes:
    """What was written to a terminal whose other end is closed; reading past the end is an OSError there."""
    content = b""
    try:
        while chunk := os.read(terminal, 65536):
            content += chunk
    except OSError:
        return content
    finally:
        os.close(terminal)
    return content
