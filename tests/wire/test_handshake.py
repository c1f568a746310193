"""When router and replica meet: every value of a welcome is checked, and what does not belong together is refused."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from dspark.errors import FingerprintMismatch, InvalidMessage
from dspark.scheduling.curve import ThroughputCurve
from dspark.scheduling.draft_cost import DraftCall
from dspark.types import ModelCard, ReplicaId, RouterId
from dspark.wire import handshake, tensors
from dspark.wire.client import RemoteVerifier
from dspark.wire.pb import session_pb2
from tests.wire import replicas

CARD = ModelCard("org/model", 100, 64, (0, 7), "m", "t")
CURVE = ThroughputCurve(np.asarray([1, 2, 4]), np.asarray([64, 512]), np.asarray([[3.5, 3.5, 8.1], [4.25, 4.5, 9.7]]))


def test_a_card_comes_back_as_it_was() -> None:
    assert handshake.welcome_from_pb(handshake.welcome_to_pb(CARD, ReplicaId("app#T#x"))) == (CARD, "app#T#x")


@pytest.mark.parametrize(
    "change",
    [
        {"vocab_size": 0},
        {"vocab_size": -1},
        {"max_length": 0},
        {"replica_id": ""},
        {"replica_id": "a\nb"},
        {"model_name": "x" * 513},
        {"model_fingerprint": "\x00"},
        {"eos_token_ids": [100]},
        {"eos_token_ids": [-1]},
    ],
)
def test_a_forged_welcome_is_refused(change: dict[str, Any]) -> None:
    message = handshake.welcome_to_pb(CARD, ReplicaId("r"))
    message.MergeFrom(session_pb2.Welcome(**change))
    for field, value in change.items():
        if not value:
            setattr(message, field, value)
    with pytest.raises(InvalidMessage, match=next(iter(change))):
        handshake.welcome_from_pb(message)


def hello(**parts: str) -> session_pb2.Hello:
    return session_pb2.Hello(**({"protocol": handshake.PROTOCOL_VERSION, "router_id": "r"} | parts))


def test_a_router_that_expects_nothing_matches_any_model() -> None:
    welcome = handshake.welcome_to_pb(CARD, ReplicaId("r"))
    handshake.check_match(hello(), welcome)
    handshake.check_match(hello(model_fingerprint="m", tokenizer_fingerprint="t"), welcome)


@pytest.mark.parametrize(
    ("parts", "expected", "actual"),
    [
        ({"protocol": "dspark.v9"}, "dspark.v9", handshake.PROTOCOL_VERSION),
        ({"protocol": ""}, "''", handshake.PROTOCOL_VERSION),
        ({"model_fingerprint": "m2"}, "'m2'", "'m'"),
        ({"tokenizer_fingerprint": "t2"}, "'t2'", "'t'"),
    ],
)
def test_a_mismatch_names_both_values(parts: dict[str, str], expected: str, actual: str) -> None:
    with pytest.raises(FingerprintMismatch) as caught:
        handshake.check_match(hello(**parts), handshake.welcome_to_pb(CARD, ReplicaId("r")))
    assert expected in str(caught.value)
    assert actual in str(caught.value)


def same_curve(one: ThroughputCurve, other: ThroughputCurve) -> bool:
    axes = all(np.array_equal(getattr(one, name), getattr(other, name)) for name in ("rows", "context_tokens"))
    return axes and np.allclose(one.step_ms, other.step_ms, rtol=1e-6, atol=0)


def test_a_targets_curve_travels_with_its_card() -> None:
    message = handshake.welcome_to_pb(CARD, ReplicaId("r"), CURVE)
    back = handshake.curve_of_welcome(message)
    assert back is not None
    assert same_curve(back, CURVE)
    assert handshake.welcome_from_pb(message) == (CARD, "r")


def test_a_replica_without_a_curve_has_none_and_not_a_flat_one() -> None:
    assert handshake.curve_of_welcome(handshake.welcome_to_pb(CARD, ReplicaId("r"))) is None


def ints(values: list[int]) -> Any:
    return tensors.ints_to_pb(values)


def times(values: Any) -> Any:
    return tensors.to_pb(np.asarray(values, np.float32))


FORGED: dict[str, tuple[str, Callable[[session_pb2.ThroughputCurve], Any]]] = {
    "nothing at all": ("curve.rows", lambda m: m.Clear()),
    "no rows": ("curve.rows", lambda m: m.rows.CopyFrom(ints([]))),
    "rows that fall": ("curve.rows", lambda m: m.rows.CopyFrom(ints([1, 4, 2]))),
    "rows that repeat": ("curve.rows", lambda m: m.rows.CopyFrom(ints([1, 2, 2]))),
    "zero rows": ("curve.rows", lambda m: m.rows.CopyFrom(ints([0, 1, 2]))),
    "rows without end": ("curve.rows", lambda m: m.rows.CopyFrom(ints([1, 2, 2**31 - 1]))),
    "rows that are floats": ("curve.rows", lambda m: m.rows.CopyFrom(times([1, 2, 4]))),
    "a negative context": ("curve.context_tokens", lambda m: m.context_tokens.CopyFrom(ints([-1, 512]))),
    "too few contexts": ("curve.step_ms", lambda m: m.context_tokens.CopyFrom(ints([64]))),
    "one time too many": ("curve.step_ms", lambda m: m.step_ms.CopyFrom(times([[1, 2, 3, 4], [1, 2, 3, 4]]))),
    "times in one line": ("curve.step_ms", lambda m: m.step_ms.CopyFrom(times([1, 2, 3]))),
    "a time that is none": ("curve.step_ms", lambda m: m.step_ms.CopyFrom(times([[1, 2, np.nan], [1, 2, 3]]))),
    "an infinite time": ("curve.step_ms", lambda m: m.step_ms.CopyFrom(times([[1, 2, np.inf], [1, 2, np.inf]]))),
    "no time at all": ("curve.step_ms", lambda m: m.step_ms.CopyFrom(times([[0, 1, 2], [1, 2, 3]]))),
    "times that fall": ("curve.step_ms", lambda m: m.step_ms.CopyFrom(times([[3, 2, 4], [3, 3, 4]]))),
    "times that fall with context": ("curve.step_ms", lambda m: m.step_ms.CopyFrom(times([[3, 3, 4], [3, 3, 3]]))),
    "too many points": ("curve", lambda m: m.rows.CopyFrom(ints(list(range(1, 5000))))),
}


@pytest.mark.parametrize("case", FORGED)
def test_a_forged_curve_is_refused_with_the_fields_name(case: str) -> None:
    field, change = FORGED[case]
    message = handshake.welcome_to_pb(CARD, ReplicaId("r"), CURVE)
    change(message.curve)
    message.curve.SetInParent()
    with pytest.raises(InvalidMessage) as caught:
        handshake.curve_of_welcome(message)
    assert caught.value.field == field


@pytest.mark.parametrize("curve", [CURVE, None])
async def test_a_router_that_connects_has_the_curve(curve: ThroughputCurve | None) -> None:
    service = replicas.target_service(replicas.ToyHost(), curve=curve)
    async with replicas.serving(service) as address:
        remote = await RemoteVerifier.connect(
            address, RouterId("r"), silence_timeout_s=replicas.SILENCE_S, connect_timeout_s=replicas.SILENCE_S
        )
        try:
            assert (remote.curve is None) == (curve is None)
            assert curve is None or (remote.curve is not None and same_curve(remote.curve, curve))
        finally:
            await remote.disconnect()


CALLS = (DraftCall(1, 7, 11.5, 3), DraftCall(16, 1, 20.25, 48))


def test_what_a_drafters_calls_took_travels_with_its_card() -> None:
    message = handshake.welcome_to_pb(CARD, ReplicaId("r"), calls=CALLS)
    assert handshake.calls_of_welcome(message) == CALLS
    assert handshake.calls_of_welcome(handshake.welcome_to_pb(CARD, ReplicaId("r"))) == ()


@pytest.mark.parametrize(
    ("field", "value"),
    [("sessions", 0), ("depth", 0), ("depth", -1), ("news", -1), ("draft_ms", -1.0), ("draft_ms", math.nan), ("draft_ms", math.inf)],
)
def test_a_forged_call_is_refused_with_the_fields_name(field: str, value: float) -> None:
    message = handshake.welcome_to_pb(CARD, ReplicaId("r"), calls=CALLS)
    setattr(message.draft_calls[1], field, value)
    with pytest.raises(InvalidMessage) as caught:
        handshake.calls_of_welcome(message)
    assert caught.value.field == f"draft_calls.{field}"


def test_calls_without_end_are_refused() -> None:
    with pytest.raises(InvalidMessage, match="more than"):
        handshake.calls_of_welcome(handshake.welcome_to_pb(CARD, ReplicaId("r"), calls=CALLS * 200))
