"""`dspark bench ...`: every number of docs/measurements.md comes from one of these commands."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from dspark.bench.drafters import DEFAULT_DRAFTERS, listed_drafters
from dspark.bench.load_commands import budget, frontier, load
from dspark.config import EngineConfig, TargetConfig
from dspark.errors import ConfigError

app = typer.Typer(no_args_is_help=True, help="Measure acceptance, speed and losslessness.")
for command in (load, frontier, budget):
    app.command()(command)
console = Console(highlight=False, soft_wrap=True)

PromptsOption = Annotated[Path | None, typer.Option(help="JSONL of prompts; default: the shipped held-out ones.")]
CountOption = Annotated[int, typer.Option(min=1, help="Number of prompts.")]
TokensOption = Annotated[int, typer.Option(min=1, help="Tokens per prompt.")]
ThreadsOption = Annotated[int, typer.Option(min=1, help="Torch threads of this process.")]
DepthOption = Annotated[int, typer.Option(min=1, help="Draft positions per round.")]
DraftersOption = Annotated[
    str, typer.Option(help="Comma-separated: a kind with its shipped model, or NAME=KIND:CHECKPOINT, KIND also eagle.")
]
UrlOption = Annotated[str, typer.Option(help="A running service.")]


TargetOption = Annotated[str, typer.Option(help="Folder, hub name or demo:target; the drafters must have been made for it.")]


def _config(threads: int, depth: int, drafters: str, target: str = "demo:target") -> EngineConfig:
    try:
        return EngineConfig(target=TargetConfig(model=target, num_threads=threads), drafters=listed_drafters(drafters, depth))
    except ConfigError as error:
        raise typer.BadParameter(str(error), param_hint="--drafters") from None


@app.command()
def accept(
    prompts: PromptsOption = None,
    count: CountOption = 64,
    max_tokens: TokensOption = 128,
    depth: DepthOption = 7,
    threads: ThreadsOption = 1,
    drafters: DraftersOption = DEFAULT_DRAFTERS,
    nodes: Annotated[
        str, typer.Option(help="Comma-separated numbers of candidates: compare chains, trees and selected trees at each of them.")
    ] = "",
    width: Annotated[int, typer.Option(min=1, max=16, help="Children of one candidate, in trees.")] = 4,
    temperatures: Annotated[str, typer.Option(help="Comma-separated, for trees.")] = "0,0.7,1",
) -> None:
    """tau of each drafter at temperature 0, 0.7 and 1, by real decoding; with --nodes against the number of verified candidates."""
    if nodes:
        _accept_trees(prompts, count, max_tokens, threads, drafters, depth, nodes, width, temperatures)
        return
    from dspark.bench.reports import accept_table

    console.print(accept_table(_config(threads, depth, drafters), prompts, count, max_tokens), markup=False)


def _accept_trees(
    prompts: Path | None, count: int, max_tokens: int, threads: int, drafters: str, depth: int, nodes: str, width: int, temperatures: str
) -> None:
    from dspark.bench.trees import TreePlan, trees_table
    from dspark.deepspec.decoding import DecodingPlan
    from dspark.deepspec.evaluate_commands import numbers

    config = _config(threads, depth, drafters)
    sizes = tuple(int(number) for number in numbers(nodes))
    plan = TreePlan(numbers(temperatures), sizes, width, DecodingPlan(max_tokens=max_tokens, depth=depth))
    console.print(trees_table(config.target, config.named_drafters, prompts, count, plan), markup=False)


@app.command()
def planner(
    sessions: Annotated[str, typer.Option(help="Comma-separated numbers of sessions.")] = "1,4,16,64,256",
    nodes: Annotated[int, typer.Option(min=1, max=256, help="Candidates per session.")] = 16,
) -> None:
    """Time of one plan against the number of sessions."""
    from dspark.bench.planner import planner_table
    from dspark.deepspec.evaluate_commands import numbers

    console.print(planner_table(tuple(int(number) for number in numbers(sessions)), nodes), markup=False)


@app.command()
def simulate(
    setup: Annotated[
        str | None, typer.Option(help="A built-in set-up (its name), or a JSON file with costs; without it qwen3-8b-h100.")
    ] = None,
    acceptance: Annotated[
        str | None, typer.Option(help="A built-in profile, a decoding trace, or JSON; without it demo-dspark-t1.")
    ] = None,
    policies: Annotated[str, typer.Option(help="Comma-separated: plain, fixedN, tree, planned.")] = "plain,fixed3,fixed7,tree,planned",
    loads: Annotated[str, typer.Option(help="Comma-separated: clients, or with --poisson requests per second.")] = "1,2,4,8,16,32,64",
    poisson: Annotated[bool, typer.Option(help="Requests arrive at random instead of clients that ask again at once.")] = False,
    seed: Annotated[int, typer.Option()] = 0,
    against: Annotated[
        Path | None,
        typer.Option(help="load.json of `bench load`: simulate what it measured, by its costs and its trace. Exit code 1 if they differ."),
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder for simulation.json and the pictures.")] = Path("build/simulated"),
) -> None:
    """Throughput, speed per user and budgets under load, simulated from costs and acceptance; nothing is run."""
    from dspark.bench.load_commands import simulate_against_file
    from dspark.bench.simulate import SimulateOptions
    from dspark.bench.simulate import simulate as run
    from dspark.deepspec.evaluate_commands import numbers

    if against is not None:
        simulate_against_file(against, setup, acceptance, seed, out)
        return
    defaults = SimulateOptions()
    names = tuple(name.strip() for name in policies.split(",") if name.strip())
    own = (setup or defaults.setup, acceptance or defaults.acceptance)
    report = run(SimulateOptions(*own, policies=names, loads=numbers(loads), poisson=poisson, seed=seed))
    report.write(out)
    console.print(f"{report.table()}\n\n{out}", markup=False)


@app.command()
def speed(
    prompts: PromptsOption = None,
    count: CountOption = 16,
    max_tokens: TokensOption = 96,
    depth: DepthOption = 4,
    threads: ThreadsOption = 1,
    drafters: DraftersOption = DEFAULT_DRAFTERS,
    clients: Annotated[int, typer.Option(min=1, help="Prompts in flight together.")] = 1,
    temperature: Annotated[float, typer.Option(min=0.0)] = 0.7,
    transformers: Annotated[bool, typer.Option(help="Also time transformers' generate and assisted generation.")] = True,
    deterministic: Annotated[bool, typer.Option(help="Also time deterministic mode.")] = False,
    target: TargetOption = "demo:target",
) -> None:
    """Tokens per second in one process, interleaved, as ratios to plain decoding in the same stack."""
    from dspark.bench.reports import SpeedPlan, speed_table

    plan = SpeedPlan(prompts, count, max_tokens, clients, temperature, transformers, deterministic)
    console.print(speed_table(_config(threads, depth, drafters, target), plan), markup=False)


@app.command()
def lossless(
    prompts: PromptsOption = None,
    count: CountOption = 64,
    max_tokens: TokensOption = 128,
    depth: DepthOption = 4,
    threads: ThreadsOption = 1,
    drafters: DraftersOption = DEFAULT_DRAFTERS,
    url: Annotated[
        str | None, typer.Option(help="Also compare a running service, 8 clients at once; its own drafters by its own choice.")
    ] = None,
) -> None:
    """Greedy against transformers' generate; sampled across drafters and batch sizes; deterministic mode exactly. Exit code 1 if wrong."""
    from dspark.bench.reports import lossless_report

    report, wrong = lossless_report(_config(threads, depth, drafters), prompts, count, max_tokens, url)
    console.print(report, markup=False)
    raise typer.Exit(1 if wrong else 0)


@app.command()
def serve(
    url: UrlOption = "http://127.0.0.1:8000",
    prompts: PromptsOption = None,
    count: CountOption = 32,
    max_tokens: TokensOption = 96,
    clients: Annotated[int, typer.Option(min=1, help="Requests in flight together.")] = 1,
    temperature: Annotated[float, typer.Option(min=0.0)] = 0.7,
    drafter: Annotated[str | None, typer.Option(help="One of the service's drafters, by its name there; default: its choice.")] = None,
) -> None:
    """Tokens per second of a running service over HTTP, speculation on and off in turn."""
    from dspark.bench.http import serve_table

    console.print(serve_table(url, prompts, count, max_tokens, clients, temperature, drafter), markup=False)
