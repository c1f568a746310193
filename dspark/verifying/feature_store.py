"""What drafters read of the target, kept beside the keys and values: one vector per KV slot, so that features live and die with them.

Rows that are accepted are kept for the slot that their keys and values keep, and projected once, many together, when somebody asks. A
drafter that is new, or was started again, is served from here; only a preempted session's features are computed anew, together with its
cache. Whatever goes wrong in this file costs drafts, never tokens.

Symbols: R rows of a forward, k rows kept, m taps, d hidden size, w = d where the target has the drafter's projection, else m * d.
"""

import logging
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from dspark.devices import on_device
from dspark.errors import InvalidMessage
from dspark.messages import ContextFeatures, FeatureSpec
from dspark.runtime.model import PackedModel
from dspark.runtime.taps import Taps

logger = logging.getLogger(__name__)

MAX_RAW_TABLES = 4
"""Drafters without a projection here that are served at the same time: each costs m * d numbers per slot. Others get no features."""

MAX_PENDING_ROWS = 256
"""Rows whose hidden states wait to be projected: half a megabyte for a model of hidden size 256, tens for a large one."""
MAX_TRIES = 8
"""Projections in a row that fail before a table is given up."""

_EXPONENT = np.uint16(0x7F80)  # all ones in bfloat16: infinity or NaN


class Projection(Protocol):
    """What the store needs of runtime.projection.FeatureProjection."""

    @property
    def fingerprint(self) -> str:
        """Of the drafter's checkpoint."""

    @property
    def tap_layers(self) -> tuple[int, ...]:
        """The target's layers that it reads."""

    def __call__(self, taps: torch.Tensor) -> torch.Tensor:
        """[k, d] bfloat16 from taps [k, m * d]."""


class FeatureTable:
    """One drafter's features of all sessions, by KV slot. The memory is taken when the first rows are written."""

    def __init__(
        self,
        tap_layers: tuple[int, ...],
        num_slots: int,
        projection: Projection | None,
        device: torch.device,
        arithmetic: Callable[[], AbstractContextManager[Any]],
    ) -> None:
        self.tap_layers = tap_layers
        self._num_slots = num_slots
        self._projection = projection
        self._device = device
        self._arithmetic = arithmetic
        self._values: torch.Tensor | None = None  # [num_slots, w] bfloat16
        self._pending: list[tuple[Taps, Sequence[int], Sequence[int]]] = []
        """Rows and slots of forwards that nobody has asked for yet: many rows cost hardly more than one, and plain rounds ask for none."""
        self._num_pending = 0
        self._num_failures = 0
        """In a row."""

    @property
    def projected(self) -> bool:
        """True if the rows are the drafter's context vectors, false if they are raw taps side by side."""
        return self._projection is not None

    @property
    def num_bytes(self) -> int:
        """Memory held so far."""
        return 0 if self._values is None else self._values.numel() * self._values.element_size()

    def write(self, taps: Taps, rows: Sequence[int], slots: Sequence[int]) -> None:
        """Keep these rows of the forward at these slots. What cannot be projected now is tried again later, MAX_TRIES times in all; raises
        what it failed of."""
        if self._num_failures >= MAX_TRIES:
            raise ValueError("the projection has failed too often")
        self._pending.append((taps, rows, slots))
        self._num_pending += len(rows)
        if self._num_pending >= MAX_PENDING_ROWS:
            self._flush()

    @torch.inference_mode()
    def _flush(self) -> None:
        """Project what is pending and put it into place. A slot may have changed its owner meanwhile: what was written last counts."""
        self._num_failures += 1  # unless all goes well
        slots = [slot for _, _, own in self._pending for slot in own]
        values = self._features(self._pending)  # [k, w]
        if self._values is None:
            self._values = torch.zeros((self._num_slots, values.shape[1]), dtype=torch.bfloat16, device=self._device)
        last = {slot: index for index, slot in enumerate(slots)}
        if len(last) < len(slots):
            values = values.index_select(0, on_device(list(last.values()), torch.int64, self._device))
        self._values.index_copy_(0, on_device(list(last), torch.int64, self._device), values)
        self._pending, self._num_pending, self._num_failures = [], 0, 0

    @torch.inference_mode()
    def read(self, slots: Sequence[int]) -> NDArray[np.uint16]:
        """[k, w] bits of bfloat16 at these slots."""
        if self._num_failures >= MAX_TRIES:
            raise ValueError("the projection has failed too often")
        if self._pending:
            self._flush()
        if self._values is None:
            raise ValueError("nothing was written yet")
        rows = self._values.index_select(0, on_device(slots, torch.int64, self._device))
        bits: NDArray[np.uint16] = rows.view(torch.int16).cpu().numpy().view(np.uint16)
        return bits

    def _features(self, pending: Sequence[tuple[Taps, Sequence[int], Sequence[int]]]) -> torch.Tensor:
        parts = [torch.cat([self._rows_of(taps, layer, rows) for taps, rows, _ in pending]) for layer in self.tap_layers]
        joined = torch.cat(parts, -1)  # [k, m * d]
        if self._projection is None:
            return joined.to(torch.bfloat16)
        with self._arithmetic():
            return self._projection(joined)

    def _rows_of(self, taps: Taps, layer: int, rows: Sequence[int]) -> torch.Tensor:
        part = taps[layer]  # [R, d]
        if len(rows) == len(part) and all(row == index for index, row in enumerate(rows)):
            return part.to(self._device)
        return part.index_select(0, on_device(rows, torch.int64, part.device)).to(self._device)


