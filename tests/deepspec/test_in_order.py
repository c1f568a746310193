"""Many answers in flight, in order: how many run, what the deadline leaves, and what an error ends."""

import asyncio
import time
from contextlib import aclosing
from types import TracebackType
from typing import Self

import pytest

from dspark.deepspec.answers import Job, sample_seed
from dspark.deepspec.in_order import LOOK_AHEAD, answer_in_order
from dspark.deepspec.prompts import Prompt
from dspark.errors import InvalidRequest, TargetUnavailable


class SlowAnswerer:
    """Answers job n with [n], later ones often earlier."""

    source = "slow"

    def __init__(self, fails: dict[str, Exception] | None = None) -> None:
        self.running = self.most_running = self.begun = 0
        self._fails = fails or {}

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        return None

    async def answer(self, job: Job) -> list[int]:
        self.begun += 1
        self.running += 1
        self.most_running = max(self.most_running, self.running)
        try:
            await asyncio.sleep(0.002 * (1 + (7 * int(job.sample_id)) % 5))
            if job.sample_id in self._fails:
                raise self._fails[job.sample_id]
            return [int(job.sample_id)]
        finally:
            self.running -= 1


def _jobs(count: int) -> list[Job]:
    return [Job(str(i), Prompt(f"file:{i}", (1, 2), "x"), 1.0, 5, i) for i in range(count)]


async def test_answers_come_in_the_order_of_their_jobs_with_so_many_in_flight() -> None:
    answerer = SlowAnswerer()
    answers = [(job.sample_id, answer) async for job, answer in answer_in_order(iter(_jobs(40)), answerer, concurrency=6)]
    assert answers == [(str(i), [i]) for i in range(40)]
    assert answerer.most_running == 6


async def test_jobs_are_taken_only_a_little_ahead() -> None:
    taken = 0

    def jobs() -> object:
        nonlocal taken
        for job in _jobs(1000):
            taken += 1
            yield job

    async with aclosing(answer_in_order(jobs(), SlowAnswerer(), concurrency=2)) as answers:
        await anext(answers)
    assert taken == 2 * LOOK_AHEAD


async def test_after_the_deadline_what_runs_is_finished_and_the_rest_is_told_as_not_begun() -> None:
    answerer = SlowAnswerer()
    running = answer_in_order(iter(_jobs(1000)), answerer, concurrency=3, deadline_s=time.monotonic() + 0.05)
    answers = [answer async for _, answer in running]
    assert answers[-1] is None
    assert answers[:-1] == [[i] for i in range(answerer.begun)]
    assert 0 < answerer.begun < 1000


async def test_a_prompt_that_cannot_be_answered_comes_with_its_reason_and_does_not_end_the_others() -> None:
    refusal = InvalidRequest("too long", "prompt")
    answerer = SlowAnswerer({"3": refusal})
    answers = [answer async for _, answer in answer_in_order(iter(_jobs(6)), answerer, concurrency=3)]
    assert answers == [[0], [1], [2], refusal, [4], [5]]


async def test_any_other_error_ends_all_after_the_answers_before_it_and_leaves_nothing_running() -> None:
    answerer = SlowAnswerer({"5": TargetUnavailable("gone")})
    answers = []
    with pytest.raises(TargetUnavailable, match="gone"):
        async for _, answer in answer_in_order(iter(_jobs(100)), answerer, concurrency=4):
            answers.append(answer)
    assert answers == [[i] for i in range(5)]
    assert answerer.running == 0


def test_a_samples_seed_depends_on_its_id_and_the_runs_seed_and_fits_53_bits() -> None:
    seeds = {sample_seed(seed, f"{i}#0") for seed in (0, 1) for i in range(500)}
    assert len(seeds) == 1000
    assert sample_seed(0, "7#0") == sample_seed(0, "7#0")
    assert max(seeds) < 2**53
