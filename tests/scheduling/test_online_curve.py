"""The curve in service: it follows what steps really take, shrugs at one that went wrong, and never makes one up."""

import numpy as np
import pytest

from dspark.scheduling.curve import Floats, ThroughputCurve, rows_to_measure, sessions_measured
from dspark.scheduling.online_curve import OnlineCurve

ROWS = np.asarray(rows_to_measure(128))
STEP_MS = 10.0 + 0.1 * ROWS + 8.0 * (ROWS > 16)
PROFILE = ThroughputCurve(ROWS, np.asarray([64, 512]), np.stack([STEP_MS, 1.2 * STEP_MS]))


def profiled(rows: int, context_tokens: float = 64) -> float:
    return float(PROFILE.step_ms_of([rows], context_tokens)[0])


def table(online: OnlineCurve, max_rows: int = 128, context_tokens: float = 64) -> Floats:
    found = online.table(max_rows, context_tokens)
    assert found is not None
    return found


def ratio(online: OnlineCurve, rows: int, context_tokens: float = 64) -> float:
    return float(table(online, rows, context_tokens)[rows] / profiled(rows, context_tokens))


def test_before_any_step_the_profile_holds() -> None:
    assert np.array_equal(table(OnlineCurve(PROFILE)), PROFILE.table(128, 64))


def test_row_counts_learn_their_own_factors() -> None:
    online = OnlineCurve(PROFILE)
    for _ in range(60):
        online.observe(2, 64, 1.4 * profiled(2))
        online.observe(96, 64, 1.1 * profiled(96))
    assert ratio(online, 2) == pytest.approx(1.4, rel=0.03)
    assert ratio(online, 96) == pytest.approx(1.1, rel=0.04)


def test_what_was_never_seen_takes_over_what_steps_cost_in_general() -> None:
    online = OnlineCurve(PROFILE)
    for _ in range(100):
        online.observe(4, 64, 1.3 * profiled(4))
    assert 1.2 < ratio(online, 64) < 1.32


def test_what_steps_take_longer_at_one_context_they_are_expected_to_at_all() -> None:
    online = OnlineCurve(PROFILE)
    for _ in range(100):
        online.observe(4, 400, profiled(4, 400) + 3.0)
    assert table(online)[4] == pytest.approx(profiled(4) + 3.0, rel=0.03)
    assert table(online, context_tokens=512)[4] == pytest.approx(profiled(4, 512) + 3.0, rel=0.03)


def test_what_sessions_add_to_plain_steps_is_added_once_to_steps_with_candidates() -> None:
    """A walk and noise of half a millisecond per session: seven times as many rows do not make it seven times as long."""
    online = OnlineCurve(PROFILE)
    for _ in range(200):
        online.observe(16, 64, profiled(16) + 16 * 0.5, 16)
    found = online.table(128, 64, 16)
    assert found is not None
    contexts = PROFILE.contexts_of(16, 64)
    for rows in (16, 64, 128):
        assert found[rows] == pytest.approx(float(PROFILE.step_ms_of([rows], contexts)[0]) + 16 * 0.5, rel=0.06)


def test_what_only_steps_with_candidates_take_longer_is_not_expected_of_plain_ones() -> None:
    """Eight sessions with three candidates each take 1.5 times the profiled step, and the plain one in thirty 1.2 times."""
    online = OnlineCurve(PROFILE)
    contexts = PROFILE.contexts_of(8, 64)
    plain_ms, with_candidates_ms = PROFILE.step_ms_of([8, 32], contexts)
    for number in range(300):
        online.observe(8 if number % 30 == 29 else 32, 64, 1.2 * plain_ms if number % 30 == 29 else 1.5 * with_candidates_ms, 8)
    found = online.table(32, 64, 8)
    assert found is not None
    assert found[8] == pytest.approx(1.2 * plain_ms, rel=0.06)
    assert found[32] == pytest.approx(1.5 * with_candidates_ms, rel=0.06)


def test_a_plain_step_that_was_seen_before_the_machine_became_slow_is_expected_to_be_slow_too() -> None:
    online = OnlineCurve(PROFILE)
    contexts = PROFILE.contexts_of(8, 64)
    plain_ms, with_candidates_ms = PROFILE.step_ms_of([8, 32], contexts)
    for number in range(300):
        online.observe(8 if number % 30 == 29 else 32, 64, plain_ms if number % 30 == 29 else 1.3 * with_candidates_ms, 8)
    for _ in range(60):
        online.observe(32, 64, 2.0 * 1.3 * with_candidates_ms, 8)
    found = online.table(32, 64, 8)
    assert found is not None
    assert found[8] == pytest.approx(2.0 * plain_ms, rel=0.12)


