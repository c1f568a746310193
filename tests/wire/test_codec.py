"""Every record survives the way there and back; every field that can be forged is forged, and named in the refusal."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from dspark import errors
from dspark.errors import InvalidMessage
from dspark.messages import (
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
from dspark.types import MAX_SEED, ModelCard, SamplingParams, SessionId
from dspark.wire import codec, tensors
from dspark.wire.checks import Bounds, name_from_pb, session_id_from_pb
from dspark.wire.pb import drafting_pb2, session_pb2, verification_pb2

CARD = ModelCard("org/model", 100, 64, (0, 7), "m", "t")
BOUNDS = Bounds.of(CARD, max_nodes=8)
SID = SessionId("chat:1.a_b-c")
TREE = CandidateTree(np.int32([17, 4, 9]), np.int32([-1, -1, 0]), np.float32([0.8, 0.1, 0.5]))
OPEN = SessionOpen(SID, (1, 99, 0), SamplingParams(0.7, 5, 0.9, 0.05, MAX_SEED, 2), 3)


def same_tree(one: CandidateTree, other: CandidateTree) -> bool:
    return all(np.array_equal(getattr(one, name), getattr(other, name)) for name in ("token_ids", "parents", "scores"))


def test_a_session_comes_back_as_it_was() -> None:
    assert codec.session_open_from_pb(codec.session_open_to_pb(OPEN), BOUNDS) == OPEN


@pytest.mark.parametrize("tree", [TREE, CandidateTree.empty(), CandidateTree.chain([1, 2, 3, 4], [0.5] * 4)])
def test_a_round_comes_back_as_it_was(tree: CandidateTree) -> None:
    requests, failures = codec.verify_batch_from_pb(codec.verify_batch_to_pb([VerifyRequest(SID, 4, 10, tree)]), BOUNDS)
    assert failures == []
    assert (requests[0].session_id, requests[0].round, requests[0].base_length) == (SID, 4, 10)
    assert same_tree(requests[0].tree, tree)


def test_a_received_tree_may_be_handed_to_torch() -> None:
    requests, _ = codec.verify_batch_from_pb(codec.verify_batch_to_pb([VerifyRequest(SID, 0, 1, TREE)]), BOUNDS)
    tree = requests[0].tree
    assert all(array.flags.writeable for array in (tree.token_ids, tree.parents, tree.scores))


def test_a_report_of_a_step_comes_back_as_it_was() -> None:
    report = StepReport(
        (VerifyResult(SID, 2, 9, (0, 2), (17, 9, 5)), VerifyResult(SessionId("b"), 0, 1, (), (8,))),
        (SessionFailure(SessionId("c"), "OutOfBlocks", "no free block"),),
        3.25,
        12,
        5,
        64,
    )
    assert codec.step_report_from_pb(codec.step_report_to_pb(report), BOUNDS) == report
    assert codec.step_report_from_pb(codec.step_report_to_pb(StepReport()), BOUNDS) == StepReport()


def test_draft_requests_come_back_as_they_were() -> None:
    requests = [DraftRequest(SID, 10, (4, 5), 3, 6, max_width=16), DraftRequest(SessionId("b"), 1, (), 0, 0)]
    message = codec.draft_batch_to_pb(12, requests)
    assert message.batch_id == 12
    assert codec.draft_batch_from_pb(message, BOUNDS) == (requests, [])


def test_a_report_of_drafts_comes_back_as_it_was() -> None:
    report = DraftReport((DraftResult(SID, 9, TREE),), (SessionFailure(SessionId("c"), "UnknownSession", "?"),), 0.5)
    back = codec.draft_report_from_pb(codec.draft_report_to_pb(3, report), BOUNDS)
    assert (back.failures, back.draft_ms, back.results[0].base_length) == (report.failures, 0.5, 9)
    assert same_tree(back.results[0].tree, TREE)


def forged_open(change: Callable[[session_pb2.SessionOpen], Any]) -> session_pb2.SessionOpen:
    message = codec.session_open_to_pb(OPEN)
    change(message)
    return message


FORGED_OPENS: dict[str, tuple[str, Callable[[session_pb2.SessionOpen], Any]]] = {
    "no id": ("session_id", lambda m: m.ClearField("session_id")),
    "id too long": ("session_id", lambda m: setattr(m, "session_id", "a" * 129)),
    "id with a line break": ("session_id", lambda m: setattr(m, "session_id", "a\n")),
    "id that is a path": ("session_id", lambda m: setattr(m, "session_id", "../a")),
    "no tokens": ("token_ids", lambda m: m.ClearField("token_ids")),
    "an empty prompt": ("token_ids", lambda m: m.token_ids.CopyFrom(tensors.ints_to_pb(()))),
    "too long a prompt": ("token_ids", lambda m: m.token_ids.CopyFrom(tensors.ints_to_pb([1] * 65))),
    "an id beyond the vocabulary": ("token_ids", lambda m: m.token_ids.CopyFrom(tensors.ints_to_pb([1, 100]))),
    "a negative id": ("token_ids", lambda m: m.token_ids.CopyFrom(tensors.ints_to_pb([-1, 1]))),
    "tokens that are floats": ("token_ids", lambda m: m.token_ids.CopyFrom(tensors.floats_to_pb(np.float32([1])))),
    "a negative epoch": ("epoch", lambda m: setattr(m, "epoch", -1)),
    "no sampling": ("sampling", lambda m: m.ClearField("sampling")),
    "nan temperature": ("sampling.temperature", lambda m: setattr(m.sampling, "temperature", float("nan"))),
    "infinite temperature": ("sampling.temperature", lambda m: setattr(m.sampling, "temperature", float("inf"))),
    "negative temperature": ("sampling.temperature", lambda m: setattr(m.sampling, "temperature", -0.1)),
    "top_p of zero": ("sampling.top_p", lambda m: setattr(m.sampling, "top_p", 0.0)),
    "top_p over one": ("sampling.top_p", lambda m: setattr(m.sampling, "top_p", 1.01)),
    "nan top_p": ("sampling.top_p", lambda m: setattr(m.sampling, "top_p", float("nan"))),
    "nan min_p": ("sampling.min_p", lambda m: setattr(m.sampling, "min_p", float("nan"))),
    "min_p over one": ("sampling.min_p", lambda m: setattr(m.sampling, "min_p", 1.5)),
    "negative top_k": ("sampling.top_k", lambda m: setattr(m.sampling, "top_k", -1)),
    "negative seed": ("sampling.seed", lambda m: setattr(m.sampling, "seed", -1)),
    "negative choice": ("sampling.choice", lambda m: setattr(m.sampling, "choice", -1)),
}


@pytest.mark.parametrize("case", FORGED_OPENS)
def test_a_forged_session_is_refused_with_the_fields_name(case: str) -> None:
    field, change = FORGED_OPENS[case]
    with pytest.raises(InvalidMessage, match=field) as caught:
        codec.session_open_from_pb(forged_open(change), BOUNDS)
    assert caught.value.field == field


def test_without_a_card_only_the_vocabulary_and_length_are_open() -> None:
    huge = replace(OPEN, token_ids=(2**31 - 2,) * 100)
    assert codec.session_open_from_pb(codec.session_open_to_pb(huge), Bounds()) == huge
    with pytest.raises(InvalidMessage):
        codec.session_open_from_pb(codec.session_open_to_pb(replace(OPEN, token_ids=(-1,))), Bounds())


def tree_pb(**parts: Any) -> session_pb2.Tree:
    tree = {
        "token_ids": tensors.ints_to_pb(TREE.token_ids),
        "parents": tensors.ints_to_pb(TREE.parents),
        "scores": tensors.floats_to_pb(TREE.scores),
    }
    return session_pb2.Tree(**(tree | parts))


FORGED_TREES = {
    "no tree": (None, "tree"),
    "an id beyond the vocabulary": (tree_pb(token_ids=tensors.ints_to_pb([1, 2, 100])), "tree.token_ids"),
    "a parent after its child": (tree_pb(parents=tensors.ints_to_pb([-1, 2, 0])), "tree.parents"),
    "a node that is its own parent": (tree_pb(parents=tensors.ints_to_pb([-1, 1, 0])), "tree.parents"),
    "a parent below the anchor": (tree_pb(parents=tensors.ints_to_pb([-1, -2, 0])), "tree.parents"),
    "too few parents": (tree_pb(parents=tensors.ints_to_pb([-1])), "tree.parents"),
    "a nan score": (tree_pb(scores=tensors.floats_to_pb(np.float32([1, np.nan, 1]))), "tree.scores"),
    "too many scores": (tree_pb(scores=tensors.floats_to_pb(np.float32([1] * 4))), "tree.scores"),
    "scores that are ints": (tree_pb(scores=tensors.ints_to_pb([1, 1, 1])), "tree.scores"),
    "too many nodes": (codec._tree_to_pb(CandidateTree.chain([1] * 9)), "tree"),
}


@pytest.mark.parametrize("case", FORGED_TREES)
def test_a_forged_tree_is_refused_on_both_ways(case: str) -> None:
    tree, field = FORGED_TREES[case]
    request = verification_pb2.VerifyRequest(session_id=SID, round=0, base_length=3, tree=tree)
    with pytest.raises(InvalidMessage) as caught:
        codec.verify_request_from_pb(request, BOUNDS)
    assert (caught.value.field or "").startswith(field)
    with pytest.raises(InvalidMessage):
        codec.draft_result_from_pb(drafting_pb2.DraftResult(session_id=SID, base_length=3, tree=tree), BOUNDS)


@pytest.mark.parametrize(("field", "value"), [("round", -1), ("base_length", 0), ("base_length", -5), ("base_length", 65)])
def test_a_round_out_of_range_is_refused(field: str, value: int) -> None:
    request = verification_pb2.VerifyRequest(**({"session_id": SID, "round": 0, "base_length": 3, "tree": tree_pb()} | {field: value}))
    with pytest.raises(InvalidMessage, match=field):
        codec.verify_request_from_pb(request, BOUNDS)


def result_pb(accepted: list[int], token_ids: list[int], **parts: Any) -> verification_pb2.VerifyResult:
    message = {"session_id": SID, "base_length": 3, "accepted": tensors.ints_to_pb(accepted)}
    return verification_pb2.VerifyResult(**(message | {"token_ids": tensors.ints_to_pb(token_ids)} | parts))


@pytest.mark.parametrize(
    ("message", "field"),
    [
        (result_pb([0], [1]), "token_ids"),
        (result_pb([], []), "token_ids"),
        (result_pb([], [1, 2]), "token_ids"),
        (result_pb([], [100]), "token_ids"),
        (result_pb([1, 0], [1, 2, 3]), "accepted"),
        (result_pb([0, 0], [1, 2, 3]), "accepted"),
        (result_pb([-1], [1, 2]), "accepted"),
        (result_pb([8], [1, 2]), "accepted"),
        (result_pb([], [1], round=-1), "round"),
        (result_pb([], [1], base_length=0), "base_length"),
    ],
)
def test_a_forged_result_is_refused_with_the_fields_name(message: verification_pb2.VerifyResult, field: str) -> None:
    with pytest.raises(InvalidMessage) as caught:
        codec.verify_result_from_pb(message, BOUNDS)
    assert caught.value.field == field


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("base_length", 0),
        ("base_length", 1),
        ("max_depth", -1),
        ("max_depth", 65),
        ("max_nodes", 9),
        ("max_nodes", -1),
        ("max_width", 0),
        ("max_width", 17),
    ],
)
def test_a_forged_draft_request_is_refused(field: str, value: int) -> None:
    parts = {"session_id": SID, "base_length": 10, "new_token_ids": tensors.ints_to_pb([1, 2]), "max_depth": 4, "max_nodes": 4}
    with pytest.raises(InvalidMessage):
        codec.draft_request_from_pb(drafting_pb2.DraftRequest(**(parts | {field: value})), BOUNDS)


def test_a_router_that_says_nothing_of_width_wants_chains() -> None:
    message = drafting_pb2.DraftRequest(session_id=SID, base_length=10, new_token_ids=tensors.ints_to_pb([1]), max_depth=4, max_nodes=4)
    assert codec.draft_request_from_pb(message, BOUNDS).max_width == 1


def test_one_malformed_request_leaves_its_neighbours_unharmed() -> None:
    batch = codec.verify_batch_to_pb([VerifyRequest(SessionId(name), 0, 3, TREE) for name in ("a", "b", "c", "d")])
    batch.requests[1].base_length = 0
    batch.requests[2].session_id = "not an id"
    requests, failures = codec.verify_batch_from_pb(batch, BOUNDS)
    assert [request.session_id for request in requests] == ["a", "d"]
    assert [(failure.session_id, failure.error) for failure in failures] == [("b", "InvalidMessage")]


def test_one_malformed_result_becomes_a_failure_of_its_session() -> None:
    good = VerifyResult(SessionId("a"), 0, 3, (), (1,))
    message = codec.step_report_to_pb(StepReport((good, VerifyResult(SID, 0, 3, (), (100,)))))
    report = codec.step_report_from_pb(message, BOUNDS)
    assert report.results == (good,)
    assert [(failure.session_id, failure.error) for failure in report.failures] == [(SID, "InvalidMessage")]


@pytest.mark.parametrize(
    "change",
    [
        {"verify_ms": float("nan")},
        {"verify_ms": -1.0},
        {"verify_ms": float("inf")},
        {"batch_rows": -1},
        {"free_kv_blocks": 2, "total_kv_blocks": 1},
        {"free_kv_blocks": -1},
        {"total_kv_blocks": -1},
    ],
)
def test_a_step_with_impossible_numbers_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(InvalidMessage):
        codec.step_report_from_pb(verification_pb2.StepReport(**change), BOUNDS)


def test_drafts_with_impossible_numbers_are_refused() -> None:
    with pytest.raises(InvalidMessage, match="draft_ms"):
        codec.draft_report_from_pb(drafting_pb2.DraftReport(draft_ms=float("nan")), BOUNDS)
    with pytest.raises(InvalidMessage, match="batch_id"):
        codec.draft_batch_from_pb(drafting_pb2.DraftBatch(batch_id=0), BOUNDS)


def test_a_flood_of_tiny_entries_is_refused() -> None:
    batch = verification_pb2.VerifyBatch(requests=[verification_pb2.VerifyRequest()] * 5000)
    with pytest.raises(InvalidMessage, match="4096"):
        codec.verify_batch_from_pb(batch, BOUNDS)


@pytest.mark.parametrize("name", ["KeyError", "dataclass", "STATUS_CODES", "__builtins__", "", "DSparkError.mro", "Exception"])
def test_an_unknown_error_becomes_a_protocol_error(name: str) -> None:
    assert codec.error_class(name) is errors.ProtocolError
    failure = codec.failure_from_pb(session_pb2.SessionFailure(session_id=SID, error=name, message="x"))
    assert failure == SessionFailure(SID, "ProtocolError", "x")


def test_a_known_error_keeps_its_name() -> None:
    for kind in (errors.StaleRound, errors.OutOfBlocks, errors.DSparkError):
        assert codec.error_class(kind.__name__) is kind


def test_the_text_of_a_failure_is_short_and_cannot_split_a_log_line() -> None:
    message = session_pb2.SessionFailure(session_id=SID, error="StaleRound", message="a\r\nb\x1b[31m" + "c" * 1000)
    text = codec.failure_from_pb(message).message
    assert len(text) == 512
    assert text.startswith("a  b [31mccc")


def test_only_errors_raised_on_purpose_are_told() -> None:
    assert codec.failure_of(SID, errors.StaleRound("round 3")) == SessionFailure(SID, "StaleRound", "round 3")
    assert codec.failure_of(SID, RuntimeError("secret path")) == SessionFailure(SID, "DSparkError", "internal error")


@pytest.mark.parametrize("text", ["a", "a" * 128, "A-Z:0.9_x"])
def test_an_id_of_safe_characters_is_taken(text: str) -> None:
    assert session_id_from_pb(text) == text


def test_a_name_may_hold_what_ray_puts_into_its_ids() -> None:
    assert name_from_pb("router_id", "app#Router#k3x9") == "app#Router#k3x9"
