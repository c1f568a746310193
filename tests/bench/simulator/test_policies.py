"""What a simulated router decides: the fixed ways always the same, this project's by the product's own books."""

from dataclasses import replace
from functools import cache

import pytest

from dspark.bench.simulator.acceptance import ChanceTable, DraftBook
from dspark.bench.simulator.costs import DraftCosts, Setup, TargetCosts, curve_of
from dspark.bench.simulator.policies import DRAFTER, Policy, ServiceRouter, policy_named
from dspark.bench.simulator.simulation import Simulation
from dspark.bench.simulator.tally import Tally
from dspark.bench.simulator.workload import ClosedLoop, Workload
from dspark.errors import ConfigError
from dspark.routing.explorers import FEW_EXPLORERS
from dspark.routing.rounds import Waiting
from dspark.scheduling.drafting_plan import DraftLimits
from dspark.scheduling.exploration import FIRST_ROUNDS, SHARE
from dspark.session import Session
from dspark.tree import CandidateTree
from dspark.types import SamplingParams, SessionId, StopRules

SEED = 11
MOST = DraftLimits(4, 1, 4)
CHAIN = CandidateTree.chain([1, 2, 3, 4], [0.9, 0.8, 0.7, 0.6])
STEP_MS = 10.0
FREE_ROWS = TargetCosts(curve_of([1, 128], [STEP_MS, STEP_MS]))
DEAR_ROWS = TargetCosts(curve_of([1, 128], [1.1, 128.1]))
GOOD, USELESS = ChanceTable.of_chain([0.9] * 4), ChanceTable.of_chain([0.01] * 4)
SETUP = Setup("test", FREE_ROWS, DraftCosts(fixed_ms=4.0), one_processor=True, max_rows=128)


class Recorded(ServiceRouter):
    """The planned router; remembers how many sessions its drafters served together."""

    def __init__(self, most: DraftLimits, setup: Setup) -> None:
        super().__init__(most, setup, planned=True)
        self.calls: list[int] = []

    def draft_done(self, num_sessions: int, depth: int, draft_ms: float, num_news: int | None = None, side_nodes: int = 0) -> None:
        self.calls.append(num_sessions)
        super().draft_done(num_sessions, depth, draft_ms, num_news, side_nodes)


def session(name: str) -> Session:
    return Session(SessionId(name), (0,), SamplingParams(), StopRules(100), drafter=DRAFTER)


def run(policy: Policy, setup: Setup, table: ChanceTable, clients: int, num_tokens: int, **workload: int) -> Tally:
    @cache
    def book_of(limits: DraftLimits) -> DraftBook:
        return DraftBook(table, limits, 500, SEED)

    load = Workload(ClosedLoop(clients), **{"output_tokens": 10_000} | workload)
    return Simulation(setup, load, policy, book_of, SEED).run(num_tokens)


def planned(setup: Setup, table: ChanceTable, clients: int = 1, num_tokens: int = 3000, **workload: int) -> tuple[Tally, Recorded]:
    """What happened, and the router with what it learned."""
    router = Recorded(MOST, setup)
    return run(lambda _: router, setup, table, clients, num_tokens, **workload), router


def plain(setup: Setup, clients: int = 1, num_tokens: int = 3000) -> Tally:
    return run(policy_named("plain", MOST), setup, GOOD, clients, num_tokens)


def test_fixed_policies_draft_and_verify_the_same_whatever_it_costs() -> None:
    waiting = [Waiting(session(str(number)), CHAIN) for number in range(8)]
    for name, limits in (("fixed3", DraftLimits(3, 1, 3)), ("tree", MOST)):
        for target in (FREE_ROWS, DEAR_ROWS):
            books = policy_named(name, MOST)(replace(SETUP, target=target)).books()
            assert books.draft_limits(waiting[0].session) == limits
            assert {len(kept) for kept in books.plan(waiting).kept.values()} == {4}
            assert books.most_to_fire() is None


def test_only_plain_sessions_have_no_drafter() -> None:
    drafters = {name: policy_named(name, MOST)(SETUP).drafter for name in ("plain", "fixed3", "tree", "planned")}
    assert drafters == {"plain": None, "fixed3": DRAFTER, "tree": DRAFTER, "planned": DRAFTER}


def test_planned_drafts_and_verifies_all_where_rows_are_free_and_drafts_are_good() -> None:
    tally, _ = planned(SETUP, GOOD)
    assert tally.drafted / tally.rounds == pytest.approx(4, abs=0.1)
    assert tally.verified == tally.drafted


def test_drafts_that_lose_cost_planned_no_more_than_the_purse() -> None:
    """The purse, one exploration that it still paid for, and its share of the time."""
    tally, router = planned(SETUP, USELESS, num_tokens=4000)
    lost_rounds = (tally.elapsed_ms - plain(SETUP, num_tokens=4000).elapsed_ms) / STEP_MS
    assert router.calls, "what they are worth was found out, not known"
    assert lost_rounds <= FIRST_ROUNDS + 1 + SHARE * 4000


@pytest.mark.parametrize("news_us", [0.0, 5.0])
def test_as_many_sessions_explore_together_as_find_out_most_for_what_it_costs(news_us: float) -> None:
    """Good drafts would pay; these do not. A call takes hardly longer for sixteen than for four, until each of them has to be told 4,000
    tokens first, which nobody could pay for all."""
    setup = replace(SETUP, target=TargetCosts(curve_of([1, 128], [8.0, 16.0])), draft=replace(SETUP.draft, news_us=news_us))
    tally, router = planned(setup, USELESS, clients=16, num_tokens=16_000, cached_tokens=4_000)
    assert tally.drafted < 0.05 * tally.rounds
    assert max(router.calls) == (FEW_EXPLORERS if news_us else 16)



def test_what_could_not_pay_if_drafts_were_perfect_is_never_tried() -> None:
    """Each row costs as much as an anchor, and what drafts cost is known from the start."""
    tally, router = planned(replace(SETUP, target=DEAR_ROWS), GOOD, clients=16, num_tokens=4_000)
    assert (tally.drafted, router.calls) == (0, [])


@pytest.mark.parametrize("table", [GOOD, ChanceTable.of_chain([0.6] * 4)])
def test_the_books_find_the_gain_that_the_simulation_shows(table: ChanceTable) -> None:
    """Both are speeds over plain decoding; the books remember 100 rounds or so."""
    tally, router = planned(SETUP, table)
    gain = plain(SETUP).elapsed_ms / tally.elapsed_ms
    assert router.economy.standings()[DRAFTER].speed_ratio == pytest.approx(gain, rel=0.15)
    assert gain > 1.2


def test_planned_hides_drafting_behind_verification_only_on_processors_of_their_own() -> None:
    """Steps and calls both cost by the session, so that two halves cost little more than the whole."""
    setup = replace(SETUP, target=TargetCosts(curve_of([1, 128], [4.0, 64.0])), draft=DraftCosts(session_ms=2.0))
    together, _ = planned(setup, GOOD, clients=8)
    apart, _ = planned(replace(setup, one_processor=False), GOOD, clients=8)
    assert together.draft_ms + together.step_ms <= together.elapsed_ms * (1 + 1e-9)
    assert apart.draft_ms + apart.step_ms > 1.2 * apart.elapsed_ms


@pytest.mark.parametrize("name", ["fixed", "fixed0", "best", ""])
def test_a_word_that_is_no_policy_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="plain, fixedN"):
        policy_named(name, MOST)
