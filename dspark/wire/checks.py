"""What an id, a count, a name and a duration may be: the checks that the codec's readers share. Knows fields, not records."""

import math
import re
from dataclasses import dataclass

import numpy as np

from dspark.errors import InvalidMessage
from dspark.types import ModelCard, SessionId
from dspark.wire import tensors
from dspark.wire.pb.tensor_pb2 import Tensor

MAX_INT32 = 2**31 - 1
MAX_TREE_NODES = 256
"""The most that config.DrafterConfig allows."""
MAX_TREE_DEPTH = 64
MAX_TREE_WIDTH = 16
"""Children of one node."""
MAX_ENTRIES = 4096
"""Requests or results in one message: the limit on bytes alone would allow a million tiny ones, and a long stall."""
MAX_TEXT_CHARS = 512
"""Names, fingerprints and error texts."""

_SESSION_ID = re.compile(r"[A-Za-z0-9_.:-]{1,128}")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")


@dataclass(frozen=True, slots=True)
class Bounds:
    """What numbers may be; the defaults hold while no card is known."""

    vocab_size: int = MAX_INT32
    max_length: int = MAX_INT32
    """Of prompt plus output, in tokens."""
    max_nodes: int = MAX_TREE_NODES

    @staticmethod
    def of(card: ModelCard, max_nodes: int = MAX_TREE_NODES) -> "Bounds":
        """The limits of one model."""
        return Bounds(card.vocab_size, card.max_length, max_nodes)


def is_session_id(text: str) -> bool:
    """1 to 128 characters that are safe in logs, labels and file names."""
    return _SESSION_ID.fullmatch(text) is not None


def session_id_from_pb(text: str) -> SessionId:
    """Raises InvalidMessage without repeating the text, which may be anything."""
    if not is_session_id(text):
        raise InvalidMessage("session_id must be 1 to 128 of A-Z a-z 0-9 _ . : -", "session_id")
    return SessionId(text)


def name_from_pb(field: str, text: str, min_chars: int = 1) -> str:
    """A name or a fingerprint; without control characters, because it ends up in logs. Raises InvalidMessage."""
    if not min_chars <= len(text) <= MAX_TEXT_CHARS or _CONTROL.search(text):
        raise InvalidMessage(f"{field} must be {min_chars} to {MAX_TEXT_CHARS} characters, no control characters", field)
    return text


def token_ids_from_pb(message: Tensor, bounds: Bounds, field: str) -> tuple[int, ...]:
    """[k] ids of the vocabulary. Raises InvalidMessage."""
    ids = tensors.ints_from_pb(message, field)
    # Seen as unsigned, a negative id is a huge one: one comparison finds both ends.
    if len(ids) and int(ids.view(np.uint32).max()) >= bounds.vocab_size:
        raise InvalidMessage(f"{field} outside 0..{bounds.vocab_size - 1}", field)
    return tuple(ids.tolist())


def within(field: str, value: int, low: int, high: int) -> None:
    """Raises InvalidMessage outside low..high, both included."""
    if not low <= value <= high:
        raise InvalidMessage(f"{field} must be in {low}..{high}", field)


def milliseconds(field: str, value: float) -> None:
    """Raises InvalidMessage unless the duration is one."""
    if not (math.isfinite(value) and value >= 0):
        raise InvalidMessage(f"{field} must be finite and not negative", field)
