"""`deepspec evaluate`, `deepspec calibrate` and `deepspec probe`: the command lines of evaluate.py and probing.py. Mounted by cli.py."""

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from dspark.bench.drafters import drafter_argument
from dspark.config import DrafterConfig, TargetConfig
from dspark.errors import ConfigError

if TYPE_CHECKING:
    from dspark.deepspec.finished_runs import FinishedRuns

Target = Annotated[str, typer.Option(help="Folder, hub name or demo:target.")]
Prompts = Annotated[list[Path] | None, typer.Option("--prompts", help="JSONL of prompts; default: the shipped held-out ones.")]
Count = Annotated[int, typer.Option(min=1, help="Prompts of each file.")]
Tokens = Annotated[int, typer.Option(min=1, help="Tokens per prompt.")]
Depth = Annotated[int, typer.Option(min=1, max=64, help="Draft positions per round.")]
Threads = Annotated[int, typer.Option(min=1, help="Torch threads.")]
Device = Annotated[str, typer.Option(help="Of target and drafter: cpu, cuda, ...")]

RUNS, TRACES = "runs", "traces"
"""Folders of finished parts within `--out`."""

console = Console(highlight=False, soft_wrap=True)


def evaluate(
    drafters: Annotated[list[str], typer.Argument(help="NAME=KIND:CHECKPOINT, KIND one of block, eagle, language_model; or NAME=lookup.")],
    out: Annotated[Path, typer.Option(help="Folder for report.html, report.json, the pictures and cards.")] = Path("build/evaluation"),
    target: Target = "demo:target",
    prompts: Prompts = None,
    count: Count = 64,
    temperatures: Annotated[str, typer.Option(help="Comma-separated.")] = "0,1",
    max_tokens: Tokens = 128,
    depth: Depth = 7,
    thresholds: Annotated[str, typer.Option(help="Confidence thresholds to sweep, comma-separated; empty: none.")] = "",
    threads: Threads = 1,
    device: Device = "cpu",
) -> None:
    """tau and acceptance by position of drafters, by real decoding; a report as HTML, PNG and JSON, and a model card of each checkpoint.

    The same command goes on where it was killed; once it is done, it begins anew.
    """
    from dspark.deepspec.cards import comparison_markdown  # torch takes seconds to import; --help should not
    from dspark.deepspec.decoding import Decoder, DecodingPlan
    from dspark.deepspec.drafter_cards import write_cards
    from dspark.deepspec.evaluate import EvaluationPlan, read_prompt_sets
    from dspark.deepspec.evaluate import evaluate as run
    from dspark.deepspec.finished_runs import FinishedRuns
    from dspark.deepspec.report import write_report

    configs = dict(drafter_argument(text, device) for text in drafters)
    plan = EvaluationPlan(numbers(temperatures), numbers(thresholds), DecodingPlan(max_tokens=max_tokens, depth=depth))
    decoder = Decoder(TargetConfig(model=target, num_threads=threads, device=device))
    runs = FinishedRuns(out / RUNS)
    report = run(decoder, configs, read_prompt_sets(decoder, prompts or [], count), plan, runs)
    write_report(out, report)
    cards = write_cards(out, configs, report, target)
    _tell_reused(runs)
    runs.clear()
    console.print(comparison_markdown(report.results), markup=False)
    console.print("\n" + "\n".join(map(str, (out / "report.html", *cards))), markup=False)


