"""`eagle`: an EAGLE-3-style drafter serving many sessions, one row per session and position (Li et al., arXiv 2503.01840).

Row t reads the features of position t and the token at t + 1. Rows of committed positions are paged and stay; those of a draft, which
read their parent's own output instead of features, are scratch. Candidates are chosen as the target chooses its tokens (growth.py).

Symbols: S sessions, R rows, F rows of a frontier, V / Vd vocabularies, d hidden size.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from dspark.devices import on_device
from dspark.drafting.batch import CachedDrafter, DraftSession
from dspark.drafting.context import DraftContext
from dspark.drafting.eagle_model import EagleModel
from dspark.drafting.features import NO_CONTEXT, FeatureReader, NewContext
from dspark.drafting.grown_rows import GrownRows, most_rows
from dspark.messages import DraftRequest, SessionOpen
from dspark.runtime.attention import PackedContext
from dspark.runtime.kv_cache import BlockPool, BlockTable, KvTensors
from dspark.runtime.packed import Segment, pack
from dspark.runtime.projection import FeatureProjection
from dspark.sampling import Sampler
from dspark.scheduling.calibration import Estimator


@dataclass(slots=True)
class _EagleSession(DraftSession):
    """The table's first slots hold rows 0, 1, 2, ... of committed positions."""

    num_rows: int = 0
    news: NewContext = field(default=NO_CONTEXT)
    last_output: torch.Tensor | None = None  # [d] layer output of the last committed row: where a draft begins

    def forget_cache(self) -> None:
        """See DraftSession. The router sends all features again once it is told."""
        self.num_rows = 0
        self.last_output = None

    def context_segment(self) -> Segment:
        """Rows of the new positions, each with the committed token after it."""
        start, stop = self.news.start, self.news.stop
        tokens = self.context.token_ids[start + 1 : stop + 1]
        return Segment(tokens, list(range(start, stop)), None, self.table.slots(0, stop), start, 0)

    @property
    def num_committed_rows(self) -> int:
        """See GrownRows."""
        return self.num_rows


class EagleDrafter(CachedDrafter[_EagleSession]):
    """All sessions of one draft replica."""

    def __init__(
        self,
        model: EagleModel,
        projection: FeatureProjection,
        *,
        max_length: int,
        num_cache_tokens: int,
        block_tokens: int,
        min_survival: float = 0.0,
        estimator: Estimator | None = None,
    ) -> None:
        """`model` must have been built with the packed attention."""
        num_blocks = max(1, num_cache_tokens // block_tokens)
        pool = BlockPool(num_blocks, block_tokens)
        device = projection.fc.weight.device
        super().__init__(pool, max_length=max_length, min_survival=min_survival, estimator=estimator, device=device)
        self._model = model
        self._reader = FeatureReader(projection, model.stack.embed_tokens.weight.dtype)
        self._cache = KvTensors(num_blocks * block_tokens)
        self._sampler = Sampler(model.spec.vocab_size, device)

    def _new_session(self, message: SessionOpen, table: BlockTable) -> _EagleSession:
        return _EagleSession(message.session_id, DraftContext.from_open(message), table)

    def _take_in(self, session: _EagleSession, request: DraftRequest) -> None:
        if session.num_rows > session.base_length - 1:  # an older request again: its last row is not the one remembered
            session.forget_cache()
        session.news = self._reader.new_context(request, session.num_rows)
        session.depth = session.depth if session.news.stop > 0 else 0  # an anchor without context has no row to begin with
        scratch = most_rows(session.depth, session.max_nodes, session.max_width)
        self._reserve(session, session.news.stop + scratch)

    @torch.inference_mode()
    def _run(self, sessions: Sequence[_EagleSession]) -> None:
        self._cache_rows([session for session in sessions if len(session.news.vectors)])
        growing = [session for session in sessions if session.depth > 0]
        if not growing:
            return
        growth, rows = self._growth(growing, self._sampler), GrownRows(growing)
        hidden = torch.stack([session.last_output for session in growing if session.last_output is not None])  # [F, d]
        growth.extend(self._logits(hidden))
        while len(front := growth.frontier):
            hidden = self._rows(rows.segments(front), hidden[on_device(front.parent_rows, torch.int64, self._device)])
            growth.extend(self._logits(hidden))
        self._hand_out(growing, growth)

    def _logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """[F, V] of layer output [F, d]."""
        return self._model.vocabulary.to_target_logits(self._model.logits(hidden))

    def _cache_rows(self, sessions: Sequence[_EagleSession]) -> None:
        """One forward over the new rows of all sessions; the last output of each is kept."""
        if not sessions:
            return
        segments = [session.context_segment() for session in sessions]
        outputs = self._rows(segments, torch.cat([session.news.vectors for session in sessions]))
        stop = 0
        for session, segment in zip(sessions, segments, strict=True):
            stop += len(segment.token_ids)
            session.last_output = outputs[stop - 1].clone()
            session.num_rows = session.news.stop

    def _rows(self, segments: list[Segment], features: torch.Tensor) -> torch.Tensor:
        """[R, d] layer output of all rows of the segments, whose features are [R, d]."""
        batch = pack(segments, self._device)
        context = PackedContext(batch, self._cache)
        return self._model.rows(batch.input_ids, features.unsqueeze(0), batch.position_ids, packed=context)[0]
