"""One real cluster for all tests of this folder, started the way users do it: `dspark serve CONFIG` in a process of its own."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
START_TIMEOUT_S = 200.0
STOP_TIMEOUT_S = 60.0
SERVICER = "dspark.wire.pb.generation_pb2_grpc.add_GenerationServicer_to_server"

CONFIG = """\
proxy_location: HeadOnly
http_options: {{host: 127.0.0.1, port: {http_port}, request_timeout_s: 130}}
grpc_options: {{port: {grpc_port}, grpc_servicer_functions: [{servicer}], request_timeout_s: 130}}
applications:
  - name: test
    route_prefix: /
    import_path: deployments.app:build
    args:
      target: {{model: "{target}", num_threads: 1, kv_cache: {{num_tokens: 4096}}}}
      drafter: {{kind: language_model, model: "demo:drafter", num_threads: 1}}
      limits: {{request_timeout_s: 120, acquire_timeout_s: 10, draft_timeout_s: 10}}
      target_deployment: {{health_check_period_s: 1}}
      draft_deployment: {{health_check_period_s: 1}}
"""


@dataclass(frozen=True)
class Cluster:
    """What tests need to reach it, and to hurt it."""

    process: subprocess.Popen[str]
    http_url: str
    grpc_address: str
    metrics_url: str

    def metric(self, name: str, **labels: str) -> float:
        """Sum over all processes of a metric's newest values; 0 if nobody has published it."""
        with urllib.request.urlopen(self.metrics_url, timeout=5.0) as response:
            lines = response.read().decode().splitlines()
        wanted = [f'{key}="{value}"' for key, value in labels.items()]
        found = [line for line in lines if line.startswith(f"ray_dspark_{name}{{") and all(label in line for label in wanted)]
        return sum(float(line.rsplit(" ", 1)[1]) for line in found)

    def replica_pids(self, deployment: str) -> list[int]:
        """Processes of a deployment's replicas, among this cluster's own."""
        return [pid for pid, name in descendants(self.process.pid) if name.startswith(f"ray::ServeReplica:test:{deployment}")]


def descendants(root: int) -> list[tuple[int, str]]:
    """(pid, command line) of all processes below `root`."""
    parents, names = {}, {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                status = (folder / "stat").read_text()
                names[int(folder.name)] = (folder / "cmdline").read_text().replace("\0", " ").strip()
            except OSError:  # it ended while we looked
                continue
            parents[int(folder.name)] = int(status.rpartition(")")[2].split()[1])

    def is_below(pid: int) -> bool:
        while pid in parents and pid != root:
            pid = parents[pid]
        return pid == root

    return [(pid, names[pid]) for pid in parents if pid != root and is_below(pid)]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_until(condition: Callable[[], bool], timeout_s: float, what: str) -> None:
    """Fails the test if `condition` does not come true in time."""
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end, f"not within {timeout_s:g} s: {what}"
        time.sleep(0.2)


def serve_command(config: Path, metrics_port: int) -> list[str]:
    return [sys.executable, "-m", "deployments.cli", "serve", str(config), "--metrics-port", str(metrics_port)]


@pytest.fixture(scope="session")
def ray_environment() -> Iterator[dict[str, str]]:
    """A session folder of its own, with a short name: the paths of Ray's sockets must fit into 107 bytes."""
    folder = tempfile.mkdtemp(prefix="dsp-", dir="/tmp")
    yield os.environ | {"RAY_TMPDIR": folder, "RAY_metrics_report_interval_ms": "500", "PYTHONUNBUFFERED": "1"}
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory, ray_environment: dict[str, str]) -> Iterator[Cluster]:
    folder = tmp_path_factory.mktemp("serve")
    http_port, grpc_port, metrics_port = free_port(), free_port(), free_port()
    config = folder / "serve.yaml"
    config.write_text(CONFIG.format(http_port=http_port, grpc_port=grpc_port, servicer=SERVICER, target="demo:target"))
    log = folder / "log.txt"
    with log.open("w") as output:
        process = subprocess.Popen(
            serve_command(config, metrics_port), cwd=ROOT, env=ray_environment, stdout=output, stderr=subprocess.STDOUT, text=True
        )
    try:
        wait_until(lambda: "try:" in log.read_text() or process.poll() is not None, START_TIMEOUT_S, "ready")
        assert process.poll() is None, log.read_text()
        yield Cluster(process, f"http://127.0.0.1:{http_port}", f"127.0.0.1:{grpc_port}", f"http://127.0.0.1:{metrics_port}/metrics")
        stop(process, log)
    finally:
        for pid, _ in [*descendants(process.pid), (process.pid, "")]:
            if process.poll() is None:
                os.kill(pid, signal.SIGKILL)


def stop(process: subprocess.Popen[str], log: Path) -> None:
    """SIGTERM ends it cleanly and leaves no process behind."""
    below = descendants(process.pid)
    process.send_signal(signal.SIGTERM)
    assert process.wait(STOP_TIMEOUT_S) == 0, log.read_text()
    wait_until(lambda: not any(is_running(pid, name) for pid, name in below), 15.0, "no process left")


def is_running(pid: int, name: str) -> bool:
    """The same process as before, not another with its number, and not one that only waits to be collected."""
    try:
        now = (Path("/proc") / str(pid) / "cmdline").read_text().replace("\0", " ").strip()
    except OSError:
        return False
    return bool(now) and now.split()[0] == (name.split() or [""])[0]
