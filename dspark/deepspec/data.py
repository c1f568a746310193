"""Training samples in memory: what `deepspec prepare` wrote, token streams and plain lists of ids, as one indexed set.

    samples = SampleSet.open([Path("build/onpolicy")], max_length=1024, tokenizer_fingerprint=card.tokenizer_fingerprint)
    training, held_out = samples.split(0.02, seed=0)
    for index in order(len(training), seed=0, epoch=0): training[int(index)]

Reads three forms: a folder of samples (sample_files.py), a `.npy` stream of ids cut into windows, and JSONL of {"token_ids": [...]}
with optional "id" and "prompt_tokens". All samples of a file lie in a few packed arrays: a million of them are not a million
objects. Knows no text, no model and no tensor library.

Symbols: n samples of a part, t tokens of a part.
"""

import hashlib
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import orjson
from numpy.typing import NDArray

from dspark.deepspec.sample_files import INDEX_NAME, DatasetIndex, read_index, shard_paths, whole_lines
from dspark.errors import ConfigError

STREAM_DTYPES = ("uint16", "int32", "uint32", "int64")


@dataclass(frozen=True, slots=True, eq=False)
class Sample:
    """One text to learn from."""

    sample_id: str
    token_ids: NDArray[np.int32]  # [length], length > prompt_tokens
    prompt_tokens: int
    """At least 1. Anchors of the loss stand at index prompt_tokens - 1 and later: the target did not write what is before."""


class _Part(Protocol):
    """The samples of one path."""

    def __len__(self) -> int: ...

    def sample(self, index: int) -> Sample: ...

    def sample_id(self, index: int) -> str: ...

    def lengths(self) -> NDArray[np.int64]: ...


