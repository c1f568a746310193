"""`dspark doctor`: what this machine has, and what a configuration needs of it. Starts nothing and loads no weights."""

import importlib.metadata
import os
import platform
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum

from deployments.config_file import ServeFile
from deployments.ports import is_free
from dspark.config import DEFAULT_DRAFTER, DeploymentOptions, DrafterConfig, ModelSource, ServeArgs
from dspark.errors import DSparkError

LIBRARIES = ("dspark", "ray", "torch", "transformers", "grpcio", "protobuf", "fastapi", "pydantic")
BYTES_PER_GIB = 2**30


class Verdict(StrEnum):
    """How bad a finding is."""

    OK = "ok"
    WARNING = "warning"
    FAILURE = "failure"


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the report."""

    verdict: Verdict
    text: str


def examine(file: ServeFile, metrics_port: int) -> Iterator[Finding]:
    """All findings, cheap ones first."""
    yield Finding(Verdict.OK, f"Python {sys.version.split()[0]} on {platform.machine()}, {_cores()} cores, {_memory_gib():.1f} GiB")
    yield from _libraries()
    yield from _ports(file, metrics_port)
    for name, args in file.args.items():
        yield from _threads(name, args)
        yield from _models(args)


def _libraries() -> Iterator[Finding]:
    for name in LIBRARIES:
        try:
            yield Finding(Verdict.OK, f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            missing = Verdict.WARNING if name == "dspark" else Verdict.FAILURE
            yield Finding(missing, f"{name} is not installed" + ("; running from its source folder" if name == "dspark" else ""))


def _ports(file: ServeFile, metrics_port: int) -> Iterator[Finding]:
    http, grpc = file.schema.http_options, file.schema.grpc_options
    for name, port in (("http", http.port), ("gRPC", grpc.port), ("metrics", metrics_port)):
        free = is_free(port)
        yield Finding(Verdict.OK if free else Verdict.FAILURE, f"{name} port {port} is {'free' if free else 'in use'}")
    if http.host not in ("127.0.0.1", "localhost", "::1"):
        yield Finding(Verdict.WARNING, f"HTTP listens on {http.host}: the API has no login, put one in front of it")
    yield Finding(Verdict.WARNING, f"gRPC port {grpc.port} and Ray's own ports listen on all interfaces: close them in the firewall")


def _threads(name: str, args: ServeArgs) -> Iterator[Finding]:
    """Replicas that fight for cores are slower than fewer threads."""
    pools: list[tuple[ModelSource, DeploymentOptions]] = [(args.target, args.target_deployment)]
    pools += [(args.named_drafters[drafter], options) for drafter, options in args.draft_pools.items()]
    on_cpu = [(source, options) for source, options in pools if source.device == "cpu"]
    wanted = sum(options.autoscaling.max_replicas * (source.num_threads or _cores()) for source, options in on_cpu)
    if wanted > _cores():
        yield Finding(Verdict.WARNING, f"{name}: models use up to {wanted} threads on {_cores()} cores; set num_threads")


def _models(args: ServeArgs) -> Iterator[Finding]:
    yield _model("target", args.target)
    for name in args.draft_pools:
        config, role = args.named_drafters[name], "drafter" if name == DEFAULT_DRAFTER else f"drafter {name}"
        yield _model(role, config) if config.kind == "language_model" else _trained_drafter(role, config, args.target)


def _model(role: str, source: ModelSource) -> Finding:
    """Configuration, tokenizer and the headers of the weight files; a hub name is looked up, and fetched if it is not in the cache."""
    from dspark.runtime.loading import check_folder, load_tokenizer, model_card, resolve_folder

    try:
        folder = resolve_folder(source)
        num_tensors = check_folder(folder).num_tensors
        card = model_card(folder, source, load_tokenizer(folder))
    except DSparkError as error:
        return Finding(Verdict.FAILURE, f"{role}: {error}")
    return Finding(
        Verdict.OK, f"{role} {source.model}: {num_tensors} tensors, vocabulary {card.vocab_size}, context {card.max_length} tokens"
    )


def _trained_drafter(role: str, source: DrafterConfig, target: ModelSource) -> Finding:
    """A drafter that reads the target's hidden states: its whole checkpoint, and whether it belongs to the target."""
    from dspark.runtime.draft_formats import check_target, read_draft_checkpoint
    from dspark.runtime.loading import resolve_folder

    try:
        folder = resolve_folder(source)
        checkpoint = read_draft_checkpoint(folder, tensors=())
        check_target(folder, checkpoint.spec, resolve_folder(target))
    except DSparkError as error:
        return Finding(Verdict.FAILURE, f"{role}: {error}")
    spec = checkpoint.spec
    layers = ", ".join(map(str, spec.tap_layers))
    return Finding(Verdict.OK, f"{role} {source.model}: {spec.kind}, {spec.num_draft_layers} layers, reads target layers {layers}")


def _cores() -> int:
    return len(os.sched_getaffinity(0))


def _memory_gib() -> float:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / BYTES_PER_GIB
