"""`deepspec evaluate` and `deepspec calibrate` without their command lines: which drafters, prompt sets and temperatures are decoded, and
what is made of the traces.
"""

import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import TypeVar

import torch
import transformers
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from dspark.bench.prompts import load_prompts
from dspark.config import DrafterConfig
from dspark.deepspec.decoding import Decoder, DecodingPlan
from dspark.deepspec.finished_runs import CHAINS, RESULTS, TREES, FinishedRuns, drafter_facts
from dspark.deepspec.fitting import FitOptions, FitResult, fit_temperatures, write_calibration
from dspark.deepspec.fitting_net import NetReport, fit_net
from dspark.deepspec.node_traces import NodeTrace
from dspark.deepspec.results import EvaluationResult, Report, SweepRow, evaluation_result, sweep_row
from dspark.deepspec.traces import DecodingTrace
from dspark.errors import ConfigError

_Trace = TypeVar("_Trace")
PromptSets = Mapping[str, Sequence[Sequence[int]]]
"""Name -> prompts as token ids."""


@dataclass(frozen=True, slots=True)
class EvaluationPlan:
    """What a report covers."""

    temperatures: tuple[float, ...] = (0.0, 1.0)
    thresholds: tuple[float, ...] = ()
    """Of the confidence head, swept on the first prompt set; empty leaves the sweep out."""
    decoding: DecodingPlan = field(default_factory=DecodingPlan)


def read_prompt_sets(decoder: Decoder, paths: Sequence[Path], count: int) -> dict[str, list[list[int]]]:
    """The first `count` prompts of each JSONL file, or of the shipped held-out prompts where no file is given.

    Raises ConfigError naming a file without prompts, or two files of one name, which would be one set in a report.
    """
    names = [path.stem for path in paths]
    if (twice := next((name for name in names if names.count(name) > 1), None)) is not None:
        raise ConfigError(f"two prompt files are called {twice!r}; rename one", "prompts")
    sets = {path.stem: _prompts(path, count) for path in paths} or {"held-out": load_prompts(None, count)}
    return {name: [decoder.codec.encode(text) for text in texts] for name, texts in sets.items()}


def _prompts(path: Path, count: int) -> list[str]:
    try:
        prompts = load_prompts(path, count)
    except (OSError, ValueError, KeyError, IndexError, TypeError) as error:
        raise ConfigError(f"{path}: is no JSONL of prompts ({error!r})", "prompts") from error
    if not prompts:
        raise ConfigError(f"{path}: holds no prompt", "prompts")
    return prompts


def evaluate(
    decoder: Decoder, drafters: Mapping[str, DrafterConfig], prompt_sets: PromptSets, plan: EvaluationPlan, runs: FinishedRuns
) -> Report:
    """Decode everything that `runs` does not hold yet; interleaved so that every drafter meets every prompt set early."""
    steps = [(s, t, d) for s in prompt_sets for t in plan.temperatures for d in drafters]
    results: list[EvaluationResult] = []
    with _bars() as bars:
        for prompt_set, temperature, name in steps:
            prompts = prompt_sets[prompt_set]
            thresholds = plan.thresholds if prompt_set == next(iter(prompt_sets)) else ()
            one = _OneRun(decoder, name, drafters[name], prompt_set, prompts, temperature, thresholds, plan.decoding)
            results.append(runs.once(RESULTS, one.facts, partial(one.decode, bars)))
    return Report("Drafters compared", tuple(results), facts(plan.decoding))


@dataclass(frozen=True, slots=True)
class _OneRun:
    """One drafter on one prompt set at one temperature."""

    decoder: Decoder
    name: str
    drafter: DrafterConfig
    prompt_set: str
    prompts: Sequence[Sequence[int]]
    temperature: float
    thresholds: tuple[float, ...]
    plan: DecodingPlan

    @property
    def facts(self) -> dict[str, object]:
        """All that the result depends on."""
        decoded = decoding_facts(self.decoder, self.drafter, self.prompts, self.temperature, self.plan)
        return decoded | {"name": self.name, "prompt_set": self.prompt_set, "thresholds": self.thresholds}

    def decode(self, bars: Progress) -> EvaluationResult:
        """The result, with the sweep where there is one."""
        task = bars.add_task(f"{self.name}, {self.prompt_set}, temperature {self.temperature:g}", total=len(self.prompts))
        trace, seconds = self.decoder.trace(self.drafter, self.prompts, self.temperature, self.plan, partial(bars.advance, task))
        return evaluation_result(
            trace,
            drafter=self.name,
            prompt_set=self.prompt_set,
            temperature=self.temperature,
            depth=self.plan.depth,
            max_tokens=self.plan.max_tokens,
            seconds=seconds,
            sweep=self._sweep(bars) if self.thresholds and trace.has_confidence else (),
        )

    def _sweep(self, bars: Progress) -> tuple[SweepRow, ...]:
        """The same prompts once more for each threshold: a cut changes the rounds after it, so it cannot be computed from one trace."""
        rows = []
        task = bars.add_task(f"thresholds at temperature {self.temperature:g}", total=len(self.thresholds))
        for threshold in self.thresholds:
            cut = self.drafter.model_copy(update={"min_survival": threshold})
            rows.append(sweep_row(threshold, self.decoder.trace(cut, self.prompts, self.temperature, self.plan)[0]))
            bars.advance(task)
        return tuple(rows)


