"""`dspark bench ...`: acceptance, speed, load, losslessness, the planner's time, and a simulation of them.

Where docs/measurements.md names a command of `dspark bench`, its numbers come from that. Others there come from `deepspec`, from the
tests, or from runs that no command repeats.
"""

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from dspark.bench.drafters import DEFAULT_DRAFTERS, as_trees, listed_drafters
from dspark.bench.load_commands import budget, frontier, load
from dspark.config import EngineConfig, TargetConfig
from dspark.errors import ConfigError

if TYPE_CHECKING:
    from dspark.bench.trees import TreePlan

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
ChildrenOption = Annotated[int, typer.Option(min=1, max=16, help="Children of one candidate, in trees.")]
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
    width: ChildrenOption = 4,
    temperatures: Annotated[str, typer.Option(help="Comma-separated, for trees.")] = "0,0.7,1",
    out: Annotated[
        Path | None, typer.Option(help="With --nodes: folder for accept.json and accept.png; without it only the table.")
    ] = None,
) -> None:
    """tau of each drafter at temperature 0, 0.7 and 1, by real decoding; with --nodes against the number of verified candidates."""
    config = _config(threads, depth, drafters)
    if nodes:
        _accept_trees(config, prompts, count, _tree_plan(nodes, width, temperatures, max_tokens, depth), out)
        return
    if out is not None:
        raise typer.BadParameter("there is a picture of --nodes only", param_hint="--out")
    from dspark.bench.reports import accept_table

    console.print(accept_table(config, prompts, count, max_tokens), markup=False)


def _tree_plan(nodes: str, width: int, temperatures: str, max_tokens: int, depth: int) -> "TreePlan":
    from dspark.bench.trees import TreePlan
    from dspark.deepspec.decoding import DecodingPlan
    from dspark.deepspec.evaluate_commands import numbers

    sizes = tuple(int(number) for number in numbers(nodes))
    return TreePlan(numbers(temperatures), sizes, width, DecodingPlan(max_tokens=max_tokens, depth=depth))


def _accept_trees(config: EngineConfig, prompts: Path | None, count: int, plan: "TreePlan", out: Path | None) -> None:
    from dspark.bench.plots import trees_figure
    from dspark.bench.trees import measure_trees, tree_curves, trees_table

    points = measure_trees(config.target, config.named_drafters, prompts, count, plan)
    console.print(trees_table(points), markup=False)
    if out is not None:
        label = f"{config.target.model}, {count} prompts x {plan.decoding.max_tokens} tokens, chains of up to {plan.decoding.depth}"
        _write(out, "accept", label, [point.record() for point in points], trees_figure(tree_curves(points), label))


def _write(out: Path, name: str, label: str, points: list[dict[str, Any]], picture: bytes) -> None:
    """The numbers as JSON, and their picture."""
    from dspark.deepspec.files import write_atomically

    write_atomically(out / f"{name}.json", (json.dumps({"label": label, "points": points}, indent=1) + "\n").encode())
    write_atomically(out / f"{name}.png", picture)
    console.print(f"\n{out}", markup=False)


@app.command()
def planner(
    sessions: Annotated[str, typer.Option(help="Comma-separated numbers of sessions.")] = "1,4,16,64,256",
    nodes: Annotated[int, typer.Option(min=1, max=256, help="Candidates per session.")] = 16,
    out: Annotated[Path | None, typer.Option(help="Folder for planner.json and planner.png; without it only the table.")] = None,
) -> None:
    """Time of one plan against the number of sessions."""
    from dspark.bench.planner import planner_curves, planner_table, planner_times, planner_title
    from dspark.bench.plots import planner_figure
    from dspark.deepspec.evaluate_commands import numbers

    times, title = planner_times(tuple(int(number) for number in numbers(sessions)), nodes), planner_title(nodes)
    console.print(planner_table(times, title), markup=False)
    if out is not None:
        picture = planner_figure([one.num_sessions for one in times], planner_curves(times), title)
        _write(out, "planner", title, [asdict(one) for one in times], picture)


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
    nodes: Annotated[int, typer.Option(min=0, max=256, help="Candidates per round, in trees; 0: chains of --depth.")] = 0,
    width: ChildrenOption = 4,
    with_lookup: Annotated[
        bool, typer.Option(help="Join drafters that have a model with lookup, as the shipped configuration does.")
    ] = False,
    temperature: Annotated[float, typer.Option(min=0.01, help="Of sampled text.")] = 0.8,
    url: Annotated[
        str | None, typer.Option(help="Also compare a running service, 8 clients at once; its own drafters by its own choice.")
    ] = None,
) -> None:
    """Greedy against transformers' generate; sampled across drafters and batch sizes, each as it is and planned; deterministic mode
    exactly. Exit code 1 if wrong."""
    from dspark.bench.reports import LosslessPlan, lossless_report

    config = _config(threads, depth, drafters)
    try:
        config = config.model_copy(update={"drafters": as_trees(config.drafters, nodes, width, with_lookup)})
    except ConfigError as error:
        raise typer.BadParameter(str(error), param_hint="--with-lookup") from None
    report, wrong = lossless_report(config, LosslessPlan(prompts, count, max_tokens, temperature, url))
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
