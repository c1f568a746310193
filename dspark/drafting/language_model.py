"""`language_model`: any causal LM with the target's tokenizer grows trees, level by level, for all waiting sessions together.

It chooses as the target chooses: the same processors, the same noise (growth.py). Its keys and values are paged and keep what was
right of the last draft where that was a chain, so that a round runs only the rows it never saw.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from dspark.drafting.batch import CachedDrafter, DraftSession
from dspark.drafting.context import DraftContext
from dspark.drafting.grown_rows import GrownRows, most_rows
from dspark.messages import DraftRequest, SessionOpen
from dspark.runtime.kv_cache import BlockTable
from dspark.runtime.model import PackedModel
from dspark.runtime.packed import Segment
from dspark.sampling import Sampler
from dspark.scheduling.calibration import Estimator


@dataclass(slots=True)
class _TokenSession(DraftSession):
    """Committed tokens, and which tokens the cache really holds."""

    cached_ids: list[int] = field(default_factory=list)
    """Tokens whose keys and values stand in the table's first slots: committed ones, then those of the last draft."""

    def forget_cache(self) -> None:
        """See DraftSession."""
        self.cached_ids.clear()

    @property
    def num_committed_rows(self) -> int:
        """See GrownRows: all committed tokens are cached once the anchor was run."""
        return self.base_length

    def keep_common_prefix(self) -> None:
        """Forget cached tokens that were not committed; the anchor is always run again, for its logits."""
        tokens = self.context.token_ids
        limit = min(len(self.cached_ids), len(tokens) - 1)
        if self.cached_ids[:limit] != tokens[:limit]:
            limit = next(i for i in range(limit) if self.cached_ids[i] != tokens[i])
        del self.cached_ids[limit:]

    def committed_segment(self, num_rows: int, *, with_logits: bool) -> Segment:
        """The next `num_rows` committed tokens without keys and values."""
        cached = len(self.cached_ids)
        tokens = self.context.token_ids[cached : cached + num_rows]
        stop = cached + len(tokens)
        return Segment(tokens, list(range(cached, stop)), None, self.table.slots(0, stop), cached, 1 if with_logits else 0)


class BatchDrafter(CachedDrafter[_TokenSession]):
    """All sessions of one draft replica."""

    def __init__(
        self,
        model: PackedModel,
        *,
        max_length: int,
        max_batch_rows: int = 512,
        min_survival: float = 0.0,
        estimator: Estimator | None = None,
    ) -> None:
        super().__init__(model.pool, max_length=max_length, min_survival=min_survival, estimator=estimator, device=model.device)
        self._model = model
        self._sampler = Sampler(model.vocab_size, model.device)
        self._max_batch_rows = max_batch_rows

    def _new_session(self, message: SessionOpen, table: BlockTable) -> _TokenSession:
        return _TokenSession(message.session_id, DraftContext.from_open(message), table)

    def _take_in(self, session: _TokenSession, request: DraftRequest) -> None:
        session.keep_common_prefix()
        self._reserve(session, session.base_length + most_rows(session.depth, session.max_nodes, session.max_width))

    def _run(self, sessions: Sequence[_TokenSession]) -> None:
        self._prefill(sessions)
        growing = [session for session in sessions if session.depth > 0]
        if growing:
            self._grow(growing)

    def _prefill(self, sessions: Sequence[_TokenSession]) -> None:
        """Cache every committed token before the anchor, except where few enough are left to ride with it."""
        for session in sessions:
            while (left := len(session.context.token_ids) - 1 - len(session.cached_ids)) > 0:
                if session.depth > 0 and left < self._max_batch_rows // max(1, len(sessions)):
                    break
                segment = session.committed_segment(min(left, self._max_batch_rows), with_logits=False)
                self._model.forward([segment])
                session.cached_ids.extend(segment.token_ids)

    def _grow(self, sessions: Sequence[_TokenSession]) -> None:
        """One forward per level, the first over the anchors and what else is uncached."""
        segments = [session.committed_segment(self._max_batch_rows, with_logits=True) for session in sessions]
        growth, rows = self._growth(sessions, self._sampler), GrownRows(sessions)
        growth.extend(self._model.forward(segments))
        for session in sessions:
            session.cached_ids = list(session.context.token_ids)
        while len(front := growth.frontier):
            growth.extend(self._model.forward(rows.segments(front)))
        self._hand_out(sessions, growth)
        for owner, session in enumerate(sessions):
            tree = session.draft.tree
            if tree.is_chain and rows.has_one_a_level(owner):  # its last token was never run
                session.cached_ids += tree.token_ids[:-1].tolist()
