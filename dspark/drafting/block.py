"""`block`: the DSpark drafter serving many sessions (paper: "Semi-autoregressive drafter"; without a sequential head, DFlash).

A round costs one forward of the backbone for all waiting sessions together. Keys and values made from the target's features are
paged and stay; those of the block's own rows are scratch. Tokens are chosen left to right as the target chooses them: the same
processors, the same noise (DESIGN section 4).

Symbols: S sessions, K block size, R = S * K rows, C new context positions of all sessions, V / Vd vocabularies, d hidden size.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from dspark.drafting.batch import UNKNOWN, CachedDrafter, Chain, DraftSession
from dspark.drafting.block_model import BlockModel
from dspark.drafting.context import DraftContext
from dspark.drafting.features import NO_CONTEXT, FeatureReader, NewContext
from dspark.messages import DraftRequest, SessionOpen
from dspark.runtime.attention import PackedContext
from dspark.runtime.kv_cache import BlockPool, BlockTable, KvTensors
from dspark.runtime.packed import Segment, pack
from dspark.runtime.projection import FeatureProjection
from dspark.sampling import RowSampling, Sampler
from dspark.scheduling.calibration import DraftSignals, Estimator
from dspark.types import SamplingParams


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
class _Chains:
    """What the heads made of S blocks."""

    token_ids: list[list[int]]  # [S][K]
    gaps: torch.Tensor  # [S, K]
    confidence_logits: torch.Tensor  # [S, K] NaN without a confidence head
    log_draft_probs: torch.Tensor  # [S, K] NaN where nobody listens


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
        """`model` must have been built with the packed attention; `estimator` turns its confidence into survival."""
        num_blocks = max(1, num_cache_tokens // block_tokens)
        super().__init__(BlockPool(num_blocks, block_tokens), max_length=max_length, min_survival=min_survival)
        self._model = model
        self._reader = FeatureReader(projection)
        self._estimator = estimator if model.confidence_head is not None else None
        self._cache = KvTensors(num_blocks * block_tokens)
        self._device = projection.fc.weight.device
        self._sampler = Sampler(model.spec.vocab_size, self._device)

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
            self._settle(drafting, self._chains(drafting, self._backbone(drafting)))

    def _cache_context(self, sessions: Sequence[_BlockSession]) -> None:
        """Keys and values of all new context positions, of all sessions together."""
        if not sessions:
            return
        vectors = torch.cat([session.news.vectors for session in sessions]).unsqueeze(0)  # [1, C, d]
        places = [position for s in sessions for position in range(s.news.start, s.news.stop)]
        slots = [slot for s in sessions for slot in s.table.slots(s.news.start, s.news.stop)]
        rotations = self._model.stack.rotations(vectors, torch.tensor([places], device=self._device))
        slot_index = torch.tensor(slots, device=self._device)
        for layer in range(len(self._model.layers)):
            keys, values = self._model.stack.context_keys_values(layer, vectors, rotations)
            self._cache.write(layer, slot_index, keys[0].transpose(0, 1), values[0].transpose(0, 1))
        for session in sessions:
            session.num_context = session.news.stop

    def _backbone(self, sessions: Sequence[_BlockSession]) -> torch.Tensor:
        """[S, K, d]: one forward over all blocks."""
        spec = self._model.spec
        assert spec.mask_token_id is not None, "a block drafter has a mask token"
        masks = [spec.mask_token_id] * (spec.block_size - 1)
        segments = []
        for s in sessions:
            anchor = s.base_length - 1
            stop = anchor + spec.block_size
            slots = s.table.slots(0, stop)
            segments.append(
                Segment([s.context.token_ids[-1], *masks], list(range(anchor, stop)), None, slots, anchor, 0, both_ways=True)
            )
        batch = pack(segments, self._device)
        embedded = self._model.stack.embed_tokens(batch.input_ids)
        hidden = self._model.stack.run(embedded, batch.position_ids, packed=PackedContext(batch, self._cache))
        return hidden.view(len(sessions), spec.block_size, -1)

    def _chains(self, sessions: Sequence[_BlockSession], hidden: torch.Tensor) -> _Chains:
        """Left to right: add the sequential head's bias, choose, go on from the choice."""
        model, depth = self._model, max(session.depth for session in sessions)
        hidden = hidden[:, :depth]
        base = model.base_logits(hidden)  # [S, depth, Vd]
        token_before = torch.tensor([session.context.token_ids[-1] for session in sessions], device=self._device)
        state: torch.Tensor | None = None
        tokens, gaps, embedded, log_probs = [], [], [], []
        self._make_noise(sessions, self._sampler)
        for k in range(depth):
            logits = base[:, k]
            if model.markov_head is not None:
                step = model.markov_head(hidden[:, k], token_before, state)
                logits, state = logits + step.bias, step.state
                embedded.append(step.embedded)
            rows = [RowSampling(session.context.sampling, session.base_length + k) for session in sessions]
            logits = model.vocabulary.to_target_logits(logits)
            choice = self._sampler.choose_with_gaps(logits, rows)
            log_probs.append(self._log_draft_probs(logits, choice.token_ids))
            token_before = choice.token_ids
            tokens.append(choice.token_ids)
            gaps.append(choice.gaps)
        confidence = self._confidence(hidden, torch.stack(embedded, 1) if embedded else None)
        return _Chains(torch.stack(tokens, 1).tolist(), torch.stack(gaps, 1), confidence, torch.stack(log_probs, 1))

    def _confidence(self, hidden: torch.Tensor, embedded: torch.Tensor | None) -> torch.Tensor:
        """[S, depth] logits of all positions at once, for `hidden` [S, depth, d] and W1 of the tokens before [S, depth, r]."""
        if self._model.confidence_head is None:
            return torch.full(hidden.shape[:2], UNKNOWN)
        logits: torch.Tensor = self._model.confidence_head(hidden, embedded)
        return logits

    def _settle(self, sessions: Sequence[_BlockSession], chains: _Chains) -> None:
        """Hand out tokens and survival."""
        confidence, gaps, log_probs = (t.float().cpu().numpy() for t in (chains.confidence_logits, chains.gaps, chains.log_draft_probs))
        for index, session in enumerate(sessions):
            depth = session.depth
            signals = DraftSignals(gaps[index : index + 1, :depth], log_probs[index : index + 1, :depth])
            survival = self._survival(confidence[index : index + 1, :depth], session.context.sampling, signals).tolist()
            tokens = chains.token_ids[index][:depth]
            rows = (values[index, :depth].tolist() for values in (gaps, log_probs, confidence))
            session.chain = Chain(tokens, survival, *rows)

    def _survival(self, confidence: np.ndarray, sampling: SamplingParams, signals: DraftSignals) -> np.ndarray:
        """[depth] by the calibrated confidence head; without one, from how clear each choice was."""
        if self._estimator is not None:
            survival: np.ndarray = self._estimator.survival(confidence, sampling.temperature, signals)[0]
            return survival
        return np.cumprod(1 / (1 + np.exp(-signals.gaps[0].astype(np.float64))))