def test_what_a_slow_machine_added_to_one_session_is_not_expected_of_eight_for_long() -> None:
    """All steps take 1.4 times the profiled ones. One session serves for long, then eight draft: plain steps, two in thirty-four, are known
    within a tenth from the second measurement on, and at no time is a plain step taken to be as dear as one with candidates."""
    online = OnlineCurve(PROFILE)
    for _ in range(400):
        online.observe(1, 64, 1.4 * profiled(1), 1)
    contexts = PROFILE.contexts_of(8, 64)
    plain_ms, with_candidates_ms = (1.4 * PROFILE.step_ms_of([8, 32], contexts)).tolist()
    for number in range(110):
        online.observe(8 if number % 34 == 5 else 32, 64, plain_ms if number % 34 == 5 else with_candidates_ms, 8)
        found = online.table(32, 64, 8)
        assert found is not None
        if number > 20:
            assert found[8] < 0.9 * found[32]
        if number > 2 * 34 + 5:
            assert found[8] == pytest.approx(plain_ms, rel=0.1)


@pytest.mark.parametrize("num_sessions", [13, 17, 25])
def test_whole_plain_steps_are_known_also_where_nobody_profiled_so_many_rows(num_sessions: int) -> None:
    """They are learned of at the nearest row count, which may be one of fewer rows."""
    online = OnlineCurve(PROFILE)
    for _ in range(60):
        online.observe(num_sessions, 64, 1.4 * profiled(num_sessions), num_sessions)
        for _ in range(3):
            online.observe(4 * num_sessions, 64, profiled(4 * num_sessions), num_sessions)
    found = online.table(128, 64, num_sessions)
    assert found is not None
    assert found[num_sessions] > 1.2 * profiled(num_sessions)


def test_slow_steps_that_some_sessions_had_no_part_in_do_not_tell_what_whole_ones_take() -> None:
    """Seven of eight sessions go alone while the eighth one's prompt is on its way, which takes its time from them."""
    online = OnlineCurve(PROFILE)
    for _ in range(100):
        online.observe(8, 64, profiled(8), 8)
        online.observe(7, 64, 1.5 * profiled(8), 7)
    found = online.table(32, 64, 8)
    assert found is not None
    assert found[8] == pytest.approx(profiled(8), rel=0.05)
    assert (np.diff(found) >= 0).all()


@pytest.mark.parametrize("odd", [5.0, 0.2, 1e6])
def test_one_odd_step_moves_little(odd: float) -> None:
    online = OnlineCurve(PROFILE)
    for _ in range(50):
        online.observe(8, 64, profiled(8))
    online.observe(8, 64, odd * profiled(8))
    assert abs(ratio(online, 8) - 1.0) < 0.07
    first = OnlineCurve(PROFILE)
    first.observe(8, 64, odd * profiled(8))
    assert abs(ratio(first, 8) - 1.0) < 0.4, "even where it is the first of all"


def test_a_lasting_change_is_followed() -> None:
    online = OnlineCurve(PROFILE)
    for _ in range(100):
        online.observe(8, 64, profiled(8))
    for _ in range(100):
        online.observe(8, 64, 3.0 * profiled(8))
    assert ratio(online, 8) == pytest.approx(3.0, rel=0.1)


def test_what_was_not_seen_for_long_goes_back_to_the_overall_factor() -> None:
    online = OnlineCurve(PROFILE)
    for _ in range(50):
        online.observe(96, 64, 2.0 * profiled(96))
    at_once = ratio(online, 96)
    for _ in range(6000):
        online.observe(2, 64, profiled(2))
    assert at_once > 1.8
    assert ratio(online, 96) < 1.1


def test_no_sequence_of_steps_makes_a_table_fall() -> None:
    draw = np.random.default_rng(2)
    online = OnlineCurve(PROFILE)
    for _ in range(400):
        rows = int(draw.integers(1, 200))
        online.observe(rows, float(draw.integers(0, 900)), profiled(rows) * float(draw.lognormal(0, 0.7)))
        found = table(online, 200, float(draw.integers(0, 900)))
        assert found[0] == 0
        assert np.all(found[1:] > 0)
        assert np.all(np.diff(found) >= 0)


def test_the_stair_stays_where_it_was() -> None:
    online = OnlineCurve(PROFILE)
    for _ in range(50):
        for rows in (8, 16, 20, 32):
            online.observe(rows, 64, 1.25 * profiled(rows))
    found = table(online)
    assert found[17] - found[16] > 8.0


def test_noisy_steps_give_a_factor_near_their_median() -> None:
    """Seed 3; 400 steps of 20 % noise, one in twenty of them five times too long."""
    draw = np.random.default_rng(3)
    online = OnlineCurve(PROFILE)
    for _ in range(400):
        odd = 5.0 if draw.random() < 0.05 else 1.0
        online.observe(8, 64, 1.2 * odd * profiled(8) * float(draw.lognormal(0, 0.2)))
    assert ratio(online, 8) == pytest.approx(1.2, rel=0.15)


