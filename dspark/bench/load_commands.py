"""`dspark bench load|frontier|budget`, and `simulate --against`: from the command line to bench/load/ and back. Heavy imports wait."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args

import typer
from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress, TimeElapsedColumn

from dspark.bench.drafters import as_trees, listed_drafters
from dspark.bench.load.plan import DEFAULT_CLIENTS, PLAIN, PLANNED, SYSTEMS, LoadPlan, Patience
from dspark.bench.prompts import load_prompts
from dspark.config import DrafterConfig, ProfileConfig, TargetConfig
from dspark.errors import ConfigError

if TYPE_CHECKING:
    from dspark.bench.load.measure import LoadMeasurement
    from dspark.bench.load.results import LoadReport

console = Console(highlight=False, soft_wrap=True)
NUM_PROMPTS = 64
PROFILE_BUDGET_S = 15.0
"""Three times the service's: the curve goes into the file, and must reach to steps of many clients."""
SERVICE = "service"
SAME_SIGNAL_S = 0.5
DTYPES = {kind: get_args(kind.model_fields["dtype"].annotation) for kind in (TargetConfig, DrafterConfig)}
FromOption = Annotated[Path, typer.Option("--from", help="load.json of `bench load`, or its folder.")]


def load(
    target: Annotated[str, typer.Option(help="Folder, hub name or demo:target; the drafter must have been made for it.")] = "demo:target",
    drafters: Annotated[str, typer.Option(help="One: a kind with its shipped model, or NAME=KIND:CHECKPOINT.")] = "block",
    with_lookup: Annotated[bool, typer.Option(help="Join the drafter with lookup, as the shipped configuration does.")] = False,
    systems: Annotated[str, typer.Option(help="Comma-separated: plain, fixedN, tree, planned, plain_again.")] = ",".join(SYSTEMS),
    clients: Annotated[str, typer.Option(help="Comma-separated.")] = ",".join(map(str, DEFAULT_CLIENTS)),
    seconds: Annotated[float, typer.Option(min=0.05, help="Of one system in one turn.")] = 8.0,
    tokens: Annotated[int | None, typer.Option(min=1, help="Instead of --seconds: tokens per client in one turn.")] = None,
    decode_only: Annotated[
        bool, typer.Option(help="With --tokens: keep prompts out of the windows, which cost every system the same and fall at random.")
    ] = False,
    turns: Annotated[int, typer.Option(min=1, help="Counted; in each of them every system has its place.")] = 3,
    warmup_turns: Annotated[int, typer.Option(min=0, help="Before, for each number of clients; not counted.")] = 1,
    max_tokens: Annotated[int, typer.Option(min=1, help="Of every answer.")] = 256,
    temperature: Annotated[float, typer.Option(min=0.0)] = 0.7,
    prompts: Annotated[Path | None, typer.Option(help="JSONL of prompts; default: the shipped held-out ones.")] = None,
    prompt_characters: Annotated[
        int | None, typer.Option(min=1, help="Cut prompts there; a slow target reads long ones for minutes.")
    ] = None,
    threads: Annotated[int, typer.Option(min=1, help="Torch threads of this process.")] = 1,
    device: Annotated[str, typer.Option(help="Of target and drafter: cpu, cuda, cuda:1.")] = "cpu",
    dtype: Annotated[str, typer.Option(help="Of the target: float32, bfloat16, float16.")] = "float32",
    draft_dtype: Annotated[str, typer.Option(help="Of the drafter; auto: bfloat16 where the device multiplies it, else float32.")] = "auto",
    trace_rounds: Annotated[
        int, typer.Option(min=0, help="Drafts to record first, for `bench simulate --against`; 0 leaves that out.")
    ] = 600,
    limit_minutes: Annotated[float | None, typer.Option(min=0.0, help="Stop after this, and write what there is.")] = None,
    url: Annotated[
        str | None, typer.Option(help="Measure a running service over HTTP instead: plain, and as it is configured.")
    ] = None,
    name: Annotated[str, typer.Option(help="With --url: what the service's configuration is called in tables.")] = SERVICE,
    out: Annotated[Path, typer.Option(help="Folder for load.json, the trace and the pictures.")] = Path("build/load"),
) -> None:
    """Throughput, per-user speed and verification budget under load, interleaved. Ctrl-C ends it early; what there is is written."""
    from dspark.deepspec.evaluate_commands import numbers

    try:
        counts = tuple(int(number) for number in numbers(clients))
        plan = LoadPlan(counts, seconds, tokens, turns, warmup_turns, max_tokens, temperature, decode_only)
        if decode_only and url is not None:
            raise ConfigError("a service's clients cannot be told when to ask anew", "decode_only")
        texts = [text[:prompt_characters] for text in load_prompts(prompts, NUM_PROMPTS)]
        patience = Patience(None if limit_minutes is None else 60 * limit_minutes)
        if url is not None:
            _print(_served(url, name, texts, plan, patience, out), out)
            return
        placed = {"device": device, "num_threads": threads}
        drafter = _drafter(drafters, placed | _precision(DrafterConfig, draft_dtype), with_lookup)
        names = tuple(system.strip() for system in systems.split(",") if system.strip())
        profile = {"profile": ProfileConfig(budget_s=PROFILE_BUDGET_S)}
        own = TargetConfig.model_validate({"model": target} | profile | placed | _precision(TargetConfig, dtype))
        _print(_local(names, own, drafter, texts, plan, patience, trace_rounds, out), out)
    except ConfigError as error:
        raise typer.BadParameter(str(error)) from None


