"""A bounded cache of target features on disk: what fits its limit is computed once, the rest every time.

One entry per sample, keyed by its tokens. Kept as bfloat16, or as 8-bit floats with a scale per position. The limit holds for data
and index together.
What comes out is always rounded to the format, whether it was kept, just computed, or found no room: a run that is killed and goes on
finds more in the cache than an unkilled one did at that step, and must compute the same losses. It gives other last digits with a
cache than without, so a resumed run should keep its choice.

Symbols: B samples, S positions, w numbers per position (m taps and the final hidden state side by side).
"""

import hashlib
import json
import os
from dataclasses import astuple, dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from dspark.deepspec.features import FeatureSource, TargetView
from dspark.errors import ConfigError

DATA, INDEX = "features.bin", "index.jsonl"
DTYPES = ("bfloat16", "float8")
FP8_MAX = 448.0
"""Largest number of the 8-bit format (e4m3)."""


@dataclass(frozen=True, slots=True)
class CacheOptions:
    """Where the cache is, and how large it may become."""

    folder: Path
    limit_bytes: int
    dtype: str = "bfloat16"
    """One of DTYPES."""


@dataclass(frozen=True, slots=True)
class _Place:
    """Where one sample's features lie in the data file."""

    start: int
    num_bytes: int
    positions: int  # S
    tap_width: int
    """The first so many of the w numbers are taps."""


class CachedFeatures:
    """Implements FeatureSource before another one. Not shared by processes: each worker needs a folder of its own."""

    def __init__(self, online: FeatureSource, identity: str, options: CacheOptions) -> None:
        """Take up what an earlier run left. `identity` names target and taps: features of others are never taken for these.

        Raises ConfigError if the folder cannot be used.
        """
        self._online = online
        self._identity = identity.encode()
        self._options = options
        self._places: dict[str, _Place] = {}
        self._data_bytes = self._index_bytes = 0
        self._full = False
        try:
            options.folder.mkdir(parents=True, exist_ok=True)
            self._data, self._index = options.folder / DATA, options.folder / INDEX
            self._data.touch()
            self._index.touch()
            self._read_index()
        except OSError as error:
            raise ConfigError(f"{options.folder}: no feature cache can be kept there ({error})", "cache") from error

    @property
    def used_bytes(self) -> int:
        """On disk; at most the limit."""
        return self._data_bytes + self._index_bytes

    def view(self, token_ids: torch.Tensor, lengths: torch.Tensor) -> TargetView:
        """See FeatureSource; float32, zero where nothing is text. The target runs unless all of the batch is there.

        It always runs on the whole batch, and what is there wins: so the numbers of a text never depend on what was kept beside it.
        """
        ids = token_ids.cpu().numpy()
        keys = [self._key(row[:length]) for row, length in zip(ids, lengths.tolist(), strict=True)]
        if all(key in self._places for key in keys):
            rows = [self._read(self._places[key]) for key in keys]
            return _padded(rows, self._places[keys[0]].tap_width, token_ids)
        view = self._online.view(token_ids, lengths)
        tap_width, rows = view.taps.shape[-1], []
        for row, (key, length) in enumerate(zip(keys, lengths.tolist(), strict=True)):
            if key not in self._places:
                encoded = self._encode(torch.cat((view.taps[row, :length], view.hidden[row, :length]), -1))
                self._keep(key, encoded, length, tap_width)
                rows.append(self._decode(encoded, length))
            else:
                rows.append(self._read(self._places[key]))
        return _padded(rows, tap_width, token_ids)

    def _key(self, ids: NDArray[np.int64]) -> str:
        return hashlib.blake2b(self._identity + np.ascontiguousarray(ids).tobytes(), digest_size=16).hexdigest()

    def _keep(self, key: str, encoded: bytes, positions: int, tap_width: int) -> None:
        if self._full:
            return
        place = _Place(self._data_bytes, len(encoded), positions, tap_width)
        line = json.dumps({"key": key, "dtype": self._options.dtype, "place": astuple(place)}).encode() + b"\n"
        if self.used_bytes + len(encoded) + len(line) > self._options.limit_bytes:
            return
        try:
            _append(self._data, encoded)
            _append(self._index, line)
        except OSError:
            self._full = True  # the disk is smaller than the limit: go on without adding
            self._cut()
            return
        self._places[key] = place
        self._data_bytes += len(encoded)
        self._index_bytes += len(line)

    def _cut(self) -> None:
        """Drop what stands behind the last whole entry."""
        os.truncate(self._data, self._data_bytes)
        os.truncate(self._index, self._index_bytes)

    def _encode(self, values: torch.Tensor) -> bytes:
        """[S, w] as bytes: bfloat16, or one float32 scale and w 8-bit floats per position."""
        values = values.detach().cpu().float()
        if self._options.dtype == "bfloat16":
            return values.to(torch.bfloat16).view(torch.uint16).numpy().tobytes()
        scales = values.abs().amax(-1, keepdim=True).clamp(min=1e-12) / FP8_MAX
        packed = (values / scales).to(torch.float8_e4m3fn).view(torch.uint8)
        return torch.cat((scales.view(torch.uint8), packed), dim=-1).numpy().tobytes()

    def _read(self, place: _Place) -> torch.Tensor:
        """[S, w] float32 from the data file."""
        with self._data.open("rb") as file:
            file.seek(place.start)
            return self._decode(file.read(place.num_bytes), place.positions)

    def _decode(self, encoded: bytes, positions: int) -> torch.Tensor:
        """[S, w] float32."""
        raw = bytearray(encoded)
        if self._options.dtype == "bfloat16":
            return torch.frombuffer(raw, dtype=torch.bfloat16).view(positions, -1).float()
        rows = torch.frombuffer(raw, dtype=torch.uint8).view(positions, -1)
        return rows[:, 4:].contiguous().view(torch.float8_e4m3fn).float() * rows[:, :4].contiguous().view(torch.float32)

    def _read_index(self) -> None:
        """Entries whose bytes are all there; a kill may have cut the last one off."""
        size = self._data.stat().st_size
        for line in self._index.read_bytes().splitlines(keepends=True):
            try:
                entry = json.loads(line)
                key, dtype, place = entry["key"], entry["dtype"], _Place(*entry["place"])
            except (ValueError, KeyError, TypeError):
                break
            if dtype != self._options.dtype:
                raise ConfigError(f"{self._options.folder}: the cache there holds {dtype}, not {self._options.dtype}", "cache")
            if not line.endswith(b"\n") or place.start != self._data_bytes or place.start + place.num_bytes > size:
                break
            self._places[key] = place
            self._data_bytes += place.num_bytes
            self._index_bytes += len(line)
        self._cut()


def _padded(rows: list[torch.Tensor], tap_width: int, like: torch.Tensor) -> TargetView:
    """Rows [S_i, w] as a batch for the ids `like` [B, S], on their device."""
    values = torch.zeros((*like.shape, rows[0].shape[-1]), dtype=torch.float32)
    for row, found in enumerate(rows):
        values[row, : len(found)] = found
    values = values.to(like.device)
    return TargetView(values[..., :tap_width], values[..., tap_width:])


def _append(path: Path, data: bytes) -> None:
    with path.open("ab") as file:
        file.write(data)
