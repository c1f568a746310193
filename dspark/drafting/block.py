"""`block`: the DSpark drafter serving many sessions (paper: "Semi-autoregressive drafter"; without a sequential head, DFlash).

A round costs one forward of the backbone for all waiting sessions together. Keys and values made from the target's features are
paged and stay; those of the block's own rows are scratch. Candidates are chosen level by level as the target chooses its tokens: the
same processors, the same noise (growth.py).

Symbols: S sessions, K block size, R rows: a session's depth each, at most K; C new context positions of all sessions, F rows
of a frontier, V / Vd vocabularies, d hidden size, r rank of the sequential head.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from dspark.devices import on_device
from dspark.drafting.batch import CachedDrafter, DraftSession
from dspark.drafting.block_model import BlockModel
from dspark.drafting.context import DraftContext
from dspark.drafting.features import NO_CONTEXT, FeatureReader, NewContext
from dspark.drafting.growth import Growth
from dspark.messages import DraftRequest, SessionOpen
from dspark.runtime.attention import PackedContext
from dspark.runtime.kv_cache import BlockPool, BlockTable, KvTensors
from dspark.runtime.packed import Segment, pack
from dspark.runtime.projection import FeatureProjection
from dspark.sampling import Sampler
from dspark.scheduling.calibration import Estimator

PART_ROWS = 1024
"""Context positions whose keys and values are made at a time on CPUs: what fits into a cache takes two thirds of the time."""


@dataclass(slots=True)
class _BlockSession(DraftSession):
    """The table's first slots hold the context's keys and values, position by position."""

    num_context: int = 0
    """Positions whose features are cached."""
    news: NewContext = field(default=NO_CONTEXT)
    """To be cached in this round."""

    def forget_cache(self) -> None:
        """See DraftSession. The router sends all features again once it is told."""
        self.num_context = 0


@dataclass(frozen=True, slots=True)
class _Step:
    """What the heads made of one level."""

    logits: torch.Tensor  # [F, Vd]
    confidence_logits: torch.Tensor | None  # [F]
    state: torch.Tensor | None  # [F, r]


class BlockDrafter(CachedDrafter[_BlockSession]):
    """All sessions of one draft replica."""

    def __init__(
        self,
        model: BlockModel,
        projection: FeatureProjection,
        *,
        max_length: int,
        num_cache_tokens: int,
        block_tokens: int,
        estimator: Estimator | None = None,
        min_survival: float = 0.0,
    ) -> None:
        """`model` must have been built with the packed attention; its weights do not change any more."""
        num_blocks = max(1, num_cache_tokens // block_tokens)
        pool = BlockPool(num_blocks, block_tokens)
        device = projection.fc.weight.device
        super().__init__(pool, max_length=max_length, min_survival=min_survival, estimator=estimator, device=device)
        self._model = model
        self._reader = FeatureReader(projection, model.stack.embed_tokens.weight.dtype)
        self._cache = KvTensors(num_blocks * block_tokens)
        self._sampler = Sampler(model.spec.vocab_size, device)

    def _new_session(self, message: SessionOpen, table: BlockTable) -> _BlockSession:
        return _BlockSession(message.session_id, DraftContext.from_open(message), table)

    def _take_in(self, session: _BlockSession, request: DraftRequest) -> None:
        session.num_context = min(session.num_context, session.base_length - 1)
        session.depth = min(session.depth, self._model.spec.block_size)
        session.news = self._reader.new_context(request, session.num_context)
        rows = self._model.spec.block_size if session.depth > 0 else 0
        self._reserve(session, session.news.stop + rows)

    @torch.inference_mode()
    def _run(self, sessions: Sequence[_BlockSession]) -> None:
        self._cache_context([session for session in sessions if len(session.news.vectors)])
        drafting = [session for session in sessions if session.depth > 0]
        if drafting:
            self._hand_out(drafting, self._grown(drafting, self._backbone(drafting)))

    def _cache_context(self, sessions: Sequence[_BlockSession]) -> None:
        """Keys and values of all new context positions, of all sessions together."""
        if not sessions:
            return
        vectors = torch.cat([session.news.vectors for session in sessions]).unsqueeze(0)  # [1, C, d]
        places = [position for s in sessions for position in range(s.news.start, s.news.stop)]
        slots = [slot for s in sessions for slot in s.table.slots(s.news.start, s.news.stop)]
        positions, slot_index = on_device([places, slots], torch.int64, self._device)
        rows = PART_ROWS if self._device.type == "cpu" else len(slots)
        for part in (slice(start, start + rows) for start in range(0, len(slots), rows)):
            self._cache_part(vectors[:, part], positions[part], slot_index[part])
        for session in sessions:
            session.num_context = session.news.stop

    def _cache_part(self, vectors: torch.Tensor, positions: torch.Tensor, slots: torch.Tensor) -> None:  # [1, c, d], 2 x [c]
        rotations = self._model.stack.rotations(vectors, positions.unsqueeze(0))
        for layer, (keys, values) in enumerate(self._model.served_context.keys_values(vectors, rotations)):
            self._cache.write(layer, slots, keys, values)

    def _backbone(self, sessions: Sequence[_BlockSession]) -> torch.Tensor:
        """[R, d]: one forward over all blocks, each of as many positions as its session drafts. What a whole block would say of them is
        worth no more (docs/measurements.md), and shallow drafts are those of loaded targets, where every row counts."""
        mask = self._model.spec.mask_token_id
        assert mask is not None, "a block drafter has a mask token"
        segments = []
        for s in sessions:
            anchor = s.base_length - 1
            stop = anchor + s.depth
            tokens, slots = [s.context.token_ids[-1], *[mask] * (s.depth - 1)], s.table.slots(0, stop)
            segments.append(Segment(tokens, list(range(anchor, stop)), None, slots, anchor, 0, both_ways=True))
        batch = pack(segments, self._device)
        embedded = self._model.stack.embed_tokens(batch.input_ids)
        hidden: torch.Tensor = self._model.stack.run(embedded, batch.position_ids, packed=PackedContext(batch, self._cache))
        return hidden[0]

    def _grown(self, sessions: Sequence[_BlockSession], hidden: torch.Tensor) -> Growth:
        """Trees from the backbone's output [R, d]: siblings share it, and only the small heads run again for each branch."""
        growth = self._growth(sessions, self._sampler)
        base = self._model.base_logits(hidden)  # [R, Vd]
        first_rows = np.cumsum([0, *(session.depth for session in sessions[:-1])])
        anchors = np.asarray([session.context.token_ids[-1] for session in sessions])
        state: torch.Tensor | None = None  # [F, r] of the frontier's rows
        while len(front := growth.frontier):
            token_ids = anchors[front.owners] if front.depth == 0 else front.token_ids
            rows = first_rows[front.owners] + front.depth
            places, before, parents = on_device(np.stack((rows, token_ids, front.parent_rows)), torch.int64, self._device)
            step = self._step(hidden[places], base[places], before, None if state is None else state[parents])
            state = step.state
            growth.extend(self._model.vocabulary.to_target_logits(step.logits), step.confidence_logits)
        return growth

    def _step(self, hidden: torch.Tensor, base: torch.Tensor, token_before: torch.Tensor, state: torch.Tensor | None) -> _Step:
        """One level: `hidden` [F, d] and `base` [F, Vd] of its position, the token before [F], the rnn head's state [F, r]."""
        model = self._model
        embedded = None
        if model.markov_head is not None:
            step = model.markov_head(hidden, token_before, state)
            base, embedded, state = base.float() + step.bias, step.embedded, step.state  # not rounded a second time
        confidence = None if model.confidence_head is None else model.confidence_head(hidden, embedded)
        return _Step(base, confidence, state)
