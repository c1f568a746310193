"""The curve: outliers vanish, stairs stay, and nothing is free beyond what was measured."""

import itertools

import numpy as np
import pytest

from dspark.errors import InvalidMessage
from dspark.scheduling.curve import (
    MAX_STEP_MS,
    SLOT_ROWS,
    Floats,
    ThroughputCurve,
    isotonic,
    rows_to_measure,
    sessions_measured,
    staircase,
)


def curve(rows: list[int], *lines: list[float], contexts: tuple[int, ...] = (64, 512)) -> ThroughputCurve:
    made = ThroughputCurve(np.asarray(rows), np.asarray(contexts[: len(lines)]), np.asarray(lines, np.float64))
    made.check()
    return made


STAIR_ROWS = [1, 2, 4, 8, 16, 24, 32, 48, 64]
STAIR_MS = [10.0, 10.1, 10.2, 10.4, 10.8, 16.2, 16.6, 17.4, 18.2]
"""A kernel that takes 16 rows in one tile: 17 rows pay for two."""


def test_a_table_holds_what_was_measured_and_lines_between() -> None:
    table = curve([1, 2, 4, 8], [10.0, 11.0, 13.0, 15.0]).table(8, 64)
    assert table.tolist() == [0.0, 10.0, 11.0, 12.0, 13.0, 13.5, 14.0, 14.5, 15.0]


def test_a_stair_begins_right_after_the_last_row_of_the_one_before() -> None:
    table = curve(STAIR_ROWS, STAIR_MS).table(64, 64)
    assert table[16] == 10.8
    assert np.all(table[17:25] == 16.2)
    assert table[28] == pytest.approx(16.4)
    assert table[12] == pytest.approx(10.6)


def test_cost_in_proportion_to_rows_has_no_stairs() -> None:
    table = curve(STAIR_ROWS, [10.0 * rows for rows in STAIR_ROWS]).table(64, 64)
    assert np.allclose(table, 10.0 * np.arange(65))


def test_an_elbow_is_no_stair() -> None:
    table = curve([1, 8, 16, 32, 64, 128], [10.0, 10.0, 10.0, 10.0, 20.0, 40.0]).table(128, 64)
    assert table[48] == pytest.approx(15.0)


def test_beyond_the_last_point_the_slope_of_the_last_doubling_goes_on() -> None:
    times = curve([1, 8, 16, 24, 32], [8.0, 8.0, 10.0, 14.0, 14.0]).step_ms_of([32, 36, 320], 64)
    assert np.allclose(times, [14.0, 15.0, 14.0 + 0.25 * 288]), "24 and 32 rows share a stair: more rows are still not free"


def test_of_a_single_point_cost_is_in_proportion_to_rows() -> None:
    assert curve([1], [5.0]).table(3, 64).tolist() == [0.0, 5.0, 10.0, 15.0]
    assert curve([4], [8.0]).table(8, 64)[[1, 4, 8]].tolist() == [8.0, 8.0, 16.0]


def test_time_over_context_is_a_line_that_starts_at_the_first_context() -> None:
    c = curve([1, 8], [10.0, 20.0], [14.0, 28.0])
    assert c.step_ms_of([1, 8], 0).tolist() == [10.0, 20.0]
    assert c.step_ms_of([1, 8], 288).tolist() == [12.0, 24.0]
    assert c.step_ms_of([1, 8], 960).tolist() == [18.0, 36.0]


def test_a_curve_of_one_context_is_the_same_at_all() -> None:
    c = curve([1, 8], [10.0, 20.0])
    assert c.table(8, 5).tolist() == c.table(8, 5000).tolist()


def test_no_table_ever_falls_with_rows_or_context() -> None:
    draw = np.random.default_rng(0)
    for _ in range(200):
        rows = np.unique(draw.integers(1, 200, 12))
        samples = {(r, c): draw.lognormal(2.0, 0.5, 3).tolist() for r in rows.tolist() for c in (64, 512)}
        c = ThroughputCurve.from_samples(samples)
        c.check()
        tables = [c.table(300, context) for context in (0, 64, 200, 512, 5000)]
        assert all(np.all(np.diff(table) >= 0) for table in tables)
        measured = slice(0, int(rows[-1]) + 1)
        assert all(np.all(long[measured] >= short[measured] - 1e-9) for short, long in itertools.pairwise(tables))


def by_brute_force(values: list[float]) -> float:
    """Smallest sum of absolute differences of any never falling sequence: its values may be taken from the given ones."""
    return min(
        sum(abs(a - b) for a, b in zip(values, fit, strict=True))
        for fit in itertools.combinations_with_replacement(sorted(values), len(values))
    )


def test_isotonic_is_the_nearest_never_falling_sequence() -> None:
    draw = np.random.default_rng(1)
    for _ in range(200):
        values = draw.integers(0, 9, int(draw.integers(1, 7))).astype(np.float64)
        fit = isotonic(values)
        assert np.all(np.diff(fit) >= 0)
        assert np.abs(fit - values).sum() == pytest.approx(by_brute_force(values.tolist()))


@pytest.mark.parametrize(
    ("measured", "cleaned"),
    [
        ([10, 11, 50, 12, 13], [10, 11, 12, 12, 13]),
        ([10, 11, 12, 13, 2], [10, 11, 12, 12, 12]),
        ([50, 11, 12, 13, 14], [11, 11, 12, 13, 14]),
        ([10, 11, 12, 50, 13], [10, 11, 12, 13, 13]),
        ([10, 11, 30, 31, 32], [10, 11, 30, 31, 32]),
    ],
)
def test_one_outlier_does_not_move_its_neighbours_much_and_a_true_jump_stays(measured: list[float], cleaned: list[float]) -> None:
    assert np.abs(isotonic(np.asarray(measured, np.float64)) - cleaned).max() <= 1.0


