"""One session's access to drafts, whatever happens to the draft pool: with a lease it drafts, without one it decodes plainly
and keeps asking. Where the drafter reads the target's hidden states, they pass through here (feed.py keeps the books).

Speculation is never needed for a right answer: nothing in this file raises because of a drafter.
"""

import asyncio
import contextlib
from typing import Protocol

from dspark.config import DrafterConfig, LimitsConfig
from dspark.errors import DraftUnavailable, DSparkError, InvalidMessage, StaleRound, UnknownSession
from dspark.messages import NO_FEATURES, DraftRequest, FeatureSpec, VerifyResult
from dspark.ports import DrafterLease, DrafterPool
from dspark.routing.draft_lanes import DraftLanes
from dspark.routing.feed import FeatureFeed
from dspark.routing.observer import DraftObserver
from dspark.scheduling.drafting_plan import SKIP, DraftLimits
from dspark.session import Session
from dspark.tree import CandidateTree

MAX_DOUBLINGS = 5
"""Of the pause after a late draft: at most 32 times draft_retry_s."""
FEATURE_PART_BYTES = 2 * 1024 * 1024
"""Features in one draft request; more go in several. Half of what wire/ puts into one message."""
MAX_IDLE_ROWS = 64
"""While nothing is drafted, no more features are asked for once this many rows are held: the target keeps the others."""
FRESH_ROUNDS = 4
"""Rounds in a row with nothing to draft, for which features are asked for all the same: a short break must not cost the round in which what
is missing would come. To read them costs a step of a small target a tenth; later they are left to the target."""
IDLE_ROUNDS = 64
"""Rounds in a row with nothing to draft, after which the lease is given back; another is asked for when drafting starts again."""


class DraftSource(Protocol):
    """Where a session's candidates come from."""

    @property
    def features(self) -> FeatureSpec | None:
        """What the target is to capture for this session."""

    @property
    def features_from(self) -> int:
        """For the VerifyRequest of the round that `propose` began."""

    @property
    def answered_to(self) -> DraftLimits:
        """What the last `propose` asked of a drafter and had answered in time, were it by an empty tree: as much of the limits as the
        request, what is left of its answer and the configuration leave. SKIP where nobody was asked, or no answer came."""

    @property
    def num_told(self) -> int:
        """Tokens of the session's context that a drafter has read; the others have to be told before the next draft."""

    @property
    def call_began_s(self) -> float:
        """Event loop's time at which its drafter's call in hand began, or the one before; 0 where there was none. What was asked for later
        is part of the next one."""

    def learn(self, result: VerifyResult) -> None:
        """The round's result, before the session commits it."""

    async def propose(self, limits: DraftLimits) -> CandidateTree:
        """Candidates below the session's anchor, within the limits; an empty tree if there are none in time."""

    async def close(self) -> None:
        """Give everything back."""


class NoDrafts:
    """Plain decoding: the session was asked to, or there is no drafter."""

    features: FeatureSpec | None = None
    features_from = NO_FEATURES
    answered_to = SKIP
    num_told = 0
    call_began_s = 0.0

    def learn(self, result: VerifyResult) -> None:
        """Nothing to be learnt."""

    async def propose(self, limits: DraftLimits) -> CandidateTree:
        """Never a candidate."""
        return CandidateTree.empty()

    async def close(self) -> None:
        """Nothing to give back."""


