"""The part of the `dspark` command that needs no Ray: `generate` and `bench`."""

import asyncio
import time
from contextlib import aclosing
from typing import Annotated, Any, Literal

import typer
from rich.console import Console

from dspark.bench.cli import app as bench_app
from dspark.config import DrafterConfig, EngineConfig, TargetConfig
from dspark.errors import DSparkError
from dspark.types import FinishReason

app = typer.Typer(no_args_is_help=True, add_completion=False, help="Serve language models faster, token for token the same.")
app.add_typer(bench_app, name="bench")

DrafterKind = Literal["none", "lookup", "language_model", "block", "eagle"]


@app.command()
def generate(
    prompt: Annotated[str, typer.Argument(help="Text to continue.")],
    target: Annotated[str, typer.Option(help="Folder, hub name, or demo:target.")] = "demo:target",
    draft: Annotated[str | None, typer.Option(help="Drafting model: folder or hub name; default: the shipped one of the kind.")] = None,
    drafter: Annotated[DrafterKind, typer.Option(help="Who guesses.")] = "block",
    max_tokens: Annotated[int, typer.Option(min=1)] = 64,
    temperature: Annotated[float, typer.Option(min=0.0, max=2.0)] = 0.0,
    seed: Annotated[int | None, typer.Option(help="Drawn and reported if absent.")] = None,
    max_depth: Annotated[int, typer.Option(min=0, max=64, help="Most draft positions per round.")] = 7,
    deterministic: Annotated[bool, typer.Option(help="Bitwise the same whatever the batch; slower.")] = False,
) -> None:
    """Continue a prompt in this process, and tell what speculation did."""
    console = Console(highlight=False, soft_wrap=True)
    wanted: dict[str, Any] = {"kind": drafter, "max_depth": max_depth}
    config = EngineConfig(
        target=TargetConfig(model=target, deterministic=deterministic),
        drafter=DrafterConfig.model_validate(wanted | ({"model": draft} if draft is not None else {})),
    )
    try:
        asyncio.run(_generate(console, config, prompt, max_tokens, temperature, seed))
    except DSparkError as error:
        Console(stderr=True).print(f"[red]error:[/red] {error}")
        raise typer.Exit(2 if error.field else 3) from None


async def _generate(console: Console, config: EngineConfig, prompt: str, max_tokens: int, temperature: float, seed: int | None) -> None:
    from dspark.engine import Engine  # torch and transformers take seconds to import; --help should not

    engine = Engine.from_config(config)
    (request,) = engine.requests(prompt, max_tokens=max_tokens, temperature=temperature, seed=seed)
    console.print(prompt, end="", style="dim", markup=False)
    reason: FinishReason | None = None
    async with engine, aclosing(engine.stream(request)) as chunks:
        started = time.perf_counter()
        async for chunk in chunks:
            console.print(chunk.text, end="", markup=False)
            usage, reason = chunk.usage, chunk.finish_reason
        seconds = time.perf_counter() - started
    console.print(
        f"\n\n{usage.completion_tokens} tokens in {seconds:.2f} s ({usage.completion_tokens / seconds:.0f} tokens/s), "
        f"{usage.rounds} rounds, tau {usage.completion_tokens / usage.rounds:.2f}, accepted {usage.accepted_tokens} of "
        f"{usage.drafted_tokens} drafted, seed {request.sampling.seed}, finish reason {reason}",
        style="green",
    )
