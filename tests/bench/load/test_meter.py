"""The meter of one engine, told of rounds and steps by hand, with a clock by hand."""

import pytest

from dspark.bench.load.meter import READ_AHEAD, LoadMeter
from dspark.bench.load.plan import SETTLING_STEPS, LoadPlan, Patience
from dspark.messages import DraftReport, DraftRequest, StepReport, VerifyResult
from dspark.session import Session, TokenChunk
from dspark.types import FinishReason, SamplingParams, SessionId, StopRules

STEP_S = 0.5
ROWS = 4
"""Of a session in a step: its anchor and three candidates."""


class Bench:
    """One session per client, all of them in every step."""

    def __init__(self, plan: LoadPlan, clients: int) -> None:
        self.now_s = 0.0
        self.patience = Patience()
        self.meter = LoadMeter(plan, self.patience, lambda: self.now_s)
        self.sessions = [
            Session(SessionId(str(n)), (1, 2, 3), SamplingParams(seed=n), StopRules(100, frozenset())) for n in range(clients)
        ]
        self.meter.begin(clients)
        for session in self.sessions:
            self.meter.asked(client=session.sampling.seed, request=session.sampling.seed)

    def step(self, tokens: int = 2, read: bool = True, finish: FinishReason | None = None) -> None:
        self.now_s += STEP_S
        results = tuple(VerifyResult(session.session_id, 0, 50, (), (1,)) for session in self.sessions)
        self.meter.step_done(StepReport(results, verify_ms=100.0, batch_rows=ROWS * len(self.sessions)))
        for session in self.sessions:
            self.meter.round_done(session, TokenChunk((7,) * tokens, finish, 4, 3, 1), STEP_S * 1e3)
            if read:
                self.meter.read(session.sampling.seed)


def settled(plan: LoadPlan, clients: int = 2) -> Bench:
    """Its window has just been opened."""
    bench = Bench(plan, clients)
    for _ in range(SETTLING_STEPS + 1):
        assert not bench.meter.window.tokens
        bench.step()
    return bench


def test_a_window_holds_whole_steps_after_the_first_ones() -> None:
    bench = settled(LoadPlan(seconds=2.0))
    while not bench.meter.closed.is_set():
        bench.step()
    window = bench.meter.window
    assert (window.seconds, window.steps, window.rows) == (2.0, 4, 32)
    assert (window.tokens, window.rounds, window.drafted, window.selected) == (16.0, 8.0, 32.0, 24.0), "2 sessions x 4 rounds"
    assert window.verify_ms == pytest.approx(400.0)
    assert window.step_samples[0] == (8, 2, 100, 100.0)
    bench.step()
    assert window.tokens == 16.0, "what comes later does not count"


def test_rows_and_rounds_are_of_the_same_steps() -> None:
    """Else a session more in the step that closes the window than in the one that opened it would be taken for a prompt's row."""
    bench = Bench(LoadPlan(seconds=2.0), 2)
    both = bench.sessions
    while not bench.meter.closed.is_set():
        alone = bench.meter.window.rounds == 0
        bench.sessions = both[:1] if alone and bench.meter.tokens_of(1) else both
        bench.step()
    assert bench.meter.window.rounds == 7, "the first step was of one session"
    assert bench.meter.window.rows == 28
    assert bench.meter.window.prompt_rows == 0


def test_the_window_waits_until_every_client_has_had_a_first_round() -> None:
    bench = Bench(LoadPlan(seconds=0.5), 1)
    bench.meter.begin(2)
    for _ in range(10):
        bench.step()
    assert not bench.meter.window.steps


def test_requests_are_timed_while_the_window_is_open_only() -> None:
    bench = settled(LoadPlan(seconds=2.0))
    bench.step()
    bench.step(finish=FinishReason.LENGTH)
    for request in (0, 1):
        bench.meter.left(request)
        bench.meter.asked(request, request + 10)
    bench.sessions = [Session(s.session_id, s.prompt_ids, SamplingParams(seed=s.sampling.seed + 10), s.stop) for s in bench.sessions]
    while not bench.meter.closed.is_set():
        bench.step()
    requests = bench.meter.window.requests
    assert set(requests) == {0, 1, 10, 11}
    assert all(seen.seconds == pytest.approx(1.0) for seen in requests.values())


def test_everybody_rests_once_each_session_waits_for_its_client() -> None:
    bench = settled(LoadPlan(seconds=0.5))
    bench.meter.rest()
    for _ in range(READ_AHEAD):
        assert not bench.meter.parked.is_set()
        bench.step(read=False)
    assert bench.meter.parked.is_set()


def test_a_session_that_is_over_need_not_wait_for_anybody() -> None:
    bench = settled(LoadPlan(seconds=0.5))
    bench.step(read=False, finish=FinishReason.LENGTH)
    bench.meter.rest()
    assert bench.meter.parked.is_set()


def test_drafting_calls_count_with_their_size_and_those_that_only_catch_up_with_their_time() -> None:
    bench = settled(LoadPlan(seconds=60.0))
    request = DraftRequest(SessionId("0"), 3, (), max_depth=7, max_nodes=16)
    catching_up = DraftRequest(SessionId("1"), 3, (), max_depth=0, max_nodes=0)
    bench.meter.drafted([request, catching_up], DraftReport(draft_ms=9.0))
    bench.meter.drafted([catching_up], DraftReport(draft_ms=1.0))
    assert bench.meter.window.draft_ms == 10.0
    assert bench.meter.window.draft_samples == [(1, 7, 9.0)]


def test_whoever_asks_for_an_end_gets_it_at_the_next_step() -> None:
    bench = Bench(LoadPlan(seconds=60.0), 1)
    bench.patience.stop()
    bench.step()
    assert bench.meter.closed.is_set()
    assert bench.meter.window.seconds == 0.0, "it was never open"
