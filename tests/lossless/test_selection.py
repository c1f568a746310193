"""Any selection is lossless: trees of the shipped pair, scored by honest and hostile scorers, planned and fixed, and the same tokens.

In deterministic mode, so the same means exactly the same. A step has eight rows for sessions that draft twelve candidates each: what
is verified is what the scores say.
"""

import asyncio
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from dspark.bench.prompts import load_prompts
from dspark.config import DrafterConfig, EngineConfig, LimitsConfig, SchedulingConfig, TargetConfig
from dspark.drafting.build import load_drafter
from dspark.engine import Completion, Engine
from dspark.local import LocalBackend
from dspark.runtime.loading import load_tokenizer, resolve_folder
from dspark.scheduling.curve import ThroughputCurve
from dspark.serving.text_codec import TextCodec
from dspark.verifying.target_model import load_target
from tests.lossless.adversaries import Peeking, Scorer, at_random, constant, honest, inverted, not_a_number, rescored

NUM_PROMPTS, PROMPT_TOKENS, NUM_TOKENS, SEED = 6, 64, 32, 23
TARGET = TargetConfig(num_threads=1, deterministic=True, max_batch_rows=8)
DRAFTER = DrafterConfig(kind="block", max_depth=5, max_nodes=12, max_width=4)
LIMITS = LimitsConfig(draft_timeout_s=120.0, verify_timeout_s=300.0)
JAGGED = ThroughputCurve(np.asarray([1, 6, 12, 16, 24]), np.asarray([0]), np.asarray([[30.0, 36.0, 38.0, 60.0, 64.0]]))
"""What planning starts from; real steps then teach it what this machine is like."""
Setting = tuple[str, float, bool]
"""Mode of scheduling, temperature, with lookup."""
ALL: list[Setting] = [(mode, t, lookup) for mode in ("planned", "fixed") for t in (0.9, 0.0) for lookup in (False, True)]
QUICK: dict[Setting, set[str]] = {
    ("planned", 0.9, False): {"inverted", "not a number"},
    ("planned", 0.0, True): {"at random", "right first"},
    ("fixed", 0.9, False): {"right first", "right last"},
    ("fixed", 0.0, True): {"honest", "constant"},
}
"""What runs in every test run; the others are slow."""
SCORERS: dict[str, Scorer] = {
    "honest": honest,
    "at random": at_random,
    "inverted": inverted,
    "constant": constant,
    "not a number": not_a_number,
}
PEEKING = {"right first": (0.99, 0.01), "right last": (0.01, 0.99)}
CASES = [
    pytest.param(name, setting, marks=[] if name in QUICK.get(setting, ()) else pytest.mark.slow)
    for setting in ALL
    for name in (*SCORERS, *PEEKING)
]


class Pair:
    """The shipped pair in memory, its prompts, and what plain decoding says after each of them."""

    def __init__(self) -> None:
        self.target = load_target(TARGET, (DRAFTER,))
        self.drafter = load_drafter(DRAFTER, TARGET)
        self.codec = TextCodec(load_tokenizer(resolve_folder(TARGET)))
        self.prompts = [self.codec.encode(text)[:PROMPT_TOKENS] for text in load_prompts(None, NUM_PROMPTS)]
        self._plain: dict[float, list[tuple[int, ...]]] = {}
        self._answers: dict[tuple[str, Setting], list[Completion]] = {}

    def engine(self, scorer: Scorer | None, mode: str = "planned", with_lookup: bool = False) -> Engine:
        """Without a scorer nobody drafts."""
        scheduling = SchedulingConfig.model_validate({"mode": mode})
        drafter = DRAFTER.model_copy(update={"with_lookup": with_lookup}) if scorer else DrafterConfig(kind="none")
        drafters = {"default": rescored(self.drafter, scorer)} if scorer else {}
        config = EngineConfig(target=TARGET, drafter=drafter, limits=LIMITS, scheduling=scheduling)
        return Engine(LocalBackend(self.target, drafters, JAGGED), self.codec, config)

    def plain(self, temperature: float) -> list[tuple[int, ...]]:
        """The reference, one prompt at a time."""
        if temperature not in self._plain:
            engine = self.engine(None)
            self._plain[temperature] = [_generated(engine, [prompt], temperature)[0].token_ids for prompt in self.prompts]
        return self._plain[temperature]

    def answers(self, name: str, setting: Setting) -> list[Completion]:
        """All prompts at once, under this scorer."""
        if (name, setting) not in self._answers:
            mode, temperature, with_lookup = setting
            engine = self.engine(self._scorer(name, temperature), mode, with_lookup)
            self._answers[name, setting] = _generated(engine, self.prompts, temperature)
        return self._answers[name, setting]

    def _scorer(self, name: str, temperature: float) -> Scorer:
        if name in SCORERS:
            return SCORERS[name]
        texts = zip(map(tuple, self.prompts), self.plain(temperature), strict=True)
        return Peeking(dict(texts), *PEEKING[name])


