"""What a measurement under load found: its operating points, its costs, its file and its pictures."""

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from dspark.bench.load.costs import MeasuredCosts
from dspark.bench.load.plan import PLAIN, LoadPlan
from dspark.bench.load.window import RequestSpeed, Window, speed_reached_by
from dspark.bench.plots import budget_figure, frontier_figure, load_figure
from dspark.deepspec.files import write_atomically
from dspark.errors import ConfigError

FORMAT = "dspark-load-1"
RESULT_FILE = "load.json"
TRACE_FILE = "trees.safetensors"
SLOW_SHARE = 0.95


@dataclass(frozen=True, slots=True)
class LoadPoint:
    """One system under one load: medians over turns of rates, sums over turns of everything else."""

    policy: str
    load: float
    """Clients."""
    tokens_per_second: float
    """Of all clients."""
    against_plain: float | None
    """Median over the turns of the ratio to plain decoding in the same turn; None without it."""
    user_tokens_per_second: float
    """Of one request, in the median."""
    slow_user_tokens_per_second: float
    """95 % of the users' time was served at this speed or better."""
    tau: float
    """Committed tokens per session and round."""
    drafted_per_round: float
    verified_per_round: float
    """Candidates per session and round, the anchor not counted: the verification budget."""
    rows_per_step: float | None
    prompt_share: float | None
    """Of the target's rows, how many were prompts'."""
    target_share: float | None
    """Of the time, how much the target was at work."""
    draft_share: float | None
    num_rounds: int
    slowness: float = 1.0
    """How much longer than usual in this measurement the same forward took, just before and after the turns."""
    turns: tuple[dict[str, Any], ...] = ()
    """Window by window, for whoever wants other means."""

    @property
    def context_tokens(self) -> float | None:
        """Of a session, in the mean; None where that was not measured."""
        known = [float(turn["context_tokens"]) for turn in self.turns if turn.get("context_tokens") is not None]
        return statistics.fmean(known) if known else None

    @property
    def prompt_rows_per_token(self) -> float:
        """Prompts that fell into the windows, in rows for each token committed there: short windows catch few or many."""
        sums = {name: sum(float(turn[name]) for turn in self.turns) for name in ("rows", "rounds", "selected", "tokens")}
        return max(0.0, sums["rows"] - sums["rounds"] - sums["selected"]) / sums["tokens"]


def load_point(policy: str, load: int, windows: Sequence[Window], plain: Sequence[Window]) -> LoadPoint:
    """`windows` and `plain` turn by turn; no `plain` where that was not measured. At least one window, with at least one round."""
    seconds, rounds, rows = (sum(getattr(window, name) for window in windows) for name in ("seconds", "rounds", "rows"))
    steps = sum(window.steps for window in windows)
    rates = [window.tokens_per_second for window in windows]
    ratios = [rate / other.tokens_per_second for rate, other in zip(rates, plain, strict=False)]
    requests = _merged(windows)

    def per(name: str, divisor: float) -> float:
        return float(sum(getattr(window, name) for window in windows)) / divisor

    return LoadPoint(
        policy=policy,
        load=float(load),
        tokens_per_second=statistics.median(rates),
        against_plain=statistics.median(ratios) if ratios else None,
        user_tokens_per_second=speed_reached_by(requests, 0.5),
        slow_user_tokens_per_second=speed_reached_by(requests, SLOW_SHARE),
        tau=per("tokens", rounds),
        drafted_per_round=per("drafted", rounds),
        verified_per_round=per("selected", rounds),
        rows_per_step=rows / steps if steps else None,
        prompt_share=per("prompt_rows", rows) if rows else None,
        target_share=per("verify_ms", 1e3 * seconds) if steps else None,
        draft_share=per("draft_ms", 1e3 * seconds) if steps else None,
        num_rounds=round(rounds),
        turns=tuple(window.record() for window in windows),
    )


def with_slowness(point: LoadPoint, usual_ms: float | None) -> LoadPoint:
    """Told once it is known what is usual."""
    probes = [turn["probe_ms"] for turn in point.turns if turn["probe_ms"] is not None]
    return replace(point, slowness=statistics.median(probes) / usual_ms) if probes and usual_ms else point


