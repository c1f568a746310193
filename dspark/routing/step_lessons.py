"""What a step of the target teaches: what steps take, what the router takes between them, and whether plain ones are as expected.

A step is whole if all sessions of the target shared it, and no prompt did; plain if it had no candidates.
"""

from collections.abc import Callable, Sequence

import numpy as np

from dspark.routing.economy import Economy
from dspark.routing.rounds import MOST_USUAL_NEWS, Verified, decoding_rows
from dspark.scheduling.costs import RoundCosts
from dspark.scheduling.online_curve import MANY_MORE, OnlineCurve
from dspark.session import Session


class StepLessons:
    """Of one target. Owner: its TargetEconomy."""

    def __init__(self, economy: Economy, curve: OnlineCurve, news: Callable[[Session], int]) -> None:
        """`news`: tokens of a session's context that its drafter has not been told."""
        self._economy = economy
        self._curve = curve
        self._news = news
        self._was_whole = False
        """True where the last step was."""
        self._had_drafts = False
        """True where the last step did."""
        self._plain_sessions = 0
        """Of the last whole plain step that was learned from, or as many as there were when one was asked for."""
        self._drafting_ms = 0.0
        """The economy's, at the last step."""

    def session_entered(self) -> None:
        """What lies between the last step and the next is not only the router's work on it."""
        self._was_whole = False

    def router_work(self, rows: int, verified: Sequence[Verified], num_sessions: int, between_ms: float | None) -> None:
        """What lies between two whole steps is the router's, but for the calls of drafters. Where calls go beside each other, on several
        replicas or for several targets, their sum is too much, and less is learned than there is, or nothing."""
        is_whole = _is_whole(rows, verified, num_sessions)
        was_whole, self._was_whole = self._was_whole, is_whole
        calls_ms, self._drafting_ms = self._economy.drafting_ms - self._drafting_ms, self._economy.drafting_ms
        drafted = [one for one in verified if not one.limits.skips]
        is_usual = all(self._news(one.session) <= MOST_USUAL_NEWS + 2 * one.limits.max_depth for one in drafted)
        if between_ms is None or between_ms < calls_ms or not (is_whole and was_whole and is_usual):
            return
        if not drafted:
            self._economy.router_work.plain_round(len(verified), between_ms)
        elif (name := drafted[0].session.drafter) is not None:
            self._economy.router_work.drafted_round(name, len(verified), len(drafted), between_ms - calls_ms)

    def step(
        self, rows: int, verify_ms: float, verified: Sequence[Verified], num_sessions: int, costs: RoundCosts | None
    ) -> float | None:
        """How far it is from what was expected, as a share of that, if it is a whole plain one behind another; None for others, or where
        nothing was expected. One behind drafting is not what plain decoding takes: it teaches nothing."""
        has_drafts = any(not one.limits.skips for one in verified)
        had_drafts, self._had_drafts = self._had_drafts, has_drafts
        is_plain = rows == len(verified)
        if is_plain and (has_drafts or had_drafts):
            return None
        self._curve.observe(rows, float(np.mean([v.session.base_length for v in verified])), verify_ms, len(verified))
        if not (is_plain and _is_whole(rows, verified, num_sessions)):
            return None
        self._plain_sessions = num_sessions
        return None if costs is None else abs(verify_ms / costs.step_of(rows) - 1.0)

    def sessions_changed(self, num_sessions: int) -> bool:
        """True once for each change by so many that a plain step is to be seen soon; of the first sessions the profile tells."""
        before, now = self._plain_sessions, max(1, num_sessions)
        if before and max(before, now) <= MANY_MORE * min(before, now):
            return False
        self._plain_sessions = now
        return before > 0


def _is_whole(rows: int, verified: Sequence[Verified], num_sessions: int) -> bool:
    return 0 < len(verified) == num_sessions and rows == decoding_rows(verified)