@dataclass(slots=True)
class SessionFeatures:
    """One session's place in a table."""

    table: FeatureTable | None
    """None: this drafter is not served here."""
    num_kept: int = 0
    """Positions 0..num_kept-1 stand in the table, at the session's own KV slots."""

    def complete(self, num_cached: int) -> bool:
        """True while nothing is missing; a gap is never filled, except by a preemption, after which everything is computed again."""
        return self.table is not None and self.num_kept == num_cached


@dataclass(frozen=True, slots=True)
class KeptRows:
    """Rows of one forward that a session keeps."""

    session: SessionFeatures
    rows: list[int]
    """Of the batch, in the order of positions."""
    slots: list[int]
    """Where they stay."""


@dataclass(frozen=True, slots=True)
class WantedRows:
    """Features to be read: those of consecutive positions of one session."""

    table: FeatureTable
    start: int
    """Position of the first."""
    slots: list[int]


class FeatureStore:
    """All tables of one target."""

    def __init__(self, model: PackedModel, projections: Iterable[Projection] = ()) -> None:
        self._model = model
        self._projections = {projection.fingerprint: projection for projection in projections}
        self._projected: dict[str, FeatureTable] = {}
        self._raw: dict[FeatureSpec, FeatureTable] = {}
        self._num_users: Counter[FeatureSpec] = Counter()
        """Sessions by spec, of those without a projection: their tables go with the last one."""
        self._said: set[str] = set()

    def check(self, spec: FeatureSpec) -> None:
        """Raises InvalidMessage naming the field where this target cannot capture what the spec asks for."""
        self._model.taps.check(spec.tap_layers)
        projection = self._projections.get(spec.drafter_fingerprint)
        if projection is not None and projection.tap_layers != spec.tap_layers:
            raise InvalidMessage(
                f"features.tap_layers are {list(spec.tap_layers)}, but that drafter reads {list(projection.tap_layers)}",
                "features.tap_layers",
            )

    def enter(self, spec: FeatureSpec) -> SessionFeatures:
        """A place for one session; its spec was checked."""
        projection = self._projections.get(spec.drafter_fingerprint)
        if projection is not None:
            if spec.drafter_fingerprint not in self._projected:
                self._projected[spec.drafter_fingerprint] = self._table(spec, projection)
            return SessionFeatures(self._projected[spec.drafter_fingerprint])
        if spec not in self._raw and len(self._raw) >= MAX_RAW_TABLES:
            self._say_once(f"more than {MAX_RAW_TABLES} drafters without a projection: no features for further ones")
        elif spec not in self._raw:
            self._raw[spec] = self._table(spec, None)
        self._num_users[spec] += 1
        return SessionFeatures(self._raw.get(spec))

    def leave(self, spec: FeatureSpec) -> None:
        """A session that entered is over."""
        if spec.drafter_fingerprint in self._projections:
            return
        self._num_users[spec] -= 1
        if self._num_users[spec] == 0:
            del self._num_users[spec]
            self._raw.pop(spec, None)

    @contextmanager
    def capture(self, sessions: Iterable[SessionFeatures | None]) -> Iterator[Taps]:
        """Taps of the forward inside the block for those of its sessions whose features are complete; without any, no hook is set."""
        layers = {layer for session in sessions if session is not None and session.table for layer in session.table.tap_layers}
        if not layers:
            yield {}
            return
        with self._model.taps.capture(sorted(layers)) as taps:
            yield taps

    def keep(self, taps: Taps, kept: Sequence[KeptRows]) -> None:
        """Write the rows, one projection for each table. Sessions of a table that fails are incomplete from here on."""
        by_table: dict[int, list[KeptRows]] = {}
        for one in kept:
            by_table.setdefault(id(one.session.table), []).append(one)
        for group in by_table.values():
            table = group[0].session.table
            if table is None:
                continue
            try:
                table.write(taps, [row for one in group for row in one.rows], [slot for one in group for slot in one.slots])
            except Exception as error:  # whatever a projection's own code raises, or no memory for the table
                self._say_once("features could not be kept", error)
                continue
            for one in group:
                one.session.num_kept += len(one.rows)

    def read(self, wanted: Sequence[WantedRows | None]) -> list[ContextFeatures | None]:
        """Features in the order of `wanted`, one copy from the device for each table; None where nothing is wanted, or not to be had."""
        by_table: dict[int, list[tuple[int, WantedRows]]] = {}
        for index, one in enumerate(wanted):
            if one is not None:
                by_table.setdefault(id(one.table), []).append((index, one))
        found: list[ContextFeatures | None] = [None] * len(wanted)
        for group in by_table.values():
            for (index, _), features in zip(group, self._read_table([one for _, one in group]), strict=True):
                found[index] = features
        return found

    def _read_table(self, group: Sequence[WantedRows]) -> list[ContextFeatures | None]:
        table = group[0].table
        try:
            values = table.read([slot for one in group for slot in one.slots])
        except Exception as error:
            self._say_once("features could not be read", error)
            return [None] * len(group)
        pieces = np.split(values, np.cumsum([len(one.slots) for one in group])[:-1])
        return [self._finite(ContextFeatures(one.start, piece.copy(), table.projected)) for one, piece in zip(group, pieces, strict=True)]

    def _finite(self, features: ContextFeatures) -> ContextFeatures | None:
        if bool(np.any((features.values & _EXPONENT) == _EXPONENT)):
            self._say_once("features are not finite in bfloat16")
            return None
        return features

    def _table(self, spec: FeatureSpec, projection: Projection | None) -> FeatureTable:
        model = self._model
        return FeatureTable(spec.tap_layers, model.cache.num_slots, projection, model.device, model.arithmetic)

    def _say_once(self, text: str, error: Exception | None = None) -> None:
        if text not in self._said:
            self._said.add(text)
            logger.warning("%s; the sessions go on without drafts", text, exc_info=error)