def _merged(windows: Sequence[Window]) -> list[RequestSpeed]:
    """Requests that several windows saw are one."""
    found: dict[int, RequestSpeed] = {}
    for window in windows:
        for number, seen in window.requests.items():
            whole = found.setdefault(number, RequestSpeed())
            whole.tokens += seen.tokens
            whole.seconds += seen.seconds
    return list(found.values())


@dataclass(frozen=True, slots=True)
class LoadReport:
    """A whole measurement, or as much of it as there was time for."""

    label: str
    """What was measured: stands above every table."""
    plan: LoadPlan
    points: tuple[LoadPoint, ...]
    is_complete: bool = True
    prompt_tokens: float = 0.0
    """Of a request, on average."""
    trace: str | None = None
    """Trees as they were drafted and decided, a file beside the report's."""
    costs: MeasuredCosts | None = None
    """None over HTTP, where they cannot be seen."""
    notes: Mapping[str, str] = field(default_factory=dict)
    """What else a reader should know: versions, threads, options."""

    @property
    def policies(self) -> tuple[str, ...]:
        """Systems, in the order in which they were asked for."""
        return tuple(dict.fromkeys(point.policy for point in self.points))

    @property
    def loads(self) -> tuple[float, ...]:
        """Clients, growing."""
        return tuple(sorted({point.load for point in self.points}))

    def of(self, policy: str) -> tuple[LoadPoint, ...]:
        """A system's points by load. Raises ConfigError where there are none."""
        found = tuple(sorted((point for point in self.points if point.policy == policy), key=lambda point: point.load))
        if not found:
            raise ConfigError(f"nothing was measured of {policy!r}; there are {', '.join(self.policies) or 'no points'}", "policy")
        return found

    def write(self, folder: Path) -> list[Path]:
        """load.json and, if there are points, three pictures; the folder is made if need be."""
        files = {RESULT_FILE: (json.dumps(self.record(), indent=1) + "\n").encode()}
        if self.points:
            title = f"{self.label}; temperature {self.plan.temperature:g}; measured"
            files["load.png"] = load_figure(self.points, "clients", title)
            files["budget.png"] = budget_figure(self.points, "clients", title)
            files["frontier.png"] = frontier_figure(self.points, title)
        for name, data in files.items():
            write_atomically(folder / name, data)
        return [folder / name for name in files]

    def record(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "format": FORMAT,
            "label": self.label,
            "notes": dict(self.notes),
            "is_complete": self.is_complete,
            "plan": asdict(self.plan),
            "prompt_tokens": self.prompt_tokens,
            "trace": self.trace,
            "costs": None if self.costs is None else self.costs.record(),
            "points": [asdict(point) for point in self.points],
        }


def read_report(path: Path) -> LoadReport:
    """From the file, or the folder that it is in. Raises ConfigError naming the file."""
    path = path / RESULT_FILE if path.is_dir() else path
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        if record["format"] != FORMAT:
            raise ValueError(f"format is {record['format']!r}, not {FORMAT!r}")
        return LoadReport(
            label=str(record["label"]),
            plan=LoadPlan(**record["plan"] | {"clients": tuple(record["plan"]["clients"])}),
            points=tuple(_read_point(point) for point in record["points"]),
            is_complete=bool(record["is_complete"]),
            prompt_tokens=float(record["prompt_tokens"]),
            trace=record["trace"],
            costs=None if record["costs"] is None else MeasuredCosts.from_record(record["costs"]),
            notes=record["notes"],
        )
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise ConfigError(f"{path}: cannot be read as a measurement under load ({type(error).__name__}: {error})", "from") from error


def _read_point(record: dict[str, Any]) -> LoadPoint:
    names = {entry.name for entry in fields(LoadPoint)}
    return LoadPoint(**{name: value for name, value in record.items() if name in names} | {"turns": tuple(record["turns"])})


def same_turns(windows: Mapping[str, Sequence[Window]], load: int) -> list[LoadPoint]:
    """The points of one load, from windows by system."""
    plain = windows.get(PLAIN, ())
    return [load_point(name, load, own, plain) for name, own in windows.items() if own]
