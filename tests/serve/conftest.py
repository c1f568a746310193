"""Real clusters, started the way users do it: `dspark serve CONFIG` in a process of its own. One for each file, gone before the next."""

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
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from dspark.client import Client
from dspark.errors import DSparkError, InvalidRequest

ROOT = Path(__file__).resolve().parents[2]
START_TIMEOUT_S = 200.0
STOP_TIMEOUT_S = 60.0
METRICS_DELAY_S = 2.0
"""Gauges are set once a second, and Ray hands them on twice a second here."""
SERVICER = "dspark.wire.pb.generation_pb2_grpc.add_GenerationServicer_to_server"

CONFIG = """\
proxy_location: HeadOnly
http_options: {{host: 127.0.0.1, port: {http_port}, request_timeout_s: 130}}
grpc_options: {{port: {grpc_port}, grpc_servicer_functions: [{servicer}], request_timeout_s: 130}}
applications:
  - name: test
    route_prefix: /
    import_path: {import_path}
    args:
      limits: {{request_timeout_s: 120, acquire_timeout_s: 10, draft_timeout_s: 10}}
      target_deployment: {{health_check_period_s: 1}}
      draft_deployment: {{health_check_period_s: 1}}
"""
PAIR = """\
      target: {model: "demo:target", num_threads: 1, kv_cache: {num_tokens: 4096}}
      drafter: {kind: language_model, model: "demo:drafter", num_threads: 1}
"""


def write_config(folder: Path, args: str, import_path: str = "deployments.app:build") -> tuple[Path, int, int]:
    """A file with these lines more among `args:`, and its ports for HTTP and gRPC."""
    http_port, grpc_port = free_port(), free_port()
    path = folder / "serve.yaml"
    text = CONFIG.format(http_port=http_port, grpc_port=grpc_port, servicer=SERVICER, import_path=import_path)
    path.write_text(text + args)
    return path, http_port, grpc_port


@dataclass(frozen=True)
class Cluster:
    """What tests need to reach it, and to hurt it."""

    process: subprocess.Popen[str]
    log: Path
    """What the command says."""
    http_url: str
    grpc_address: str
    metrics_url: str

    def metric(self, name: str, **labels: str) -> float:
        """Sum over all processes of a metric's newest values; 0 if nobody has published it."""
        with urllib.request.urlopen(self.metrics_url, timeout=20.0) as response:
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


def wait_until_idle(cluster: Cluster) -> None:
    """No session, no lease, no block of the KV cache in use; asked when the numbers of now have been published."""
    time.sleep(METRICS_DELAY_S)
    names = ("sessions", "leases", "kv_blocks_used")
    wait_until(lambda: sum(cluster.metric(name) for name in names) == 0, 15.0, "everything is given back")


def answers(client: Client) -> bool:
    """True if a request is served now."""
    try:
        client.generate("def", max_tokens=1)
    except InvalidRequest:
        raise
    except DSparkError:
        return False
    return True


def serve_command(config: Path, metrics_port: int) -> list[str]:
    return [sys.executable, "-m", "deployments.cli", "serve", str(config), "--metrics-port", str(metrics_port)]


@pytest.fixture(scope="session")
def ray_environment() -> Iterator[dict[str, str]]:
    """A session folder of its own, with a short name: the paths of Ray's sockets must fit into 107 bytes."""
    folder = tempfile.mkdtemp(prefix="dsp-", dir="/tmp")
    # Ray starts its workers with niceness 15, which on a busy machine is not at all.
    settings = {"RAY_TMPDIR": folder, "RAY_metrics_report_interval_ms": "500", "RAY_worker_niceness": "0"}
    yield os.environ | settings | {"PYTHONUNBUFFERED": "1"}
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory, ray_environment: dict[str, str]) -> Iterator[Cluster]:
    """The shipped pair."""
    config, http_port, grpc_port = write_config(tmp_path_factory.mktemp("serve"), PAIR)
    with running(config, http_port, grpc_port, ray_environment) as cluster:
        yield cluster


@contextmanager
def running(config: Path, http_port: int, grpc_port: int, environment: dict[str, str]) -> Iterator[Cluster]:
    """`dspark serve` with this file; at the end it must stop cleanly, unless the block raises."""
    metrics_port = free_port()
    log = config.parent / "log.txt"
    with log.open("w") as output:
        process = subprocess.Popen(
            serve_command(config, metrics_port), cwd=ROOT, env=environment, stdout=output, stderr=subprocess.STDOUT, text=True
        )
    addresses = f"http://127.0.0.1:{http_port}", f"127.0.0.1:{grpc_port}", f"http://127.0.0.1:{metrics_port}/metrics"
    try:
        # Its banner tells only of this project's own builder, so the service is asked.
        wait_until(lambda: is_ready(addresses[0]) or process.poll() is not None, START_TIMEOUT_S, "ready")
        assert process.poll() is None, log.read_text()
        yield Cluster(process, log, *addresses)
        stop(process, log)
    finally:
        for pid, _ in descendants(process.pid) if process.poll() is None else ():
            os.kill(pid, signal.SIGKILL)
        process.kill()
        process.wait()


def is_ready(http_url: str) -> bool:
    """True once a request can be served."""
    try:
        with urllib.request.urlopen(f"{http_url}/ready", timeout=5.0):
            return True
    except OSError:
        return False


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
