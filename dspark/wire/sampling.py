"""How a session's tokens are chosen, on the wire: SamplingParams <-> protobuf, every value checked."""

import math

from dspark.errors import InvalidMessage
from dspark.types import MAX_SEED, SamplingParams
from dspark.wire.checks import MAX_INT32, within
from dspark.wire.pb.session_pb2 import Sampling


def sampling_to_pb(sampling: SamplingParams) -> Sampling:
    """Unchecked."""
    return Sampling(
        temperature=sampling.temperature,
        top_k=sampling.top_k,
        top_p=sampling.top_p,
        min_p=sampling.min_p,
        seed=sampling.seed,
        choice=sampling.choice,
    )


def sampling_from_pb(message: Sampling) -> SamplingParams:
    """Raises InvalidMessage, naming the field."""
    for field in ("temperature", "top_p", "min_p"):
        if not math.isfinite(getattr(message, field)):
            raise InvalidMessage(f"sampling.{field} must be finite", f"sampling.{field}")
    if message.temperature < 0:
        raise InvalidMessage("sampling.temperature must not be negative", "sampling.temperature")
    if not 0 < message.top_p <= 1:
        raise InvalidMessage("sampling.top_p must be above 0 and at most 1", "sampling.top_p")
    if not 0 <= message.min_p <= 1:
        raise InvalidMessage("sampling.min_p must be in 0..1", "sampling.min_p")
    within("sampling.top_k", message.top_k, 0, MAX_INT32)
    within("sampling.seed", message.seed, 0, MAX_SEED)
    within("sampling.choice", message.choice, 0, MAX_INT32)
    return SamplingParams(message.temperature, message.top_k, message.top_p, message.min_p, message.seed, message.choice)
