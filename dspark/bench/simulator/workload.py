"""What simulated clients ask for, and when."""

from dataclasses import dataclass

from dspark.errors import ConfigError


@dataclass(frozen=True, slots=True)
class ClosedLoop:
    """So many clients, each of which asks again as soon as it has its answer."""

    clients: int
    spread_ms: float = 0.0
    """The first requests come in at random over this time."""

    def __post_init__(self) -> None:
        if self.clients < 1 or self.spread_ms < 0:
            raise ConfigError("a closed loop needs at least one client, and a spread that is not negative", "clients")


@dataclass(frozen=True, slots=True)
class Poisson:
    """Requests that know nothing of each other, at this mean rate."""

    requests_per_second: float

    def __post_init__(self) -> None:
        if not 0 < self.requests_per_second < float("inf"):
            raise ConfigError("a rate of arrival is positive and finite", "requests_per_second")


@dataclass(frozen=True, slots=True)
class Workload:
    """Requests of one kind."""

    arrivals: ClosedLoop | Poisson
    output_tokens: int = 128
    """Of every answer; the first answer of each client in a closed loop is cut short at random, so that they do not end together."""
    prompt_tokens: int = 0
    """Prefilled on the target in chunks that share its steps."""
    cached_tokens: int = 0
    """Of every prompt, beside those: in the target's cache from the start."""
    max_sessions: int = 256
    """More wait for a place, as `limits.max_sessions` has it."""

    def __post_init__(self) -> None:
        if self.output_tokens < 1 or min(self.prompt_tokens, self.cached_tokens) < 0 or self.max_sessions < 1:
            raise ConfigError("output_tokens and max_sessions must be positive, tokens of the prompt not negative", "workload")
