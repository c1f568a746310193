"""What rejection sampling could expect of a chain, on the shipped pair."""

import numpy as np
import pytest

from dspark.bench.prompts import load_prompts
from dspark.bench.rejection import RejectionBound, with_interval
from dspark.config import DrafterConfig, TargetConfig
from dspark.deepspec.data import Sample
from dspark.deepspec.decoding import Decoder, DecodingPlan
from dspark.errors import UnsupportedModel

PLAN = DecodingPlan(max_tokens=24)
TARGET = TargetConfig(num_threads=1)


@pytest.fixture(scope="module")
def answers() -> list[Sample]:
    decoder = Decoder(TARGET)
    return decoder.answers([decoder.codec.encode(text) for text in load_prompts(None, 3)], 1.0, PLAN)


@pytest.fixture(scope="module")
def bound() -> RejectionBound:
    return RejectionBound(TARGET, DrafterConfig())


def test_answers_are_prompts_with_what_the_target_said(answers: list[Sample]) -> None:
    assert [len(answer.token_ids) - answer.prompt_tokens for answer in answers] == [PLAN.max_tokens] * 3


def test_deeper_chains_expect_more_and_never_more_than_their_depth(bound: RejectionBound, answers: list[Sample]) -> None:
    taus = bound.taus(answers, 1.0)
    assert taus.shape == (3, 7)
    assert (np.diff(taus, axis=1) >= 0).all()
    assert (taus > 1).all()
    assert (taus <= np.arange(2, 9)).all()


def test_near_temperature_zero_the_overlap_is_agreement_of_the_best_tokens(bound: RejectionBound, answers: list[Sample]) -> None:
    assert bound.taus(answers, 1e-4) == pytest.approx(bound.taus(answers, 0.0), abs=0.02)


def test_distributions_that_are_alike_accept_everything(bound: RejectionBound, answers: list[Sample]) -> None:
    """So hot that both are nearly uniform."""
    assert bound.taus(answers, 1e6) == pytest.approx(np.tile(np.arange(2.0, 9.0), (3, 1)), abs=1e-3)


def test_the_interval_is_around_the_mean_of_the_samples() -> None:
    taus = np.random.default_rng(0).normal(3.0, 0.5, (50, 2))
    for (mean, low, high), column in zip(with_interval(taus), taus.T, strict=True):
        assert low < mean < high
        assert mean == pytest.approx(column.mean())
        assert high - low == pytest.approx(4 * 0.5 / 50**0.5, rel=0.35)


def test_a_drafter_of_another_kind_is_refused() -> None:
    with pytest.raises(UnsupportedModel, match="block drafters"):
        RejectionBound(TARGET, DrafterConfig(kind="lookup"))
