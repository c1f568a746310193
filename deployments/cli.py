"""The `dspark` command: the Ray-free commands of dspark/cli.py, and those that need Ray: serve, validate, doctor.

Exit codes: 0 fine, 2 wrong usage or configuration, 3 a model or application that cannot be served, 4 a machine that is not fit.
"""

from pathlib import Path
from typing import Annotated, NoReturn

import typer

from dspark import __version__
from dspark.cli import app as core
from dspark.errors import ConfigError, DSparkError

EXIT_USAGE, EXIT_MODEL, EXIT_MACHINE = 2, 3, 4
DEFAULT_FILE = Path("serve_config.yaml")

main = typer.Typer(name="dspark", no_args_is_help=True, pretty_exceptions_enable=False)
main.add_typer(core)

ConfigPath = Annotated[
    Path | None,
    typer.Argument(metavar="[CONFIG]", help="Configuration; default: ./serve_config.yaml, and without one the shipped pair."),
]
MetricsPort = Annotated[int, typer.Option(min=1, max=65535, help="Prometheus metrics of a cluster started here.")]


def _tell_version(asked: bool) -> None:
    if asked:
        typer.echo(f"dspark {__version__}")
        raise typer.Exit


@main.callback()
def command(
    version: Annotated[bool, typer.Option("--version", callback=_tell_version, is_eager=True, help="Tell the version and exit.")] = False,
) -> None:
    """Draft models guess, the target model commits."""


@main.command()
def serve(
    config: ConfigPath = None,
    ray_address: Annotated[str | None, typer.Option(help="A running Ray cluster; default: one of its own.")] = None,
    metrics_port: MetricsPort = 8080,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Show the logs of Ray and of all replicas.")] = False,
) -> None:
    """Serve a configuration until Ctrl-C."""
    from deployments.config_file import load
    from deployments.launcher import LaunchOptions, serve_until_stopped

    options = LaunchOptions(ray_address, metrics_port, verbose)
    try:
        serve_until_stopped(load(_path(config)), options, say=_say)
    except ConfigError as error:
        _fail(str(error), EXIT_USAGE)
    except DSparkError as error:
        _fail(str(error), EXIT_MODEL)


@main.command()
def validate(config: ConfigPath = None) -> None:
    """Check a configuration as a whole, without starting anything."""
    from deployments.config_file import load

    try:
        file = load(_path(config))
    except ConfigError as error:
        _fail(str(error), EXIT_USAGE)
    _say(f"{file.path}: fine")


@main.command()
def doctor(config: ConfigPath = None, metrics_port: MetricsPort = 8080) -> None:
    """Check this machine for what a configuration needs: libraries, ports, cores, models."""
    from deployments.config_file import load
    from deployments.doctor import Verdict, examine

    try:
        file = load(_path(config))
    except ConfigError as error:
        _fail(str(error), EXIT_USAGE)
    worst = 0
    for finding in examine(file, metrics_port):
        _say(f"{finding.verdict:<8} {finding.text}")
        worst = EXIT_MACHINE if finding.verdict is Verdict.FAILURE else worst
    raise typer.Exit(worst)


def _path(given: Path | None) -> Path | None:
    return given or (DEFAULT_FILE if DEFAULT_FILE.exists() else None)


def _say(text: str) -> None:
    typer.echo(text)


def _fail(text: str, code: int) -> NoReturn:
    typer.echo(text, err=True)
    raise typer.Exit(code)


if __name__ == "__main__":
    main()
