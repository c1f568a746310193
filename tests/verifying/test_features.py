"""Features of the target: those that transformers computes, whatever the rounds looked like, and never at a token's cost."""

import logging

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from dspark.config import TargetConfig
from dspark.messages import FeatureSpec, SessionOpen
from dspark.runtime.loading import load_causal_lm
from dspark.verifying.feature_store import MAX_TRIES
from dspark.verifying.target_model import LoadedTarget, load_target
from dspark.verifying.verifier import BatchVerifier
from tests.verifying.feature_rounds import PROMPTS, SPEC, WIDTH, A, B, Projected, answer, ask, floats, joined, model_of, verifier_on
from tests.verifying.rounds import GREEDY, Rounds
from tests.verifying.test_verifier import Guess

# The shipped target, against transformers


@pytest.fixture(scope="module")
def demo() -> LoadedTarget:
    return load_target(TargetConfig())


def test_features_are_the_hidden_states_that_transformers_reports_for_the_shipped_target(demo: LoadedTarget) -> None:
    """Prompt chunks, chains and trees whose accepted paths do not stand in order; three sessions in one batch."""
    taps = (-1, 1, 4)
    generator = torch.Generator().manual_seed(8)
    prompts = [torch.randint(4, 4096, (length,), generator=generator).tolist() for length in (70, 12, 33)]
    texts = Rounds(demo.with_own_cache().verifier, prompts).run(24)
    verifier = BatchVerifier(demo.packed_model, max_length=2048, max_batch_rows=48)
    rounds = Rounds(verifier, prompts, Guess(6, 5, texts), specs=FeatureSpec("raw", taps))
    assert rounds.run(24) == texts
    assert rounds.num_accepted > 20
    model = load_causal_lm(TargetConfig(), attention="eager")
    for which, prompt in enumerate(prompts):
        bits = joined(rounds.features[which])
        tokens = [*prompt, *rounds.outputs[which]][: len(bits)]
        with torch.inference_mode():
            states = model(torch.tensor([tokens]), use_cache=False, output_hidden_states=True).hidden_states
        expected = torch.cat([states[layer + 1][0] for layer in taps], -1)
        torch.testing.assert_close(floats(bits), expected, rtol=2**-7, atol=2e-3)


# Any round, any memory


@pytest.mark.parametrize("max_batch_rows", [16, 64])
def test_trees_and_prompt_chunks_leave_the_features_of_plain_decoding(
    plain: list[list[int]], calm: list[NDArray[np.uint16]], max_batch_rows: int
) -> None:
    verifier = verifier_on(model_of(), max_batch_rows=max_batch_rows)
    rounds = Rounds(verifier, PROMPTS, Guess(2, 5, plain), specs=SPEC)
    assert rounds.run(40) == plain
    assert rounds.num_accepted > 60
    for which, expected in enumerate(calm):
        found = joined(rounds.features[which])
        assert np.array_equal(found[: len(expected)], expected[: len(found)])
        assert len(found) >= len(PROMPTS[which]) + 39


@pytest.mark.parametrize("pool_tokens", [96, 160])
def test_a_preempted_sessions_features_are_computed_again_bit_for_bit(
    plain: list[list[int]], calm: list[NDArray[np.uint16]], pool_tokens: int
) -> None:
    rounds = Rounds(verifier_on(model_of(pool_tokens), max_batch_rows=24), PROMPTS, Guess(4, 6, plain), specs=SPEC)
    assert rounds.run(40) == plain
    assert min(report.free_kv_blocks for report in rounds.reports) <= 2, "there was pressure"
    for which, expected in enumerate(calm):
        found = joined(rounds.features[which])
        assert np.array_equal(found[: len(expected)], expected[: len(found)])


def test_all_features_from_the_start_are_still_there_late_in_a_session(plain: list[list[int]]) -> None:
    """What a restarted drafter asks for: the very bits that were streamed, and no row of the prompt is computed again."""
    verifier = verifier_on(model_of(), Projected())
    rounds = Rounds(verifier, PROMPTS[1:3], Guess(9, 6, plain[1:3]), specs=SPEC)
    for _ in range(6):
        rounds.submit(40)
        rounds.step()
    for which, name in enumerate((A, B)):
        streamed = joined(rounds.features[which])
        base = len(PROMPTS[1 + which]) + len(rounds.outputs[which])
        verifier.submit(ask(rounds._rounds[which], base, 0, name=name))
        report = verifier.step()
        assert report.batch_rows == 1
        everything = report.results[0].features
        assert everything is not None
        assert everything.start == 0
        assert everything.stop == base
        assert np.array_equal(everything.values[: len(streamed)], streamed)