def frontier(
    source: FromOption = Path("build/load"),
    base: Annotated[str, typer.Option(help="The system that is compared with.")] = PLAIN,
    system: Annotated[str | None, typer.Option(help="The other one; default: planned, or the last one that was measured.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for frontier.json and frontier.png; default: where the measurement is.")] = None,
) -> None:
    """Throughput against per-user speed: per-user speed at matched throughput, and throughput at a promised speed."""
    import json

    from dspark.bench.load.frontier import compare_frontiers, frontier_table
    from dspark.bench.load.tables import heading
    from dspark.bench.plots import frontier_figure
    from dspark.deepspec.files import write_atomically

    report = _report(source)
    other = system or (PLANNED if PLANNED in report.policies else report.policies[-1])
    try:
        pair = (report.of(base), report.of(other))
    except ConfigError as error:
        raise typer.BadParameter(str(error)) from None
    comparisons = compare_frontiers(*pair)
    folder = out or _folder(source)
    record = {"label": report.label, "base": base, "system": other, "loads": [one.record() for one in comparisons]}
    write_atomically(folder / "frontier.json", (json.dumps(record, indent=1) + "\n").encode())
    write_atomically(folder / "frontier.png", frontier_figure((*pair[0], *pair[1]), heading(report)[0]))
    console.print("\n".join([*heading(report), "", frontier_table(comparisons, base, other), "", str(folder)]), markup=False)


def budget(source: FromOption = Path("build/load")) -> None:
    """Verified candidates per request and round against the number of clients."""
    from dspark.bench.load.tables import budget_table

    console.print(budget_table(_report(source)), markup=False)


def simulate_against_file(source: Path, setup: str | None, acceptance: str | None, seed: int, out: Path) -> None:
    """Simulate what was measured, print both; exit code 1 if too few points agree."""
    from dspark.bench.load.against import simulate_against
    from dspark.bench.load.tables import heading
    from dspark.bench.simulate import SimulateOptions

    report = _report(source)
    try:
        simulation, agreement = simulate_against(report, _folder(source), SimulateOptions(seed=seed), setup, acceptance)
    except ConfigError as error:
        raise typer.BadParameter(str(error)) from None
    simulation.write(out)
    console.print("\n".join([*heading(report), "", simulation.table(), "", agreement.table(), "", str(out)]), markup=False)
    raise typer.Exit(0 if agreement.is_enough else 1)


