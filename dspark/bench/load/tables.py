"""Measurements under load as Markdown."""

from dspark.bench.load.plan import PLAIN, PLAIN_AGAIN, LoadPlan
from dspark.bench.load.results import LoadPoint, LoadReport
from dspark.deepspec.cards import markdown_table

HEADERS = (
    "system",
    "clients",
    "tokens/s",
    "against plain",
    "per user",
    "95 % of users",
    "tau",
    "drafted",
    "verified",
    "rows/step",
    "prompt rows",
    "target busy",
    "drafter busy",
)


def load_table(report: LoadReport) -> str:
    """What was measured and how, then a row for each system and number of clients."""
    rows = [_row(point) for load in report.loads for point in report.points if point.load == load]
    return "\n".join([*heading(report), "", markdown_table(HEADERS, rows)])


def heading(report: LoadReport) -> list[str]:
    """Lines to stand above every table of a report."""
    plan = report.plan
    answers = f"answers of {plan.max_tokens} tokens to prompts of {report.prompt_tokens:.0f}"
    broken_off = "" if report.is_complete else "; broken off before its end"
    return [f"{report.label}; temperature {plan.temperature:g}, {answers}", f"closed loop; {_turns(plan)}{_pace(report)}{broken_off}"]


def budget_table(report: LoadReport) -> str:
    """Verified candidates per request and round: one row for each number of clients, one column for each system."""
    found = {(point.policy, point.load): point for point in report.points}
    policies = [policy for policy in report.policies if policy not in (PLAIN, PLAIN_AGAIN)]
    rows = []
    for load in report.loads:
        cells = [found.get((policy, load)) for policy in policies]
        rows.append([f"{load:g}", *("" if cell is None else f"{cell.verified_per_round:.1f}" for cell in cells)])
    title = "verified candidates per request and round"
    return "\n".join([*heading(report), title, "", markdown_table(["clients", *policies], rows)])


def _turns(plan: LoadPlan) -> str:
    each = f"{plan.seconds:g} s" if plan.tokens is None else f"{plan.tokens} tokens per client"
    each += ", no prompts in them" if plan.decode_only else ""
    warm = f"after {plan.warmup_turns} turn(s) of each load that do not count" if plan.warmup_turns else "without warm-up"
    return f"medians of {plan.turns} interleaved turns of {each}, {warm}; what was learned stays from turn to turn"


def _pace(report: LoadReport) -> str:
    """How steady the machine was, where that was probed."""
    probes = [turn["probe_ms"] for point in report.points for turn in point.turns if turn["probe_ms"] is not None]
    return f"; the same forward took {min(probes):.1f} to {max(probes):.1f} ms" if probes else ""


def _row(point: LoadPoint) -> list[str]:
    return [
        point.policy,
        f"{point.load:g}",
        f"{point.tokens_per_second:.0f}",
        _number(point.against_plain, ".2f"),
        f"{point.user_tokens_per_second:.1f}",
        f"{point.slow_user_tokens_per_second:.1f}",
        f"{point.tau:.2f}",
        f"{point.drafted_per_round:.1f}",
        f"{point.verified_per_round:.1f}",
        _number(point.rows_per_step, ".1f"),
        _number(point.prompt_share, ".0%"),
        _number(point.target_share, ".0%"),
        _number(point.draft_share, ".0%"),
    ]


def _number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)
