"""Hello and welcome: what router and replica tell each other when they meet, and whether they belong together.

A target's welcome also brings its throughput curve, a drafter's what some of its calls took, where they have it. Everything read is
checked.
"""

import math
from collections.abc import Sequence

import numpy as np

from dspark.errors import FingerprintMismatch, InvalidMessage
from dspark.scheduling.curve import MAX_POINTS, ThroughputCurve
from dspark.scheduling.draft_cost import DraftCall
from dspark.types import ModelCard, ReplicaId
from dspark.wire import features, tensors
from dspark.wire.checks import MAX_INT32, name_from_pb, within
from dspark.wire.pb import session_pb2

PROTOCOL_VERSION = "dspark.v1"


MAX_CALLS = 256


def welcome_to_pb(
    card: ModelCard, replica_id: ReplicaId, curve: ThroughputCurve | None = None, calls: Sequence[DraftCall] = ()
) -> session_pb2.Welcome:
    """What a replica says of itself. Unchecked."""
    return session_pb2.Welcome(
        protocol=PROTOCOL_VERSION,
        replica_id=replica_id,
        model_name=card.name,
        vocab_size=card.vocab_size,
        max_length=card.max_length,
        eos_token_ids=card.eos_token_ids,
        model_fingerprint=card.model_fingerprint,
        tokenizer_fingerprint=card.tokenizer_fingerprint,
        tap_layers=card.tap_layers,
        curve=None if curve is None else curve_to_pb(curve),
        draft_calls=[
            session_pb2.DraftCall(sessions=c.num_sessions, depth=c.depth, draft_ms=c.draft_ms, news=c.num_news) for c in calls
        ],
    )


def welcome_from_pb(message: session_pb2.Welcome) -> tuple[ModelCard, ReplicaId]:
    """Raises InvalidMessage, naming the field. The protocol is for the caller to compare, the rest for `curve_of_welcome` and
    `calls_of_welcome`."""
    for field in ("replica_id", "model_name"):
        name_from_pb(field, getattr(message, field))
    for field in ("model_fingerprint", "tokenizer_fingerprint"):
        name_from_pb(field, getattr(message, field), min_chars=0)
    within("vocab_size", message.vocab_size, 1, MAX_INT32)
    within("max_length", message.max_length, 1, MAX_INT32)
    for token_id in message.eos_token_ids:
        within("eos_token_ids", token_id, 0, message.vocab_size - 1)
    card = ModelCard(
        message.model_name,
        message.vocab_size,
        message.max_length,
        tuple(message.eos_token_ids),
        message.model_fingerprint,
        message.tokenizer_fingerprint,
        features.tap_layers_from_pb(message.tap_layers, "tap_layers"),
    )
    return card, ReplicaId(message.replica_id)


def check_match(hello: session_pb2.Hello, welcome: session_pb2.Welcome) -> None:
    """Raises FingerprintMismatch with both values; what the router left empty it does not know yet, and takes as it is."""
    for name, expected, actual in (
        ("protocol", hello.protocol, welcome.protocol),
        ("model", hello.model_fingerprint or welcome.model_fingerprint, welcome.model_fingerprint),
        ("tokenizer", hello.tokenizer_fingerprint or welcome.tokenizer_fingerprint, welcome.tokenizer_fingerprint),
    ):
        if expected != actual:
            raise FingerprintMismatch(f"{name}: the router expects {expected[:128]!r}, the replica has {actual[:128]!r}")


def curve_to_pb(curve: ThroughputCurve) -> session_pb2.ThroughputCurve:
    """Unchecked. Rounding to float32 keeps order."""
    return session_pb2.ThroughputCurve(
        rows=tensors.to_pb(curve.rows.astype(np.int32)),
        context_tokens=tensors.to_pb(curve.context_tokens.astype(np.int32)),
        step_ms=tensors.to_pb(curve.step_ms.astype(np.float32)),
    )


def curve_of_welcome(message: session_pb2.Welcome) -> ThroughputCurve | None:
    """The replica's curve, if it has one. Raises InvalidMessage, naming the field."""
    if not message.HasField("curve"):
        return None
    rows = tensors.ints_from_pb(message.curve.rows, "curve.rows")
    context_tokens = tensors.ints_from_pb(message.curve.context_tokens, "curve.context_tokens")
    step_ms = tensors.from_pb(message.curve.step_ms, "curve.step_ms", tensors.FLOAT32, 2)
    if max(rows.size, context_tokens.size, step_ms.size) > MAX_POINTS:
        raise InvalidMessage(f"curve has more than {MAX_POINTS} points", "curve")
    curve = ThroughputCurve(rows.astype(np.int64), context_tokens.astype(np.int64), step_ms.astype(np.float64))
    try:
        curve.check()
    except InvalidMessage as error:
        raise InvalidMessage(f"curve.{error.message}", f"curve.{error.field}") from error
    return curve


def calls_of_welcome(message: session_pb2.Welcome) -> tuple[DraftCall, ...]:
    """What some of the replica's calls took; none where it does not say. Raises InvalidMessage, naming the field."""
    if len(message.draft_calls) > MAX_CALLS:
        raise InvalidMessage(f"draft_calls has more than {MAX_CALLS} calls", "draft_calls")
    for call in message.draft_calls:
        for name, least in (("sessions", 1), ("depth", 1), ("news", 0)):
            within(f"draft_calls.{name}", getattr(call, name), least, MAX_INT32)
        if not (math.isfinite(call.draft_ms) and call.draft_ms >= 0):
            raise InvalidMessage("draft_calls.draft_ms must be a time", "draft_calls.draft_ms")
    return tuple(DraftCall(call.sessions, call.depth, call.draft_ms, call.news) for call in message.draft_calls)