def test_a_drafter_may_fall_behind_and_ask_for_several_rounds_at_once(calm: list[NDArray[np.uint16]]) -> None:
    verifier = verifier_on(model_of())
    verifier.open(SessionOpen(A, tuple(PROMPTS[0]), GREEDY, features=SPEC))
    for number in range(4):
        assert answer(verifier, ask(number, 5 + number, -1)).features is None, "nobody asked"
    features = answer(verifier, ask(4, 9, 6)).features
    assert features is not None
    assert (features.start, features.stop, features.projected) == (6, 9, False)
    assert np.array_equal(features.values, calm[0][6:9])


# Projections


def test_features_are_projected_where_the_drafters_projection_is_loaded(plain: list[list[int]], calm: list[NDArray[np.uint16]]) -> None:
    projection = Projected()
    rounds = Rounds(verifier_on(model_of(), projection), PROMPTS, Guess(5, 6, plain), specs=SPEC)
    assert rounds.run(40) == plain
    found = joined(rounds.features[2])
    assert found.shape[1] == projection.width
    assert all(part is not None and part.projected for part in rounds.features[2])
    expected = projection(floats(calm[2]))  # the target projects float32 taps, these are rounded already
    torch.testing.assert_close(floats(found[: len(expected)]), expected[: len(found)].float(), rtol=0.03, atol=0.05)


def test_only_rows_that_stay_are_projected(plain: list[list[int]]) -> None:
    projection = Projected()
    rounds = Rounds(verifier_on(model_of(), projection), PROMPTS, Guess(5, 12, []), specs=SPEC)
    rounds.run(20)
    cached = sum(len(prompt) + len(output) - 1 for prompt, output in zip(PROMPTS, rounds.outputs, strict=True))
    assert projection.num_rows == cached
    assert sum(report.batch_rows for report in rounds.reports) > 2 * cached


def test_sessions_of_several_drafters_and_plain_ones_share_a_batch(plain: list[list[int]], calm: list[NDArray[np.uint16]]) -> None:
    specs = [SPEC, None, FeatureSpec("drafter-2", (0,)), FeatureSpec("drafter-3", (-1,))]
    rounds = Rounds(verifier_on(model_of(), Projected()), PROMPTS, Guess(6, 5, plain), specs=specs)
    assert rounds.run(40) == plain
    assert set(rounds.features[1]) == {None}
    assert joined(rounds.features[0]).shape[1] == Projected.width
    for which, columns in ((2, slice(WIDTH, None)), (3, slice(0, WIDTH))):
        found = joined(rounds.features[which])
        assert np.array_equal(found[: len(calm[which])], calm[which][: len(found), columns])


@pytest.mark.parametrize("fails", ["at once", "later"])
def test_a_projection_that_fails_costs_no_token_and_is_told_once(
    plain: list[list[int]], caplog: pytest.LogCaptureFixture, fails: str
) -> None:
    projection = Projected()
    rounds = Rounds(verifier_on(model_of(), projection), PROMPTS[:2], Guess(3, 4, plain), specs=SPEC)
    if fails == "later":
        rounds.submit(40)
        rounds.step()
        assert rounds.features[0][0] is not None
    projection.error = RuntimeError("no kernel")
    with caplog.at_level(logging.WARNING):
        assert rounds.run(40) == plain[:2]
    assert rounds.failures == {}
    assert rounds.features[0][-1] is None
    assert len([record for record in caplog.records if "features could not be read" in record.message]) == 1


def test_a_projection_that_failed_once_is_tried_again_and_nothing_is_missing(calm: list[NDArray[np.uint16]]) -> None:
    projection = Projected()
    verifier = verifier_on(model_of(), projection)
    verifier.open(SessionOpen(A, tuple(PROMPTS[0]), GREEDY, features=SPEC))
    projection.error = RuntimeError("once")
    assert answer(verifier, ask(0, 5, 0)).features is None
    projection.error = None
    features = answer(verifier, ask(1, 6, 0)).features
    assert features is not None
    assert (features.start, features.stop) == (0, 6)


def test_a_projection_that_fails_again_and_again_is_given_up() -> None:
    projection = Projected()
    verifier = verifier_on(model_of(), projection)
    verifier.open(SessionOpen(A, tuple(PROMPTS[0]), GREEDY, features=SPEC))
    projection.error = RuntimeError("always")
    for number in range(MAX_TRIES):
        assert answer(verifier, ask(number, 5 + number, 0)).features is None
    projection.error = None
    assert answer(verifier, ask(MAX_TRIES, 5 + MAX_TRIES, 0)).features is None


@pytest.mark.parametrize("factor", [float("nan"), 1e39])
def test_features_that_are_no_numbers_are_left_out(plain: list[list[int]], factor: float) -> None:
    rounds = Rounds(verifier_on(model_of(), Projected(factor)), PROMPTS[:1], specs=SPEC)
    assert rounds.run(5) == [plain[0][:5]]
    assert set(rounds.features[0]) == {None}
