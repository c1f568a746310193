"""Frozen records that cross a port between router, drafter and target. They know nothing of protobuf (see wire/codec.py)."""

from dataclasses import dataclass, field

from dspark.tree import CandidateTree
from dspark.types import SamplingParams, SessionId


@dataclass(frozen=True, slots=True)
class SessionOpen:
    """Router -> target and drafter: all that both need to start, or to rebuild, a session."""

    session_id: SessionId
    token_ids: tuple[int, ...]
    """Prompt and committed tokens so far; the last one is the anchor. Never empty."""
    sampling: SamplingParams
    epoch: int = 0
    """Counts the replicas that this session has lived on; answers of an older epoch are dropped."""


@dataclass(frozen=True, slots=True)
class DraftRequest:
    """Router -> drafter: one session's wish for candidates."""

    session_id: SessionId
    base_length: int
    """Committed length (prompt included) that the draft is to be built on."""
    new_token_ids: tuple[int, ...]
    """Committed since the last request that this drafter answered: a delta, ends at base_length."""
    max_depth: int
    max_nodes: int


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


@dataclass(frozen=True, slots=True)
class Plan:
    """Planner -> lane: which nodes of which session are worth their place in the next step."""

    kept: dict[SessionId, list[int]] = field(default_factory=dict)
    batch_tokens: int = 0
    """Rows of the step: one per session and one per kept node."""
    expected_tokens: float = 0.0
    """Sum of 1 + kept survivals: what the step is expected to commit."""
