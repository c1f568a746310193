"""serve_config.yaml, checked as a whole before Ray sees it: Serve's part, the application's `args`, and how they fit together.

`serve run` and `serve deploy` take most mistakes silently or report them late; `dspark serve` and `dspark validate` use this first.
"""

import importlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from ray.serve.schema import ServeApplicationSchema, ServeDeploySchema

from deployments.strict import Location, Problem, YamlFile, parse_yaml, problems_of, read_yaml, unknown_keys
from dspark.config import ServeArgs
from dspark.errors import ConfigError

BUILDER = "deployments.app:build"
SERVICER = "dspark.wire.pb.generation_pb2_grpc.add_GenerationServicer_to_server"

DEFAULT_CONFIG = f"""\
http_options: {{host: 127.0.0.1, port: 8000, request_timeout_s: 630}}
grpc_options: {{port: 9000, grpc_servicer_functions: [{SERVICER}], request_timeout_s: 630}}
applications:
  - name: dspark
    route_prefix: /
    import_path: {BUILDER}
"""
"""What `dspark serve` runs where there is no file: the shipped pair, its HTTP for this machine only."""


@dataclass(frozen=True, slots=True)
class ServeFile:
    """A configuration that is known to be sound, as far as that can be said without starting it."""

    path: Path
    schema: ServeDeploySchema
    args: dict[str, ServeArgs]
    """By application name; applications of other import paths are not in it."""


def load(path: Path | None) -> ServeFile:
    """Read and check a file, or the default configuration. Raises ConfigError with one line per problem."""
    file = parse_yaml(Path("<default configuration>"), DEFAULT_CONFIG) if path is None else read_yaml(path)
    schema = _read_schema(file)
    problems: list[Problem] = []
    args: dict[str, ServeArgs] = {}
    for index, application in enumerate(schema.applications):
        _read_application(("applications", index, "args"), application, args, problems)
    problems += _servicer_problems(schema)
    problems += [problem for own in args.values() for problem in _timeout_problems(schema, own)]
    file.raise_problems(problems)
    return ServeFile(file.path, schema, args)


def read_args(raw: ServeArgs | dict[str, Any]) -> ServeArgs:
    """The builder's arguments, strict whoever calls: Serve gives a dictionary, Python code may give the model.

    Raises ConfigError naming each key at fault.
    """
    if isinstance(raw, ServeArgs):
        return raw
    problems: list[Problem] = []
    args = _parse_args(raw, ("args",), problems)
    if args is None or problems:
        raise ConfigError("; ".join(map(str, problems)))
    return args


def _parse_args(raw: Any, location: Location, problems: list[Problem]) -> ServeArgs | None:
    problems += unknown_keys(ServeArgs, raw, location)
    try:
        return ServeArgs.model_validate(raw)
    except ValidationError as error:
        problems += problems_of(error, location)
        return None


def _read_schema(file: YamlFile) -> ServeDeploySchema:
    if not isinstance(file.data, dict):
        raise ConfigError(f"{file.path}:1: a mapping with `applications:` is wanted here")
    problems = list(unknown_keys(ServeDeploySchema, file.data))
    try:
        schema = ServeDeploySchema.model_validate(file.data)
    except ValidationError as error:
        problems += problems_of(error)
    file.raise_problems(problems)
    return schema


def _read_application(
    location: Location, application: ServeApplicationSchema, found: dict[str, ServeArgs], problems: list[Problem]
) -> None:
    if application.import_path != BUILDER:
        return
    args = _parse_args(application.args, location, problems)
    if args is not None:
        found[application.name] = args


def _servicer_problems(schema: ServeDeploySchema) -> list[Problem]:
    """Serve's proxies would die over a servicer function that cannot be imported."""
    problems = []
    for index, name in enumerate(schema.grpc_options.grpc_servicer_functions):
        module, _, function = name.rpartition(".")
        try:
            found = callable(getattr(importlib.import_module(module), function, None)) if module else False
        except ImportError:
            found = False
        if not found:
            location = ("grpc_options", "grpc_servicer_functions", index)
            problems.append(Problem(location, f"{name!r} cannot be imported; this project's is {SERVICER!r}"))
    return problems


def _timeout_problems(schema: ServeDeploySchema, args: ServeArgs) -> list[Problem]:
    """The proxies cut a request without a word; the service must be the first to give up, with an error the client can read."""
    limit_s = args.limits.request_timeout_s
    return [
        Problem(
            (part, "request_timeout_s"),
            f"{proxy_s} is below the application's limits.request_timeout_s ({limit_s}): clients would see cut connections",
        )
        for part, proxy_s in (
            ("http_options", schema.http_options.request_timeout_s),
            ("grpc_options", schema.grpc_options.request_timeout_s),
        )
        if proxy_s is not None and proxy_s < limit_s
    ]
