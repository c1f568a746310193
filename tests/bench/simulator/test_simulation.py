"""The simulated service against arithmetic: where costs are constant, rates are exact."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from functools import cache

import pytest

from dspark.bench.simulator.acceptance import ChanceTable, DraftBook
from dspark.bench.simulator.costs import DraftCosts, RouterCosts, Setup, TargetCosts, curve_of
from dspark.bench.simulator.policies import Policy, ServiceRouter, policy_named
from dspark.bench.simulator.simulation import Simulation
from dspark.bench.simulator.tally import OperatingPoint, operating_point
from dspark.bench.simulator.workload import ClosedLoop, Poisson, Workload
from dspark.routing.rounds import InFlight
from dspark.routing.target_economy import TargetEconomy
from dspark.scheduling.drafting_plan import DraftLimits

SEED = 11
STEP_MS, DRAFT_MS, ROUTER_MS = 10.0, 3.0, 1.0
FLAT = TargetCosts(curve_of([1, 512], [STEP_MS, STEP_MS]))
SETUP = Setup("flat", FLAT, DraftCosts(fixed_ms=DRAFT_MS), RouterCosts(round_ms=ROUTER_MS))
MOST, THREE = DraftLimits(7, 1, 7), DraftLimits(3, 1, 3)
ALWAYS = ChanceTable.of_chain([1.0] * 7)
HALF = ChanceTable.of_chain([0.5] * 7)


def simulation(
    policy: str | Policy,
    setup: Setup = SETUP,
    arrivals: int | ClosedLoop | Poisson = 1,
    table: ChanceTable = ALWAYS,
    seed: int = SEED,
    **workload: int,
) -> Simulation:
    """An integer is a closed loop of so many clients that start at once."""

    @cache
    def book_of(limits: DraftLimits) -> DraftBook:
        return DraftBook(table, limits, 2000, SEED)

    chosen = policy_named(policy, MOST) if isinstance(policy, str) else policy
    load = ClosedLoop(arrivals) if isinstance(arrivals, int) else arrivals
    return Simulation(setup, Workload(load, **workload), chosen, book_of, seed)


def point(policy: str, setup: Setup = SETUP, clients: int = 1, num_tokens: int = 4000, **options: object) -> OperatingPoint:
    tally = simulation(policy, setup, clients, **options).run(num_tokens, warmup_tokens=400)  # type: ignore[arg-type]
    return operating_point(policy, clients, setup, tally)


def test_plain_decoding_of_one_client_is_one_token_per_step_and_router_round() -> None:
    found = point("plain")
    assert found.tokens_per_second == pytest.approx(1e3 / (STEP_MS + ROUTER_MS), rel=1e-9)
    assert found.user_tokens_per_second == pytest.approx(found.tokens_per_second, rel=1e-9)
    assert found.target_utilisation == pytest.approx(STEP_MS / (STEP_MS + ROUTER_MS), rel=1e-9)
    assert (found.tau, found.rows_per_step, found.drafter_utilisation) == (1.0, 1.0, 0.0)


def test_one_client_who_always_accepts_gets_a_chain_and_its_bonus_each_round() -> None:
    found = point("fixed3", output_tokens=4 * 1000)  # a first request may be cut short: the longer, the less its last round matters
    assert found.tau == pytest.approx(4.0, rel=2e-3)
    assert found.tokens_per_second == pytest.approx(found.tau * 1e3 / (DRAFT_MS + ROUTER_MS + STEP_MS), rel=1e-9)
    assert found.verified_per_round == 3.0


def test_a_step_of_many_sessions_serves_them_all() -> None:
    found = point("plain", clients=32)
    assert found.tokens_per_second == pytest.approx(32 * 1e3 / (STEP_MS + ROUTER_MS), rel=1e-9)
    assert found.rows_per_step == 32.0


def test_a_saturated_target_makes_no_more_with_more_clients() -> None:
    slope = replace(SETUP, target=TargetCosts(curve_of([1, 512], [0.5, 256.0])), router=RouterCosts())
    assert point("plain", slope, 16).tokens_per_second == pytest.approx(2000.0, rel=1e-9)
    assert point("plain", slope, 64).tokens_per_second == pytest.approx(2000.0, rel=1e-9)


def test_the_router_costs_by_round_and_by_session() -> None:
    setup = replace(SETUP, router=RouterCosts(round_ms=1.0, session_us=250.0))
    assert point("plain", setup, 8).tokens_per_second == pytest.approx(8 * 1e3 / (STEP_MS + 1.0 + 8 * 0.25), rel=1e-9)


@pytest.mark.parametrize("policy", ["plain", "fixed3"])
def test_two_targets_and_two_drafters_make_twice_as_much(policy: str) -> None:
    one = point(policy, SETUP, 16, output_tokens=400, num_tokens=8000)
    two = point(policy, replace(SETUP, num_targets=2, num_drafters=2), 32, output_tokens=400, num_tokens=16_000)
    assert two.tokens_per_second == pytest.approx(2 * one.tokens_per_second, rel=0.01)
    assert two.target_utilisation == pytest.approx(one.target_utilisation, rel=0.01)


def test_two_clients_draft_and_verify_in_turns_and_the_target_never_idles() -> None:
    setup = replace(SETUP, draft=DraftCosts(fixed_ms=STEP_MS), router=RouterCosts())
    run = simulation("fixed3", setup, ClosedLoop(2, spread_ms=8.0), output_tokens=10_000)
    assert operating_point("fixed3", 2, setup, run.run(4000, 400)).target_utilisation == pytest.approx(1.0, rel=0.01)


def test_on_one_processor_drafting_and_verifying_take_turns() -> None:
    setup = replace(SETUP, router=RouterCosts(), one_processor=True)
    found = point("fixed3", setup, 1, output_tokens=4000)
    assert found.target_utilisation == pytest.approx(STEP_MS / (STEP_MS + DRAFT_MS), rel=1e-9)
    many = point("fixed3", setup, 6, output_tokens=4000)
    assert many.target_utilisation + many.drafter_utilisation <= 1 + 1e-9


def test_a_drafter_that_reads_features_has_none_in_the_first_round_and_that_costs_rows_and_speed() -> None:
    setup = replace(SETUP, router=RouterCosts(), one_processor=True)
    together = point("fixed3", setup, 6, output_tokens=30, num_tokens=6000)
    apart = point("fixed3", replace(setup, plain_first_round=True), 6, output_tokens=30, num_tokens=6000)
    assert apart.drafted_per_round < together.drafted_per_round
    assert apart.rows_per_step < 0.95 * together.rows_per_step
    assert apart.tokens_per_second < 0.95 * together.tokens_per_second


def test_tau_is_that_of_the_acceptance_table() -> None:
    """Mean of 1 + .5 + .25 + .125; the bound is 4 standard errors of 4,000 rounds and 2,000 drafts (false alarm below 1e-4)."""
    found = point("fixed3", SETUP, 4, table=HALF, num_tokens=8000, output_tokens=10_000)
    assert found.tau == pytest.approx(1.875, abs=0.1)


def test_every_token_is_counted_once_and_every_request_gets_what_it_asked_for() -> None:
    run = simulation("fixed3", arrivals=5, table=HALF, output_tokens=50)
    run.run(3000)
    finished = sum(request.num_tokens for request in run.requests)
    assert finished + run.tokens_of_open_requests == run.tally.tokens
    counts = Counter(request.client for request in run.requests)
    assert set(counts) == set(range(5))
    seen: Counter[int] = Counter()
    for request in run.requests:
        seen[request.client] += 1
        assert request.num_tokens <= 50 if seen[request.client] == 1 else request.num_tokens == 50


@pytest.mark.parametrize("policy", ["fixed3", "planned"])
def test_the_same_seed_gives_the_same_run_and_another_seed_another(policy: str) -> None:
    first = point(policy, clients=6, table=HALF, num_tokens=1500)
    assert point(policy, clients=6, table=HALF, num_tokens=1500) == first
    assert point(policy, clients=6, table=HALF, num_tokens=1500, seed=SEED + 1) != first


def test_a_prompt_is_prefilled_in_pieces_before_the_first_token() -> None:
    run = simulation("plain", replace(SETUP, max_rows=64), 1, prompt_tokens=200, output_tokens=10)
    run.run(500)
    whole = [request for request in run.requests if request.num_tokens == 10]
    steps = (whole[0].finished_ms - whole[0].arrived_ms) / STEP_MS
    assert steps == pytest.approx(10 + 3 + (10 * ROUTER_MS) / STEP_MS), "200 rows at 64 a step are three pieces and the step that answers"


def test_a_prompt_that_is_in_the_cache_costs_its_reading_but_no_rows() -> None:
    setup = replace(SETUP, target=replace(FLAT, kv_us_per_token=100.0), router=RouterCosts())
    run = simulation("plain", setup, 1, cached_tokens=500, output_tokens=1)
    tally = run.run(20)
    assert tally.rows == tally.steps == 20
    assert tally.step_ms / tally.steps == pytest.approx(STEP_MS + 50.0)


def test_cached_tokens_cost_their_reading() -> None:
    setup = replace(SETUP, target=replace(FLAT, kv_us_per_token=100.0), router=RouterCosts())
    run = simulation("plain", setup, 1, prompt_tokens=0, output_tokens=1000)
    tally = run.run(100)  # cached: 0, 1, 2, ... 99 tokens
    assert tally.step_ms == pytest.approx(100 * STEP_MS + 0.1 * sum(range(100)))


def test_requests_that_come_at_random_are_served_at_their_rate_while_there_is_room() -> None:
    """20 requests/s of 20 tokens; 200 requests have a relative standard deviation of 0.07: the bound is 4 of them."""
    setup = replace(SETUP, target=TargetCosts(curve_of([1, 512], [1.0, 1.0])), router=RouterCosts())
    run = simulation("plain", setup, Poisson(20.0), output_tokens=20)
    found = operating_point("plain", 20.0, setup, run.run(4000, 400))
    assert found.tokens_per_second == pytest.approx(400.0, rel=0.28)
    assert found.user_tokens_per_second == pytest.approx(1000.0, rel=0.05), "a token per step of 1 ms, after the step that runs"


def test_more_requests_than_there_is_room_for_wait_and_are_served_in_turn() -> None:
    run = simulation("plain", SETUP, Poisson(1000.0), output_tokens=5, max_sessions=4)
    tally = run.run(400)
    assert tally.rows / tally.steps <= 4
    assert [request.client for request in run.requests] == sorted(request.client for request in run.requests)


class Patient(TargetEconomy):
    """Waits for drafts in flight whenever there are any, or never."""

    patience_ms = 1e6

    def wait_ms(self, num_ready: int, in_flight: Sequence[InFlight]) -> float:
        assert num_ready
        assert all(draft.since_ms >= 0 for draft in in_flight)
        return self.patience_ms


class Impatient(Patient):
    patience_ms = 0.0


def router_with(books: type[TargetEconomy]) -> Policy:
    class Router(ServiceRouter):
        def books(self) -> TargetEconomy:
            return books(self.economy, None, SETUP.max_rows)

    return lambda setup: Router(THREE, setup, planned=False)


def test_in_the_fixed_mode_too_a_target_waits_where_its_steps_are_dear_and_rows_are_not() -> None:
    tally = simulation("fixed3", replace(SETUP, one_processor=True), ClosedLoop(4, spread_ms=30.0), output_tokens=10_000).run(4000, 400)
    assert tally.rows / tally.steps == pytest.approx(16, abs=0.5)


def test_a_policy_may_wait_for_drafts_in_flight_and_so_bring_sessions_together() -> None:
    setup = replace(SETUP, one_processor=True)
    arrivals = ClosedLoop(4, spread_ms=30.0)
    together = simulation(router_with(Patient), setup, arrivals, output_tokens=10_000).run(4000, 400)
    apart = simulation(router_with(Impatient), setup, arrivals, output_tokens=10_000).run(4000, 400)
    assert together.rows / together.steps == pytest.approx(16, abs=0.5)
    assert apart.rows / apart.steps < 12
    assert together.elapsed_ms < apart.elapsed_ms
