"""The records of messages.py <-> protobuf. Every `*_from_pb` checks what it reads; nothing behind it has to check again.

It looks at one message at a time. What needs memory (who owns a session, which round is next) is the server's and the replica's.
"""

from collections.abc import Callable, Iterable
from typing import TypeVar

from dspark import errors
from dspark.errors import DSparkError, InvalidMessage, ProtocolError
from dspark.messages import (
    NO_FEATURES,
    DraftReport,
    DraftRequest,
    DraftResult,
    SessionFailure,
    SessionOpen,
    StepReport,
    VerifyRequest,
    VerifyResult,
)
from dspark.tree import CandidateTree
from dspark.types import SessionId
from dspark.wire import features, tensors
from dspark.wire.checks import (
    MAX_ENTRIES,
    MAX_INT32,
    MAX_TEXT_CHARS,
    MAX_TREE_DEPTH,
    MAX_TREE_WIDTH,
    Bounds,
    is_session_id,
    milliseconds,
    session_id_from_pb,
    token_ids_from_pb,
    within,
)
from dspark.wire.pb import drafting_pb2, session_pb2, verification_pb2
from dspark.wire.sampling import sampling_from_pb, sampling_to_pb

_EntryPb = TypeVar(
    "_EntryPb", verification_pb2.VerifyRequest, verification_pb2.VerifyResult, drafting_pb2.DraftRequest, drafting_pb2.DraftResult
)
_Entry = TypeVar("_Entry")


# Sessions


def session_open_to_pb(session: SessionOpen) -> session_pb2.SessionOpen:
    """Unchecked: own records are right by construction."""
    return session_pb2.SessionOpen(
        session_id=session.session_id,
        token_ids=tensors.ints_to_pb(session.token_ids),
        sampling=sampling_to_pb(session.sampling),
        epoch=session.epoch,
        features=None if session.features is None else features.spec_to_pb(session.features),
    )


def session_open_from_pb(message: session_pb2.SessionOpen, bounds: Bounds) -> SessionOpen:
    """Raises InvalidMessage, naming the field."""
    session_id = session_id_from_pb(message.session_id)
    token_ids = token_ids_from_pb(message.token_ids, bounds, "token_ids")
    if not 1 <= len(token_ids) <= bounds.max_length:
        raise InvalidMessage(f"token_ids must hold 1 to {bounds.max_length} tokens", "token_ids")
    within("epoch", message.epoch, 0, MAX_INT32)
    if not message.HasField("sampling"):
        raise InvalidMessage("sampling is missing", "sampling")
    spec = features.spec_from_pb(message.features) if message.HasField("features") else None
    return SessionOpen(session_id, token_ids, sampling_from_pb(message.sampling), message.epoch, spec)


# Failures


def error_class(name: str) -> type[DSparkError]:
    """The class in dspark.errors of that name; ProtocolError for any other name, whatever else the module holds."""
    kind = getattr(errors, name, None)
    return kind if isinstance(kind, type) and issubclass(kind, DSparkError) else ProtocolError


def failure_of(session_id: SessionId, error: Exception) -> SessionFailure:
    """What a peer may know of an error: text only of those raised on purpose."""
    if isinstance(error, DSparkError):
        return SessionFailure(session_id, type(error).__name__, error.message[:MAX_TEXT_CHARS])
    return SessionFailure(session_id, DSparkError.__name__, "internal error")


def failure_to_pb(failure: SessionFailure) -> session_pb2.SessionFailure:
    """Unchecked."""
    return session_pb2.SessionFailure(session_id=failure.session_id, error=failure.error, message=failure.message)


def failure_from_pb(message: session_pb2.SessionFailure) -> SessionFailure:
    """Its error is the name of a DSparkError after this, its text short and printable."""
    session_id = session_id_from_pb(message.session_id)
    text = "".join(char if char.isprintable() else " " for char in message.message[:MAX_TEXT_CHARS])
    return SessionFailure(session_id, error_class(message.error).__name__, text)


def _failures(messages: Iterable[session_pb2.SessionFailure]) -> list[SessionFailure]:
    return [failure_from_pb(message) for message in messages if is_session_id(message.session_id)]


# Verification


def verify_batch_to_pb(requests: Iterable[VerifyRequest]) -> verification_pb2.VerifyBatch:
    """Unchecked."""
    batch = verification_pb2.VerifyBatch()
    for request in requests:
        batch.requests.add(
            session_id=request.session_id,
            round=request.round,
            base_length=request.base_length,
            tree=_tree_to_pb(request.tree),
            features_from=None if request.features_from == NO_FEATURES else request.features_from,
        )
    return batch


