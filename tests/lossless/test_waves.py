"""Two waves are lossless: the drafts of one half of the sessions are made while the other half is verified, and the tokens are the same.

In one process drafter and target share a thread and nothing hides anything; here they have their own, and costs under which two waves
are better, whatever the scores say, are told to the router. In deterministic mode, so the same means exactly the same.
"""

import math
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
import pytest

from dspark.bench.prompts import load_prompts
from dspark.config import DrafterConfig, EngineConfig, LimitsConfig, TargetConfig
from dspark.drafting.build import load_drafter
from dspark.engine import Completion, Engine
from dspark.local import LocalBackend
from dspark.messages import StepReport
from dspark.routing.observer import SilentObserver
from dspark.runtime.loading import load_tokenizer, resolve_folder
from dspark.scheduling.curve import ThroughputCurve
from dspark.serving.text_codec import TextCodec
from dspark.types import SessionId
from dspark.verifying.target_model import load_target
from tests.lossless.adversaries import Peeking, Scorer, at_random, honest, inverted, rescored
from tests.lossless.apart import ApartBackend, Seen

NUM_SESSIONS, PROMPT_TOKENS, NUM_TOKENS, SEED = 6, 64, 40, 29
HALF = NUM_SESSIONS // 2
TARGET = TargetConfig(num_threads=1, deterministic=True, max_batch_rows=48)
DRAFTER = DrafterConfig(kind="block", max_depth=7, max_nodes=12, max_width=3)
LIMITS = LimitsConfig(draft_timeout_s=120.0, verify_timeout_s=300.0)
STEP_MS, DRAFT_MS = 20_000.0, 20_000.0
STAIRS = ThroughputCurve(np.asarray([1, 18, 19, 48]), np.asarray([0]), STEP_MS * np.asarray([[1.0, 1.0, 2.0, 2.0]]))
"""18 rows cost as much as one, so half of the sessions with five candidates each as much as all of them with two."""
Setting = tuple[str, float, bool]
"""Scorer, temperature, with lookup."""
ALL: list[Setting] = [
    (name, temperature, lookup)
    for name in ("honest", "at random", "inverted", "right first", "right last")
    for temperature in (0.0, 0.7)
    for lookup in (False, True)
]
QUICK: set[Setting] = {("honest", 0.0, False), ("honest", 0.7, False), ("inverted", 0.7, False), ("right first", 0.0, True)}
"""What runs in every test run; the others are slow."""
CASES = [pytest.param(*setting, marks=[] if setting in QUICK else pytest.mark.slow) for setting in ALL]
MAY_STOP = {"right last"}
"""Under some scores so little is accepted that drafting is rightly stopped within these few tokens, now and then."""
PEEKING = {"right first": (0.99, 0.01), "right last": (0.01, 0.99)}
SCORERS: dict[str, Scorer] = {"honest": honest, "at random": at_random, "inverted": inverted}


@dataclass
class Watch(SilentObserver):
    """Reads the economy's books after every step."""

    engine: Engine | None = None
    waves: list[float] = field(default_factory=list)
    """1 or 2, as chosen last; NaN before the first choice."""

    def step_done(self, report: StepReport) -> None:
        """See Observer."""
        assert self.engine is not None
        self.waves.append(self.engine.standings()["default"].waves)


class Pair:
    """The shipped pair in memory, its prompts, and what plain decoding says after each of them."""

    def __init__(self) -> None:
        self.target = load_target(TARGET, (DRAFTER,))
        self.drafter = load_drafter(DRAFTER, TARGET)
        self.codec = TextCodec(load_tokenizer(resolve_folder(TARGET)))
        self.prompts = [self.codec.encode(text)[:PROMPT_TOKENS] for text in load_prompts(None, NUM_SESSIONS)]
        self._plain: dict[float, list[tuple[int, ...]]] = {}

    def plain(self, temperature: float) -> list[tuple[int, ...]]:
        """The reference, one prompt at a time; nobody drafts."""
        if temperature not in self._plain:
            config = EngineConfig(target=TARGET, drafter=DrafterConfig(kind="none"), limits=LIMITS)
            engine = Engine(LocalBackend(self.target, {}), self.codec, config)
            self._plain[temperature] = [generated(engine, [prompt], temperature)[0].token_ids for prompt in self.prompts]
        return self._plain[temperature]

    def scorer(self, name: str, temperature: float) -> Scorer:
        """By name; some know the target's answers."""
        if name in SCORERS:
            return SCORERS[name]
        texts = zip(map(tuple, self.prompts), self.plain(temperature), strict=True)
        return Peeking(dict(texts), *PEEKING[name])

    def together(self, scorer: Scorer, temperature: float, with_lookup: bool, overlap: float = 1.0) -> tuple[list[Completion], Watch, Seen]:
        """All prompts at once, where two waves are better if drafting and verifying overlap."""
        backend = ApartBackend(self.target, rescored(self.drafter, scorer), STAIRS, DRAFT_MS, overlap)
        drafter = DRAFTER.model_copy(update={"with_lookup": with_lookup})
        watch = Watch()
        watch.engine = Engine(backend, self.codec, EngineConfig(target=TARGET, drafter=drafter, limits=LIMITS), watch)
        return generated(watch.engine, self.prompts, temperature), watch, backend.seen


@pytest.fixture(scope="module")
def pair() -> Pair:
    return Pair()


def generated(engine: Engine, prompts: list[list[int]], temperature: float) -> list[Completion]:
    return engine.generate(prompts, max_tokens=NUM_TOKENS, temperature=temperature, seed=SEED, ignore_eos=True)


def num_turns(submits: list[frozenset[SessionId]]) -> int:
    """Times that one half of all sessions was handed in right after the other half."""
    return sum(len(first) == len(second) == HALF and not first & second for first, second in pairwise(submits))


@pytest.mark.parametrize(("name", "temperature", "with_lookup"), CASES)
def test_in_two_waves_every_session_gets_the_tokens_of_plain_decoding(pair: Pair, name: str, temperature: float, with_lookup: bool) -> None:
    answers, watch, seen = pair.together(pair.scorer(name, temperature), temperature, with_lookup)
    assert [answer.token_ids for answer in answers] == pair.plain(temperature)
    assert watch.waves.count(2.0) >= 5, "steps with two waves in the books"
    if name not in MAY_STOP:
        assert num_turns(seen.submits) >= 2, "the halves went by turns"
        assert seen.drafts_beside_a_step >= NUM_SESSIONS, "one half was drafted for while the other was verified"
    drafted, selected = (sum(getattr(answer.usage, field) for answer in answers) for field in ("drafted_tokens", "selected_tokens"))
    assert 0 < selected < drafted, "something was left out and something was not"


def test_where_nothing_overlaps_there_are_no_two_waves_and_the_tokens_are_the_same(pair: Pair) -> None:
    """The books that the tests above read can also say no."""
    answers, watch, _ = pair.together(honest, 0.7, with_lookup=False, overlap=0.0)
    assert [answer.token_ids for answer in answers] == pair.plain(0.7)
    assert all(math.isnan(waves) for waves in watch.waves)
