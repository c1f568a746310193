"""What calls of a drafter take, measured when it is loaded: for some numbers of sessions, deep and shallow, with little and with much
news. Routers begin with it; without it they would find out by drafting for sessions that gain nothing by it.
"""

import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from dspark.config import DrafterConfig
from dspark.drafting.batch import CachedDrafter
from dspark.messages import ContextFeatures, DraftRequest, SessionOpen
from dspark.noise import forget_noise
from dspark.scheduling.draft_cost import DraftCall
from dspark.types import SamplingParams, SessionId

SESSION_COUNTS = (1, 8)
"""Two tell what a session adds; the cost is linear in them (scheduling/draft_cost.py)."""
CONTEXT_TOKENS = 32
NEWS_TOKENS = 3
"""Per session and call, about what a round commits."""
CALLS = 2
"""Of each shape, beside the one that reads the context."""
SESSION_TOKENS = 64
"""Of the cache, that a session here may take: context, news and candidates."""
BUDGET_S = 3.0
"""No further number of sessions is begun after it."""


def profile_drafter(drafter: CachedDrafter[Any], config: DrafterConfig, hidden_size: int | None) -> tuple[DraftCall, ...]:
    """Some calls as `config` allows them, of sessions that are gone afterwards; none where nothing is to be drafted.

    `hidden_size`: of the features that the drafter reads; None for one that reads tokens.
    """
    depths = sorted({1, config.max_depth} - {0})
    started_s, calls = time.perf_counter(), list[DraftCall]()
    for count in SESSION_COUNTS if config.max_depth > 0 else ():
        if count * SESSION_TOKENS > config.kv_cache.num_tokens or time.perf_counter() - started_s > BUDGET_S:
            break
        forget_noise()  # another drafter's of the same seeds, say
        _Group(drafter, config, hidden_size, range(count)).calls(depths, 1)  # meets shapes that kernels are still to be made for
        calls += _Group(drafter, config, hidden_size, range(count, 2 * count)).calls(depths, CALLS)
    forget_noise()  # another thread will serve
    return tuple(calls)


class _Group:
    """Sessions of equal length, one for each seed: what is measured has no noise at hand, as in service."""

    def __init__(self, drafter: CachedDrafter[Any], config: DrafterConfig, hidden_size: int | None, seeds: range) -> None:
        self._drafter = drafter
        self._config = config
        self._hidden_size = hidden_size
        self._seeds = {SessionId(f"profile-{seed}"): seed for seed in seeds}
        self._length = CONTEXT_TOKENS
        self._num_read = 0
        """Features given."""

    def calls(self, depths: Sequence[int], repeats: int) -> list[DraftCall]:
        """The first one reads the context; that of a drafter that reads tokens is read before, as when a session gets its place."""
        for name, seed in self._seeds.items():
            self._drafter.open(SessionOpen(name, (0,) * CONTEXT_TOKENS, SamplingParams(temperature=1.0, seed=seed)))
        try:
            first = self._call(0 if self._hidden_size is None else depths[-1], 0)
            later = [self._call(depth, NEWS_TOKENS) for depth in depths for _ in range(repeats)]
            return [call for call in (first, *later) if call is not None and call.depth > 0]
        finally:
            for name in self._seeds:
                self._drafter.close(name)

    def _call(self, depth: int, num_new: int) -> DraftCall | None:
        """None where the drafter could not serve it, so that its time says nothing."""
        self._length += num_new
        features = self._features()
        nodes = max(1, min(self._config.max_nodes, self._config.max_depth))  # about what is drafted where a call's cost decides
        requests = [
            DraftRequest(name, self._length, (0,) * num_new, depth, nodes, features, max(1, self._config.max_width))
            for name in self._seeds
        ]
        report = self._drafter.draft(requests)
        if report.failures:
            return None
        num_news = num_new if features is None else len(features.values)
        return DraftCall(len(self._seeds), depth, report.draft_ms, num_news * len(self._seeds))

    def _features(self) -> ContextFeatures | None:
        """All that are missing: those of the anchor come a round later."""
        if self._hidden_size is None:
            return None
        start, self._num_read = self._num_read, self._length - 1
        return ContextFeatures(start, np.zeros((self._num_read - start, self._hidden_size), np.uint16), projected=True)
