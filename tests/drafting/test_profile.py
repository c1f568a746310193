"""What a drafter says of its own calls when it is loaded: measured ones, of every shape, and nothing of them stays."""

import pytest

from dspark.config import DrafterConfig, KvCacheConfig, ModelSource
from dspark.drafting.build import LoadedDrafter, load_drafter
from dspark.drafting.profile import CALLS, NEWS_TOKENS, SESSION_COUNTS, SESSION_TOKENS
from dspark.scheduling.draft_cost import DraftCost


def loaded(kind: str, model: str, **changes: object) -> LoadedDrafter:
    settings = {"kind": kind, "model": model, "num_threads": 1, "max_depth": 4, "max_nodes": 6, "max_width": 2}
    return load_drafter(DrafterConfig.model_validate(settings | changes), ModelSource(model="demo:target"))


@pytest.mark.parametrize(("kind", "model"), [("block", "demo:dspark"), ("language_model", "demo:drafter")])
def test_calls_of_few_and_many_sessions_deep_and_shallow_are_measured(kind: str, model: str) -> None:
    drafter = loaded(kind, model)
    calls = drafter.profile()
    assert {(call.num_sessions, call.depth) for call in calls} == {(count, depth) for count in SESSION_COUNTS for depth in (1, 4)}
    assert all(call.draft_ms > 0 for call in calls)
    usual = [call for call in calls if call.num_news == NEWS_TOKENS * call.num_sessions]
    assert len(usual) == len(SESSION_COUNTS) * 2 * CALLS
    assert (len(calls) > len(usual)) is (kind == "block"), "reading the context is a call of a drafter that reads features"
    assert drafter.drafter.num_sessions == 0
    cost = DraftCost()
    for call in calls:
        cost.observe(call.num_sessions, call.depth, call.draft_ms, call.num_news)
    few, many = cost.ms(1, 4), cost.ms(8, 4)
    assert few is not None
    assert many is not None
    assert many >= few > 0


def test_what_has_no_room_in_the_cache_is_left_out() -> None:
    drafter = loaded("block", "demo:dspark", kv_cache=KvCacheConfig(num_tokens=4 * SESSION_TOKENS, block_tokens=16))
    assert {call.num_sessions for call in drafter.profile()} == {1}


def test_a_drafter_that_may_propose_nothing_is_not_profiled() -> None:
    assert loaded("language_model", "demo:drafter", max_depth=0).profile() == ()
