"""Frozen records that cross a port between router, drafter and target. They know nothing of protobuf (see wire/codec.py)."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dspark.tree import CandidateTree
from dspark.types import SamplingParams, SessionId

NO_FEATURES = -1
"""`VerifyRequest.features_from` of a session whose drafter reads none, or wants none in this round."""


@dataclass(frozen=True, slots=True)
class FeatureSpec:
    """Which hidden states of the target a session's drafter reads."""

    drafter_fingerprint: str
    """Of the drafter's checkpoint. A target that has loaded its projection answers with projected features, any other with raw taps."""
    tap_layers: tuple[int, ...]
    """Decoder layers whose outputs are read, in growing order; -1 is the embedding. Never the last layer."""


@dataclass(frozen=True, slots=True, eq=False)
class ContextFeatures:
    """What the target saw at consecutive committed positions: a drafter's context."""

    start: int
    """Absolute position of the first row."""
    values: NDArray[np.uint16]  # [k, w] bits of bfloat16; w = d if projected, else m * d (taps side by side)
    projected: bool
    """True: `fc` and norm of the drafter are applied already."""

    @property
    def stop(self) -> int:
        """Position after the last row."""
        return self.start + len(self.values)


@dataclass(frozen=True, slots=True)
class SessionOpen:
    """Router -> target and drafter: all that both need to start, or to rebuild, a session."""

    session_id: SessionId
    token_ids: tuple[int, ...]
    """Prompt and committed tokens so far; the last one is the anchor. Never empty."""
    sampling: SamplingParams
    epoch: int = 0
    """Counts the replicas that this session has lived on; answers of an older epoch are dropped."""
    features: FeatureSpec | None = None
    """For the target: capture these features for as long as the session lives."""


@dataclass(frozen=True, slots=True)
class DraftRequest:
    """Router -> drafter: one session's wish for candidates."""

    session_id: SessionId
    base_length: int
    """Committed length (prompt included) that the draft is to be built on."""
    new_token_ids: tuple[int, ...]
    """Committed since the last request that this drafter answered: a delta, ends at base_length."""
    max_depth: int
    """0 only brings the drafter's state up to date."""
    max_nodes: int
    features: ContextFeatures | None = None
    """Continues what this drafter has; a draft needs all positions before the anchor's."""
    max_width: int = 1
    """Children per node at most; 1 asks for a chain."""


@dataclass(frozen=True, slots=True)
class DraftResult:
    """Drafter -> router."""

    session_id: SessionId
    base_length: int
    tree: CandidateTree


@dataclass(frozen=True, slots=True)
class VerifyRequest:
    """Router -> target: one session's round."""

    session_id: SessionId
    round: int
    """Counts from 0 for each SessionOpen; a repeat of the last one is answered again, anything else is StaleRound."""
    base_length: int
    tree: CandidateTree
    """The selected candidates; may be empty."""
    features_from: int = NO_FEATURES
    """First position whose features are wanted with the result: those up to the new anchor come back."""


@dataclass(frozen=True, slots=True)
class VerifyResult:
    """Target -> router: what the session commits in this round."""

    session_id: SessionId
    round: int
    base_length: int
    accepted: tuple[int, ...]
    """Indices of the accepted nodes of the request's tree, root first."""
    token_ids: tuple[int, ...]
    """Accepted tokens and the bonus token: always one more than `accepted`."""
    features: ContextFeatures | None = None
    """Of the positions from `features_from` up to the new anchor, which is not among them."""


@dataclass(frozen=True, slots=True)
class SessionFailure:
    """Replica -> router: this session cannot go on here; its neighbours can."""

    session_id: SessionId
    error: str
    """Class name in dspark.errors."""
    message: str


@dataclass(frozen=True, slots=True)
class StepReport:
    """Target -> router, after every forward: its results, and what the step cost. Also sent when no result came out of it."""

    results: tuple[VerifyResult, ...] = ()
    failures: tuple[SessionFailure, ...] = ()
    verify_ms: float = 0.0
    """Duration of the forward and the acceptance walk."""
    batch_rows: int = 0
    free_kv_blocks: int = 0
    total_kv_blocks: int = 0


@dataclass(frozen=True, slots=True)
class DraftReport:
    """Drafter -> router: answers to the requests that were waiting together."""

    results: tuple[DraftResult, ...] = ()
    failures: tuple[SessionFailure, ...] = ()
    draft_ms: float = 0.0
