"""The measurement itself: for every number of clients turn after turn, in each of which every system has its place once. The order of the
systems rotates from turn to turn, so that a machine that gets slower or faster meanwhile does that to all of them.

What an engine has learned stays with it from turn to turn, and from one number of clients to the next.
"""

import os
import platform
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Protocol

import torch

from dspark.bench.load.costs import measured_costs, usual_probe_ms
from dspark.bench.load.plan import LoadPlan, Patience
from dspark.bench.load.results import LoadPoint, LoadReport, same_turns, with_slowness
from dspark.bench.load.systems import RECORDING_CLIENTS, LoadSystem, Workbench
from dspark.bench.load.window import Window
from dspark.bench.simulator.tree_trace import TreeRecorder, TreeTrace
from dspark.config import FEATURE_KINDS, DrafterConfig, TargetConfig
from dspark.devices import accelerator_name
from dspark.runtime.loading import dtype_of
from dspark.scheduling.drafting_plan import DraftLimits

RECORDED = DraftLimits(max_depth=7, max_width=4, max_nodes=32)
"""Trees of a trace: large enough that most chains of seven are in them."""


class Contender(Protocol):
    """One system, in this process or behind a URL."""

    @property
    def name(self) -> str:
        """In tables."""

    def turn(self, num_clients: int) -> Window:
        """One window with so many clients, at least as many as in the turn before. One that was ended early may have lasted no time."""


OnTurn = Callable[[int, str], None]
"""(clients, system), before each turn."""


@dataclass
class LoadMeasurement:
    """All turns. `points` may be read at any time."""

    systems: Sequence[Contender]
    plan: LoadPlan
    patience: Patience
    points: list[LoadPoint] = field(default_factory=list)
    windows: list[tuple[int, Window]] = field(default_factory=list)
    """All whole ones, warm-ups too, with their clients."""

    @property
    def num_turns(self) -> int:
        """Of single systems, warm-ups included."""
        return len(self.plan.ordered_clients) * (self.plan.warmup_turns + self.plan.turns) * len(self.systems)

    def run(self, on_turn: OnTurn = lambda *_: None, on_points: Callable[[], None] = lambda: None) -> bool:
        """Until all is measured, or patience is over; True if all was. `on_points` is called when there are new ones."""
        for num_clients in self.plan.ordered_clients:
            before = len(self.points)
            whole = self._run_load(num_clients, on_turn)
            if len(self.points) > before:
                on_points()
            if not whole:
                return False
        return True

    def _run_load(self, num_clients: int, on_turn: OnTurn) -> bool:
        """A turn that was broken off is left out, for every system."""
        counted: dict[str, list[Window]] = {system.name: [] for system in self.systems}
        for turn in range(self.plan.warmup_turns + self.plan.turns):
            windows = self._run_turn(turn, num_clients, on_turn)
            if windows is None:
                break
            self.windows += [(num_clients, window) for window in windows.values()]
            if turn >= self.plan.warmup_turns:
                for name, window in windows.items():
                    counted[name].append(window)
        self.points += same_turns(counted, num_clients)
        return not self.patience.over

    def _run_turn(self, turn: int, num_clients: int, on_turn: OnTurn) -> dict[str, Window] | None:
        windows: dict[str, Window] = {}
        for offset in range(len(self.systems)):
            if self.patience.over:
                return None
            system = self.systems[(turn + offset) % len(self.systems)]
            on_turn(num_clients, system.name)
            windows[system.name] = system.turn(num_clients)
        return None if self.patience.over else windows


@dataclass
class LocalLoad:
    """A measurement in this process: one target, an Engine for each system."""

    names: Sequence[str]
    target: TargetConfig
    drafter: DrafterConfig
    prompts: Sequence[str]
    plan: LoadPlan
    patience: Patience
    _systems: list[LoadSystem] = field(default_factory=list)
    _measurement: LoadMeasurement | None = None
    _bench: Workbench | None = None

    @contextmanager
    def started(self) -> Iterator[LoadMeasurement]:
        """The target in memory; afterwards all of it is let go."""
        self._bench = Workbench(self.target, self.drafter, self.prompts, self.plan, self.patience)
        try:
            self._systems += [self._bench.system(name) for name in self.names]
            self._measurement = LoadMeasurement(self._systems, self.plan, self.patience)
            yield self._measurement
        finally:
            for system in self._systems:
                system.close()

    def record_trees(self, num_rounds: int) -> TreeTrace | None:
        """Whole trees with the target's verdict on every candidate, from a system of its own that is gone afterwards. None without a
        drafter, or without time."""
        assert self._bench is not None, "started first"
        recorder = TreeRecorder()
        system = self._bench.system("tree", RECORDED, recorder.add)
        try:
            while len(recorder) < num_rounds and not self.patience.over:
                system.turn(RECORDING_CLIENTS)
        finally:
            system.close()
        return recorder.trace() if len(recorder) else None

    def report(self, trace: str | None, is_complete: bool) -> LoadReport:
        """As far as it has come."""
        assert self._measurement is not None
        assert self._bench is not None, "started first"
        drafter = self.drafter.kind if self.drafter.kind == "lookup" else f"{self.drafter.kind} {self.drafter.model}"
        with_lookup = " with lookup" if self.drafter.with_lookup else ""
        prompts = self._bench.prompts
        profile = next((system.curve for system in self._systems if system.curve is not None), None)
        windows = self._measurement.windows
        usual_ms = usual_probe_ms([window for _, window in windows])
        device = self._bench.device
        draft_dtype = "" if self.drafter.kind == "lookup" else str(dtype_of(self.drafter)).removeprefix("torch.")
        rows, reads = self._bench.config.target.max_batch_rows, self.drafter.kind in FEATURE_KINDS
        return LoadReport(
            label=f"{self.target.model}, {drafter}{with_lookup}, in one process",
            plan=self.plan,
            points=tuple(with_slowness(point, usual_ms) for point in self._measurement.points),
            is_complete=is_complete,
            prompt_tokens=sum(map(len, prompts)) / len(prompts),
            trace=trace,
            costs=None if profile is None else measured_costs(profile, rows, windows, reads),
            notes=machine() | {"device": accelerator_name(device) or str(device), "dtype": self.target.dtype, "draft_dtype": draft_dtype},
        )


def machine() -> dict[str, str]:
    """Where this was measured, as far as it matters."""
    return {
        "torch": torch.__version__,
        "torch_threads": str(torch.get_num_threads()),
        "cpus": str(os.cpu_count()),
        "processor": platform.processor() or platform.machine(),
    }
