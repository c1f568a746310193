"""The shared noise: known answers, no dependence on order, batch or cache, and the Gumbel law.

Statistics use one fixed seed, so a run never flickers; the false-alarm chance says how rarely a right generator would fail
for a fresh seed.
"""

import math
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from dspark.noise import CACHE_BYTES, MAX_CACHES, NoiseCache, NoiseKey, forget_noise, gumbel_noise, mix64, noise_cache, random_words

CPU = torch.device("cpu")
SEED = 20240607
GAMMA = 0x9E3779B97F4A7C15
EULER = 0.5772156649015329


def signed(word: int) -> int:
    return word - 2**64 if word >= 2**63 else word


def test_the_mixer_gives_the_published_output_of_splitmix64() -> None:
    """The sequence of seed 1234567 that reference implementations print."""
    states = [signed((1234567 + step * GAMMA) % 2**64) for step in range(1, 6)]
    words = mix64(torch.tensor(states, dtype=torch.int64))
    assert [word % 2**64 for word in words.tolist()] == [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
        4593380528125082431,
        16408922859458223821,
    ]


def test_noise_does_not_change_from_one_version_to_the_next() -> None:
    """Seeds are part of what users keep: the same seed must give the same text next year."""
    words = random_words([NoiseKey(1, 0, 5), NoiseKey(2**63 - 1, 3, 100_000)], 1, CPU)
    assert words.tolist() == [[2544717092, 691836082], [4239157968, 1593845555]]


def test_a_row_does_not_depend_on_its_batch_its_order_or_the_vocabulary_asked_for() -> None:
    keys = [NoiseKey(seed, choice, position) for seed in (0, 9) for choice in (0, 1) for position in (3, 4, 5)]
    together = gumbel_noise(keys, 101, CPU)
    backwards = gumbel_noise(keys[::-1], 101, CPU).flip(0)
    alone = torch.cat([gumbel_noise([key], 101, CPU) for key in keys])
    assert torch.equal(together, backwards)
    assert torch.equal(together, alone)
    assert torch.equal(together[:, :50], gumbel_noise(keys, 50, CPU)), "a smaller vocabulary sees the same noise"


def test_seed_choice_and_position_each_give_other_noise() -> None:
    keys = [NoiseKey(s, c, p) for s in (0, 1, 2**62) for c in (0, 1, 2) for p in (0, 1, 2, 7)]
    rows = gumbel_noise(keys, 64, CPU)
    assert len({tuple(row) for row in rows.tolist()}) == len(keys)
    correlation = torch.corrcoef(gumbel_noise(keys, 4096, CPU)) - torch.eye(len(keys))
    # 630 pairs of 4096 samples: a standard normal times 1/64 each; 6 sigma is a false alarm in 1e-6.
    assert correlation.abs().max().item() < 6 / 64


def test_cached_rows_equal_fresh_rows() -> None:
    cache = NoiseCache(33, CPU)
    keys = [NoiseKey(1, 0, position) for position in range(6)]
    cache.rows(keys[:4])
    mixed = [keys[5], keys[0], keys[0], keys[3], keys[4]]
    assert torch.equal(cache.rows(mixed), gumbel_noise(mixed, 33, CPU))


def test_the_cache_forgets_the_least_recently_used_row_and_stays_right(monkeypatch: pytest.MonkeyPatch) -> None:
    vocab_size = CACHE_BYTES // (4 * 64)  # 64 rows fit
    monkeypatch.setattr("dspark.noise.gumbel_noise", made := _Counting())
    cache = NoiseCache(vocab_size, CPU)
    keys = [NoiseKey(1, 0, position) for position in range(65)]
    for key in keys[:64]:
        cache.rows([key])
    cache.rows([keys[0]])
    cache.rows([keys[64]])  # pushes out position 1, not 0
    assert made.count == 65
    cache.rows([keys[0]])
    assert made.count == 65
    cache.rows([keys[1]])
    assert made.count == 66


