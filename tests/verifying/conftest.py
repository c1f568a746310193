"""What sessions over the tiny model say and show when nothing disturbs them."""

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.verifying.feature_rounds import PROMPTS, SPEC, joined, model_of, verifier_on
from tests.verifying.rounds import Rounds


@pytest.fixture(scope="session")
def plain() -> list[list[int]]:
    """40 tokens of each prompt, without candidates and features."""
    return Rounds(verifier_on(model_of()), PROMPTS).run(40)


@pytest.fixture(scope="session")
def calm() -> list[NDArray[np.uint16]]:
    """Raw taps of each session alone, without candidates."""
    every = []
    for prompt in PROMPTS:
        rounds = Rounds(verifier_on(model_of()), [prompt], specs=SPEC)
        rounds.run(40)
        every.append(joined(rounds.features[0]))
    return every
