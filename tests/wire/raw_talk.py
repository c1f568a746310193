"""What raw routers say to the toys: sessions, rounds and drafts; and the round that shows that a session still works."""

from dspark.messages import DraftRequest, VerifyRequest
from dspark.types import SessionId
from dspark.wire import codec, tensors
from dspark.wire.pb import drafting_pb2, verification_pb2
from tests.wire.replicas import RawRouter, chain, law, opening

A, B = SessionId("a"), SessionId("b")


def rounds(*session_ids: str, base_length: int = 5) -> verification_pb2.VerifyBatch:
    return codec.verify_batch_to_pb([VerifyRequest(SessionId(name), 0, base_length, chain(base_length, 2)) for name in session_ids])


def drafts(batch_id: int, *session_ids: str) -> drafting_pb2.DraftBatch:
    return codec.draft_batch_to_pb(batch_id, [DraftRequest(SessionId(name), 5, (), 3, 3) for name in session_ids])


async def open_sessions(router: RawRouter, *session_ids: str) -> None:
    for name in session_ids:
        await router.say(open=codec.session_open_to_pb(opening(name)))


async def expect_round(router: RawRouter, session_id: str) -> None:
    """The session still works."""
    await router.say(verify=rounds(session_id))
    report = (await router.hear()).report
    assert [result.session_id for result in report.results] == [session_id]
    assert tensors.ints_from_pb(report.results[0].token_ids, "x").tolist() == [law(5), law(6), law(7)]