@pytest.fixture(scope="module")
def pair() -> Pair:
    return Pair()


def _generated(engine: Engine, prompts: Sequence[Sequence[int]], temperature: float) -> list[Completion]:
    return engine.generate(prompts, max_tokens=NUM_TOKENS, temperature=temperature, seed=SEED, ignore_eos=True)


def _total(answers: list[Completion], field: str) -> int:
    return sum(getattr(answer.usage, field) for answer in answers)


@pytest.mark.parametrize(("name", "setting"), CASES)
def test_whoever_scores_the_candidates_the_tokens_are_those_of_plain_decoding(pair: Pair, name: str, setting: Setting) -> None:
    answers = pair.answers(name, setting)
    assert [answer.token_ids for answer in answers] == pair.plain(setting[1])
    drafted, selected = _total(answers, "drafted_tokens"), _total(answers, "selected_tokens")
    if name == "not a number" and not setting[2]:
        assert drafted == 0, "refused on arrival"
    elif name == "not a number":  # what remains are the few matches of lookup, which need not be worth asking for
        assert (0 if setting[0] == "planned" else 1) <= selected <= drafted
    else:
        assert 0 < selected < drafted, "something was left out and something was not"


@pytest.mark.parametrize("temperature", [0.9, pytest.param(0.0, marks=pytest.mark.slow)])
def test_the_scores_really_decide_what_is_verified(pair: Pair, temperature: float) -> None:
    """Equality would be cheap if hostile scores changed nothing: from the same trees the right ones are taken, or left."""
    first, last = (pair.answers(name, ("fixed", temperature, False)) for name in ("right first", "right last"))
    assert _total(first, "accepted_tokens") > 1.1 * _total(last, "accepted_tokens")
    assert _total(first, "rounds") < _total(last, "rounds")


MIXED: list[dict[str, Any]] = [
    {"temperature": 0.9, "seed": 1},
    {"temperature": 0.0, "max_nodes": 1},
    {"temperature": 0.9, "seed": 2, "max_nodes": 0},
    {"temperature": 0.9, "seed": 1, "max_nodes": 5, "priority": -1, "min_tokens_per_second": 1e4},
    {"temperature": 0.0, "speculation_enabled": False, "max_tokens": 11},
    {"temperature": 0.5, "seed": 3, "top_p": 0.9, "max_tokens": 19, "min_tokens_per_second": 5.0},
    {"temperature": 1.3, "seed": 4, "top_k": 30, "priority": 3},
    {"temperature": 0.0, "max_tokens": 1},
]
"""One batch: greedy and sampled, capped, plain, promised, long and short."""


@pytest.mark.parametrize("mode", ["planned", pytest.param("fixed", marks=pytest.mark.slow)])
def test_sessions_of_all_kinds_in_one_batch_each_get_their_own_text(pair: Pair, mode: str) -> None:
    plain, mixed = pair.engine(None), pair.engine(at_random, mode, with_lookup=True)
    wanted = [{"max_tokens": NUM_TOKENS, "ignore_eos": True} | options for options in MIXED]
    prompts = [pair.prompts[index % NUM_PROMPTS] for index in range(len(wanted))]
    requests = [mixed.requests([prompt], **options)[0] for prompt, options in zip(prompts, wanted, strict=True)]

    async def all_at_once() -> list[Completion]:
        async with mixed:
            return list(await asyncio.gather(*(mixed.complete(request) for request in requests)))

    answers = asyncio.run(all_at_once())
    for prompt, options, answer in zip(prompts, wanted, answers, strict=True):
        (alone,) = plain.generate([prompt], **(options | {"speculation_enabled": False}))
        assert answer.token_ids == alone.token_ids, options
    without = {index for index, answer in enumerate(answers) if answer.usage.selected_tokens == 0}
    if mode == "planned":  # of drafts that nobody knows yet, a few sessions find out for all what they are worth
        assert {2, 4, 7} <= without
        assert len(without) <= len(MIXED) - 2, "candidates of several sessions were in one batch"
    else:
        assert without == {2, 4, 7}