def decoding_facts(
    decoder: Decoder, drafter: DrafterConfig, prompts: Sequence[Sequence[int]], temperature: float, plan: DecodingPlan
) -> dict[str, object]:
    """All that a trace depends on."""
    return {
        "target": decoder.target_facts,
        "drafter": drafter_facts(drafter),
        "prompts": [list(prompt) for prompt in prompts],
        "temperature": temperature,
        "plan": asdict(plan),
    }


def collect(
    decoder: Decoder,
    drafter: DrafterConfig,
    prompts: Sequence[Sequence[int]],
    temperatures: Sequence[float],
    plan: DecodingPlan,
    runs: FinishedRuns,
) -> DecodingTrace:
    """Traces of one drafter at several temperatures, for fitting. The same prompt is the same session at each of them."""

    def at(temperature: float, done: Callable[[], None]) -> DecodingTrace:
        known = decoding_facts(decoder, drafter, prompts, temperature, plan)
        return runs.once(CHAINS, known, lambda: decoder.trace(drafter, prompts, temperature, plan, done)[0])

    return DecodingTrace.concatenate(_at_each(temperatures, "decoding", len(prompts), at))


def collect_nodes(
    decoder: Decoder,
    drafter: DrafterConfig,
    prompts: Sequence[Sequence[int]],
    temperatures: Sequence[float],
    plan: DecodingPlan,
    runs: FinishedRuns,
) -> NodeTrace:
    """Verdicts on the candidates of trees, at several temperatures."""

    def at(temperature: float, done: Callable[[], None]) -> NodeTrace:
        known = decoding_facts(decoder, drafter, prompts, temperature, plan)
        return runs.once(TREES, known, lambda: decoder.node_trace(drafter, prompts, temperature, plan, done))

    return NodeTrace.concatenate(_at_each(temperatures, "trees", len(prompts), at))


def _at_each(
    temperatures: Sequence[float], label: str, num_prompts: int, decode: Callable[[float, Callable[[], None]], _Trace]
) -> list[_Trace]:
    """What `decode` makes of each temperature, with a bar for it; `decode` calls its second argument after each prompt."""
    traces = []
    with _bars() as bars:
        for temperature in temperatures:
            task = bars.add_task(f"{label} at temperature {temperature:g}", total=num_prompts)
            traces.append(decode(temperature, partial(bars.advance, task)))
    return traces


@dataclass(frozen=True, slots=True)
class CalibrationFit:
    """What `calibrate` found and stored."""

    chains: FitResult | None
    """Of the confidence head; None for a drafter without one."""
    nodes: NetReport


def calibrate(folder: Path, trace: DecodingTrace, nodes: NodeTrace, seed: int = 0) -> CalibrationFit:
    """Fit the confidence head's temperatures to chains and the small net to trees, on half of the sessions; store both with the checkpoint.

    Judged on the other half, the same for both.
    """
    chains = fit_temperatures(trace, FitOptions(seed=seed)) if trace.has_confidence else None
    net, report = fit_net(nodes, seed, None if chains is None else chains.calibration)
    write_calibration(folder, net)
    return CalibrationFit(chains, report)


def calibration_report(name: str, trace: DecodingTrace, fit: CalibrationFit, plan: DecodingPlan) -> Report:
    """One result per sampling temperature, with the fit's positions before and after."""
    results = []
    for temperature in trace.temperatures:
        positions = () if fit.chains is None else fit.chains.positions
        rows = tuple(row for row in positions if row.sampling_temperature == temperature)
        results.append(
            evaluation_result(
                trace.at_temperature(temperature),
                drafter=name,
                prompt_set="calibration",
                temperature=temperature,
                depth=plan.depth,
                max_tokens=plan.max_tokens,
                seconds=0.0,
                calibration=rows,
            )
        )
    return Report(f"Calibration of {name}", tuple(results), facts(plan), nodes=fit.nodes.scores)


def facts(plan: DecodingPlan) -> dict[str, str]:
    """What a reader needs to judge the numbers."""
    return {
        "decoding": f"the Engine, chains of up to {plan.depth}, {plan.max_tokens} tokens per prompt, end of text ignored, "
        f"seed {plan.seed} + number of the prompt, {plan.concurrency} prompts in flight",
        "machine": f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} torch thread(s)",
        "versions": f"Python {platform.python_version()}, torch {torch.__version__}, transformers {transformers.__version__}",
    }


def _bars() -> Progress:
    return Progress(TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
