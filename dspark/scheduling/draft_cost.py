"""What a drafting call costs, learned from the calls themselves: draft_ms as a + b sessions + c depth + d sessions depth + e news
+ f side nodes, none negative.

Exponentially forgetful least squares, pure, no clock; a call weighs the less the longer it is expected to take, or one that reads the
prompts of many sessions, ten times as long as the next one, would drown what that one says. The terms are those of real drafters: a call's
fixed cost, what each session adds, one forward after the other for each position, the rows of those forwards, the context that is news to
the drafter (a session's first draft reads its whole prompt, one after a pause what was committed meanwhile, and neither says what the next
costs), and the candidates that make a tree of a chain of the same depth.
"""

import math
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from dspark.scheduling.curve import Floats

DECAY = 0.98
"""Of a call's weight with every later one: about the last 50 count."""
RIDGE = 1e-4
"""Pull towards 0, relative to each term's own size: decides where calls of one shape only cannot tell the terms apart."""
MAX_SURPRISE = 2.5
"""A call counts as at most so many times what was expected, and at least as its inverse, once there is an expectation."""
CALLS_BEFORE_DOUBT = 5
REFIT_AFTER = 8
"""Calls that were as expected; one that was not is learned from at once."""
SURPRISE = 0.25
"""Of the expected time, by which such a call differs."""
FITTED_AT_ONCE = 16
"""The first so many calls are fitted one by one: those that a replica tells of when it starts, and some of the real ones."""
NUM_TERMS = 6
USUAL_NEWS = 3.0
"""Tokens of news per session of a call that follows the one before."""
UNUSUAL = 3.0
"""Times as many."""

_SUBSETS = [list(kept) for size in range(NUM_TERMS, 0, -1) for kept in combinations(range(NUM_TERMS), size)]


@dataclass(frozen=True, slots=True)
class DraftCall:
    """One call of a drafter, as it was measured when its replica started."""

    num_sessions: int
    depth: int
    draft_ms: float
    num_news: int
    """Tokens or hidden states of context that it was given, of all sessions."""


class DraftCost:
    """One draft replica as one router sees it. Owner: the lane to that replica."""

    def __init__(self) -> None:
        self._products = np.zeros((NUM_TERMS, NUM_TERMS))
        self._projections = np.zeros(NUM_TERMS)
        self._weights = np.zeros(NUM_TERMS)
        self._num_calls = 0
        self._num_fitted = 0
        self._is_surprised = False
        self.knows_news = False
        """True once a call had clearly more news than usual: before, what a token of them costs is a guess."""
        self.most_sessions = 0
        """Of one call: what more of them cost at once is a guess."""

    @property
    def num_calls(self) -> int:
        """Seen so far."""
        return self._num_calls

    def observe(self, sessions: int, depth: float, draft_ms: float, news: float | None = None, side_nodes: float = 0.0) -> None:
        """One DraftReport: how many sessions it answered, how deep was asked for, how many tokens or hidden states of context it was given
        (None: as many as usual), and for how many candidates beyond chains of that depth, of all sessions, there was room."""
        if sessions < 1 or not 0.0 <= depth < math.inf or not 0.0 < draft_ms < math.inf:
            return
        expected = self.ms(sessions, depth, news, side_nodes) if self._num_calls >= CALLS_BEFORE_DOUBT else None
        seen = draft_ms if not expected else min(max(draft_ms, expected / MAX_SURPRISE), MAX_SURPRISE * expected)
        terms, weight = _terms(sessions, depth, news, side_nodes), 1.0 / (expected or seen)
        self._products = DECAY * self._products + weight * np.outer(terms, terms)
        self._projections = DECAY * self._projections + weight * seen * terms
        self._num_calls += 1
        self.knows_news |= news is not None and news > UNUSUAL * USUAL_NEWS * sessions
        self._is_surprised |= expected is not None and abs(draft_ms - expected) > SURPRISE * expected
        self.most_sessions = max(self.most_sessions, sessions)

    def ms(self, sessions: int, depth: float, news: float | None = None, side_nodes: float = 0.0) -> float | None:
        """What a call for so many sessions is expected to take; None until one was seen. `news` and `side_nodes` as in `observe`."""
        if self._num_calls == 0:
            return None
        num_new = self._num_calls - self._num_fitted
        if self._is_surprised or num_new >= REFIT_AFTER or (num_new and self._num_fitted < FITTED_AT_ONCE):
            self._weights = _non_negative_fit(self._products, self._projections)
            self._num_fitted, self._is_surprised = self._num_calls, False
        return float(_terms(sessions, depth, news, side_nodes) @ self._weights)


def _terms(sessions: int, depth: float, news: float | None, side_nodes: float) -> Floats:
    return np.asarray([1.0, sessions, depth, sessions * depth, USUAL_NEWS * sessions if news is None else news, side_nodes])


def _non_negative_fit(products: Floats, projections: Floats) -> Floats:
    """[t] weights >= 0 of the smallest squared error, from X'X [t, t] and X'y [t]: the best of all subsets of terms that fit without a
    negative weight. Exact, and the first subset, of all terms, is mostly the answer."""
    regular = products + np.diag(RIDGE * np.diag(products))
    present = [term for term in range(NUM_TERMS) if products[term, term] > 0]
    best, best_loss = np.zeros(NUM_TERMS), math.inf
    for kept in _SUBSETS:
        if not set(kept) <= set(present):
            continue
        part = np.linalg.solve(regular[np.ix_(kept, kept)], projections[kept])
        loss = -float(part @ projections[kept])  # up to a constant, the regularised squared error at its minimum
        if np.all(part >= 0) and loss < best_loss:
            best, best_loss = np.zeros(NUM_TERMS), loss
            best[kept] = part
            if kept == present:
                break
    return best
