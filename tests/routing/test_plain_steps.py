"""When steps are left plain: in pairs, seldom, soon again where they surprise or sessions changed, ever more seldom where of no use."""

import itertools

from dspark.routing.plain_steps import (
    LEAST_PLAIN_EVERY,
    MOST_PLAIN_EVERY,
    MOST_SURPRISES,
    PLAIN_AGAIN,
    PLAIN_LOSS,
    PLAIN_STEPS,
    PlainSteps,
)


def begins(plain: PlainSteps, num_steps: int, surprise: float | None, gain: float = 1.0) -> list[int]:
    """Steps after which pairs begin. What a pair's last step takes is off by `surprise`; None: it was no plain step of all sessions."""
    found: list[int] = []
    for number in range(num_steps):
        is_last = bool(found) and number == found[-1] + PLAIN_STEPS - 1
        was_now = plain.is_now
        plain.step_done(surprise if is_last else None, may_begin=True, gain=gain)
        if plain.is_now and not was_now:
            found.append(number + 1)
    return found


def gaps(steps: list[int]) -> list[int]:
    return [after - before for before, after in itertools.pairwise(steps)]


def test_pairs_come_ever_more_seldom_but_no_more_than_their_loss_asks_for() -> None:
    assert set(gaps(begins(PlainSteps(), 1000, 0.0))) == {LEAST_PLAIN_EVERY + PLAIN_STEPS}
    wide = gaps(begins(PlainSteps(), 5000, 0.0, gain=2.0))
    most = round(PLAIN_STEPS * 0.5 / PLAIN_LOSS)
    assert wide[:5] == [min(spacing, most) + PLAIN_STEPS for spacing in (32, 64, 128, 256, 512)]
    assert set(wide[5:]) == {most + PLAIN_STEPS}


def test_pairs_are_frequent_again_after_a_while_of_plain_decoding() -> None:
    plain = PlainSteps()
    begins(plain, 3000, 0.0, gain=2.0)
    for _ in range(3):
        plain.step_done(0.0, may_begin=False, gain=1.0)  # plain anyway: no pair's
    assert gaps(begins(plain, 200, 0.0, gain=2.0))[:2] == [LEAST_PLAIN_EVERY + PLAIN_STEPS, 2 * LEAST_PLAIN_EVERY + PLAIN_STEPS]


def test_what_surprises_is_measured_again_soon_but_not_for_ever() -> None:
    found = gaps(begins(PlainSteps(), 1000, 1.0))
    assert found[: MOST_SURPRISES + 1] == [PLAIN_AGAIN + PLAIN_STEPS] * MOST_SURPRISES + [LEAST_PLAIN_EVERY + PLAIN_STEPS]


def test_where_pairs_measure_nothing_pauses_grow() -> None:
    found = gaps(begins(PlainSteps(), 20_000, None))
    assert found[:3] == [pause + PLAIN_STEPS for pause in (64, 128, 256)]
    assert set(found[3:]) == {MOST_PLAIN_EVERY + PLAIN_STEPS}


def test_a_pair_may_be_asked_for_soon() -> None:
    plain = PlainSteps()
    plain.soon()
    assert begins(plain, 20, 0.0) == [PLAIN_AGAIN]


def test_none_begins_where_it_would_be_of_no_use() -> None:
    plain = PlainSteps()
    assert not any(plain.step_done(None, may_begin=False, gain=1.5) or plain.is_now for _ in range(200))