def calibrate(
    checkpoint: Annotated[str, typer.Argument(help="Folder of a drafter; calibration.json is written into it.")],
    out: Annotated[Path, typer.Option(help="Folder for the report and the decoding traces.")] = Path("build/calibration"),
    kind: Annotated[str, typer.Option(help="block, eagle or language_model.")] = "block",
    target: Target = "demo:target",
    prompts: Prompts = None,
    count: Count = 64,
    temperatures: Annotated[str, typer.Option(help="Sampling temperatures to fit for, comma-separated.")] = "0,0.7,1",
    max_tokens: Tokens = 128,
    depth: Depth = 7,
    nodes: Annotated[int, typer.Option(min=2, max=256, help="Candidates of the trees that the net is fitted on.")] = 24,
    width: Annotated[int, typer.Option(min=1, max=16, help="Children per candidate of these trees.")] = 4,
    threads: Threads = 1,
    device: Device = "cpu",
) -> None:
    """Fit survival estimates to decoding traces: the confidence head's temperatures by position, and a small net for the nodes of trees.

    Both are judged on prompts that the fit did not see. The same command goes on where it was killed.
    """
    from dspark.deepspec.cards import node_markdown
    from dspark.deepspec.decoding import Decoder, DecodingPlan
    from dspark.deepspec.evaluate import calibrate as fit
    from dspark.deepspec.evaluate import calibration_report, collect, collect_nodes, read_prompt_sets
    from dspark.deepspec.finished_runs import FinishedRuns
    from dspark.deepspec.report import write_report

    folder = own_folder(checkpoint)
    drafter = DrafterConfig.model_validate({"kind": kind, "model": str(folder), "device": device})
    plan = DecodingPlan(max_tokens=max_tokens, depth=depth)
    decoder = Decoder(TargetConfig(model=target, num_threads=threads, device=device))
    texts = [prompt for chosen in read_prompt_sets(decoder, prompts or [], count).values() for prompt in chosen]
    runs = FinishedRuns(out / TRACES)
    trace = collect(decoder, drafter, texts, numbers(temperatures), plan, runs)
    trees = collect_nodes(decoder, drafter, texts, numbers(temperatures), replace(plan, max_nodes=nodes, max_width=width), runs)
    runs.drop_others()
    _tell_reused(runs)
    trees.write(out / "nodes.safetensors")
    result = fit(folder, trace, trees)
    report = calibration_report(folder.resolve().name, trace, result, plan)
    write_report(out, report)
    for note in () if result.chains is None else result.chains.notes:
        console.print(note, markup=False)
    console.print(node_markdown(report.nodes), markup=False)
    console.print(f"{folder / 'calibration.json'}\n{out / 'report.html'}", markup=False)


def probe(
    checkpoint: Annotated[Path, typer.Argument(help="Folder of a block drafter.")],
    inputs: Annotated[Path, typer.Option(help="safetensors with caseN.taps and caseN.anchor_id.")],
    out: Annotated[Path, typer.Option(help="safetensors to write.")],
    target: Annotated[str | None, typer.Option(help="Whose embedding and LM head are used where the checkpoint has none.")] = None,
) -> None:
    """Run a drafter once on given features, for comparison with another implementation."""
    from dspark.config import ModelSource
    from dspark.deepspec.probing import load_block_model
    from dspark.deepspec.probing import probe as run
    from dspark.runtime.hub import resolve_folder

    own = None if target is None else resolve_folder(ModelSource(model=target))
    count = run(load_block_model(checkpoint, own), inputs, out)
    console.print(f"{count} case(s) written to {out}", markup=False)


def own_folder(checkpoint: str) -> Path:
    """A drafter's folder that a calibration can be written into. Raises ConfigError saying what to do where there is none."""
    folder = Path(checkpoint).expanduser()
    if not folder.is_dir():
        raise ConfigError(
            f"{checkpoint}: is no folder; a calibration is stored with the checkpoint, so copy that to a folder of yours first and name it",
            "checkpoint",
        )
    try:
        with tempfile.TemporaryFile(dir=folder):
            return folder
    except OSError as error:
        advice = "copy the checkpoint to a folder of yours"
        raise ConfigError(f"{folder}: nothing can be written there ({error}); {advice}", "checkpoint") from error


def _tell_reused(runs: "FinishedRuns") -> None:
    if runs.reused:
        console.print(f"{runs.reused} part(s) were there from an earlier call that did not end: {runs.folder}", markup=False)


def numbers(text: str) -> tuple[float, ...]:
    """Comma-separated numbers. Raises ConfigError."""
    try:
        return tuple(float(part) for part in text.split(",") if part.strip())
    except ValueError:
        raise ConfigError(f"{text!r}: numbers separated by commas are wanted") from None
