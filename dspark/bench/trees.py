"""tau against verified candidates per round: chains, trees and selected trees, by real decoding at equal numbers of candidates."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from rich.progress import Progress

from dspark.bench.prompts import load_prompts
from dspark.bench.rejection import RejectionBound, with_interval
from dspark.config import DrafterConfig, TargetConfig
from dspark.deepspec.cards import markdown_table, tau_text
from dspark.deepspec.data import Sample
from dspark.deepspec.decoding import Decoder, DecodingPlan
from dspark.deepspec.metrics import Interval, count_acceptance, summarise_acceptance
from dspark.deepspec.traces import DecodingTrace

REJECTION = "rejection chain, expected"
DECODED = ("chain", "tree", "selected tree")
LAWS = (REJECTION, *DECODED)
"""What is compared, as tables and pictures call it."""
SELECTED_FROM = 2
"""A selected tree of n candidates on average is chosen from trees of so many times n."""


@dataclass(frozen=True, slots=True)
class TreePlan:
    """What is compared."""

    temperatures: tuple[float, ...]
    nodes: tuple[int, ...]
    """Candidates per round."""
    max_width: int
    decoding: DecodingPlan


@dataclass(frozen=True, slots=True)
class TreePoint:
    """What one law made of so many candidates."""

    drafter: str
    temperature: float
    nodes: int
    """Candidates allowed per round."""
    law: str
    """One of LAWS."""
    verified: float
    """Candidates per round that really were verified; of the rejection chain its depth."""
    tau: Interval
    """Committed tokens per round, with its 95 % interval."""

    @property
    def cell(self) -> str:
        """For the table."""
        return tau_text(self.tau) if self.law == REJECTION else f"{tau_text(self.tau)} at {self.verified:.1f}"

    def record(self) -> dict[str, Any]:
        """For a file."""
        return asdict(self)


def measure_trees(
    target: TargetConfig, drafters: Mapping[str, DrafterConfig], prompts: Path | None, count: int, plan: TreePlan
) -> list[TreePoint]:
    """A chain is no deeper than `plan.decoding.depth`; a tree verifies all that it grew; a selected tree those above a threshold.

    The threshold is the one above which the mean round of a large tree has as many candidates: spent where they are likely to be accepted.
    What a rejection chain could expect (rejection.py) is told for block drafters, as deep as the candidates allow.
    """
    decoder = Decoder(target)
    texts = [decoder.codec.encode(text) for text in load_prompts(prompts, count)]
    points: list[TreePoint] = []
    with Progress(transient=True) as bars:
        task = bars.add_task("decoding", total=len(drafters) * len(plan.temperatures) * len(plan.nodes) * len(DECODED))
        for name, config in drafters.items():
            for temperature in plan.temperatures:
                bounds = _rejection_bounds(target, config, decoder.answers(texts, temperature, plan.decoding), temperature)
                for nodes in plan.nodes:
                    if bounds:
                        depth = min(nodes, len(bounds))
                        points.append(TreePoint(name, temperature, nodes, REJECTION, depth, bounds[depth - 1]))
                    traces = _compared(decoder, config, texts, temperature, nodes, plan)
                    for law, trace in zip(DECODED, traces, strict=True):
                        if trace is not None:
                            points.append(TreePoint(name, temperature, nodes, law, float(trace.num_verified.mean()), _tau(trace)))
                    bars.advance(task, len(DECODED))
    return points


def trees_table(points: Sequence[TreePoint]) -> str:
    """Markdown: a line for each drafter, temperature and number of candidates, a column for each law."""
    lines: dict[tuple[str, float, int], dict[str, str]] = {}
    for point in points:
        lines.setdefault((point.drafter, point.temperature, point.nodes), {})[point.law] = point.cell
    rows = [
        [name, f"{temperature:g}", str(nodes), *(cells.get(law, "") for law in LAWS)] for (name, temperature, nodes), cells in lines.items()
    ]
    return markdown_table(["drafter", "temperature", "candidates", *LAWS], rows)


def tree_curves(points: Sequence[TreePoint]) -> dict[str, dict[str, list[TreePoint]]]:
    """What a picture shows: panel (drafter and temperature) -> law -> its points by verified candidates, each place once."""
    panels: dict[str, dict[str, list[TreePoint]]] = {}
    for point in sorted(points, key=lambda point: (LAWS.index(point.law), point.verified)):
        curve = panels.setdefault(f"{point.drafter}, temperature {point.temperature:g}", {}).setdefault(point.law, [])
        if not curve or curve[-1].verified != point.verified:
            curve.append(point)
    order = dict.fromkeys(f"{point.drafter}, temperature {point.temperature:g}" for point in points)
    return {panel: panels[panel] for panel in order}


def _rejection_bounds(target: TargetConfig, drafter: DrafterConfig, answers: Sequence[Sample], temperature: float) -> list[Interval]:
    """By depth; nothing for a drafter whose distributions are not to be had."""
    if drafter.kind != "block":
        return []
    return [Interval(*bound) for bound in with_interval(RejectionBound(target, drafter).taus(answers, temperature))]


def _compared(
    decoder: Decoder, config: DrafterConfig, texts: Sequence[Sequence[int]], temperature: float, nodes: int, plan: TreePlan
) -> list[DecodingTrace | None]:
    depth = plan.decoding.depth
    chain = replace(plan.decoding, depth=min(depth, nodes), max_nodes=nodes, max_width=1)
    tree = replace(plan.decoding, max_nodes=nodes, max_width=plan.max_width)
    large = replace(tree, max_nodes=SELECTED_FROM * nodes)
    whole = decoder.trace(config, texts, temperature, large)[0]
    cut = config.model_copy(update={"min_survival": threshold_for(whole, nodes)})
    return [
        decoder.trace(config, texts, temperature, chain)[0] if nodes <= depth else None,
        decoder.trace(config, texts, temperature, tree)[0],
        decoder.trace(cut, texts, temperature, large)[0],
    ]


def threshold_for(trace: DecodingTrace, nodes: int) -> float:
    """The survival that `nodes` candidates of the trace's mean round reach."""
    wanted = nodes * len(trace)
    ranked = np.sort(trace.score)[::-1]
    return float(ranked[min(wanted, len(ranked)) - 1]) if len(ranked) else 0.0


def _tau(trace: DecodingTrace) -> Interval:
    return summarise_acceptance(count_acceptance(trace.session, trace.num_drafted, trace.num_verified, trace.num_accepted)).tau
