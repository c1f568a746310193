"""Evaluation results as Markdown: the comparison of several drafters, and the model card of one.

Knows the records of results.py; reads no file. Every number in a card comes from a record, so a card cannot say what was not measured.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from dspark.deepspec.metrics import LEVEL, Interval
from dspark.deepspec.node_scores import NodeScores
from dspark.deepspec.results import EvaluationResult, PositionCalibration

UNKNOWN = "n/a"


@dataclass(frozen=True, slots=True)
class CardFacts:
    """What the numbers do not say of a drafter."""

    name: str
    summary: str
    """One or two sentences: what it is, for which target."""
    target: str
    architecture: dict[str, str]
    """Label -> text: layers, taps, block size, head, parameters, precision."""
    training: dict[str, str]
    """Label -> text: loss weights, steps, tokens, hours, machine, seed."""
    data: tuple[str, ...]
    """One line per source: what, how much, under which licence."""
    drafter_kind: str = "block"
    """`kind` in serve_config.yaml."""
    drafter_path: str = "path/to/this/folder"
    """`model` in serve_config.yaml."""
    depth: int = 7
    licence: str = "mit"
    limits: tuple[str, ...] = ()
    """Further limits, beside those that hold for every drafter."""


def markdown_table(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A pipe in a cell is escaped."""
    lines = [list(headers), ["---"] * len(headers), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in line) + " |" for line in lines)


def tau_text(interval: Interval) -> str:
    """2.64 [2.51, 2.77]"""
    return f"{interval.value:.2f} [{interval.low:.2f}, {interval.high:.2f}]"


def share_text(interval: Interval) -> str:
    """81.2 %, for a dense table: the interval is in the picture and in the JSON."""
    return f"{interval.value:.1%}"


def comparison_rows(results: Sequence[EvaluationResult]) -> tuple[list[str], list[list[str]]]:
    """Headers and cells; of each prompt set and temperature the best tau first."""
    counts = ["accepted", "verified", "drafted", "prompts", "rounds"]
    headers = ["prompt set", "temperature", "drafter", "depth", f"tau [{LEVEL:.0%}]", *counts]
    return headers, [_comparison_row(result) for result in _grouped(results)]


def position_rows(results: Sequence[EvaluationResult], conditional: bool) -> tuple[list[str], list[list[str]]]:
    """Headers and cells: acceptance by position; n/a where the position was never reached."""
    ordered = _grouped(results)
    values = [r.conditional_acceptance if conditional else r.acceptance for r in ordered]
    depth = max((len(v) for v in values), default=0)
    headers = ["prompt set", "temperature", "drafter", *(str(k + 1) for k in range(depth))]
    rows = []
    for result, intervals in zip(ordered, values, strict=True):
        cells = [share_text(i) for i in intervals] + [UNKNOWN] * (depth - len(intervals))
        rows.append([result.prompt_set, f"{result.temperature:g}", result.drafter, *cells])
    return headers, rows


def sweep_rows(result: EvaluationResult) -> tuple[list[str], list[list[str]]]:
    """Headers and cells of a threshold sweep."""
    headers = ["threshold", "verified per round", "accepted per round", f"tau [{LEVEL:.0%}]"]
    ordered = sorted(result.sweep, key=lambda row: row.threshold)
    return headers, [
        [f"{row.threshold:g}", f"{row.verified_per_round:.2f}", f"{row.accepted_per_round:.2f}", tau_text(row.tau)] for row in ordered
    ]


def calibration_rows(rows: Sequence[PositionCalibration]) -> tuple[list[str], list[list[str]]]:
    """Headers and cells: before → after, per sampling temperature and position."""
    headers = ["temperature", "position", "T", "held-out rounds", "ECE", "ECE, equal mass", "floor of ECE", "AUC", "Brier"]
    return headers, [
        [
            f"{row.sampling_temperature:g}",
            str(row.position + 1),
            f"{row.confidence_temperature:.2f}" + ("" if row.fitted else " (lent)"),
            str(row.after.count),
            f"{row.before.ece:.1%} → {row.after.ece:.1%}",
            f"{row.before.ece_equal_mass:.1%} → {row.after.ece_equal_mass:.1%}",
            f"{row.after.ece_floor:.1%}",
            f"{_number(row.before.auc)} → {_number(row.after.auc)}",
            f"{row.before.brier:.3f} → {row.after.brier:.3f}",
        ]
        for row in rows
    ]


def node_rows(scores: Sequence[NodeScores]) -> tuple[list[str], list[list[str]]]:
    """Headers and cells: estimators of a candidate's chance given its parent, per sampling temperature."""
    headers = ["temperature", "estimator", "verdicts", "log-loss", "ECE", "floor of ECE", "AUC", "Brier"]
    return headers, [
        [
            "all" if row.sampling_temperature is None else f"{row.sampling_temperature:g}",
            row.estimator,
            str(row.scores.count),
            f"{row.log_loss:.3f}",
            f"{row.scores.ece:.1%}",
            f"{row.scores.ece_floor:.1%}",
            _number(row.scores.auc),
            f"{row.scores.brier:.3f}",
        ]
        for row in scores
    ]