def test_samples_become_medians_and_half_measured_rows_are_left_out() -> None:
    samples = {(1, 64): [9.0, 10.0, 99.0], (1, 512): [12.0], (4, 64): [20.0, 22.0], (4, 512): [24.0], (8, 64): [30.0]}
    c = ThroughputCurve.from_samples(samples)
    assert (c.rows.tolist(), c.context_tokens.tolist()) == ([1, 4], [64, 512])
    assert c.step_ms.tolist() == [[10.0, 21.0], [12.0, 24.0]]


@pytest.mark.parametrize("samples", [{}, {(1, 64): [1.0], (2, 512): [1.0]}])
def test_without_a_whole_row_count_there_is_no_curve(samples: dict[tuple[int, int], list[float]]) -> None:
    with pytest.raises(ValueError, match="no row count"):
        ThroughputCurve.from_samples(samples)


@pytest.mark.parametrize("max_rows", [1, 3, 8, 9, 64, 100, 512, 777])
def test_what_is_measured_is_dense_where_rows_are_few_and_ends_at_the_limit(max_rows: int) -> None:
    rows = rows_to_measure(max_rows)
    assert rows[: min(8, max_rows)] == list(range(1, min(8, max_rows) + 1))
    assert rows[-1] == max_rows
    assert rows == sorted(set(rows))
    assert len(rows) < 32


def test_the_points_are_those_of_the_tiles_of_matrix_kernels() -> None:
    assert rows_to_measure(256) == [1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 16, 20, 24, 32, 40, 48, 64, 96, 128, 192, 256]


def broken(**changes: object) -> ThroughputCurve:
    parts: dict[str, object] = {"rows": np.asarray([1, 2]), "context_tokens": np.asarray([64]), "step_ms": np.asarray([[1.0, 2.0]])}
    return ThroughputCurve(**(parts | changes))  # type: ignore[arg-type]


def matrix(*values: float) -> Floats:
    return np.asarray([values])


@pytest.mark.parametrize(
    ("field", "bad"),
    [
        ("rows", broken(rows=np.asarray([2, 1]))),
        ("rows", broken(rows=np.asarray([0, 1]))),
        ("rows", broken(rows=np.asarray([1.0, 2.0]))),
        ("rows", broken(rows=np.asarray([], np.int64))),
        ("rows", broken(rows=np.asarray([[1, 2]]))),
        ("rows", broken(rows=np.arange(1, 5000), step_ms=np.ones((1, 4999)))),
        ("context_tokens", broken(context_tokens=np.asarray([-1]))),
        ("context_tokens", broken(context_tokens=np.asarray([64, 64]), step_ms=np.ones((2, 2)))),
        ("step_ms", broken(step_ms=matrix(1.0))),
        ("step_ms", broken(step_ms=np.asarray([1.0, 2.0]))),
        ("step_ms", broken(step_ms=matrix(0.0, 1.0))),
        ("step_ms", broken(step_ms=matrix(1.0, np.nan))),
        ("step_ms", broken(step_ms=matrix(1.0, np.inf))),
        ("step_ms", broken(step_ms=matrix(1.0, 2 * MAX_STEP_MS))),
        ("step_ms", broken(step_ms=matrix(2.0, 1.0))),
        ("step_ms", broken(context_tokens=np.asarray([64, 512]), step_ms=np.asarray([[1.0, 2.0], [1.0, 1.5]]))),
    ],
)
def test_what_is_no_curve_is_refused_with_the_fields_name(field: str, bad: ThroughputCurve) -> None:
    with pytest.raises(InvalidMessage) as caught:
        bad.check()
    assert caught.value.field == field


def test_no_rows_cost_nothing_whatever_the_points() -> None:
    times = staircase(np.asarray([4, 8]), np.asarray([3.0, 4.0]), [0, 1, 3], np.empty(0, np.int64))
    assert times.tolist() == [0.0, 3.0, 3.0]


def test_many_sessions_read_more_than_the_few_that_were_measured() -> None:
    """A step costs 2 ms, 1 us for every cached token that is read and a quarter of that for every row that attends to one."""
    rows, contexts = np.asarray([8, 32, 128]), np.asarray([0, 1000])

    def step_ms(num_rows: int, sessions: int, context: int) -> float:
        return 2.0 + context * (sessions + num_rows / SLOT_ROWS) / 1e3

    times = [[step_ms(count, int(sessions_measured(count)), context) for count in rows.tolist()] for context in contexts.tolist()]
    found = ThroughputCurve(rows, contexts, np.asarray(times))
    for sessions in (1, 8, 32):
        asked = found.step_ms_of(rows, found.contexts_of(sessions, 300.0))
        assert asked == pytest.approx([step_ms(count, sessions, 300) for count in rows.tolist()])


def test_a_context_for_each_row_count_is_that_of_each() -> None:
    found = ThroughputCurve(np.asarray([1, 8]), np.asarray([0, 100, 200]), np.asarray([[1.0, 2.0], [2.0, 4.0], [4.0, 9.0]]))
    assert found.at_context([50.0, 150.0]).tolist() == [1.5, 6.5]
    assert found.at_context([300.0, 0.0]).tolist() == [2.0, 2.0], "times never fall with rows"
