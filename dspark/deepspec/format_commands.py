"""`deepspec inspect` and `deepspec convert`: the command lines of inspecting.py and checkpoints.py. Mounted by cli.py."""

from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.console import Console

from dspark.config import ModelSource
from dspark.errors import DSparkError

Source = Annotated[str, typer.Argument(help="Drafter: a folder, or a hub name.")]
Target = Annotated[str | None, typer.Option(help="Its target: a folder, a hub name, or demo:target.")]
DomainText = Annotated[Path | None, typer.Option("--text", help="Plain text of the drafter's domain for the tap probe.")]
ConvertedFormat = Literal["deepspec", "specforge", "speculators"]


def inspect(checkpoint: Source, target: Target = None, text: DomainText = None) -> None:
    """Tell what a drafter's checkpoint is, and everything that is wrong with it. Ends with code 1 if something is."""
    from dspark.deepspec.inspecting import inspect_checkpoint, print_report  # torch takes seconds to import; --help should not

    console = Console(highlight=False, soft_wrap=True)
    try:
        with console.status("reading"):
            own = None if target is None else _folder(target)
            report = inspect_checkpoint(_folder(checkpoint), own, _texts(text, own))
    except DSparkError as error:
        raise _failed(error) from None
    print_report(console, report)
    if report.problems:
        raise typer.Exit(1)


def convert(
    source: Source,
    destination: Annotated[Path, typer.Argument(help="New folder.")],
    to: Annotated[ConvertedFormat, typer.Option(help="Format to write.")],
    target: Target = None,
    text: DomainText = None,
    tap_shift: Annotated[
        int | None, typer.Option(min=-1, max=1, help="Added to the tap layers as read, instead of probing them; 0 keeps them.")
    ] = None,
) -> None:
    """Write a drafter once more, in another format. With a target: its tensors are filled in and the tap layers probed."""
    from dspark.deepspec import checkpoints

    console = Console(highlight=False, soft_wrap=True)
    try:
        with console.status("converting"):
            own = None if target is None else _folder(target)
            done = checkpoints.convert(
                _folder(source), destination, to, target=own, target_name=target, tap_shift=tap_shift, texts=_texts(text, own)
            )
    except DSparkError as error:
        raise _failed(error) from None
    if done.probe is not None:
        console.print(f"tap layers: {done.probe.summary()}", markup=False)
    elif tap_shift is None and done.source.format in checkpoints.PROBED_FORMATS:
        console.print(
            f"tap layers: {list(done.spec.tap_layers)}, assumed and not probed: writers of {done.source.format} do not count them alike; "
            "name the --target to have them probed",
            markup=False,
        )
    if done.tap_shift:
        console.print(f"tap layers changed from {list(done.source.spec.tap_layers)} to {list(done.spec.tap_layers)}", markup=False)
    if done.copied:
        console.print(f"filled in from the target: {', '.join(done.copied)}")
    console.print(f"[green]{done.source.format} -> {to}[/green]: {destination}")


def _texts(path: Path | None, target: Path | None) -> list[list[int]] | None:
    from dspark.deepspec.tap_probe import texts_of_file

    return None if path is None or target is None else texts_of_file(path, target)


def _folder(name: str) -> Path:
    from dspark.runtime.hub import resolve_folder

    return resolve_folder(ModelSource(model=name))


def _failed(error: DSparkError) -> typer.Exit:
    Console(stderr=True).print(f"error: {error}", style="red", markup=False, soft_wrap=True)
    return typer.Exit(2 if error.field else 3)
