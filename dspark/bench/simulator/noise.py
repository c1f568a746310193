"""Times that are not what they were expected to be: a policy that only wins where each step takes exactly its time is no good."""

import math
from dataclasses import dataclass

import numpy as np

from dspark.errors import ConfigError

STEPS_PER_MOOD = 50
"""In which a mood is computed."""


@dataclass(frozen=True, slots=True)
class Noise:
    """Standard deviations of the logarithm of times; 0: exact."""

    single: float = 0.0
    """Of each step and each call by itself."""
    mood: float = 0.0
    """Of what all of them have in common: how fast the machine is just now."""
    mood_ms: float = 4000.0
    """After which a mood is forgotten to 1/e."""

    def __post_init__(self) -> None:
        for name in ("single", "mood"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ConfigError(f"{name} must be finite and not negative", f"noise.{name}")
        if not 0 < self.mood_ms < math.inf:
            raise ConfigError("mood_ms must be positive and finite", "noise.mood_ms")


class NoisyClock:
    """Draws the noise of one simulation. Moods depend on the seed and on time alone: all policies meet the same."""

    def __init__(self, noise: Noise, seed: int) -> None:
        self._noise = noise
        self._of_single, self._of_mood = (np.random.default_rng((seed, stream)) for stream in (1, 2))
        self._moods = [0.0]

    def factor(self, now_ms: float) -> float:
        """What to multiply the expected time with of something that begins now."""
        log = self._mood(now_ms) if self._noise.mood else 0.0
        if self._noise.single:
            log += self._noise.single * float(self._of_single.standard_normal())
        return math.exp(log)

    def _mood(self, now_ms: float) -> float:
        index = int(now_ms * STEPS_PER_MOOD / self._noise.mood_ms)
        kept = math.exp(-1.0 / STEPS_PER_MOOD)
        while len(self._moods) <= index:
            news = math.sqrt(1.0 - kept**2) * self._noise.mood * float(self._of_mood.standard_normal())
            self._moods.append(kept * self._moods[-1] + news)
        return self._moods[index]
