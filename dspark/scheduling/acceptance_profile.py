"""What drafts have been worth lately, per drafter, and apart for greedy and sampled text: the gains that drafting_plan.py asks for.

For every draft the expected accepted tokens by depth and by number of verified candidates are read off its scores, verified or
not, so that the planner's own choice does not colour them: verifying eight candidates where the drafter was sure says little
of what the eighth is worth elsewhere. Verdicts correct the scores, depth by depth: accepted over expected among what was
verified. Old drafts fade.

What no draft has tried lately (deeper or larger than the limits were, or a drafter that is skipped) keeps what it added to the rest.
`hopeful` says what it may be worth all the same: where nothing was tried, all that is drafted is accepted; what was tried counts
against that hope, the less the longer ago. So nothing is written off for ever, and what is worth a try is known after few drafts.
Nothing is drawn by lot: equal histories give equal plans.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from dspark.scheduling.costs import Floats
from dspark.scheduling.drafting_plan import DraftLimits
from dspark.tree import CandidateTree

MEMORY = 32
"""Drafts of one session that the estimates remember, about; `observe` is told where those of many sessions come together."""
FIRST_DRAFTS = 16
"""Of a drafter, before its numbers are believed."""
PRIOR_TOKENS = 4.0
"""Accepted tokens, as expected, that a correction leans on."""
FIRST_PRIOR_TOKENS = 6.0
"""More of them at the start, which fade like all that was seen: the luck of two or three drafts says little."""
MOST_CORRECTION = 4.0
HOPE = 1.0
"""Drafts that an accepted-whole one counts for in what is hoped for."""
DOUBT_ROUNDS = 1000
"""Rounds without a draft after which what was seen before counts half, against hope."""


class AcceptanceProfile:
    """Belongs to one router. One `observe` costs some 50 microseconds: of a large round a few sessions in turn are enough."""

    def __init__(self, most: DraftLimits) -> None:
        """`most`: the depth D and number of nodes N that the configuration allows."""
        self.most = most
        self._records: dict[tuple[str, bool], _Record] = {}

    def observe(
        self,
        drafter: str,
        greedy: bool,
        limits: DraftLimits,
        drafted: CandidateTree,
        kept: Sequence[int],
        num_accepted: int,
        memory: int = MEMORY,
    ) -> None:
        """One session's round: what was drafted under which limits, which of it was verified, and how much of that accepted. `memory`:
        drafts like it to be remembered.

        An empty tree counts too: the drafter had nothing to say. A skipped round is not fed.
        """
        self._record(drafter, greedy).observe(limits, drafted, np.asarray(kept, np.int64), num_accepted, memory)

    def gains(self, drafter: str, greedy: bool) -> Floats:  # [D + 1, N + 1]
        """Expected accepted tokens of one session by depth drafted and candidates verified; never falling along either."""
        record, max_nodes = self._record(drafter, greedy), self.most.max_nodes
        claimed = np.zeros((self.most.max_depth + 1, max_nodes + 1))
        claimed[1:, 1:] = record.claimed
        by_depth = np.clip(np.diff(claimed, axis=0) * record.corrections()[:, np.newaxis], 0.0, 1.0)
        by_depth = np.minimum.accumulate(by_depth, axis=0)  # whoever gets so deep got less deep before
        claimed[1:] = np.minimum(np.cumsum(by_depth, axis=0), np.arange(max_nodes + 1))
        return np.asarray(np.maximum.accumulate(claimed, axis=1))

    def hopeful(self, drafter: str, greedy: bool) -> Floats:  # [D + 1, N + 1]
        """As `gains`, but what they may be as far as is known: they lie between those and drafts that are accepted whole."""
        record, gains = self._record(drafter, greedy), self.gains(drafter, greedy)
        whole = np.minimum(np.arange(len(gains))[:, np.newaxis], np.arange(gains.shape[1]))  # all that was drafted and verified
        seen = np.zeros_like(gains)
        seen[1:, 1:] = np.minimum(record.seen, MEMORY) * self.freshness(drafter, greedy)
        return np.asarray((seen * gains + HOPE * whole) / (seen + HOPE))

    def freshness(self, drafter: str, greedy: bool) -> float:
        """How far what was seen still counts against hope, 0..1: halved by every DOUBT_ROUNDS rounds without a draft."""
        return float(0.5 ** (self._record(drafter, greedy).num_skipped / DOUBT_ROUNDS))

    def round_skipped(self, drafter: str, greedy: bool) -> None:
        """A round in which nothing was drafted."""
        self._record(drafter, greedy).num_skipped += 1

    def num_drafts(self, drafter: str, greedy: bool) -> int:
        """Drafts seen."""
        return self._record(drafter, greedy).num_drafts

    def survival_by_depth(self, drafter: str, greedy: bool) -> Floats:  # [D]
        """Chance that a round accepts at least so many tokens, everything verified."""
        return np.asarray(np.diff(self.gains(drafter, greedy)[:, -1]))

    def tokens_by_nodes(self, drafter: str, greedy: bool) -> Floats:  # [N + 1]
        """Expected committed tokens of a round by number of verified candidates, drafted in full."""
        return np.asarray(1.0 + self.gains(drafter, greedy)[-1])

    def corrections(self, drafter: str, greedy: bool) -> Floats:  # [D]
        """Accepted over expected by depth; 1 is a drafter whose scores are true."""
        return self._record(drafter, greedy).corrections()

    def _record(self, drafter: str, greedy: bool) -> "_Record":
        return self._records.setdefault((drafter, greedy), _Record(self.most))


def _change(surprise: Floats, seen: Floats) -> Floats:  # all [d, n]
    """Of claims that were tried. The best known ones move to what was found; the others keep their distance from them but for what this
    same draft says of that distance: how well it fares as a whole is luck, of which a claim that was seldom tried has had little."""
    known = seen >= seen.max()
    depth = int(np.flatnonzero(known[:, 0])[-1])
    nodes = int(np.flatnonzero(known[depth])[-1])
    nearest = np.ix_(np.minimum(np.arange(seen.shape[0]), depth), np.minimum(np.arange(seen.shape[1]), nodes))
    return np.asarray((surprise / seen)[nearest] + (surprise - surprise[nearest]) / seen)


class _Record:
    """One drafter on one kind of text."""

    def __init__(self, most: DraftLimits) -> None:
        shape = (most.max_depth, most.max_nodes)
        self.claimed = np.zeros(shape)  # [D, N] gains by the scores' word
        self.num_drafts = 0
        self.num_skipped = 0
        """Rounds since the last draft."""
        self.seen = np.zeros(shape)  # [D, N] drafts, up to as many as are remembered
        self._expected = np.full(most.max_depth, FIRST_PRIOR_TOKENS)  # [D]
        self._accepted = np.full(most.max_depth, FIRST_PRIOR_TOKENS)  # [D]

    def corrections(self) -> Floats:  # [D]
        ratio = (self._accepted + PRIOR_TOKENS) / (self._expected + PRIOR_TOKENS)
        return np.asarray(np.clip(ratio, 1.0 / MOST_CORRECTION, MOST_CORRECTION))

    def observe(
        self, limits: DraftLimits, drafted: CandidateTree, kept: NDArray[np.int64], num_accepted: int, memory: int
    ) -> None:
        max_depth, max_nodes = self.claimed.shape
        survival = np.fmin(np.fmax(drafted.scores.astype(np.float64), 0.0), 1.0)
        levels = np.minimum(drafted.depths, max_depth) - 1
        self._correct(levels[kept], survival[kept], num_accepted, memory)
        tried = np.s_[: min(limits.max_depth, max_depth), : min(limits.max_nodes, max_nodes)]
        # Where fewer are to be remembered now, all of it fades alike: what is nearer to the anchor was tried the more often, always.
        self.seen *= 0.5 ** (self.num_skipped / DOUBT_ROUNDS) * min(1.0, memory / max(1.0, self.seen.max()))
        self.num_skipped = 0
        self.seen[tried] = np.minimum(self.seen[tried] + 1, memory)
        found = self._gains_of(levels, survival)
        change = _change(found[tried] - self.claimed[tried], self.seen[tried])
        self.claimed += np.pad(change, [(0, most - got) for most, got in zip(self.claimed.shape, change.shape, strict=True)], mode="edge")
        self.num_drafts += 1

    def _correct(self, levels: NDArray[np.int64], survival: Floats, num_accepted: int, memory: int) -> None:
        """Of siblings one at most is accepted, so survivals of one depth add up to the chance of getting that far."""
        max_depth = len(self._expected)
        expected = np.minimum(1.0, np.bincount(levels, survival, max_depth))
        fade = np.where(expected > 0, 1.0 - 1.0 / memory, 1.0)  # [D] what was not verified teaches nothing
        self._expected = fade * self._expected + expected
        self._accepted = fade * self._accepted + ((np.arange(max_depth) < num_accepted) & (expected > 0))

    def _gains_of(self, levels: NDArray[np.int64], survival: Floats) -> Floats:  # [D, N]
        """Row d: running sums of the best survivals among candidates of depth d + 1 at most."""
        max_depth, max_nodes = self.claimed.shape
        within = np.where(levels <= np.arange(max_depth)[:, np.newaxis], survival, 0.0)
        best = -np.sort(-within, axis=1)[:, :max_nodes]
        sums = np.cumsum(np.pad(best, ((0, 0), (0, max_nodes - best.shape[1]))), axis=1)
        return np.asarray(np.minimum(sums, np.arange(1, max_depth + 1)[:, np.newaxis]))
