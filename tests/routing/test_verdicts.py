"""How long verdicts on drafts are remembered: as many steps whatever the number of sessions, so as many more drafts."""

import numpy as np
import pytest

from dspark.routing.rounds import Verified
from dspark.routing.verdicts import Verdicts
from dspark.scheduling.acceptance_profile import AcceptanceProfile
from tests.routing.books import LIKELY, Books
from tests.routing.parts import LIMITS_OF_DRAFTER

STEPS = 400
ALL = list(range(len(LIKELY)))


class Steps:
    """Steps that some sessions share, whose drafts are all alike."""

    def __init__(self, num_sessions: int) -> None:
        books = Books()
        self._sessions = [books.session(f"s{number}", greedy=False) for number in range(num_sessions)]
        self._verdicts = Verdicts(books.economy)
        self._profile: AcceptanceProfile = books.economy.profiles["default"]

    def step(self, accepted: list[int]) -> None:
        pairs = zip(self._sessions, accepted, strict=True)
        self._verdicts.learn_when_due([Verified(one, LIMITS_OF_DRAFTER, LIKELY, ALL, tuple(range(count)), 0.0) for one, count in pairs])

    @property
    def first_candidate(self) -> float:
        """What it is believed to be worth."""
        return float(self._profile.gains("default", False)[1, 1])


def error(num_sessions: int, chance: float, seed: int) -> float:
    """Root of the mean square, where each first candidate is accepted with the same chance."""
    steps, draw = Steps(num_sessions), np.random.default_rng(seed)
    errors = []
    for number in range(STEPS):
        steps.step((draw.random(num_sessions) < chance).astype(int).tolist())
        if number >= STEPS // 4:
            errors.append(steps.first_candidate - chance)
    return float(np.sqrt(np.mean(np.square(errors))))


@pytest.mark.parametrize("num_sessions", [8, 32])
def test_the_luck_of_a_few_steps_says_less_where_many_sessions_draft(num_sessions: int) -> None:
    """Seed 4. Of 256 drafts the error is 0.02 (of 32 it is 0.06, as with one session): over 0.04 with another seed once in 1e3."""
    assert error(num_sessions, 0.7, 4) < 0.04


def test_what_drafts_are_worth_now_is_known_after_as_many_steps_with_many_sessions_as_with_one() -> None:
    for num_sessions in (1, 8, 32):
        steps = Steps(num_sessions)
        for accepted in (1, 0):
            for _ in range(200):
                steps.step([accepted] * num_sessions)
        assert steps.first_candidate < 0.3, "a quarter of what the scores say is the least"
