"""A trial of a few answers: bounded in time, nobody waits for those who do not answer, and what it says is what it saw."""

import asyncio
import time
from typing import Self

import pytest

from dspark.deepspec.answers import Job
from dspark.deepspec.prompts import Prompt
from dspark.deepspec.time_probe import PROBE_TOKENS, TimeProbe, probe_time
from dspark.errors import InvalidRequest, TargetUnavailable

ANSWER_S = 0.05


class Answers:
    """An Answerer that takes its time; by the seed, some prompts are slow, refused or unanswerable."""

    source = "test"

    def __init__(self, slow: tuple[int, ...] = (), error: Exception | None = None) -> None:
        self.asked: list[Job] = []
        self._slow = slow
        self._error = error

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None: ...

    async def answer(self, job: Job) -> list[int]:
        self.asked.append(job)
        await asyncio.sleep(60 if job.seed in self._slow else ANSWER_S)
        if self._error is not None and job.seed == 1:
            raise self._error
        return [5] * job.max_tokens


def jobs(*max_tokens: int) -> list[Job]:
    return [Job(str(seed), Prompt("here", (1, 2), "x"), 1.0, tokens, seed) for seed, tokens in enumerate(max_tokens)]


async def test_all_are_asked_at_once_for_few_tokens_after_the_first_one_alone() -> None:
    answers = Answers()
    found = await probe_time(answers, jobs(100, 100, 3))
    assert [job.max_tokens for job in answers.asked] == [1, PROBE_TOKENS, PROBE_TOKENS, 3]
    assert found.tokens == found.asked_tokens == 2 * PROBE_TOKENS + 3
    assert ANSWER_S * 0.9 < found.seconds < 20 * ANSWER_S


async def test_nobody_waits_for_those_who_do_not_answer() -> None:
    started_s = time.monotonic()
    found = await probe_time(Answers(slow=(1,)), jobs(100, 100, 100), limit_s=0.5)
    assert found.tokens == 2 * PROBE_TOKENS
    found = await probe_time(Answers(slow=(0, 1)), jobs(100, 100), limit_s=0.2)
    assert (found.tokens, found.asked_tokens) == (0, 2 * PROBE_TOKENS)
    assert time.monotonic() - started_s < 10


async def test_a_refused_prompt_counts_nothing_and_a_missing_server_ends_all() -> None:
    assert (await probe_time(Answers(error=InvalidRequest("no")), jobs(100, 100))).tokens == PROBE_TOKENS
    with pytest.raises(TargetUnavailable):
        await probe_time(Answers(error=TargetUnavailable("gone")), jobs(100, 100))


def test_the_estimate_is_an_extrapolation_and_says_so() -> None:
    told = TimeProbe(tokens=100, asked_tokens=100, seconds=2.0).summary(30_000)
    assert told == "estimated time: about 10 min if no answer ends early; extrapolated from a trial of 100 tokens in 2.0 s"
    assert "more than 5 min; a trial of 50 tokens gave none in 5.0 s" in TimeProbe(0, 50, 5.0).summary(3000)
