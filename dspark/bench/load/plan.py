"""What `dspark bench load` is asked for, and when one of its turns is over. Pure."""

import time
from collections.abc import Callable
from dataclasses import dataclass

from dspark.errors import ConfigError

PLAIN = "plain"
PLANNED = "planned"
SYSTEMS = (PLAIN, "fixed3", "fixed7", "tree", PLANNED)
"""The names that the simulator's policies have too."""
PLAIN_AGAIN = "plain_again"
"""Plain decoding a second time, with clients of its own: how far it is from `plain` is what this machine's noise makes of no difference."""
DEFAULT_CLIENTS = (1, 2, 4, 8, 16, 32, 64)
MIN_STEPS = 3
"""Of the target in a turn, however long they are: a window of one step says little."""
SETTLING_STEPS = 2
"""After each rest, before the window opens."""
FASTEST = 2
"""Times what clients get on average in a turn: what the fastest may get."""
SETTLING_TOKENS = 32
"""Of one client, before the window opens."""
SEED = 20261126


@dataclass(frozen=True, slots=True)
class LoadPlan:
    """One measurement. Clients ask again as soon as they have their answer, so there is no tail in which few are left."""

    clients: tuple[int, ...] = DEFAULT_CLIENTS
    seconds: float = 8.0
    """Of one system in one turn."""
    tokens: int | None = None
    """Instead of `seconds`: tokens per client in one turn, so that every system does the same work."""
    turns: int = 3
    """Counted; every system has one place in each."""
    warmup_turns: int = 1
    """Of each number of clients, before; not counted."""
    max_tokens: int = 256
    """Of every answer. The first one of each client is cut short at random, so that they do not end together."""
    temperature: float = 0.7
    decode_only: bool = False
    """No prompt falls into a window: whoever might end its answer in a turn asks anew before the window opens. For comparing systems in
    short turns: reading a prompt costs all of them the same, as much as dozens of rounds, and when it does is chance."""
    seed: int = SEED

    def __post_init__(self) -> None:
        if not self.clients or min(self.clients) < 1:
            raise ConfigError("name at least one number of clients, all of them positive", "clients")
        if self.seconds <= 0 or (self.tokens is not None and self.tokens < 1) or self.turns < 1 or self.warmup_turns < 0:
            raise ConfigError("seconds, tokens and turns must be positive, and warm-up turns not negative", "turns")
        if self.decode_only and (self.tokens is None or self.max_tokens < self.turn_tokens):
            raise ConfigError("turns without prompts need a number of tokens, and answers of more than twice as many", "tokens")

    @property
    def turn_tokens(self) -> int:
        """What one client may get in a turn, at the most."""
        return FASTEST * (self.tokens or 0) + SETTLING_TOKENS

    @property
    def turns_per_answer(self) -> int:
        """Turns after which a client of a decode-only measurement asks anew."""
        return self.max_tokens // self.turn_tokens

    @property
    def ordered_clients(self) -> tuple[int, ...]:
        """Growing, because the clients of a small load stay for the next."""
        return tuple(sorted(set(self.clients)))

    def is_over(self, elapsed_s: float, tokens_per_client: float, num_steps: int) -> bool:
        """Whether a window that has been open for so long may close."""
        if num_steps < MIN_STEPS:
            return False
        return elapsed_s >= self.seconds if self.tokens is None else tokens_per_client >= self.tokens


class Patience:
    """Says when a measurement should come to its end early: somebody asked for it, or its time is over."""

    def __init__(self, limit_s: float | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        """`limit_s` from now on; None: no limit."""
        self._clock = clock
        self._end_s = None if limit_s is None else clock() + limit_s
        self._asked_s: float | None = None

    def stop(self) -> None:
        """From now on it is over."""
        self._asked_s = self._clock() if self._asked_s is None else self._asked_s

    @property
    def asked_since_s(self) -> float:
        """How long ago somebody asked first; 0 if nobody did."""
        return 0.0 if self._asked_s is None else self._clock() - self._asked_s

    @property
    def over(self) -> bool:
        """True: finish what can be finished at once, and write what there is."""
        return self._asked_s is not None or (self._end_s is not None and self._clock() >= self._end_s)
