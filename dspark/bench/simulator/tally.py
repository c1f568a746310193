"""What is counted while a simulation runs, and the operating point that comes of it."""

from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from dspark.bench.simulator.costs import Setup


@dataclass(frozen=True, slots=True)
class RequestRecord:
    """A finished request."""

    client: int
    num_tokens: int
    arrived_ms: float
    finished_ms: float


@dataclass(slots=True)
class Tally:
    """Sums since the beginning, or over a window."""

    tokens: int = 0
    """Committed."""
    rounds: int = 0
    """Verdicts: one per session and round."""
    drafted: int = 0
    verified: int = 0
    """Candidates, without anchors."""
    steps: int = 0
    rows: int = 0
    """Of all steps: anchors, candidates, prompts."""
    step_ms: float = 0.0
    """Targets at work."""
    draft_ms: float = 0.0
    """Drafters at work."""
    elapsed_ms: float = 0.0
    user_ms: float = 0.0
    """Time that requests spent in the service, waiting included, over all of them."""

    def pass_time(self, passed_ms: float, num_users: int) -> None:
        """Nothing happened for a while."""
        self.elapsed_ms += passed_ms
        self.user_ms += passed_ms * num_users

    def copy(self) -> "Tally":
        """As it stands now."""
        return replace(self)

    def since(self, start: "Tally") -> "Tally":
        """What was added after `start`."""
        return Tally(**{field.name: getattr(self, field.name) - getattr(start, field.name) for field in fields(self)})


@dataclass(frozen=True, slots=True)
class OperatingPoint:
    """One policy under one load."""

    policy: str
    load: float
    """Clients of a closed loop, or requests per second."""
    tokens_per_second: float
    """Of all sessions."""
    user_tokens_per_second: float
    """Of one session while it is served, on average."""
    tau: float
    """Committed tokens per session and round."""
    drafted_per_round: float
    verified_per_round: float
    """Candidates per session and round, its anchor not counted: the verification budget of a request."""
    rows_per_step: float
    target_utilisation: float
    """Share of the time that targets run steps."""
    drafter_utilisation: float
    num_rounds: int

    def record(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def operating_point(policy: str, load: float, setup: Setup, tally: Tally) -> OperatingPoint:
    """Rates and means of a window in which at least one round was finished."""
    return OperatingPoint(
        policy=policy,
        load=load,
        tokens_per_second=1e3 * tally.tokens / tally.elapsed_ms,
        user_tokens_per_second=1e3 * tally.tokens / tally.user_ms,
        tau=tally.tokens / tally.rounds,
        drafted_per_round=tally.drafted / tally.rounds,
        verified_per_round=tally.verified / tally.rounds,
        rows_per_step=tally.rows / tally.steps,
        target_utilisation=tally.step_ms / (setup.num_targets * tally.elapsed_ms),
        drafter_utilisation=tally.draft_ms / (setup.num_drafters * tally.elapsed_ms),
        num_rounds=tally.rounds,
    )
