"""Runs a checked configuration on a Ray cluster, its own or one that is there, until it is told to stop. Behind `dspark serve`.

Unlike `serve run`, it ends with an error when an application cannot be deployed, and says in one line what is served and how to call it.
"""

import importlib
import logging
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Any, NoReturn

from deployments.config_file import BUILDER, ServeFile
from deployments.ports import check_free
from dspark.client import Client
from dspark.config import DEFAULT_DRAFTER, MODEL_KINDS, NO_DRAFTER, ServeArgs
from dspark.errors import ConfigError, DSparkError, ReplicaUnavailable

WATCH_PERIOD_S = 2.0
OBJECT_STORE_BYTES = 128 * 1024 * 1024
"""Nothing large goes through Ray's object store here; its default would reserve a third of the memory."""

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class LaunchOptions:
    """What the command line can say beside the file."""

    ray_address: str | None = None
    """A running cluster; None starts one on this machine, for as long as the command runs."""
    metrics_port: int = 8080
    """Of a cluster started here."""
    verbose: bool = False


def serve_until_stopped(file: ServeFile, options: LaunchOptions, say: Say) -> None:
    """Deploy all applications, say so, and wait for Ctrl-C or SIGTERM; then shut down what was started here.

    Raises ConfigError for what only `serve run` can do, ReplicaUnavailable with the reason if an application cannot be deployed.
    """
    _check_runnable(file)
    _quieten(options.verbose)
    with ExitStack() as stack:
        if options.ray_address is None:
            check_free(_ports(file, options))
        stack.enter_context(_cluster(options))
        stack.enter_context(_stop_on_signals())
        try:
            stack.enter_context(_applications(file, stays=options.ray_address is not None, verbose=options.verbose))
            for line in _banner(file):
                say(line)
            _watch(say)
        except KeyboardInterrupt:
            say("stopping")


def _check_runnable(file: ServeFile) -> None:
    for application in file.schema.applications:
        if application.deployments:
            raise ConfigError(
                f"{file.path}: application {application.name!r} has `deployments:`; set `args.target_deployment` and its like, "
                "or start the file with `serve run`"
            )


def _ports(file: ServeFile, options: LaunchOptions) -> dict[str, int]:
    return {
        "http_options.port": file.schema.http_options.port,
        "grpc_options.port": file.schema.grpc_options.port,
        "--metrics-port": options.metrics_port,
    }


def _quieten(verbose: bool) -> None:
    """Before Ray is imported: it reads these when it is. Replicas log to files of Ray's session folder in any case."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if not verbose:
        os.environ.setdefault("RAY_SERVE_LOG_TO_STDERR", "0")
        logging.getLogger("ray").setLevel(logging.ERROR)


@contextmanager
def _cluster(options: LaunchOptions) -> Iterator[None]:
    """A connection to Ray."""
    import ray

    common: dict[str, Any] = {"log_to_driver": options.verbose, "logging_level": "INFO" if options.verbose else "ERROR"}
    if options.ray_address is not None:
        ray.init(address=options.ray_address, **common)
    else:
        ray.init(
            address="local",
            include_dashboard=False,
            object_store_memory=OBJECT_STORE_BYTES,
            _metrics_export_port=options.metrics_port,
            **common,
        )
    try:
        yield
    finally:
        ray.shutdown()


@contextmanager
def _stop_on_signals() -> Iterator[None]:
    """SIGTERM ends the wait as Ctrl-C does. Installed after Ray, which has a handler of its own."""

    def stop(signum: int, frame: FrameType | None) -> NoReturn:
        raise KeyboardInterrupt

    former = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)


@contextmanager
def _applications(file: ServeFile, *, stays: bool, verbose: bool) -> Iterator[None]:
    """Serve with all applications of the file; what was not there before is gone afterwards."""
    from ray import serve

    schema = file.schema
    if not verbose:
        logging.getLogger("ray.serve").setLevel(logging.ERROR)
    serve.start(
        proxy_location=schema.proxy_location,
        http_options=schema.http_options.model_dump(),
        grpc_options=schema.grpc_options.model_dump(),
        logging_config=schema.logging_config,
    )
    try:
        for application in schema.applications:
            _deploy(application.name, application.route_prefix, application.import_path, _args_of(file, application.name))
        yield
    finally:
        if stays:
            for application in schema.applications:
                serve.delete(application.name)
        else:
            serve.shutdown()  # type: ignore[no-untyped-call]


def _args_of(file: ServeFile, name: str) -> ServeArgs | dict[str, Any]:
    """Checked arguments where they are this project's, those of the file where they are not."""
    own = file.args.get(name)
    return own if own is not None else next(app.args for app in file.schema.applications if app.name == name)


