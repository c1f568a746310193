"""Features on the wire: what can be forged is forged, and a prompt's worth of them arrives over real gRPC, whole or not at all."""

import asyncio
import itertools
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from dspark.errors import InvalidMessage
from dspark.messages import (
    NO_FEATURES,
    ContextFeatures,
    DraftReport,
    DraftRequest,
    FeatureSpec,
    SessionOpen,
    StepReport,
    VerifyRequest,
    VerifyResult,
)
from dspark.tree import CandidateTree
from dspark.types import ModelCard, ReplicaId, SamplingParams, SessionId
from dspark.wire import codec, features, handshake, tensors
from dspark.wire.checks import Bounds
from dspark.wire.client import RemoteDrafter, RemoteVerifier
from dspark.wire.features import MAX_TAPS, MAX_WIDTH, MESSAGE_BYTES, FeatureJoiner
from dspark.wire.pb import drafting_pb2, session_pb2, verification_pb2
from dspark.wire.streams import MAX_MESSAGE_BYTES
from tests.wire.connections import LyingService, ask, connected, soon
from tests.wire.replicas import ToyDrafter, ToyHost, chain, draft_service, failed, opening, serving, target_service, until

A, B = SessionId("a"), SessionId("b")
BOUNDS = Bounds(vocab_size=100, max_length=64, max_nodes=8)
SPEC = FeatureSpec("drafter-1", (-1, 2, 7))
OPEN = SessionOpen(A, (1, 2, 3), SamplingParams(seed=3), features=SPEC)


def rows(start: int, stop: int, width: int = 4, projected: bool = True) -> ContextFeatures:
    """Seeded finite bits, another row for every position."""
    draw = np.random.default_rng(start + 1)
    return ContextFeatures(start, draw.integers(0, 0x7F80, (stop - start, width), np.uint16), projected)


def same(one: ContextFeatures | None, other: ContextFeatures | None) -> bool:
    if one is None or other is None:
        return one is other
    return (one.start, one.projected) == (other.start, other.projected) and np.array_equal(one.values, other.values)


# Records


def test_a_spec_travels_with_its_session() -> None:
    assert codec.session_open_from_pb(codec.session_open_to_pb(OPEN), BOUNDS) == OPEN
    plain = replace(OPEN, features=None)
    assert codec.session_open_from_pb(codec.session_open_to_pb(plain), BOUNDS) == plain


@pytest.mark.parametrize(
    ("field", "spec"),
    [
        ("features.drafter_fingerprint", session_pb2.FeatureSpec(tap_layers=[1])),
        ("features.drafter_fingerprint", session_pb2.FeatureSpec(drafter_fingerprint="x" * 513, tap_layers=[1])),
        ("features.drafter_fingerprint", session_pb2.FeatureSpec(drafter_fingerprint="a\nb", tap_layers=[1])),
        ("features.tap_layers", session_pb2.FeatureSpec(drafter_fingerprint="x")),
        ("features.tap_layers", session_pb2.FeatureSpec(drafter_fingerprint="x", tap_layers=[2, 1])),
        ("features.tap_layers", session_pb2.FeatureSpec(drafter_fingerprint="x", tap_layers=[1, 1])),
        ("features.tap_layers", session_pb2.FeatureSpec(drafter_fingerprint="x", tap_layers=[-2, 1])),
        ("features.tap_layers", session_pb2.FeatureSpec(drafter_fingerprint="x", tap_layers=[100_000])),
        ("features.tap_layers", session_pb2.FeatureSpec(drafter_fingerprint="x", tap_layers=range(MAX_TAPS + 1))),
    ],
)
def test_a_forged_spec_is_refused_with_the_fields_name(field: str, spec: session_pb2.FeatureSpec) -> None:
    message = codec.session_open_to_pb(OPEN)
    message.features.CopyFrom(spec)
    with pytest.raises(InvalidMessage) as caught:
        codec.session_open_from_pb(message, BOUNDS)
    assert caught.value.field == field


@pytest.mark.parametrize("layers", [(), (-1, 3, 9)])
def test_a_welcome_carries_the_layers_that_a_drafter_reads(layers: tuple[int, ...]) -> None:
    card = ModelCard("d", 100, 64, (0,), "m", "t", layers)
    assert handshake.welcome_from_pb(handshake.welcome_to_pb(card, ReplicaId("r"))) == (card, "r")
    message = handshake.welcome_to_pb(card, ReplicaId("r"))
    message.tap_layers.extend([5, 5])
    with pytest.raises(InvalidMessage, match="tap_layers"):
        handshake.welcome_from_pb(message)


