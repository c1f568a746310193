"""Features on the wire: records <-> protobuf with every check, large ones cut into pieces for the way and joined again.

A message carries at most about MESSAGE_BYTES of features, so that neither heartbeats nor other sessions' results wait long behind
a prompt. On the way back a target's pieces are taken only for rounds that asked for them; pieces that do not fit cost their
session's drafts, never its tokens.

Symbols: k rows of a piece, w width of a row.
"""

import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from dspark.errors import InvalidMessage
from dspark.messages import NO_FEATURES, ContextFeatures, DraftRequest, FeatureSpec, StepReport, VerifyRequest, VerifyResult
from dspark.types import SessionId
from dspark.wire import tensors
from dspark.wire.checks import Bounds, is_session_id, name_from_pb, within
from dspark.wire.pb.session_pb2 import FeatureChunk
from dspark.wire.pb.session_pb2 import FeatureSpec as FeatureSpecPb

logger = logging.getLogger(__name__)

MESSAGE_BYTES = 4 * 1024 * 1024
"""Of features in one message."""
MAX_WIDTH = 2**18
"""Of a row: 16 taps of a model twice as wide as any today."""
MAX_TAPS = 64
MAX_LAYERS = 1024


def tap_layers_from_pb(values: Iterable[int], field: str) -> tuple[int, ...]:
    """Layers in growing order, each once; -1 is the embedding. Raises InvalidMessage."""
    layers = tuple(values)
    if len(layers) > MAX_TAPS:
        raise InvalidMessage(f"{field} must be at most {MAX_TAPS} layers", field)
    for layer in layers:
        within(field, layer, -1, MAX_LAYERS)
    if any(after <= before for before, after in pairwise(layers)):
        raise InvalidMessage(f"{field} must be in growing order", field)
    return layers


def spec_to_pb(spec: FeatureSpec) -> FeatureSpecPb:
    """Unchecked: own records are right by construction."""
    return FeatureSpecPb(drafter_fingerprint=spec.drafter_fingerprint, tap_layers=spec.tap_layers)


def spec_from_pb(message: FeatureSpecPb) -> FeatureSpec:
    """Raises InvalidMessage, naming the field. Which layers there are to tap is the target's to say."""
    fingerprint = name_from_pb("features.drafter_fingerprint", message.drafter_fingerprint)
    layers = tap_layers_from_pb(message.tap_layers, "features.tap_layers")
    if not layers:
        raise InvalidMessage("features.tap_layers must not be empty", "features.tap_layers")
    return FeatureSpec(fingerprint, layers)


def features_to_pb(features: ContextFeatures, session_id: str = "") -> FeatureChunk:
    """Unchecked."""
    values = tensors.to_pb(features.values)
    return FeatureChunk(session_id=session_id, start=features.start, projected=features.projected, values=values)


def features_from_pb(message: FeatureChunk, bounds: Bounds) -> ContextFeatures:
    """Raises InvalidMessage, naming the field. The array may be written to, because torch warns of those it may not."""
    bits = tensors.from_pb(message.values, "features.values", tensors.BFLOAT16, 2)
    rows, width = bits.shape
    within("features.values rows", rows, 1, bounds.max_length)
    within("features.values width", width, 1, MAX_WIDTH)
    within("features.start", message.start, 0, bounds.max_length - rows)
    values: NDArray[np.uint16] = bits.astype(np.uint16)
    return ContextFeatures(message.start, values, message.projected)


def draft_features_from_pb(message: FeatureChunk, base_length: int, bounds: Bounds) -> ContextFeatures:
    """Those of a draft request: positions before the anchor's. Raises InvalidMessage."""
    features = features_from_pb(message, bounds)
    if features.stop >= base_length:
        raise InvalidMessage(f"features must end before the anchor at {base_length - 1}", "features.values")
    return features


def draft_batches(requests: Sequence[DraftRequest], max_bytes: int = MESSAGE_BYTES) -> Iterator[list[DraftRequest]]:
    """The requests in their order, in batches of at most so many bytes of features, or of one request."""
    batch: list[DraftRequest] = []
    num_bytes = 0
    for request in requests:
        size = 0 if request.features is None else request.features.values.nbytes
        if batch and num_bytes + size > max_bytes:
            yield batch
            batch, num_bytes = [], 0
        batch.append(request)
        num_bytes += size
    yield batch


def report_chunks(report: StepReport, max_bytes: int = MESSAGE_BYTES) -> list[list[FeatureChunk]]:
    """All features of a report, in pieces, in messages. The last list goes with the results; it may be empty."""
    messages: list[list[FeatureChunk]] = [[]]
    bytes_left = max_bytes
    for result in report.results:
        if result.features is None:
            continue
        for piece in _pieces(result.features, max_bytes):
            if piece.values.nbytes > bytes_left and messages[-1]:
                messages.append([])
                bytes_left = max_bytes
            messages[-1].append(features_to_pb(piece, result.session_id))
            bytes_left -= piece.values.nbytes
    return messages


def _pieces(features: ContextFeatures, max_bytes: int) -> Iterator[ContextFeatures]:
    step = max(1, max_bytes // max(1, features.values[:1].nbytes))
    for first in range(0, len(features.values), step):
        yield ContextFeatures(features.start + first, features.values[first : first + step], features.projected)


class FeatureJoiner:
    """Pieces of rounds in flight, until their results come. One per stream to a target."""

    def __init__(self) -> None:
        self._wanted: dict[SessionId, int] = {}
        """Where the pieces must begin, of the sessions that asked."""
        self._pieces: dict[SessionId, list[ContextFeatures]] = {}

    def expect(self, requests: Iterable[VerifyRequest]) -> None:
        """Rounds are being asked for; what came for their sessions before is forgotten."""
        for request in requests:
            self.forget(request.session_id)
            if request.features_from != NO_FEATURES:
                self._wanted[request.session_id] = request.features_from

    def forget(self, session_id: SessionId) -> None:
        """The session is closed, or it is answered."""
        self._wanted.pop(session_id, None)
        self._pieces.pop(session_id, None)

    def take(self, chunks: Iterable[FeatureChunk], bounds: Bounds) -> None:
        """Keep what was asked for. A piece that does not fit spoils what its session has."""
        for chunk in chunks:
            session_id = SessionId(chunk.session_id)
            if not is_session_id(chunk.session_id) or session_id not in self._wanted:
                continue
            try:
                self._append(session_id, features_from_pb(chunk, bounds))
            except InvalidMessage as error:
                logger.warning("features of session %s are dropped: %s", session_id, error)
                self.forget(session_id)

    def attach(self, result: VerifyResult) -> VerifyResult:
        """The result with its session's features, if they are whole: from where they were wanted up to the new anchor."""
        pieces = self._pieces.get(result.session_id, [])
        self.forget(result.session_id)
        if not pieces or pieces[-1].stop != result.base_length + len(result.accepted):
            return result
        values = pieces[0].values if len(pieces) == 1 else np.concatenate([piece.values for piece in pieces])
        return replace(result, features=ContextFeatures(pieces[0].start, values, pieces[0].projected))

    def _append(self, session_id: SessionId, piece: ContextFeatures) -> None:
        pieces = self._pieces.setdefault(session_id, [])
        expected = pieces[-1].stop if pieces else self._wanted[session_id]
        if piece.start != expected:
            raise InvalidMessage(f"features.start is {piece.start}, not {expected}", "features.start")
        if pieces and (piece.projected, piece.values.shape[1]) != (pieces[0].projected, pieces[0].values.shape[1]):
            raise InvalidMessage("features.values differ in width or form from the piece before", "features.values")
        pieces.append(piece)