def node_markdown(scores: Sequence[NodeScores]) -> str:
    """The same as a table."""
    return markdown_table(*node_rows(scores))


def comparison_markdown(results: Sequence[EvaluationResult]) -> str:
    """Several drafters side by side."""
    return markdown_table(*comparison_rows(results))


def model_card(facts: CardFacts, results: Sequence[EvaluationResult], nodes: Sequence[NodeScores] = ()) -> str:
    """README.md of a drafter's folder; `results` are this drafter's own, `nodes` of the estimators stored with it."""
    parts = [
        f"---\nlicense: {facts.licence}\ntags: [speculative-decoding, draft-model, dspark]\n---\n# {facts.name}",
        facts.summary,
        "A draft model guesses tokens that its target then checks. It changes how fast the target answers, never what it answers; "
        "by itself it writes no text.",
        f"- Target: {facts.target}\n{_bullets(facts.architecture)}",
        f"## Training\n\n{_bullets(facts.training)}\n\nRead:\n\n" + "\n".join(f"- {line}" for line in facts.data),
        f"## Acceptance\n\n{_how_measured(results)}\n\n{comparison_markdown(results)}\n\n"
        f"Accepted given that all before it were, by position:\n\n{markdown_table(*position_rows(results, conditional=True))}",
        _calibration_section(results),
        _node_section(nodes),
        f"## Limits\n\n{_limits(facts)}",
        f"## Serve it\n\n{_serving(facts)}",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _grouped(results: Sequence[EvaluationResult]) -> list[EvaluationResult]:
    """Prompt sets in the order they came, temperatures growing, tau falling."""
    order = list(dict.fromkeys(result.prompt_set for result in results))
    return sorted(results, key=lambda r: (order.index(r.prompt_set), r.temperature, -r.tau.value))


def _comparison_row(result: EvaluationResult) -> list[str]:
    return [
        result.prompt_set,
        f"{result.temperature:g}",
        result.drafter,
        str(result.depth),
        tau_text(result.tau),
        f"{result.accepted_per_round:.2f}",
        f"{result.verified_per_round:.2f}",
        f"{result.drafted_per_round:.2f}",
        str(result.num_prompts),
        str(result.num_rounds),
    ]


def _how_measured(results: Sequence[EvaluationResult]) -> str:
    if not results:
        return "Not measured yet: run `deepspec evaluate`."
    lengths = ", ".join(sorted({str(r.max_tokens) for r in results}, key=int))
    return (
        f"By real decoding with `deepspec evaluate`, answers of up to {lengths} tokens. tau counts committed tokens per round, the "
        f"target's own included; plain decoding has 1. Brackets: {LEVEL:.0%} bootstrap intervals over prompts. accepted, verified and "
        "drafted are tokens per round."
    )


def _calibration_section(results: Sequence[EvaluationResult]) -> str:
    rows = [row for result in results for row in result.calibration]
    if not rows:
        return "## Calibration\n\nThe confidence head, if there is one, is not calibrated, or its calibration was not measured."
    return (
        "## Calibration\n\nEstimated survival of each position before → after Sequential Temperature Scaling, on sessions that the fit "
        "did not see. The floor of ECE is what perfect estimates would show on so few rounds.\n\n" + markdown_table(*calibration_rows(rows))
    )


def _node_section(nodes: Sequence[NodeScores]) -> str:
    if not nodes:
        return ""
    return (
        "## Candidates of trees\n\nChance of a candidate to be the target's token, given that its parent is; estimators judged on "
        f"sessions that the fit did not see. `fitted_net` is what serving uses.\n\n{node_markdown(nodes)}"
    )


def _limits(facts: CardFacts) -> str:
    general = (
        f"It fits {facts.target} only, with that model's tokenizer. A fine-tuned target lowers acceptance; another vocabulary is refused.",
        "Acceptance was measured on the prompt sets above; other text can accept less.",
    )
    return "\n".join(f"- {line}" for line in (*general, *facts.limits))


def _serving(facts: CardFacts) -> str:
    return (
        "In `serve_config.yaml`, under `args`:\n\n```yaml\n"
        f"target:\n  model: {facts.target}\ndrafter:\n  kind: {facts.drafter_kind}\n  model: {facts.drafter_path}\n"
        f"  max_depth: {facts.depth}\n```\n\nthen `dspark serve serve_config.yaml`."
    )


def _bullets(facts: dict[str, str]) -> str:
    return "\n".join(f"- {label}: {text}" for label, text in facts.items())


def _number(value: float | None) -> str:
    return UNKNOWN if value is None else f"{value:.3f}"