class _Counting:
    """Stands for the generator where only its calls matter: 64 MiB of real noise would be slow."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, keys: list[NoiseKey], vocab_size: int, device: torch.device) -> torch.Tensor:
        self.count += len(keys)
        return torch.zeros(1, 1).expand(len(keys), vocab_size)


def test_more_rows_than_the_cache_holds_are_still_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dspark.noise.CACHE_BYTES", 1)
    keys = [NoiseKey(4, 0, position) for position in range(100)]
    assert torch.equal(NoiseCache(8, CPU).rows(keys), gumbel_noise(keys, 8, CPU))


def test_rows_made_ahead_are_the_same_and_not_made_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    cache, keys = NoiseCache(33, CPU), [NoiseKey(1, 0, position) for position in range(6)]
    cache.make(keys)
    assert torch.equal(cache.rows(keys[2:4]), gumbel_noise(keys[2:4], 33, CPU))
    monkeypatch.setattr("dspark.noise.gumbel_noise", made := _Counting())
    cache.make(keys)
    cache.rows(keys)
    assert made.count == 0


def test_no_more_rows_are_made_ahead_than_the_cache_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dspark.noise.CACHE_BYTES", 1)
    monkeypatch.setattr("dspark.noise.gumbel_noise", made := _Counting())
    NoiseCache(8, CPU).make([NoiseKey(4, 0, position) for position in range(100)])
    assert made.count == 64


def test_whoever_decides_in_one_thread_shares_its_noise_and_other_threads_have_their_own() -> None:
    mine = noise_cache(33, CPU)
    assert noise_cache(33, torch.device("cpu")) is mine
    assert noise_cache(34, CPU) is not mine
    with ThreadPoolExecutor(1) as thread:
        theirs = thread.submit(noise_cache, 33, CPU).result()
        assert theirs is not mine
        assert thread.submit(noise_cache, 33, CPU).result() is theirs


def test_what_a_thread_forgets_is_made_anew() -> None:
    before = noise_cache(35, CPU)
    forget_noise()
    assert noise_cache(35, CPU) is not before


def test_a_thread_keeps_the_caches_that_it_used_last() -> None:
    first, second = noise_cache(101, CPU), noise_cache(102, CPU)
    for size in range(103, 101 + MAX_CACHES):
        noise_cache(size, CPU)
    assert noise_cache(101, CPU) is first
    noise_cache(101 + MAX_CACHES, CPU)
    assert noise_cache(101, CPU) is first
    assert noise_cache(102, CPU) is not second


def test_moments_are_those_of_the_gumbel_law() -> None:
    """Seed 20240607, n = 1e6; mean within 5 sigma and variance within 5 sigma: false alarm 1.2e-6."""
    sample = gumbel_noise([NoiseKey(SEED, 0, p) for p in range(1000)], 1000, CPU).double()
    n = sample.numel()
    variance = math.pi**2 / 6
    assert abs(sample.mean().item() - EULER) < 5 * math.sqrt(variance / n)
    # Var(s^2) = (kurtosis - 1) sigma^4 / n with the Gumbel kurtosis of 5.4.
    assert abs(sample.var().item() - variance) < 5 * variance * math.sqrt(4.4 / n)
    assert bool(torch.isfinite(sample).all())


def test_the_distribution_is_the_gumbel_law() -> None:
    """Kolmogorov-Smirnov, seed 20240607, n = 1e6. P(sqrt(n) D > 2.5) = 2 exp(-2 * 2.5^2) = 7.5e-6."""
    sample = gumbel_noise([NoiseKey(SEED, 1, p) for p in range(1000)], 1000, CPU).double().flatten().sort().values
    n = len(sample)
    cumulative = torch.exp(-torch.exp(-sample))
    steps = torch.arange(n + 1, dtype=torch.float64) / n
    distance = torch.maximum((steps[1:] - cumulative).max(), (cumulative - steps[:-1]).max()).item()
    assert math.sqrt(n) * distance < 2.5


def test_rare_large_noise_keeps_its_full_precision() -> None:
    """Word 28973 of this key is 63, found by search: a uniform of 24 bits would stop at 17.3, and V = 150k meets that often."""
    key = NoiseKey(7, 0, 195)
    assert random_words([key], 50_000, CPU)[0, 28973].item() == 63
    noise = gumbel_noise([key], 100_000, CPU)[0, 28973].item()
    assert noise == pytest.approx(-math.log(-math.log1p(-63.5 / 2**32)), rel=1e-6)
    assert noise > 18


def test_the_tail_is_as_heavy_as_it_should_be() -> None:
    """Seed 20240607, n = 2e6, above g = 11: 33.4 expected; Poisson counts outside 8..70 have a chance of 1e-6."""
    rows = gumbel_noise([NoiseKey(SEED, 2, chunk) for chunk in range(2)], 1_000_000, CPU)
    assert 8 <= int((rows > 11).sum()) <= 70


def test_neighbouring_counters_are_independent() -> None:
    """Chi-square on 16 x 16 cells of (token j, token j + 1) and of (position p, p + 1): 255 degrees of freedom, n = 5e5.

    Seed 20240607. The bound 380 is the quantile of 1 - 5e-7 (normal approximation of the cube root, Wilson and Hilferty).
    """
    rows = gumbel_noise([NoiseKey(SEED, 3, p) for p in range(1000)], 1000, CPU).double()
    cells = (torch.exp(-torch.exp(-rows)) * 16).long().clamp_(max=15)
    pairs = {
        "tokens": cells[:, 0::2] * 16 + cells[:, 1::2],
        "positions": cells[0::2] * 16 + cells[1::2],
    }
    for name, pair in pairs.items():
        counts = torch.bincount(pair.flatten(), minlength=256).double()
        expected = pair.numel() / 256
        statistic = ((counts - expected) ** 2 / expected).sum().item()
        assert statistic < 380, name
