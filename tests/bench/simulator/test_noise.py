"""Noise of made-up times: as large as asked for, the same mood for everybody, and none by default."""

import numpy as np
import pytest

from dspark.bench.simulator.noise import Noise, NoisyClock
from dspark.errors import ConfigError

SEED = 5


def logs(noise: Noise, times_ms: list[float], seed: int = SEED) -> np.ndarray:
    clock = NoisyClock(noise, seed)
    return np.log([clock.factor(now_ms) for now_ms in times_ms])


def test_by_default_times_are_exact() -> None:
    assert logs(Noise(), [0.0, 1.0, 1e6]).tolist() == [0.0, 0.0, 0.0]


def test_single_noise_is_as_large_as_asked_for_and_has_no_memory() -> None:
    """5,000 draws, seed 5: four standard errors of the deviation and of the correlation, false alarm below 1e-4."""
    found = logs(Noise(single=0.1), [0.0] * 5000)
    assert found.std() == pytest.approx(0.1, rel=4 / np.sqrt(2 * 5000))
    assert abs(np.corrcoef(found[1:], found[:-1])[0, 1]) < 4 / np.sqrt(5000)


def test_a_mood_lasts_and_is_as_large_as_asked_for() -> None:
    """2,000 moods of which each is forgotten to 1/e in the next, seed 5: some 900 independent ones, four standard errors."""
    noise = Noise(mood=0.1, mood_ms=100.0)
    found = logs(noise, [100.0 * number for number in range(2000)])
    assert found.std() == pytest.approx(0.1, rel=4 / np.sqrt(2 * 900))
    assert np.corrcoef(found[1:], found[:-1])[0, 1] == pytest.approx(np.exp(-1), abs=4 / np.sqrt(2000))


def test_everybody_meets_the_same_moods_whenever_they_look() -> None:
    noise = Noise(mood=0.1, mood_ms=100.0)
    often, seldom = logs(noise, [float(now_ms) for now_ms in range(1000)]), logs(noise, [500.0, 999.0])
    assert often[[500, 999]].tolist() == seldom.tolist()
    assert logs(noise, [500.0], seed=SEED + 1)[0] != seldom[0]


@pytest.mark.parametrize(("name", "value"), [("single", -0.1), ("mood", float("nan")), ("mood_ms", 0.0)])
def test_bad_noise_is_refused_by_name(name: str, value: float) -> None:
    with pytest.raises(ConfigError) as error:
        Noise(**{name: value})
    assert error.value.field == f"noise.{name}"
