"""RemoteVerifier and RemoteDrafter against a server that lies: what does not fit is kept out, and a replica that talks rubbish is lost."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from dspark.errors import FingerprintMismatch, InvalidMessage, TargetUnavailable
from dspark.messages import VerifyRequest
from dspark.wire import codec, handshake, tensors
from dspark.wire.client import RemoteDrafter, RemoteVerifier
from dspark.wire.pb import drafting_pb2, session_pb2, verification_pb2
from tests.wire.connections import ROUTER, A, LyingService, ask, connected, soon
from tests.wire.replicas import CARD, REPLICA, chain, failed, opening, serving


async def test_a_welcome_of_another_model_is_refused_by_the_router_too() -> None:
    for welcome, error in (
        (handshake.welcome_to_pb(CARD, REPLICA), FingerprintMismatch),
        (session_pb2.Welcome(protocol=handshake.PROTOCOL_VERSION), InvalidMessage),
    ):
        async with serving(LyingService("Verification", lambda _: [], welcome)) as address:
            with pytest.raises(error):
                await RemoteVerifier.connect(address, ROUTER, model_fingerprint="m2", silence_timeout_s=1, connect_timeout_s=5)


async def test_a_result_that_does_not_fit_fails_its_session_only() -> None:
    good = verification_pb2.VerifyResult(session_id="a", base_length=5, accepted=tensors.ints_to_pb(()), token_ids=tensors.ints_to_pb((7,)))
    bad = verification_pb2.VerifyResult()
    bad.CopyFrom(good)
    bad.session_id = "b"
    bad.token_ids.CopyFrom(tensors.ints_to_pb((CARD.vocab_size,)))
    report = verification_pb2.StepReport(results=[bad, good])

    def answer(request: Any) -> list[Any]:
        return [report] if request.HasField("verify") else []

    async with serving(LyingService("Verification", answer)) as address, connected(RemoteVerifier, address) as verifier:
        verifier.submit([VerifyRequest(A, 0, 5, chain(5, 1))])
        received = await soon(verifier.next_report())
        assert [result.token_ids for result in received.results] == [(7,)]
        assert failed("b", received.failures).error == "InvalidMessage"


@pytest.mark.parametrize(
    "rubbish", [b"\xff\xff\xff", verification_pb2.StepReport(verify_ms=float("nan")), verification_pb2.StepReport(free_kv_blocks=1)]
)
async def test_a_target_that_sends_rubbish_is_lost(rubbish: Any) -> None:
    def answer(request: Any) -> list[Any]:
        return [rubbish] if request.HasField("verify") else []

    async with serving(LyingService("Verification", answer)) as address, connected(RemoteVerifier, address) as verifier:
        verifier.submit([VerifyRequest(A, 0, 5, chain(5, 1))])
        with pytest.raises(TargetUnavailable):
            await soon(verifier.next_report())
        assert verifier.lost()


async def test_a_lying_drafter_gets_one_entry_for_each_request_into_the_report() -> None:
    """Too many nodes, a session left out, one that nobody asked for, and one twice."""

    def answer(request: Any) -> list[Any]:
        if not request.HasField("draft"):
            return []
        results = [
            drafting_pb2.DraftResult(session_id=name, base_length=5, tree=codec._tree_to_pb(chain(5, depth)))
            for name, depth in (("a", 2), ("a", 2), ("stranger", 1), ("b", 9))
        ]
        return [drafting_pb2.DraftReport(batch_id=request.draft.batch_id, results=results)]

    async with serving(LyingService("Drafting", answer)) as address, connected(RemoteDrafter, address) as drafter:
        report = await soon(drafter.draft(ask("a", "b", "c")))
        assert [result.session_id for result in report.results] == [A]
        assert failed("b", report.failures).error == "InvalidMessage"
        assert failed("c", report.failures).error == "ProtocolError"
        assert len(report.failures) == 2


async def test_a_replica_that_does_not_read_is_given_up() -> None:
    """The stream's window fills first, then the queue: it does not grow for ever."""

    class Deaf(LyingService):
        async def _serve(self, requests: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
            yield self._response(welcome=self._welcome).SerializeToString()
            await asyncio.sleep(60)

    async with serving(Deaf("Verification", lambda _: [])) as address, connected(RemoteVerifier, address, silence_s=60) as verifier:
        long = opening("a", length=4000)
        async with asyncio.timeout(20):
            while not verifier.lost():
                verifier.open(long)
                await asyncio.sleep(0)
        with pytest.raises(TargetUnavailable, match="unread"):
            await soon(verifier.next_report())
