"""What an evaluation found: plain records, their JSON, and the one way from a decoding trace to them.

Knows neither models nor pictures: evaluate.py fills these records, report.py shows them.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from pydantic import ConfigDict, TypeAdapter, ValidationError

from dspark.deepspec.files import write_atomically
from dspark.deepspec.metrics import CalibrationScores, Interval, count_acceptance, summarise_acceptance
from dspark.deepspec.node_scores import NodeScores
from dspark.deepspec.traces import DecodingTrace
from dspark.errors import ConfigError

REPORT_JSON = "report.json"


@dataclass(frozen=True, slots=True)
class SweepRow:
    """One threshold of the confidence head: positions whose survival lies below it are not verified."""

    threshold: float
    verified_per_round: float
    accepted_per_round: float
    tau: Interval


@dataclass(frozen=True, slots=True)
class PositionCalibration:
    """Survival estimates of one position before and after calibration, on sessions that the fit did not see."""

    sampling_temperature: float
    position: int
    """Counted from 0."""
    confidence_temperature: float
    """T_k: what the confidence logit is divided by."""
    fitted: bool
    """False: too few observations, the position before lent its T."""
    num_fit_observations: int
    before: CalibrationScores
    after: CalibrationScores


@dataclass(frozen=True, slots=True)
class EvaluationResult:
    """One drafter on one prompt set at one temperature."""

    drafter: str
    prompt_set: str
    temperature: float
    depth: int
    """Draft positions per round that were allowed."""
    num_prompts: int
    max_tokens: int
    num_rounds: int
    tau: Interval
    acceptance: tuple[Interval, ...]
    """By position: share of rounds that accepted it."""
    conditional_acceptance: tuple[Interval, ...]
    """By position, given that all before it were accepted."""
    drafted_per_round: float
    verified_per_round: float
    accepted_per_round: float
    seconds: float
    """Wall clock of the whole run; it has neighbours on the machine, so it is no benchmark."""
    sweep: tuple[SweepRow, ...] = ()
    calibration: tuple[PositionCalibration, ...] = ()


@dataclass(frozen=True, slots=True)
class Report:
    """Everything one report shows."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    title: str
    results: tuple[EvaluationResult, ...]
    facts: dict[str, str] = field(default_factory=dict)
    """Label -> text: target, machine, versions, date, seed."""
    nodes: tuple[NodeScores, ...] = ()
    """Estimators of a candidate's chance given its parent, judged on sessions that no fit has seen."""
    format_version: int = 1


_REPORT: TypeAdapter[Report] = TypeAdapter(Report)


def evaluation_result(
    trace: DecodingTrace,
    *,
    drafter: str,
    prompt_set: str,
    temperature: float,
    depth: int,
    max_tokens: int,
    seconds: float,
    seed: int = 0,
    sweep: tuple[SweepRow, ...] = (),
    calibration: tuple[PositionCalibration, ...] = (),
) -> EvaluationResult:
    """Counts the trace of one run; its sessions are the prompts. `seed` is the bootstrap's."""
    counts = count_acceptance(trace.session, trace.num_drafted, trace.num_verified, trace.num_accepted)
    found = summarise_acceptance(counts, seed)
    return EvaluationResult(
        drafter,
        prompt_set,
        temperature,
        depth,
        len(counts.session),
        max_tokens,
        found.num_rounds,
        found.tau,
        found.acceptance,
        found.conditional_acceptance,
        found.drafted_per_round,
        found.verified_per_round,
        found.accepted_per_round,
        seconds,
        sweep,
        calibration,
    )


def sweep_row(threshold: float, trace: DecodingTrace, seed: int = 0) -> SweepRow:
    """The trace of a run at this threshold, as a row."""
    counts = count_acceptance(trace.session, trace.num_drafted, trace.num_verified, trace.num_accepted)
    found = summarise_acceptance(counts, seed)
    return SweepRow(threshold, found.verified_per_round, found.accepted_per_round, found.tau)


def report_to_json(report: Report) -> str:
    """Indented, ready to be read back by `report_from_json`."""
    return _REPORT.dump_json(report, indent=2).decode()


def report_from_json(text: str, source: str = REPORT_JSON) -> Report:
    """Raises ConfigError naming file and key."""
    try:
        report = _REPORT.validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"])) or "(top)"
        raise ConfigError(f"{source}: {key}: {first['msg']}", key) from error
    if report.format_version != 1:
        raise ConfigError(f"{source}: format_version {report.format_version} is not 1", "format_version")
    return report


def write_report_json(folder: Path, report: Report) -> Path:
    """report.json in the folder."""
    path = folder / REPORT_JSON
    write_atomically(path, report_to_json(report).encode())
    return path


def read_report(path: Path) -> Report:
    """A report.json, or the one in a folder. Raises ConfigError naming the file."""
    path = path / REPORT_JSON if path.is_dir() else path
    try:
        return report_from_json(path.read_text(encoding="utf-8"), str(path))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read ({error})") from error