def verify_batch_from_pb(message: verification_pb2.VerifyBatch, bounds: Bounds) -> tuple[list[VerifyRequest], list[SessionFailure]]:
    """The requests that fit, and a failure for each one that does not; its neighbours are unharmed."""
    return _each(message.requests, verify_request_from_pb, bounds)


def verify_request_from_pb(message: verification_pb2.VerifyRequest, bounds: Bounds) -> VerifyRequest:
    """Raises InvalidMessage, naming the field."""
    session_id = session_id_from_pb(message.session_id)
    within("round", message.round, 0, MAX_INT32)
    within("base_length", message.base_length, 1, bounds.max_length)
    features_from = NO_FEATURES
    if message.HasField("features_from"):
        features_from = message.features_from
        within("features_from", features_from, 0, message.base_length - 1)
    return VerifyRequest(session_id, message.round, message.base_length, _tree(message.tree, bounds), features_from)


def step_report_to_pbs(report: StepReport) -> list[verification_pb2.StepReport]:
    """Unchecked. One message, or several where the features need them: the last one is the report, those before hold pieces only."""
    *before, last = features.report_chunks(report)
    whole = step_report_to_pb(report)
    whole.features.extend(last)
    return [*(verification_pb2.StepReport(features=chunks, partial=True) for chunks in before), whole]


def step_report_to_pb(report: StepReport) -> verification_pb2.StepReport:
    """Unchecked. Without the features."""
    message = verification_pb2.StepReport(
        failures=[failure_to_pb(failure) for failure in report.failures],
        verify_ms=report.verify_ms,
        batch_rows=report.batch_rows,
        free_kv_blocks=report.free_kv_blocks,
        total_kv_blocks=report.total_kv_blocks,
    )
    for result in report.results:
        message.results.add(
            session_id=result.session_id,
            round=result.round,
            base_length=result.base_length,
            accepted=tensors.ints_to_pb(result.accepted),
            token_ids=tensors.ints_to_pb(result.token_ids),
        )
    return message


def step_report_from_pb(message: verification_pb2.StepReport, bounds: Bounds) -> StepReport:
    """A result that does not fit becomes a failure of its session. Raises InvalidMessage if the step's own numbers do not."""
    milliseconds("verify_ms", message.verify_ms)
    within("batch_rows", message.batch_rows, 0, MAX_INT32)
    within("total_kv_blocks", message.total_kv_blocks, 0, MAX_INT32)
    within("free_kv_blocks", message.free_kv_blocks, 0, message.total_kv_blocks)
    results, refused = _each(message.results, verify_result_from_pb, bounds)
    failures = (*_failures(message.failures), *refused)
    return StepReport(tuple(results), failures, message.verify_ms, message.batch_rows, message.free_kv_blocks, message.total_kv_blocks)


def verify_result_from_pb(message: verification_pb2.VerifyResult, bounds: Bounds) -> VerifyResult:
    """Raises InvalidMessage, naming the field."""
    session_id = session_id_from_pb(message.session_id)
    within("round", message.round, 0, MAX_INT32)
    within("base_length", message.base_length, 1, bounds.max_length)
    accepted = tuple(tensors.ints_from_pb(message.accepted, "accepted").tolist())
    # Root first, and a parent stands before its children: so the indices of a path can only grow.
    if any(after <= before for before, after in zip((-1, *accepted), accepted, strict=False)):
        raise InvalidMessage("accepted must be node indices in growing order", "accepted")
    if accepted and accepted[-1] >= bounds.max_nodes:
        raise InvalidMessage(f"accepted must be below {bounds.max_nodes}", "accepted")
    token_ids = token_ids_from_pb(message.token_ids, bounds, "token_ids")
    if len(token_ids) != len(accepted) + 1:
        raise InvalidMessage("token_ids must be one more than accepted", "token_ids")
    return VerifyResult(session_id, message.round, message.base_length, accepted, token_ids)


# Drafting


def draft_batch_to_pb(batch_id: int, requests: Iterable[DraftRequest]) -> drafting_pb2.DraftBatch:
    """Unchecked."""
    batch = drafting_pb2.DraftBatch(batch_id=batch_id)
    for request in requests:
        batch.requests.add(
            session_id=request.session_id,
            base_length=request.base_length,
            new_token_ids=tensors.ints_to_pb(request.new_token_ids),
            max_depth=request.max_depth,
            max_nodes=request.max_nodes,
            max_width=request.max_width,
            features=None if request.features is None else features.features_to_pb(request.features),
        )
    return batch