def _deploy(name: str, route_prefix: str | None, import_path: str, args: ServeArgs | dict[str, Any]) -> None:
    from ray import serve

    module, _, attribute = import_path.replace(":", ".").rpartition(".")
    target = getattr(importlib.import_module(module), attribute)
    application = target(args) if callable(target) else target
    try:
        serve.run(application, name=name, route_prefix=route_prefix)
    except RuntimeError as error:
        messages = [deployment.message for deployment in serve.status().applications[name].deployments.values()]
        raise ReplicaUnavailable(f"application {name!r} could not be deployed: {_reason([str(error), *messages])}") from error


def _reason(messages: list[str]) -> str:
    """The line of this project's own error in Serve's pages of traceback, if there is one."""
    names = [kind.__name__ for kind in _error_kinds(DSparkError)]
    lines = [line.strip() for message in messages for line in message.splitlines() if line.strip()]
    own = [line for line in lines if any(line.startswith(f"dspark.errors.{name}:") for name in names)]
    return own[-1].removeprefix("dspark.errors.") if own else (lines[-1] if lines else "no reason given; try --verbose")


def _error_kinds(kind: type[DSparkError]) -> list[type[DSparkError]]:
    return [kind, *(found for child in kind.__subclasses__() for found in _error_kinds(child))]


def _banner(file: ServeFile) -> Iterator[str]:
    """One line per application of this project, and a call to copy."""
    http, grpc = file.schema.http_options, file.schema.grpc_options
    host = "127.0.0.1" if http.host in ("0.0.0.0", "::") else http.host  # noqa: S104  # compared, not bound
    for application in file.schema.applications:
        args = file.args.get(application.name)
        if application.import_path != BUILDER or args is None:
            continue
        url = f"http://{host}:{http.port}{(application.route_prefix or '').rstrip('/')}/v1"
        name, context = _served_model(args, grpc.port if grpc.grpc_servicer_functions else None)
        yield (
            f"ready: {url} | gRPC :{grpc.port} | model {name} ({args.target.dtype}, {args.target.device}) | draft {drafters_told(args)} | "
            f"{context}KV cache {args.target.kv_cache.num_tokens} tokens"
        )
        body = f'{{"model": "{name}", "prompt": "def add(", "max_tokens": 32}}'
        yield f"try:   curl {url}/completions -H 'content-type: application/json' -d '{body}'"


def drafters_told(args: ServeArgs) -> str:
    """`demo:drafter (depth 4)`, with names where there are several; `none` where nobody drafts."""
    told = {
        name: f"{config.model if config.kind in MODEL_KINDS else config.kind} (depth {config.max_depth})"
        for name, config in args.named_drafters.items()
    }
    if told.keys() <= {DEFAULT_DRAFTER}:
        return told.get(DEFAULT_DRAFTER, NO_DRAFTER)
    return ", ".join(f"{name}: {text}" for name, text in told.items())


def _served_model(args: ServeArgs, grpc_port: int | None) -> tuple[str, str]:
    """Name, and context for the banner, as the service itself tells them."""
    name = args.target.served_name or args.target.model.rstrip("/").split("/")[-1]
    if grpc_port is None:
        return name, ""
    with Client(f"127.0.0.1:{grpc_port}") as client:
        (model,) = client.models()
    return model.name, f"context {model.max_length} tokens | "


def _watch(say: Say) -> NoReturn:
    """Until interrupted; tells when an application stops or resumes running."""
    from ray import serve

    told: dict[str, str] = {}
    while True:
        for name, application in serve.status().applications.items():
            status = application.status.value
            if told.setdefault(name, "RUNNING") != status:
                told[name] = status
                say(f"application {name}: {status}")
        time.sleep(WATCH_PERIOD_S)
