"""tau against verified candidates per round: chains, trees and selected trees, by real decoding at equal numbers of candidates."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from rich.progress import Progress

from dspark.bench.prompts import load_prompts
from dspark.bench.rejection import RejectionBound, with_interval
from dspark.config import DrafterConfig, TargetConfig
from dspark.deepspec.cards import markdown_table
from dspark.deepspec.data import Sample
from dspark.deepspec.decoding import Decoder, DecodingPlan
from dspark.deepspec.metrics import count_acceptance, summarise_acceptance
from dspark.deepspec.traces import DecodingTrace

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


def trees_table(target: TargetConfig, drafters: Mapping[str, DrafterConfig], prompts: Path | None, count: int, plan: TreePlan) -> str:
    """Markdown. A chain is no deeper than `plan.decoding.depth`; a tree verifies all that it grew; a selected tree those above a threshold.

    The threshold is the one above which the mean round of a large tree has as many candidates: spent where they are likely to be accepted.
    What a rejection chain could expect (rejection.py) is told for block drafters, as deep as the candidates allow.
    """
    decoder = Decoder(target)
    texts = [decoder.codec.encode(text) for text in load_prompts(prompts, count)]
    rows = []
    with Progress(transient=True) as bars:
        task = bars.add_task("decoding", total=len(drafters) * len(plan.temperatures) * len(plan.nodes) * 3)
        for name, config in drafters.items():
            for temperature in plan.temperatures:
                bounds = _rejection_bounds(target, config, decoder.answers(texts, temperature, plan.decoding), temperature)
                for nodes in plan.nodes:
                    cells = [_cell(trace) for trace in _compared(decoder, config, texts, temperature, nodes, plan)]
                    bound = bounds[min(nodes, len(bounds)) - 1] if bounds else ""
                    rows.append([name, f"{temperature:g}", str(nodes), bound, *cells])
                    bars.advance(task, 3)
    return markdown_table(["drafter", "temperature", "candidates", "rejection chain, expected", "chain", "tree", "selected tree"], rows)


def _rejection_bounds(target: TargetConfig, drafter: DrafterConfig, answers: Sequence[Sample], temperature: float) -> list[str]:
    """By depth; nothing for a drafter whose distributions are not to be had."""
    if drafter.kind != "block":
        return []
    taus = RejectionBound(target, drafter).taus(answers, temperature)
    return [f"{mean:.2f} [{low:.2f}, {high:.2f}]" for mean, low, high in with_interval(taus)]


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


def _cell(trace: DecodingTrace | None) -> str:
    if trace is None:
        return ""
    counts = count_acceptance(trace.session, trace.num_drafted, trace.num_verified, trace.num_accepted)
    tau = summarise_acceptance(counts).tau
    return f"{tau.value:.2f} [{tau.low:.2f}, {tau.high:.2f}] at {trace.num_verified.mean():.1f}"