@pytest.mark.parametrize("features_from", [NO_FEATURES, 0, 4, 9])
def test_a_round_says_from_where_it_wants_features(features_from: int) -> None:
    request = VerifyRequest(A, 1, 10, CandidateTree.empty(), features_from)
    ((back,), failures) = codec.verify_batch_from_pb(codec.verify_batch_to_pb([request]), BOUNDS)
    assert (back.features_from, failures) == (features_from, [])


@pytest.mark.parametrize("features_from", [-1, -5, 10, 63, 2**31 - 1])
def test_a_round_that_wants_features_from_nowhere_is_refused(features_from: int) -> None:
    message = codec.verify_batch_to_pb([VerifyRequest(A, 1, 10, CandidateTree.empty(), 0)])
    message.requests[0].features_from = features_from
    _, (failure,) = codec.verify_batch_from_pb(message, BOUNDS)
    assert (failure.error, "features_from" in failure.message) == ("InvalidMessage", True)


@pytest.mark.parametrize("projected", [True, False])
def test_features_come_back_bit_for_bit_and_may_be_handed_to_torch(projected: bool) -> None:
    sent = rows(3, 9, projected=projected)
    back = features.features_from_pb(features.features_to_pb(sent), BOUNDS)
    assert same(back, sent)
    assert torch.from_numpy(back.values).view(torch.bfloat16).shape == (6, 4)


def forged(**parts: Any) -> session_pb2.FeatureChunk:
    chunk = features.features_to_pb(rows(0, 3), "a")
    for name, value in parts.items():
        getattr(chunk, name).CopyFrom(value) if name == "values" else setattr(chunk, name, value)
    return chunk


FORGED = {
    "no values": forged(values=tensors.to_pb(np.zeros((0, 4), np.uint16))),
    "no columns": forged(values=tensors.to_pb(np.zeros((3, 0), np.uint16))),
    "one dimension": forged(values=tensors.to_pb(np.zeros(12, np.uint16))),
    "floats": forged(values=tensors.to_pb(np.zeros((3, 4), np.float32))),
    "a nan": forged(values=tensors.to_pb(np.full((3, 4), 0x7FC0, np.uint16))),
    "an infinity": forged(values=tensors.to_pb(np.full((3, 4), 0xFF80, np.uint16))),
    "a negative start": forged(start=-1),
    "past the model's length": forged(start=62),
    "longer than the model": forged(values=tensors.to_pb(np.zeros((65, 4), np.uint16))),
    "too wide": forged(values=tensors.to_pb(np.zeros((1, MAX_WIDTH + 1), np.uint16))),
}


@pytest.mark.parametrize("case", FORGED)
def test_forged_features_are_refused_everywhere(case: str) -> None:
    with pytest.raises(InvalidMessage) as caught:
        features.features_from_pb(FORGED[case], BOUNDS)
    assert (caught.value.field or "").startswith("features.")
    request = codec.draft_batch_to_pb(1, [DraftRequest(A, 10, (1,), 3, 3)])
    request.requests[0].features.CopyFrom(FORGED[case])
    _, (failure,) = codec.draft_batch_from_pb(request, BOUNDS)
    assert (failure.session_id, failure.error) == (A, "InvalidMessage")


def test_a_draft_request_carries_features_up_to_the_anchor_and_not_further() -> None:
    sent = DraftRequest(A, 10, (4, 5), 3, 6, rows(6, 9))
    message = codec.draft_batch_to_pb(1, [sent, replace(sent, session_id=B, features=rows(6, 10))])
    ((back,), (failure,)) = codec.draft_batch_from_pb(message, BOUNDS)
    assert same(back.features, sent.features)
    assert (failure.session_id, "anchor" in failure.message) == (B, True)


# Cutting and joining


def result(session_id: SessionId = A, base_length: int = 5, context: ContextFeatures | None = None) -> VerifyResult:
    return VerifyResult(session_id, 0, base_length, (), (7,), context)


@pytest.mark.parametrize("max_bytes", [1, 8, 20, 24, 64, 10_000])
def test_features_of_several_sessions_are_cut_and_joined_again(max_bytes: int) -> None:
    contexts = {A: rows(0, 5), SessionId("c"): rows(2, 9, width=6, projected=False), B: rows(8, 9)}
    results = tuple(result(name, context.stop, context) for name, context in contexts.items())
    report = StepReport((*results, result(SessionId("plain"))))
    messages = features.report_chunks(report, max_bytes)
    for chunks in messages[:-1]:
        assert 0 < sum(len(chunk.values.data) for chunk in chunks) <= max(max_bytes, 12)
    bare = StepReport(tuple(replace(one, features=None) for one in report.results))
    wanted = {name: context.start for name, context in contexts.items()}
    joiner = FeatureJoiner()
    joiner.expect([VerifyRequest(name, 0, 5, CandidateTree.empty(), start) for name, start in wanted.items()])
    for chunks in messages:
        joiner.take(chunks, BOUNDS)
    for sent, back in zip(report.results, map(joiner.attach, bare.results), strict=True):
        assert same(sent.features, back.features)
    assert (joiner._wanted, joiner._pieces) == ({}, {})


