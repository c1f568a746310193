"""Stand-ins for models and pools, for tests of whatever talks to them: small, seeded, in one process, true to the contracts of ports.py."""

from dspark.fakes.drafters import FakeDrafter, Guess, LyingDrafter
from dspark.fakes.pools import FakeLease, FakePool
from dspark.fakes.toy_target import ToyLaw, ToyTarget, toy_features

__all__ = ["FakeDrafter", "FakeLease", "FakePool", "Guess", "LyingDrafter", "ToyLaw", "ToyTarget", "toy_features"]
