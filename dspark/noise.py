"""Counter-based noise: the same (seed, choice, position, token) gives the same number on every device, in any order, in any
batch.

SplitMix64 (Steele, Lea, Flood: "Fast Splittable Pseudorandom Number Generators", OOPSLA 2014) as a pure function: row key = hash of
(seed, choice, position, purpose), word j = mix(key + (j + 1) * golden gamma). 64-bit integer tensor operations wrap alike wherever torch
runs, so the bits are equal on every device and the floats equal up to rounding. Stateless: nothing to hand over when a session moves.
Philox-4x32-10 would cost four times the operations per word, and on a small model its time would show.

Symbols: R rows, V vocabulary.
"""

import sys
import threading
from collections import OrderedDict
from dataclasses import dataclass

import torch

from dspark.devices import on_device

_MASK64 = 2**64 - 1
_GAMMA = 0x9E3779B97F4A7C15
_MULTIPLIERS = (0xBF58476D1CE4E5B9, 0x94D049BB133111EB)
PURPOSE_SAMPLING = 0
CACHE_BYTES = 64 * 1024 * 1024
MAX_CACHES = 4
"""Of one thread, each of another vocabulary or device."""


@dataclass(frozen=True, slots=True)
class NoiseKey:
    """What the noise of one output position depends on, and all it depends on."""

    seed: int
    choice: int
    position: int
    """Absolute position (prompt included) of the token to be chosen."""


class NoiseCache:
    """Rows of noise made a moment ago: a round's rejected positions are asked for again in the next one.

    Holds at most CACHE_BYTES; the least recently used row goes first. For one thread.
    """

    def __init__(self, vocab_size: int, device: torch.device) -> None:
        self._vocab_size = vocab_size
        self._device = device
        self._rows: OrderedDict[NoiseKey, torch.Tensor] = OrderedDict()
        self._max_rows = max(64, CACHE_BYTES // (4 * vocab_size))

    def make(self, keys: list[NoiseKey]) -> None:
        """Have rows of these keys at hand; of more than the cache holds, the first."""
        self._add(keys[: self._max_rows])

    def rows(self, keys: list[NoiseKey]) -> torch.Tensor:
        """[R, V] float32: as `gumbel_noise`."""
        self._add(keys)
        for key in keys:
            self._rows.move_to_end(key)
        result = torch.stack([self._rows[key] for key in keys])
        while len(self._rows) > self._max_rows:
            self._rows.popitem(last=False)
        return result

    def _add(self, keys: list[NoiseKey]) -> None:
        missing = [key for key in dict.fromkeys(keys) if key not in self._rows]
        if missing:
            self._rows.update(zip(missing, gumbel_noise(missing, self._vocab_size, self._device).unbind(0), strict=True))


class _ThreadsCaches(threading.local):
    """Each thread sees its own."""

    def __init__(self) -> None:
        self.caches: OrderedDict[tuple[int, torch.device], NoiseCache] = OrderedDict()


_THREADS = _ThreadsCaches()


def noise_cache(vocab_size: int, device: torch.device) -> NoiseCache:
    """The calling thread's. Where one thread runs drafter and target, what the one guessed by is at hand when the other decides."""
    caches, key = _THREADS.caches, (vocab_size, device)
    if key not in caches:
        caches[key] = NoiseCache(vocab_size, device)
        if len(caches) > MAX_CACHES:
            caches.popitem(last=False)
    caches.move_to_end(key)
    return caches[key]


def forget_noise() -> None:
    """Give up what the calling thread keeps: it serves no more, or is to be measured as if it had never made any."""
    _THREADS.caches.clear()


def gumbel_noise(keys: list[NoiseKey], vocab_size: int, device: torch.device) -> torch.Tensor:
    """[R, V] float32 standard Gumbel variates, indexed by the target's token ids.

    g = -log E with E = -log(1-u) from 32 random bits: small E, which win an argmax, keep their full precision. A 24-bit uniform
    would cut the tail at 17.3, which shows at V = 150k.
    """
    bits = random_words(keys, -(-vocab_size // 2), device)[:, :vocab_size]
    # In float32 the largest words round to u = 1, whose variate is infinite: the clamp keeps every token's score finite.
    uniform = bits.to(torch.float32).add_(0.5).mul_(2.0**-32).clamp_(max=1.0 - 2.0**-24)
    return uniform.neg_().log1p_().neg_().log_().neg_()


def random_words(keys: list[NoiseKey], num_pairs: int, device: torch.device) -> torch.Tensor:
    """[R, 2 * num_pairs] holding 32-bit words, the lower and the higher half of each 64-bit output, as uint32 on CPUs, else as int64."""
    row_keys = on_device([_signed(_row_key(key)) for key in keys], torch.int64, device).unsqueeze(-1)  # [R, 1]
    steps = torch.arange(1, num_pairs + 1, dtype=torch.int64, device=device) * _signed(_GAMMA)
    mixed = mix64(row_keys + steps)
    if device.type == "cpu" and sys.byteorder == "little":
        return mixed.view(torch.uint32)  # they lie in memory like this already
    return torch.stack((mixed & 0xFFFFFFFF, (mixed >> 32) & 0xFFFFFFFF), dim=-1).flatten(1)


def mix64(state: torch.Tensor) -> torch.Tensor:
    """SplitMix64's output function on int64 bit patterns; overwrites and returns `state`."""
    spare = torch.empty_like(state)  # new memory for each shift would come from the system page by page
    for shift, multiplier in ((30, _MULTIPLIERS[0]), (27, _MULTIPLIERS[1])):
        _xor_shifted(state, shift, spare).mul_(_signed(multiplier))
    return _xor_shifted(state, 31, spare)


def _xor_shifted(state: torch.Tensor, shift: int, spare: torch.Tensor) -> torch.Tensor:
    """state ^= state >> shift, as if it had no sign."""
    torch.bitwise_right_shift(state, shift, out=spare)
    return state.bitwise_xor_(spare.bitwise_and_((1 << (64 - shift)) - 1))


def _row_key(key: NoiseKey) -> int:
    """64 bits from all parts of the key, each mixed in by a full round."""
    state = 0
    for part in (key.seed, key.choice, key.position, PURPOSE_SAMPLING):
        state = _mix_integer((state ^ part) + _GAMMA)
    return state


def _mix_integer(state: int) -> int:
    state &= _MASK64
    for shift, multiplier in ((30, _MULTIPLIERS[0]), (27, _MULTIPLIERS[1])):
        state = ((state ^ (state >> shift)) * multiplier) & _MASK64
    return state ^ (state >> 31)


def _signed(word: int) -> int:
    """The int64 with the same 64 bits."""
    return word - 2**64 if word >= 2**63 else word