def draft_batch_from_pb(message: drafting_pb2.DraftBatch, bounds: Bounds) -> tuple[list[DraftRequest], list[SessionFailure]]:
    """The requests that fit, and a failure for each one that does not. Raises InvalidMessage for a `batch_id` below 1."""
    within("batch_id", message.batch_id, 1, 2**63 - 1)
    return _each(message.requests, draft_request_from_pb, bounds)


def draft_request_from_pb(message: drafting_pb2.DraftRequest, bounds: Bounds) -> DraftRequest:
    """Raises InvalidMessage, naming the field."""
    session_id = session_id_from_pb(message.session_id)
    within("base_length", message.base_length, 1, bounds.max_length)
    within("max_depth", message.max_depth, 0, MAX_TREE_DEPTH)
    within("max_nodes", message.max_nodes, 0, bounds.max_nodes)
    max_width = message.max_width if message.HasField("max_width") else 1
    within("max_width", max_width, 1, MAX_TREE_WIDTH)
    new_token_ids = token_ids_from_pb(message.new_token_ids, bounds, "new_token_ids")
    if len(new_token_ids) > message.base_length:
        raise InvalidMessage("new_token_ids must not be longer than base_length", "new_token_ids")
    context = None
    if message.HasField("features"):
        context = features.draft_features_from_pb(message.features, message.base_length, bounds)
    return DraftRequest(session_id, message.base_length, new_token_ids, message.max_depth, message.max_nodes, context, max_width)


def draft_report_to_pb(batch_id: int, report: DraftReport) -> drafting_pb2.DraftReport:
    """Unchecked."""
    message = drafting_pb2.DraftReport(
        batch_id=batch_id, failures=[failure_to_pb(failure) for failure in report.failures], draft_ms=report.draft_ms
    )
    for result in report.results:
        message.results.add(session_id=result.session_id, base_length=result.base_length, tree=_tree_to_pb(result.tree))
    return message


def draft_report_from_pb(message: drafting_pb2.DraftReport, bounds: Bounds) -> DraftReport:
    """A result that does not fit becomes a failure of its session. Raises InvalidMessage if `draft_ms` does not fit."""
    milliseconds("draft_ms", message.draft_ms)
    results, refused = _each(message.results, draft_result_from_pb, bounds)
    return DraftReport(tuple(results), (*_failures(message.failures), *refused), message.draft_ms)


def draft_result_from_pb(message: drafting_pb2.DraftResult, bounds: Bounds) -> DraftResult:
    """Raises InvalidMessage, naming the field."""
    session_id = session_id_from_pb(message.session_id)
    within("base_length", message.base_length, 1, bounds.max_length)
    return DraftResult(session_id, message.base_length, _tree(message.tree, bounds))


# Parts


def _each(
    messages: Iterable[_EntryPb], decode: Callable[[_EntryPb, Bounds], _Entry], bounds: Bounds
) -> tuple[list[_Entry], list[SessionFailure]]:
    """Decode entry by entry. One whose session cannot even be named is left out: there is nobody to tell."""
    good: list[_Entry] = []
    refused: list[SessionFailure] = []
    for count, message in enumerate(messages):
        if count >= MAX_ENTRIES:
            raise InvalidMessage(f"more than {MAX_ENTRIES} entries in one message")
        try:
            good.append(decode(message, bounds))
        except InvalidMessage as error:
            if is_session_id(message.session_id):
                refused.append(failure_of(SessionId(message.session_id), error))
    return good, refused


def _tree_to_pb(tree: CandidateTree) -> session_pb2.Tree:
    return session_pb2.Tree(
        token_ids=tensors.ints_to_pb(tree.token_ids),
        parents=tensors.ints_to_pb(tree.parents),
        scores=tensors.floats_to_pb(tree.scores),
    )


def _tree(message: session_pb2.Tree, bounds: Bounds) -> CandidateTree:
    # Copies, because torch warns of arrays it may not write to; a tree is at most a few kilobytes.
    tree = CandidateTree(
        tensors.ints_from_pb(message.token_ids, "tree.token_ids").copy(),
        tensors.ints_from_pb(message.parents, "tree.parents").copy(),
        tensors.floats_from_pb(message.scores, "tree.scores").copy(),
    )
    tree.check(bounds.vocab_size, bounds.max_nodes)
    return tree
