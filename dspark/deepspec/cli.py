"""The `deepspec` command: drafters from data to a calibrated checkpoint. Each command stands in its own file; here they come together.

Exit codes: 0 fine, 1 something found (inspect), 2 wrong usage or configuration, 3 a checkpoint that cannot be used or another failure.
"""

import functools
from collections.abc import Callable
from typing import ParamSpec

import typer
from rich.console import Console

from dspark.deepspec.evaluate_commands import calibrate, evaluate, probe
from dspark.deepspec.format_commands import convert, inspect
from dspark.deepspec.prepare_command import prepare
from dspark.deepspec.train_command import train
from dspark.errors import ConfigError, DSparkError

EXIT_USAGE, EXIT_FAILED = 2, 3

P = ParamSpec("P")

app = typer.Typer(
    name="deepspec",
    help="Train, calibrate, judge and exchange draft models.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def _told(command: Callable[P, None]) -> Callable[P, None]:
    """The command with errors raised on purpose as one line and an exit code."""

    @functools.wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            command(*args, **kwargs)
        except DSparkError as error:
            Console(stderr=True, highlight=False, soft_wrap=True).print(f"error: {error}", markup=False)
            raise typer.Exit(EXIT_USAGE if isinstance(error, ConfigError) else EXIT_FAILED) from None

    return run


for _command in (prepare, train, evaluate, calibrate, inspect, convert, probe):
    app.command()(_told(_command))


def main() -> None:
    """Entry point of the package."""
    app()


if __name__ == "__main__":
    main()
