"""The `prepare` command: options of the command line as PrepareOptions. Mounted by deepspec/cli.py."""

from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.console import Console
from rich.text import Text

from dspark.deepspec.prompts import Rendering, Thinking
from dspark.errors import ConfigError, DSparkError
from dspark.serving.validation import MAX_TEMPERATURE

DrafterKind = Literal["none", "lookup", "language_model", "block", "eagle"]
Dtype = Literal["float32", "bfloat16", "float16"]

PromptsArgument = Annotated[str, typer.Argument(help="JSONL or Parquet file or folder, saved data set, or a data set of the hub.")]
OutOption = Annotated[Path, typer.Option(help="Folder for the samples; the same command goes on where it was killed.")]
FieldOption = Annotated[
    str | None, typer.Option(help="Key to read; default: the first of messages, turns (its first turn), prompt, question, text.")
]
ChatOption = Annotated[
    bool | None, typer.Option("--chat/--no-chat", help="Use the chat template; default: for messages, turns and questions.")
]


def prepare(
    prompts: PromptsArgument,
    out: OutOption,
    target: Annotated[str, typer.Option(help="Folder, hub name, or demo:target.")] = "demo:target",
    field: FieldOption = None,
    subset: Annotated[str | None, typer.Option(help="Configuration of a hub data set.")] = None,
    split: Annotated[str, typer.Option(help="Split of a data set.")] = "train",
    chat: ChatOption = None,
    thinking: Annotated[Thinking, typer.Option(help="Value of enable_thinking in chats; both asks twice.")] = "default",
    answers: Annotated[
        Literal["regenerate", "keep"], typer.Option(help="Let the target answer, or take the texts as they are.")
    ] = "regenerate",
    server: Annotated[str | None, typer.Option(help="URL of a server with OpenAI's API that runs the target.")] = None,
    model: Annotated[str | None, typer.Option(help="Its model name; default: its first one.")] = None,
    temperatures: Annotated[str, typer.Option(help="Comma-separated; they go round over the samples.")] = "0.7,1",
    max_tokens: Annotated[int, typer.Option(min=1, help="Tokens per answer.")] = 512,
    samples_per_prompt: Annotated[int, typer.Option(min=1)] = 1,
    max_length: Annotated[
        int | None, typer.Option(min=2, help="Tokens per sample; default: the model's limit, at most 4096.")
    ] = None,
    ignore_eos: Annotated[bool, typer.Option("--ignore-eos", help="Go on to --max-tokens.")] = False,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    limit: Annotated[int | None, typer.Option(min=1, help="Use the first records only.")] = None,
    skip_bad: Annotated[bool, typer.Option("--skip-bad", help="Count bad records and go on.")] = False,
    concurrency: Annotated[int, typer.Option(min=1, help="Prompts in flight.")] = 32,
    drafter: Annotated[DrafterKind, typer.Option(help="Speeds the engine up; the answers stay the target's own.")] = "none",
    draft: Annotated[str, typer.Option(help="The drafter's model.")] = "demo:drafter",
    device: Annotated[str, typer.Option()] = "cpu",
    dtype: Annotated[Dtype, typer.Option()] = "float32",
    threads: Annotated[int | None, typer.Option(min=1, help="Torch threads of this process.")] = None,
    max_minutes: Annotated[float | None, typer.Option(min=0.0, help="End cleanly after this time; to be continued.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show the estimates.")] = False,
) -> None:
    """Make training samples: let the target answer prompts, or cut given texts into windows."""
    console = Console(stderr=True, highlight=False, soft_wrap=True, markup=False)
    try:
        from dspark.config import DrafterConfig, TargetConfig
        from dspark.deepspec.prepare import PrepareOptions, prepare_samples  # transformers takes seconds to import; --help should not

        options = PrepareOptions(
            prompts=prompts,
            out=out,
            target=TargetConfig(model=target, device=device, dtype=dtype, num_threads=threads),
            drafter=DrafterConfig(kind=drafter, model=draft, device=device, dtype=dtype),
            rendering=Rendering(field, chat, thinking),
            subset=subset,
            split=split,
            answers=answers,
            server=server,
            model=model,
            temperatures=parse_temperatures(temperatures),
            max_tokens=max_tokens,
            samples_per_prompt=samples_per_prompt,
            max_length=max_length,
            seed=seed,
            ignore_eos=ignore_eos,
            skip_bad=skip_bad,
            limit=limit,
            concurrency=concurrency,
            max_minutes=max_minutes,
            dry_run=dry_run,
        )
        prepare_samples(options, console)
    except DSparkError as error:
        console.print(Text.assemble(("error: ", "red"), str(error)))
        raise typer.Exit(2 if error.field else 3) from None


def parse_temperatures(text: str) -> tuple[float, ...]:
    """ "0,0.7,1" -> (0.0, 0.7, 1.0). Raises ConfigError."""
    try:
        found = tuple(float(part) for part in text.split(","))
    except ValueError as error:
        raise ConfigError(f"--temperatures {text}: not a comma-separated list of numbers", "temperatures") from error
    if not all(0 <= temperature <= MAX_TEMPERATURE for temperature in found):
        raise ConfigError(f"--temperatures {text}: must be from 0 to {MAX_TEMPERATURE:g}", "temperatures")
    return found