def _local(
    names: tuple[str, ...],
    target: TargetConfig,
    drafter: DrafterConfig,
    prompts: list[str],
    plan: LoadPlan,
    patience: Patience,
    trace_rounds: int,
    out: Path,
) -> "LoadReport":
    from dspark.bench.load.measure import LocalLoad
    from dspark.bench.load.results import TRACE_FILE

    local = LocalLoad(names, target, drafter, prompts, plan, patience)
    with _ends_early(patience), local.started() as measurement:
        trace = local.record_trees(trace_rounds) if trace_rounds else None
        if trace is not None:
            trace.write(out / TRACE_FILE)
        trace_file = None if trace is None else TRACE_FILE
        whole = _run(measurement, lambda: local.report(trace_file, is_complete=False).write(out))
        report = local.report(trace_file, whole)
        report.write(out)
    return report


def _served(url: str, name: str, prompts: list[str], plan: LoadPlan, patience: Patience, out: Path) -> "LoadReport":
    from dspark.bench.load.measure import LoadMeasurement, machine
    from dspark.bench.load.results import LoadReport
    from dspark.bench.load.served import ServedSystem, identity_of

    model, identity = identity_of(url)
    systems = [
        ServedSystem(label, url, model, prompts, plan, patience, speculate) for label, speculate in ((PLAIN, False), (name, True))
    ]
    measurement = LoadMeasurement(systems, plan, patience)

    def report(is_complete: bool) -> LoadReport:
        drafters = ", ".join(sorted(systems[1].drafters)) or "none"
        lengths = [length for system in systems for length in system.prompt_tokens]
        mean = sum(lengths) / max(1, len(lengths))
        label = f"{identity}; its drafters: {drafters}"
        return LoadReport(label, plan, tuple(measurement.points), is_complete, mean, notes=machine())

    with _ends_early(patience):
        whole = _run(measurement, lambda: report(False).write(out))
    done = report(whole)
    done.write(out)
    return done


def _run(measurement: "LoadMeasurement", on_points: Any) -> bool:
    with Progress(*Progress.get_default_columns(), MofNCompleteColumn(), TimeElapsedColumn(), console=console, transient=True) as bars:
        task = bars.add_task("measuring", total=measurement.num_turns)
        done = iter(range(measurement.num_turns))

        def on_turn(num_clients: int, system: str) -> None:
            bars.update(task, completed=next(done), description=f"{num_clients} clients, {system}")

        return measurement.run(on_turn, on_points)


@contextmanager
def _ends_early(patience: Patience) -> Iterator[None]:
    """The first Ctrl-C, or a polite end from elsewhere, asks for an end; a later one interrupts. `timeout` sends a signal twice."""
    former = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def ask(number: int, _: Any) -> None:
        if patience.asked_since_s > SAME_SIGNAL_S:
            signal.signal(number, former[signal.Signals(number)])
            signal.raise_signal(number)
        patience.stop()

    for number in former:
        signal.signal(number, ask)
    try:
        yield
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)


def _precision(kind: type[TargetConfig] | type[DrafterConfig], dtype: str) -> dict[str, str]:
    if dtype not in DTYPES[kind]:
        raise ConfigError(f"{dtype!r} is none of {', '.join(DTYPES[kind])}", "dtype" if kind is TargetConfig else "draft_dtype")
    return {"dtype": dtype}


def _drafter(text: str, placed: dict[str, Any], with_lookup: bool) -> DrafterConfig:
    found = listed_drafters(text, depth=7)
    if len(found) != 1:
        raise ConfigError(f"{text!r}: one drafter at a time", "drafters")
    (drafter,) = as_trees(found, nodes=0, width=0, with_lookup=with_lookup).values()
    return drafter.model_copy(update=placed)


def _print(report: "LoadReport", out: Path) -> None:
    from dspark.bench.load.tables import budget_table, load_table

    console.print(f"{load_table(report)}\n\n{budget_table(report)}\n\n{out}", markup=False)


def _report(source: Path) -> "LoadReport":
    from dspark.bench.load.results import read_report

    try:
        return read_report(source)
    except ConfigError as error:
        raise typer.BadParameter(str(error), param_hint="--from") from None


def _folder(source: Path) -> Path:
    return source if source.is_dir() else source.parent