def test_a_report_without_features_is_one_message() -> None:
    assert features.report_chunks(StepReport((result(),))) == [[]]
    assert len(codec.step_report_to_pbs(StepReport((result(),)))) == 1


def test_small_features_travel_in_the_report_itself() -> None:
    (message,) = codec.step_report_to_pbs(StepReport((result(context=rows(3, 5)),)))
    assert (message.partial, len(message.features), len(message.results)) == (False, 1, 1)


SPOILT: dict[str, Sequence[session_pb2.FeatureChunk]] = {
    "nothing came": [],
    "it starts elsewhere": [features.features_to_pb(rows(1, 5), "a")],
    "a gap": [features.features_to_pb(rows(0, 2), "a"), features.features_to_pb(rows(3, 5), "a")],
    "twice the same": [features.features_to_pb(rows(0, 3), "a"), features.features_to_pb(rows(0, 3), "a")],
    "another width": [features.features_to_pb(rows(0, 3), "a"), features.features_to_pb(rows(3, 5, width=5), "a")],
    "another form": [features.features_to_pb(rows(0, 3), "a"), features.features_to_pb(rows(3, 5, projected=False), "a")],
    "too short": [features.features_to_pb(rows(0, 4), "a")],
    "too long": [features.features_to_pb(rows(0, 6), "a")],
    "not finite": [forged(values=tensors.to_pb(np.full((5, 4), 0x7F80, np.uint16)))],
    "a good piece after a bad one": [forged(start=-1), features.features_to_pb(rows(0, 5), "a")],
    "another session's": [features.features_to_pb(rows(0, 5), "b")],
    "no session's": [features.features_to_pb(rows(0, 5), "../a")],
}


@pytest.mark.parametrize("case", SPOILT)
def test_pieces_that_do_not_fit_cost_the_features_and_not_the_result(case: str) -> None:
    joiner = FeatureJoiner()
    joiner.expect([VerifyRequest(A, 0, 5, CandidateTree.empty(), 0)])
    joiner.take(SPOILT[case], BOUNDS)
    assert joiner.attach(result()) == result()
    assert joiner._pieces == {}


def test_pieces_that_nobody_asked_for_are_not_kept() -> None:
    joiner = FeatureJoiner()
    joiner.expect([VerifyRequest(A, 0, 5, CandidateTree.empty(), NO_FEATURES)])
    joiner.take([features.features_to_pb(rows(0, 5), "a")], BOUNDS)
    assert joiner._pieces == {}
    joiner.expect([VerifyRequest(A, 1, 6, CandidateTree.empty(), 0)])
    joiner.take([features.features_to_pb(rows(0, 5), "a")], BOUNDS)
    joiner.forget(A)
    assert (joiner._wanted, joiner._pieces) == ({}, {})


@pytest.mark.parametrize("max_bytes", [1, 24, 50, 10_000])
def test_a_batch_of_drafts_is_split_by_bytes_in_order(max_bytes: int) -> None:
    sizes = (0, 3, 1, 0, 6, 2)
    requests = [
        DraftRequest(SessionId(f"s{index}"), 20, (), 3, 3, rows(0, size) if size else None) for index, size in enumerate(sizes)
    ]
    batches = list(features.draft_batches(requests, max_bytes))
    assert list(itertools.chain(*batches)) == requests
    for batch in batches:
        num_bytes = sum(request.features.values.nbytes for request in batch if request.features is not None)
        assert num_bytes <= max_bytes or sum(request.features is not None for request in batch) == 1
    assert list(features.draft_batches([])) == [[]]


# Over gRPC


LONG = rows(0, 4000, width=1280)
"""10 MB: a prompt's features, in at least three messages."""