class SampleSet:
    """Samples of several paths, or a choice of them, by number."""

    def __init__(self, parts: Sequence[_Part], chosen: NDArray[np.int64] | None = None) -> None:
        self._parts = tuple(parts)
        self._starts = np.cumsum([0, *(len(part) for part in self._parts)])  # first sample of each part, and the end
        self._chosen = np.arange(self._starts[-1], dtype=np.int64) if chosen is None else chosen

    @classmethod
    def open(
        cls,
        paths: Sequence[Path],
        *,
        max_length: int,
        tokenizer_fingerprint: str | None,
        vocab_size: int | None = None,
    ) -> "SampleSet":
        """Read all paths. Longer samples are cut at `max_length` tokens; those with nothing left to learn are left out.

        `tokenizer_fingerprint` is compared with that of each sample folder; None skips it. `vocab_size` bounds the ids of files that
        do not say it themselves. Raises ConfigError with file and line.
        """
        if max_length < 2:
            raise ConfigError(f"max_length is {max_length}; a sample needs at least 2 tokens", "max_length")
        parts = [_open_part(path, max_length, tokenizer_fingerprint, vocab_size) for path in paths]
        if sum(len(part) for part in parts) == 0:
            raise ConfigError(f"no usable sample in {', '.join(map(str, paths)) or 'an empty list of paths'}")
        return cls(parts)

    def __len__(self) -> int:
        return len(self._chosen)

    def __getitem__(self, index: int) -> Sample:
        part, position = self._locate(int(self._chosen[index]))
        return part.sample(position)

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Tokens of each sample, [len(self)]."""
        every = np.concatenate([part.lengths() for part in self._parts])
        return np.asarray(every[self._chosen], dtype=np.int64)

    @property
    def num_tokens(self) -> int:
        """Of all samples together, prompts included."""
        return int(self.lengths.sum())

    def split(self, held_out_fraction: float, seed: int) -> tuple["SampleSet", "SampleSet"]:
        """(train, held_out) by a hash of the ids: the same on every machine, and unmoved by samples that are added later.

        Samples of the same prompt or document (the same id up to `#`) stay together.
        """
        if not 0.0 <= held_out_fraction < 1.0:
            raise ConfigError(f"held_out_fraction is {held_out_fraction}; it must be from 0 to below 1", "held_out_fraction")
        held_out = np.fromiter(
            (_unit_hash(self._id(int(index)), seed) < held_out_fraction for index in self._chosen), np.bool_, len(self)
        )
        return SampleSet(self._parts, self._chosen[~held_out]), SampleSet(self._parts, self._chosen[held_out])

    def _id(self, index: int) -> str:
        part, position = self._locate(index)
        return part.sample_id(position)

    def _locate(self, index: int) -> tuple[_Part, int]:
        number = int(np.searchsorted(self._starts, index, side="right")) - 1
        return self._parts[number], index - int(self._starts[number])


def order(num_samples: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """A permutation that depends on nothing but its arguments: a resumed run sees the samples of the killed one."""
    # Raw words of a bit generator are the part of numpy's random numbers that no later version may change.
    words = np.random.PCG64([seed, epoch]).random_raw(num_samples)
    return np.argsort(words, kind="stable").astype(np.int64)


def _unit_hash(sample_id: str, seed: int) -> float:
    group = sample_id.partition("#")[0]
    digest = hashlib.blake2b(f"{seed}:{group}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2.0**64


class _Packed:
    """Samples of different lengths, end to end."""

    def __init__(self) -> None:
        self._tokens = array("i")  # [t]
        self._ends = array("q", [0])  # [n + 1]
        self._prompt_tokens = array("i")  # [n]
        self._ids = bytearray()
        self._id_ends = array("q", [0])  # [n + 1]

    def append(self, sample_id: str, token_ids: NDArray[np.int32], prompt_tokens: int) -> None:
        self._tokens.frombytes(np.ascontiguousarray(token_ids).tobytes())
        self._ends.append(len(self._tokens))
        self._prompt_tokens.append(prompt_tokens)
        self._ids += sample_id.encode()
        self._id_ends.append(len(self._ids))

    def __len__(self) -> int:
        return len(self._prompt_tokens)

    def sample(self, index: int) -> Sample:
        start, stop = self._ends[index], self._ends[index + 1]
        token_ids = np.frombuffer(self._tokens, dtype=np.int32, count=stop - start, offset=start * self._tokens.itemsize)
        return Sample(self.sample_id(index), token_ids, self._prompt_tokens[index])

    def sample_id(self, index: int) -> str:
        return self._ids[self._id_ends[index] : self._id_ends[index + 1]].decode()

    def lengths(self) -> NDArray[np.int64]:
        return np.asarray(np.diff(np.frombuffer(self._ends, dtype=np.int64)), dtype=np.int64)


@dataclass(frozen=True, slots=True, eq=False)
class _Stream:
    """Windows of one long array of ids, which stays on disk."""

    name: str
    tokens: NDArray[Any]  # [t], memory-mapped
    window: int

    def __len__(self) -> int:
        # A last window of one token has no successor to learn.
        return (len(self.tokens) + self.window - 2) // self.window

    def sample(self, index: int) -> Sample:
        piece = self.tokens[index * self.window : (index + 1) * self.window]
        return Sample(self.sample_id(index), np.asarray(piece, dtype=np.int32), 1)

    def sample_id(self, index: int) -> str:
        return f"{self.name}:{index * self.window}"

    def lengths(self) -> NDArray[np.int64]:
        starts = np.arange(len(self), dtype=np.int64) * self.window
        return np.minimum(len(self.tokens) - starts, self.window)


def _open_part(path: Path, max_length: int, tokenizer_fingerprint: str | None, vocab_size: int | None) -> _Part:
    if path.is_dir():
        index = read_index(path)
        if index is None:
            raise ConfigError(f"{path}: no {INDEX_NAME} in this folder; `deepspec prepare` makes one")
        _check_fingerprint(path, index, tokenizer_fingerprint)
        return _read_files(shard_paths(path), max_length, min(index.vocab_size, vocab_size or index.vocab_size), last_may_be_cut=True)
    if not path.is_file():
        raise ConfigError(f"{path}: no such file or folder")
    if path.suffix == ".npy":
        return _open_stream(path, max_length, vocab_size)
    return _read_files([path], max_length, vocab_size, last_may_be_cut=False)


def _check_fingerprint(path: Path, index: DatasetIndex, wanted: str | None) -> None:
    if wanted is not None and index.tokenizer_fingerprint != wanted:
        raise ConfigError(
            f"{path / INDEX_NAME}: the samples were made with another tokenizer ({index.tokenizer_fingerprint} is not {wanted})",
            "tokenizer_fingerprint",
        )


def _open_stream(path: Path, max_length: int, vocab_size: int | None) -> _Stream:
    try:
        tokens = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise ConfigError(f"{path}: not an array of numpy ({error})") from error
    if not isinstance(tokens, np.ndarray) or tokens.ndim != 1 or tokens.dtype.name not in STREAM_DTYPES:
        raise ConfigError(f"{path}: must be one row of token ids ({', '.join(STREAM_DTYPES)})")
    if len(tokens):
        _check_range(str(path), tokens, vocab_size)
    return _Stream(path.name, tokens, max_length)


def _read_files(paths: Sequence[Path], max_length: int, vocab_size: int | None, *, last_may_be_cut: bool) -> _Packed:
    packed = _Packed()
    for path in paths:
        for number, line in whole_lines(path, may_be_cut=last_may_be_cut and path == paths[-1]):
            _add_line(packed, f"{path}:{number}", line, max_length, vocab_size)
    return packed


def _add_line(packed: _Packed, place: str, line: bytes, max_length: int, vocab_size: int | None) -> None:
    record = _record(place, line)
    token_ids = _token_ids(place, record["token_ids"], vocab_size)
    prompt_tokens = record.get("prompt_tokens", 0)
    if type(prompt_tokens) is not int or not 0 <= prompt_tokens <= len(token_ids):
        raise ConfigError(f"{place}: prompt_tokens is {prompt_tokens!r}, not an integer from 0 to the number of tokens")
    token_ids, prompt_tokens = token_ids[:max_length], max(1, prompt_tokens)
    if len(token_ids) > prompt_tokens:
        packed.append(str(record.get("id", place)), token_ids, prompt_tokens)


def _record(place: str, line: bytes) -> dict[str, Any]:
    try:
        record = orjson.loads(line)
    except orjson.JSONDecodeError as error:
        raise ConfigError(f"{place}: not JSON ({error})") from error
    if not isinstance(record, dict) or not isinstance(record.get("token_ids"), list):
        raise ConfigError(f"{place}: no list `token_ids`", "token_ids")
    return record


def _token_ids(place: str, ids: list[Any], vocab_size: int | None) -> NDArray[np.int32]:
    try:
        found = np.asarray(ids)
    except ValueError as error:
        raise ConfigError(f"{place}: token_ids is not a flat list of integers", "token_ids") from error
    if found.ndim != 1 or found.dtype.kind != "i" or not len(found):
        raise ConfigError(f"{place}: token_ids is not a flat list of integers, or is empty", "token_ids")
    _check_range(place, found, vocab_size)
    return found.astype(np.int32)


def _check_range(place: str, ids: NDArray[Any], vocab_size: int | None) -> None:
    low, high = int(ids.min()), int(ids.max())
    limit = vocab_size or 2**31
    if low < 0 or high >= limit:
        wrong = low if low < 0 else high
        raise ConfigError(f"{place}: token id {wrong} is outside the vocabulary of {limit} ids", "token_ids")
