"""Who asks for no features pays nothing, memory goes with its last user, and what cannot come is refused for that session."""

from collections.abc import Sequence

import pytest

from dspark.errors import InvalidMessage
from dspark.messages import FeatureSpec, SessionOpen
from dspark.types import RouterId, SessionId
from dspark.verifying.feature_store import MAX_RAW_TABLES, FeatureStore
from dspark.verifying.runner import VerifierRunner
from tests.verifying.feature_rounds import PROMPTS, SPEC, TAPS, WIDTH, A, B, Projected, answer, ask, model_of, verifier_on
from tests.verifying.rounds import GREEDY, Rounds
from tests.verifying.test_verifier import Guess

# Who asks for nothing pays nothing


def test_plain_sessions_set_no_hook_and_take_no_memory(plain: list[list[int]], monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of()
    verifier = verifier_on(model, Projected())
    captured: list[Sequence[int]] = []
    capture = model.taps.capture
    monkeypatch.setattr(model.taps, "capture", lambda layers: captured.append(layers) or capture(layers))  # type: ignore[func-returns-value]
    rounds = Rounds(verifier, PROMPTS, Guess(2, 5, plain))
    assert rounds.run(40) == plain
    assert captured == []
    assert (verifier._store._projected, verifier._store._raw) == ({}, {})
    verifier.open(SessionOpen(A, tuple(PROMPTS[0]), GREEDY, features=SPEC))
    answer(verifier, ask(0, 5, 0))
    assert captured == [[-1, 0]], "the count can count"


def test_memory_of_a_drafter_without_projection_goes_with_its_last_session() -> None:
    verifier = verifier_on(model_of())
    for name in (A, B):
        verifier.open(SessionOpen(name, tuple(PROMPTS[0]), GREEDY, features=SPEC))
    answer(verifier, ask(0, 5, 0))
    (table,) = verifier._store._raw.values()
    assert table.num_bytes == 1024 * len(TAPS) * WIDTH * 2
    verifier.close(A)
    assert len(verifier._store._raw) == 1
    verifier.close(B)
    assert verifier._store._raw == {}


def test_more_unknown_drafters_than_tables_go_without_features() -> None:
    """A router could invent fingerprints for ever."""
    verifier = verifier_on(model_of())
    for index in range(MAX_RAW_TABLES + 1):
        spec = FeatureSpec(f"drafter-{index}", TAPS)
        verifier.open(SessionOpen(SessionId(f"s{index}"), tuple(PROMPTS[0]), GREEDY, features=spec))
        verifier.submit(ask(0, 5, 0, name=SessionId(f"s{index}")))
    report = verifier.step()
    assert [result.features is None for result in report.results] == [False] * MAX_RAW_TABLES + [True]
    assert report.failures == ()
    for index in range(MAX_RAW_TABLES + 1):
        verifier.close(SessionId(f"s{index}"))
    assert (verifier._store._raw, verifier._store._num_users) == ({}, {})


# Fences


@pytest.mark.parametrize("layers", [(1,), (0, 1), (-2, 0), (0, -1), (), (7,)])
def test_layers_that_cannot_be_tapped_are_refused_at_the_opening(layers: tuple[int, ...]) -> None:
    verifier = verifier_on(model_of())
    with pytest.raises(InvalidMessage) as caught:
        verifier.open(SessionOpen(A, (1, 2), GREEDY, features=FeatureSpec("x", layers)))
    assert caught.value.field == "features.tap_layers"
    assert verifier.num_sessions == 0


def test_layers_that_are_not_those_of_the_loaded_drafter_are_refused() -> None:
    store = FeatureStore(model_of(), [Projected()])
    store.check(SPEC)
    with pytest.raises(InvalidMessage, match=r"reads \[-1, 0\]"):
        store.check(FeatureSpec(SPEC.drafter_fingerprint, (0,)))


async def test_a_refused_opening_is_told_to_its_router_and_harms_nobody() -> None:
    runner = VerifierRunner(verifier_on(model_of()))
    runner.start()
    connection = runner.connect(RouterId("r"))
    with pytest.raises(InvalidMessage):
        connection.open(SessionOpen(A, (1, 2), GREEDY, features=FeatureSpec("x", (1,))))
    connection.open(SessionOpen(B, tuple(PROMPTS[0]), GREEDY))
    connection.submit([ask(0, 5, -1, name=B)])
    assert (await connection.next_report()).results[0].session_id == B
    assert runner.alive
    await runner.stop()


@pytest.mark.parametrize(
    ("spec", "features_from"), [(None, 0), (None, 4), (SPEC, 5), (SPEC, 100), (SPEC, -2)], ids=lambda value: str(value)[:12]
)
def test_features_that_cannot_come_are_refused_for_that_session(spec: FeatureSpec | None, features_from: int) -> None:
    verifier = verifier_on(model_of())
    verifier.open(SessionOpen(A, tuple(PROMPTS[0]), GREEDY, features=spec))
    verifier.submit(ask(0, 5, features_from))
    (failure,) = verifier.step().failures
    assert failure.error == "InvalidMessage"
    assert "features_from" in failure.message
    assert answer(verifier, ask(0, 5, -1)).round == 0, "the session itself is unharmed"


def test_the_last_round_is_answered_again_with_the_same_features() -> None:
    verifier = verifier_on(model_of())
    verifier.open(SessionOpen(A, tuple(PROMPTS[0]), GREEDY, features=SPEC))
    first = answer(verifier, ask(0, 5, 0))
    again = answer(verifier, ask(0, 5, 0))
    assert again == first
    assert first.features is not None
    assert again.features is first.features