class LeasedDrafts:
    """Drafts from a replica that may come late, die, or come back."""

    def __init__(
        self,
        session: Session,
        pool: DrafterPool,
        lanes: DraftLanes,
        drafter: DrafterConfig,
        limits: LimitsConfig,
        observer: DraftObserver,
        vocab_size: int,
        *,
        at_once: bool = True,
    ) -> None:
        """`at_once`: take a place at a replica now; without it, when there is something to be drafted."""
        self._session = session
        self._pool = pool
        self._lanes = lanes
        self._config = drafter
        self._limits = limits
        self._observer = observer
        self._vocab_size = vocab_size
        self._limits_now = SKIP
        """Of the round that `propose` began."""
        self._lease: DrafterLease | None = None
        self._num_told = 0
        """Of the context, what the drafter of the lease has read by its answers."""
        self._known_length = 0
        """Committed length at the last answered request: where the next delta starts."""
        self._num_late = 0
        """Drafts in a row that came too late."""
        self._paused_until_s = 0.0
        """Event loop's time before which a late drafter is not asked again."""
        self.features = pool.features
        """See DraftSource."""
        self.features_from = NO_FEATURES
        """See DraftSource."""
        self.answered_to = SKIP
        """See DraftSource."""
        self._idle_rounds = 0
        """Rounds in a row for which nothing was to be drafted."""
        self._feed = FeatureFeed()
        self._acquiring = False
        """True while a lease is on its way; False in the pause after none was to be had."""
        self._background: asyncio.Task[None] | None = None
        if at_once:
            self._ask_again(None)

    @property
    def num_told(self) -> int:
        """See DraftSource."""
        return 0 if self._lease is None else self._num_told

    @property
    def call_began_s(self) -> float:
        """See DraftSource."""
        return 0.0 if self._lease is None else self._lanes.of(self._lease).call_began_s

    async def propose(self, limits: DraftLimits) -> CandidateTree:
        """See DraftSource. A round without a draft leaves the drafter as it is: what it lacks comes with the next request."""
        self._limits_now = self._within(limits)
        self.answered_to = SKIP
        tree = await self._candidates(self._limits_now)
        self.features_from = self._wanted_features()
        return tree

    def learn(self, result: VerifyResult) -> None:
        """See DraftSource. Features that do not continue what is held are dropped; the next round asks for them again."""
        if self.features_from == NO_FEATURES:
            return
        features = result.features
        if features is None or features.stop > result.base_length + len(result.accepted):
            self._observer.draft_lost("no_features")
        elif (result.round, result.base_length) == (self._session.round, self._session.base_length):
            self._feed.add(features)
            self._observer.features_received(len(features.values), features.values.nbytes)

    def _within(self, limits: DraftLimits) -> DraftLimits:
        """As far as configuration, request and what is left of the answer allow."""
        depth = min(limits.max_depth, self._config.max_depth, self._session.tokens_left - 1)
        nodes = min(limits.max_nodes, self._session.node_cap(self._config.max_nodes))
        width = min(limits.max_width, self._config.max_width)
        return DraftLimits(depth, width, nodes) if min(depth, nodes, width) > 0 else SKIP

    async def _candidates(self, limits: DraftLimits) -> CandidateTree:
        if self._background is not None and self._background.done():
            self._background = None
        lease = self._lease
        self._idle_rounds = self._idle_rounds + 1 if limits.skips else 0
        if lease is None or self._background is not None:
            if not limits.skips:
                self._ask_again(lease)
            return CandidateTree.empty()
        if lease.lost():
            await self._drop(lease, "its replica is gone")
            return CandidateTree.empty()
        if self._idle_rounds >= IDLE_ROUNDS:
            await self._let_go(lease)
        if limits.skips or self._paused:
            return CandidateTree.empty()
        if self._has_more_than_one_part():
            self._background = asyncio.create_task(self._catch_up(lease))
            return CandidateTree.empty()
        if self.features is not None and self._feed.stop != self._session.base_length - 1:
            return CandidateTree.empty()  # what is missing comes with this round
        return await self._draft_in_time(lease, limits)

    @property
    def _paused(self) -> bool:
        return asyncio.get_running_loop().time() < self._paused_until_s

    def _wanted_features(self) -> int:
        """From where on the coming round is to bring features: what is missing, unless nobody is there to read it."""
        if self.features is None or self._session.tokens_left <= 1 or (self._lease is None and not self._acquiring):
            return NO_FEATURES
        busy = self._background is not None and not self._background.done()
        idle = busy or self._lease is None or self._paused or self._limits_now.skips
        if idle and (self._idle_rounds > FRESH_ROUNDS or self._feed.num_rows > MAX_IDLE_ROWS):
            return NO_FEATURES
        return self._feed.wanted_from(self._session.base_length)

    def _has_more_than_one_part(self) -> bool:
        part = self._feed.next_part(FEATURE_PART_BYTES)
        return part is not None and part.stop < self._feed.stop

    async def _catch_up(self, lease: DrafterLease) -> None:
        """Bring the drafter what does not fit into one message, while rounds go on plainly."""
        try:
            while self._has_more_than_one_part():
                await self._draft(lease, SKIP)
        except Exception as error:
            await self._deal_with(error, lease)
            if self._lease is lease:
                self._pause()  # or a drafter that forgets at once would be sent everything, round after round

    async def close(self) -> None:
        """See DraftSource."""
        try:
            if self._background is not None:
                self._background.cancel()
                await asyncio.gather(self._background, return_exceptions=True)
        finally:
            await self._close_lease()

    async def _close_lease(self) -> None:
        if self._lease is not None:
            lease, self._lease = self._lease, None
            await self._give_back(lease)

    async def _draft_in_time(self, lease: DrafterLease, limits: DraftLimits) -> CandidateTree:
        """The drafter's answer, or an empty tree where it is late, stale, wrong or gone."""
        try:
            async with asyncio.timeout(self._limits.draft_timeout_s):  # `wait_for` can swallow a cancellation in Python 3.11
                tree = await self._draft(lease, limits)
            tree.check(self._vocab_size, limits.max_nodes)
            if len(tree) and tree.depths.max() > limits.max_depth:
                raise InvalidMessage(f"the tree is deeper than the {limits.max_depth} levels asked for", "tree.parents")
            self._num_late = 0
            self.answered_to = limits
            return tree
        except TimeoutError:
            self._observer.draft_lost("late")
            self._pause()
        except Exception as error:  # also a drafter's own bug: it costs speed, not the answer
            await self._deal_with(error, lease)
        return CandidateTree.empty()

    async def _deal_with(self, error: Exception, lease: DrafterLease) -> None:
        if isinstance(error, DraftUnavailable):
            await self._drop(lease, "unavailable")
        elif isinstance(error, UnknownSession | StaleRound):
            self._observer.draft_lost("stale")
            self._open(lease)
        elif isinstance(error, DSparkError):
            self._observer.draft_lost(type(error).__name__)
        else:
            self._lanes.failures.tell(error, asyncio.get_running_loop().time())
            self._observer.draft_lost("failed")

    def _pause(self) -> None:
        """A hung drafter must not cost every round its whole timeout: leave it alone, each time for twice as long."""
        pause_s = self._limits.draft_retry_s * 2 ** min(self._num_late, MAX_DOUBLINGS)
        self._num_late += 1
        self._paused_until_s = asyncio.get_running_loop().time() + pause_s

    async def _draft(self, lease: DrafterLease, limits: DraftLimits) -> CandidateTree:
        session, part = self._session, self._feed.next_part(FEATURE_PART_BYTES)
        request = DraftRequest(
            session.session_id,
            session.base_length,
            session.tokens_since(self._known_length),
            limits.max_depth,
            limits.max_nodes,
            part,
            max(1, limits.max_width),
        )
        result = await self._lanes.of(lease).draft(request)
        self._known_length = request.base_length
        if self.features is None:
            self._num_told = request.base_length
        elif part is not None:
            self._num_told = part.stop
            self._feed.acknowledged(part.stop)
        if result.base_length != request.base_length:
            raise StaleRound(f"a draft on length {result.base_length} for a session of length {request.base_length}")
        return result.tree

    async def _acquire(self) -> None:
        """Get a lease and let the drafter read the prompt, while the target does the same."""
        try:
            self._lease = await self._pool.acquire(self._session.session_id)
        except DSparkError as error:  # none in time, or one with another tokenizer
            self._observer.draft_lost(type(error).__name__)
            self._acquiring = False
            await asyncio.sleep(self._limits.draft_retry_s)
            return
        self._acquiring = False
        self._lanes.enter(self._lease)
        self._open(self._lease)
        if self.features is not None:
            return  # there is nothing to read before the target's features of the prompt are there
        with contextlib.suppress(Exception):  # the first real draft meets the same fault, and deals with it
            await self._draft(self._lease, SKIP)

    def _open(self, lease: DrafterLease) -> None:
        lease.drafter.open(self._session.opening())
        self._known_length, self._num_told = self._session.base_length, 0
        self._feed.restart()

    def _ask_again(self, lease: DrafterLease | None) -> None:
        if lease is None and self._background is None:
            self._acquiring = True
            self._background = asyncio.create_task(self._acquire())

    async def _drop(self, lease: DrafterLease, reason: str) -> None:
        self._observer.draft_lost(reason)
        await self._let_go(lease)
        if not self._limits_now.skips:
            self._ask_again(None)

    async def _let_go(self, lease: DrafterLease) -> None:
        """Others may have the place; the drafter forgets the session."""
        self._lease = None
        self._feed.restart()
        await self._give_back(lease)

    async def _give_back(self, lease: DrafterLease) -> None:
        lease.drafter.close(self._session.session_id)
        try:
            await self._lanes.leave(lease)
        finally:
            await lease.release()