async def test_a_backfill_larger_than_one_message_comes_from_a_remote_target() -> None:
    assert 2 * MESSAGE_BYTES < LONG.values.nbytes < MAX_MESSAGE_BYTES
    host = ToyHost()
    async with serving(target_service(host)) as address, connected(RemoteVerifier, address) as verifier:
        verifier.open(replace(opening("a", length=4000), features=SPEC))
        verifier.open(opening("b"))
        await until(lambda: host.views and len(host.views[0].sessions) == 2)
        assert host.views[0].sessions[A].features == SPEC
        verifier._features.expect([VerifyRequest(A, 0, 4000, CandidateTree.empty(), 0)])
        small = VerifyResult(B, 0, 5, (), (38,))
        host.views[0].emit(StepReport((VerifyResult(A, 0, 4000, (), (3,), LONG), small), verify_ms=2.0, batch_rows=9))
        report = await soon(verifier.next_report())
        assert (report.verify_ms, report.batch_rows, len(report.results)) == (2.0, 9, 2)
        assert same(report.results[0].features, LONG)
        assert report.results[1] == small
        verifier.submit([VerifyRequest(B, 0, 5, chain(5, 1))])
        assert (await soon(verifier.next_report())).results[0].session_id == B, "no part was taken for a report"


async def test_backfills_of_many_sessions_reach_a_remote_drafter() -> None:
    class Reader(ToyDrafter):
        def __init__(self) -> None:
            super().__init__()
            self.calls: list[list[DraftRequest]] = []

        async def draft(self, requests: Sequence[DraftRequest]) -> DraftReport:
            self.calls.append(list(requests))
            return await super().draft(requests)

    drafter = Reader()
    async with serving(draft_service(drafter)) as address, connected(RemoteDrafter, address) as remote:
        names = [f"s{index}" for index in range(6)]
        requests = []
        for index, name in enumerate(names):
            remote.open(opening(name, length=1000))
            requests.append(DraftRequest(SessionId(name), 1000, (), 2, 3, rows(index, 900, width=1200)))
        report = await soon(remote.draft([*requests, DraftRequest(SessionId("nobody"), 5, (), 1, 1)]))
        assert [one.session_id for one in report.results] == names
        assert failed("nobody", report.failures).error == "UnknownSession"
        assert len(drafter.calls) == 6, "2 MB each: one does not fit beside another"
        received = [request for call in drafter.calls for request in call]
        assert all(same(one.features, two.features) for one, two in zip(requests, received, strict=True))


async def test_a_drafter_that_answers_only_a_part_of_a_split_batch_fails_only_the_rest() -> None:
    drafter = ToyDrafter()
    drafter.leave_out = {"b"}
    async with serving(draft_service(drafter)) as address, connected(RemoteDrafter, address) as remote:
        for name in ("a", "b"):
            remote.open(opening(name, length=3000))
        requests = [DraftRequest(SessionId(name), 3000, (), 2, 3, rows(0, 2900, width=700)) for name in ("a", "b")]
        report = await soon(remote.draft(requests))
        assert [one.session_id for one in report.results] == [A]
        assert failed("b", report.failures).error == "ProtocolError"


async def test_a_target_that_lies_about_features_is_believed_in_its_tokens_only() -> None:
    """Parts without an end, of strangers, out of order: the round is answered, without features, and the stream lives."""

    def answer(request: Any) -> list[Any]:
        if not request.HasField("verify"):
            return []
        wrong = [features.features_to_pb(rows(2, 5), "a"), features.features_to_pb(rows(0, 9), "stranger")]
        good = verification_pb2.VerifyResult(
            session_id="a", base_length=5, accepted=tensors.ints_to_pb(()), token_ids=tensors.ints_to_pb((7,))
        )
        return [
            verification_pb2.StepReport(features=wrong, partial=True),
            verification_pb2.StepReport(features=wrong, results=[good], partial=True),  # parts hold no results
            verification_pb2.StepReport(features=[features.features_to_pb(rows(0, 5), "a")], results=[good]),
        ]

    async with serving(LyingService("Verification", answer)) as address, connected(RemoteVerifier, address) as verifier:
        verifier.submit([VerifyRequest(A, 0, 5, chain(5, 1), 0)])
        report = await soon(verifier.next_report())
        assert [(one.token_ids, one.features) for one in report.results] == [((7,), None)]
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await verifier.next_report()
        assert not verifier.lost()


async def test_a_router_that_forges_features_is_told_and_its_other_sessions_go_on() -> None:
    drafter = ToyDrafter()
    async with serving(draft_service(drafter)) as address, connected(RemoteDrafter, address) as remote:
        remote.open(opening("a"))
        remote.open(opening("b"))
        bad = DraftRequest(A, 5, (), 2, 3, ContextFeatures(0, np.full((2, 4), 0x7F80, np.uint16), True))
        report = await soon(remote.draft([bad, *ask("b")]))
        assert [one.session_id for one in report.results] == [B]
        assert failed("a", report.failures).error == "InvalidMessage"


def test_a_request_for_drafts_says_nothing_of_features_where_there_are_none() -> None:
    message: drafting_pb2.DraftBatch = codec.draft_batch_to_pb(1, [DraftRequest(A, 5, (), 1, 1)])
    assert not message.requests[0].HasField("features")
