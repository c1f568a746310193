"""The planner's bench: a line for each number of sessions, of times that were taken. How long they are is not tested."""

import pytest

from dspark.bench.planner import planner_table, planner_times


def test_every_number_of_sessions_gets_its_line() -> None:
    table = planner_table((1, 3), num_nodes=4, repeats=2).splitlines()
    assert [line.split("|")[1].strip() for line in table[4:]] == ["1", "3"]
    assert len({line.count("|") for line in table[2:]}) == 1


@pytest.mark.parametrize("num_sessions", [1, 8])
def test_trees_and_choice_depend_on_the_seed_only(num_sessions: int) -> None:
    first, again = (planner_times((num_sessions,), num_nodes=6, repeats=1, seed=5)[0] for _ in range(2))
    assert first.num_kept == again.num_kept > 0
    assert first.plan_ms > 0
