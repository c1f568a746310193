"""What happened in one turn of one system, and how fast each request was while it was watched. Plain counting."""

from dataclasses import dataclass, field
from typing import Any

StepSample = tuple[int, int, int, float]
"""Rows, sessions, cached tokens of all of them, ms."""
DraftSample = tuple[int, int, float]
"""Sessions, depth, ms."""


@dataclass(slots=True)
class RequestSpeed:
    """One request, as far as windows were open while it lived."""

    tokens: float = 0.0
    seconds: float = 0.0
    """From its asking, so the wait for a place and the prompt are in it."""

    @property
    def tokens_per_second(self) -> float:
        """What its user saw; 0 before anything was seen."""
        return self.tokens / self.seconds if self.seconds > 0 else 0.0


@dataclass(slots=True)
class Window:
    """One turn. Numbers of steps are 0 where the target's steps cannot be seen, as over HTTP."""

    seconds: float = 0.0
    tokens: float = 0.0
    """Committed, of all clients; over HTTP those of requests that lie partly in the window count by their share of it."""
    rounds: float = 0.0
    drafted: float = 0.0
    selected: float = 0.0
    """Candidates sent to the target."""
    steps: int = 0
    rows: int = 0
    verify_ms: float = 0.0
    """The target at work: forwards and acceptance."""
    draft_ms: float = 0.0
    draft_calls: int = 0
    probe_ms: float | None = None
    """What one and the same forward took just before and after: how fast the machine was. None where that cannot be asked."""
    requests: dict[int, RequestSpeed] = field(default_factory=dict)
    """By the request's number."""
    step_samples: list[StepSample] = field(default_factory=list)
    draft_samples: list[DraftSample] = field(default_factory=list)

    @property
    def tokens_per_second(self) -> float:
        """Of all clients."""
        return self.tokens / self.seconds

    @property
    def prompt_rows(self) -> float:
        """Rows that were neither anchors nor candidates."""
        return max(0.0, self.rows - self.rounds - self.selected)

    @property
    def context_tokens(self) -> float | None:
        """Cached by the target for a session, in the mean over its steps; None where steps cannot be seen."""
        sessions = sum(sample[1] for sample in self.step_samples)
        return sum(sample[2] for sample in self.step_samples) / sessions if sessions else None

    def record(self) -> dict[str, Any]:
        """For JSON; requests and samples are left out."""
        names = ("seconds", "tokens", "rounds", "drafted", "selected", "steps", "rows", "verify_ms", "draft_ms", "draft_calls")
        unknown = {name: getattr(self, name) for name in ("probe_ms", "context_tokens")}
        return {name: round(getattr(self, name), 4) for name in names} | {
            name: None if value is None else round(value, 4) for name, value in unknown.items()
        }


def speed_reached_by(requests: list[RequestSpeed], share: float) -> float:
    """The speed that this share of the users' time was served at, or better: 0.5 is the median. Requests count by the time they were
    watched, so one of which only a corner was seen counts little."""
    ranked = sorted((request for request in requests if request.seconds > 0), key=lambda request: -request.tokens_per_second)
    wanted, passed = share * sum(request.seconds for request in ranked), 0.0
    for request in ranked:
        passed += request.seconds
        if passed >= wanted:
            return request.tokens_per_second
    return ranked[-1].tokens_per_second if ranked else 0.0