@pytest.mark.parametrize("profile", [PROFILE, None])
def test_steps_that_say_nothing_are_passed_over(profile: ThroughputCurve | None) -> None:
    online = OnlineCurve(profile)
    for rows, step_ms in ((0, 5.0), (1, 0.0), (2, -1.0), (3, float("nan")), (4, float("inf"))):
        online.observe(rows, 64, step_ms)
    found = online.table(8, 64)
    assert (found is None) == (profile is None)
    assert found is None or np.array_equal(found, PROFILE.table(8, 64))


def test_without_a_profile_there_is_no_table_until_three_row_counts_were_seen() -> None:
    online = OnlineCurve()
    for rows in (1, 1, 1, 4, 4, 1):
        online.observe(rows, 64, 10.0 + rows)
        assert online.table(8, 64) is None
    online.observe(8, 64, 18.0)
    assert table(online, 8).tolist() == [0.0, 11.0, 12.0, 13.0, 14.0, 15.0, 16.0, 17.0, 18.0]


def test_row_counts_that_are_nearly_the_same_show_no_slope() -> None:
    online = OnlineCurve()
    for rows in (100, 101, 102, 103):
        online.observe(rows, 64, 50.0)
    assert online.table(128, 64) is None


def test_without_a_profile_medians_make_the_curve() -> None:
    draw = np.random.default_rng(4)
    online = OnlineCurve()
    for _ in range(2000):
        rows = int(draw.integers(1, 129))
        odd = 5.0 if draw.random() < 0.05 else 1.0
        online.observe(rows, 64, profiled(rows) * odd * float(draw.lognormal(0, 0.05)))
    found, expected = table(online), PROFILE.table(128, 64)
    assert np.all(np.diff(found) >= 0)
    asked = [1, 2, 4, 6, 8, 14, 32, 64, 96, 120]  # not between 17 and 20: which of them the bucket's median is, is chance
    assert np.abs(found[asked] / expected[asked] - 1.0).max() < 0.15


def test_the_overhead_of_a_round_is_what_lies_around_the_step() -> None:
    online = OnlineCurve(PROFILE)
    assert online.round_overhead_ms == 0.0
    for _ in range(100):
        online.observe_round(14.0, 12.0)
    assert online.round_overhead_ms == pytest.approx(2.0)
    for _ in range(200):
        online.observe_round(13.0, 12.0)
    assert online.round_overhead_ms == pytest.approx(1.0, abs=0.01)


def test_the_overhead_shrugs_at_a_slow_first_round_and_at_one_hiccup() -> None:
    online = OnlineCurve()
    online.observe_round(900.0, 12.0)
    for _ in range(20):
        online.observe_round(14.0, 12.0)
    assert online.round_overhead_ms == pytest.approx(2.0, abs=0.3)
    online.observe_round(900.0, 12.0)
    assert online.round_overhead_ms < 2.5
    online.observe_round(float("nan"), 12.0)
    online.observe_round(11.0, 12.0)
    assert 1.5 < online.round_overhead_ms < 2.5


def test_what_plain_steps_of_many_sessions_teach_holds_for_their_candidates() -> None:
    """32 sessions with 300 cached tokens each, where eight stood for 32 rows: their reading must not count for every row."""
    rows, contexts = np.asarray([8, 32, 64, 128, 256]), np.asarray([0, 1000])

    def step_ms(num_rows: int, sessions: int, context: int) -> float:
        return 2.0 + 0.1 * num_rows + context * (sessions + num_rows / 4) / 1e3

    times = [[step_ms(count, int(sessions_measured(count)), context) for count in rows.tolist()] for context in contexts.tolist()]
    online = OnlineCurve(ThroughputCurve(rows, contexts, np.asarray(times)))
    for _ in range(50):
        online.observe(32, 300.0, step_ms(32, 32, 300), 32)
    found = online.table(256, 300.0, 32)
    assert found is not None
    assert found[[32, 64, 128, 256]] == pytest.approx([step_ms(count, 32, 300) for count in (32, 64, 128, 256)], rel=0.01)


def test_what_one_session_alone_taught_is_not_multiplied_by_many() -> None:
    """Two ms in every step, however many share it: 64 sessions are not expected to add 128."""
    online = OnlineCurve(PROFILE)
    for _ in range(200):
        online.observe(1, 64, profiled(1) + 2.0, 1)
    found = online.table(64, 64, 64)
    assert found is not None
    assert found[64] < float(PROFILE.step_ms_of([64], PROFILE.contexts_of(64, 64))[0]) * 1.1 + 2 * 2.0
