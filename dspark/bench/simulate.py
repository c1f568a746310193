"""`dspark bench simulate`: what a service would do under a load, from its costs and its drafter's acceptance, without running it.

    report = simulate(SimulateOptions(setup="qwen3-8b-h100", acceptance="demo-dspark-t1", policies=("plain", "planned")))
    print(report.table())
    report.write(Path("build/simulated"))

Use it for hardware that is not at hand (bench/simulator/published.py has curves), and check it where the hardware is: `compare` puts
its points beside measured ones.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from dspark.bench.plots import budget_figure, frontier_figure, load_figure
from dspark.bench.simulator.acceptance import ChainTraceSource, ChanceTable, DraftBook, DraftSource, NodeTraceSource
from dspark.bench.simulator.costs import Setup, read_setup
from dspark.bench.simulator.policies import policy_named
from dspark.bench.simulator.published import ACCEPTANCE, SETUPS
from dspark.bench.simulator.simulation import Simulation
from dspark.bench.simulator.tally import OperatingPoint, operating_point
from dspark.bench.simulator.tree_trace import FORMAT as TREE_FORMAT
from dspark.bench.simulator.tree_trace import TreeTrace, TreeTraceSource
from dspark.bench.simulator.workload import ClosedLoop, Poisson, Workload
from dspark.deepspec.node_traces import FORMAT as NODE_FORMAT
from dspark.deepspec.node_traces import NodeTrace
from dspark.deepspec.traces import read_traces
from dspark.errors import ConfigError
from dspark.scheduling.drafting_plan import DraftLimits

DEFAULT_POLICIES = ("plain", "fixed3", "fixed7", "tree", "planned")
DEFAULT_LOADS = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0)
DEFAULT_MOST = DraftLimits(max_depth=7, max_width=4, max_nodes=16)
RESULT_FILE = "simulation.json"
TOLERANCE = 0.15
ENOUGH_POINTS = 6


@dataclass(frozen=True, slots=True)
class SimulateOptions:
    """What to simulate."""

    setup: str = "qwen3-8b-h100"
    """A name in SETUPS, or a JSON file (bench/simulator/costs.py)."""
    acceptance: str = "demo-dspark-t1"
    """A name in ACCEPTANCE, a decoding trace (file or folder), a trace of candidates or of trees, or JSON
    {"conditional": [[...]], "spread": 0.3}."""
    temperature: float | None = None
    """Which rounds of a trace; None: all of them. A trace of trees is of one temperature."""
    policies: tuple[str, ...] = DEFAULT_POLICIES
    loads: tuple[float, ...] = DEFAULT_LOADS
    """Clients that each ask again as soon as they have their answer; or, with `poisson`, requests per second."""
    poisson: bool = False
    most: DraftLimits = DEFAULT_MOST
    """What the drafter can do: all of it for `tree`, at most this for `planned`."""
    prompt_tokens: int = 0
    cached_tokens: int = 0
    """Of every prompt, beside those: cached already, so only their reading costs."""
    output_tokens: int = 128
    tokens_per_point: int = 20_000
    """Measured; a tenth as many before, for warming up. Heavy loads get at least 200 tokens per client."""
    num_drafts: int = 1024
    """Drafts of each size that are drawn beforehand."""
    seed: int = 0


@dataclass(frozen=True, slots=True)
class SimulationReport:
    """Operating points, policy by policy."""

    options: SimulateOptions
    label: str
    """Of the set-up."""
    points: tuple[OperatingPoint, ...]

    def table(self) -> str:
        """Markdown; ratios are to plain decoding under the same load, if that was simulated too."""
        plain = {point.load: point.tokens_per_second for point in self.points if point.policy == "plain"}
        head = f"| policy | {self._load_label} | tokens/s | x plain | per user | tau | verified | rows/step | target busy | drafter busy |"
        rows = [_row(point, plain.get(point.load)) for point in self.points]
        return "\n".join([f"{self.label}; acceptance {self.options.acceptance}; simulated", "", head, "|" + "---|" * 10, *rows])

    def write(self, folder: Path) -> list[Path]:
        """The points as JSON and three pictures, in `folder`, which is made if need be."""
        folder.mkdir(parents=True, exist_ok=True)
        title = f"{self.label}; acceptance {self.options.acceptance}; simulated"
        files = {
            RESULT_FILE: (json.dumps(self.record(), indent=2) + "\n").encode(),
            "load.png": load_figure(self.points, self._load_label, title),
            "frontier.png": frontier_figure(self.points, title),
            "budget.png": budget_figure(self.points, self._load_label, title),
        }
        for name, data in files.items():
            (folder / name).write_bytes(data)
        return [folder / name for name in files]

    def record(self) -> dict[str, Any]:
        """For JSON."""
        options = {name: getattr(self.options, name) for name in ("setup", "acceptance", "prompt_tokens", "output_tokens", "seed")}
        return {"label": self.label, **options, "poisson": self.options.poisson, "points": [point.record() for point in self.points]}

    @property
    def _load_label(self) -> str:
        return "requests/s" if self.options.poisson else "clients"


def simulate(options: SimulateOptions, on_point: Callable[[OperatingPoint], None] | None = None) -> SimulationReport:
    """All policies under all loads; `on_point` is told of each as it is done. Raises ConfigError naming what does not fit."""
    return simulate_with(setup_named(options.setup), acceptance_named(options.acceptance, options.temperature), options, on_point)


def simulate_with(
    setup: Setup, source: DraftSource, options: SimulateOptions, on_point: Callable[[OperatingPoint], None] | None = None
) -> SimulationReport:
    """The same for a set-up and a source in hand; what the options say of either is only for the report."""

    @cache
    def book_of(limits: DraftLimits) -> DraftBook:
        return DraftBook(source, limits, options.num_drafts, options.seed)

    points = []
    for name in options.policies:
        for load in options.loads:
            workload = _workload(options, load)
            simulation = Simulation(setup, workload, policy_named(name, options.most), book_of, options.seed)
            num_tokens = max(options.tokens_per_point, 0 if options.poisson else round(200 * load))
            tally = simulation.run(num_tokens, warmup_tokens=num_tokens // 10)
            points.append(operating_point(name, load, setup, tally))
            if on_point is not None:
                on_point(points[-1])
    return SimulationReport(options, setup.label, tuple(points))


def setup_named(name: str) -> Setup:
    """A built-in set-up, or one from a file. Raises ConfigError."""
    if name in SETUPS:
        return SETUPS[name]
    if not Path(name).is_file():
        raise ConfigError(f"{name!r} is neither a file nor a built-in set-up; there are {', '.join(SETUPS)}", "setup")
    return read_setup(Path(name))


def acceptance_named(name: str, temperature: float | None = None) -> DraftSource:
    """A built-in profile, or one from a file. Raises ConfigError."""
    if name in ACCEPTANCE:
        return ACCEPTANCE[name]
    path = Path(name)
    if not path.exists():
        raise ConfigError(f"{name!r} is neither a file nor a built-in profile; there are {', '.join(ACCEPTANCE)}", "acceptance")
    if path.suffix == ".json":
        return _profile(path)
    recorded = _format_of(path) if path.is_file() else None
    if recorded == TREE_FORMAT:
        return TreeTraceSource(TreeTrace.read(path))
    if recorded == NODE_FORMAT:
        nodes = NodeTrace.read(path)
        return NodeTraceSource(nodes if temperature is None else nodes.select(abs(nodes.temperature - temperature) < 1e-4))
    chains = read_traces(path)
    return ChainTraceSource(chains if temperature is None else chains.at_temperature(temperature))


@dataclass(frozen=True, slots=True)
class Compared:
    """One operating point, measured and simulated, in tokens per second."""

    policy: str
    load: float
    measured: float
    simulated: float

    @property
    def error(self) -> float:
        """Of the simulation, relative."""
        return self.simulated / self.measured - 1


@dataclass(frozen=True, slots=True)
class Agreement:
    """How well a simulation meets what was measured."""

    points: tuple[Compared, ...]
    tolerance: float = TOLERANCE

    @property
    def num_within(self) -> int:
        """Points whose error is within the tolerance."""
        return sum(abs(point.error) <= self.tolerance for point in self.points)

    @property
    def is_enough(self) -> bool:
        """Whether that many points say that the simulator can be trusted: ENOUGH_POINTS, or all where fewer were compared."""
        return bool(self.points) and self.num_within >= min(ENOUGH_POINTS, len(self.points))

    def table(self) -> str:
        """Markdown, with the summary below."""
        head = ["| policy | load | measured tokens/s | simulated tokens/s | ratio | error |", "|" + "---|" * 6]
        rows = [
            f"| {p.policy} | {p.load:g} | {p.measured:.1f} | {p.simulated:.1f} | {p.simulated / p.measured:.2f} | {p.error:+.1%} |"
            for p in self.points
        ]
        worst = max((abs(point.error) for point in self.points), default=0.0)
        summary = f"{self.num_within} of {len(self.points)} operating points within {self.tolerance:.0%}; largest error {worst:.1%}"
        return "\n".join([*head, *rows, "", summary])


def compare(points: Sequence[OperatingPoint], measured: Mapping[tuple[str, float], float]) -> Agreement:
    """Simulated against measured tokens/s, by (policy, load). Points without a measurement are left out."""
    pairs = [(point, measured.get((point.policy, point.load))) for point in points]
    return Agreement(tuple(Compared(p.policy, p.load, real, p.tokens_per_second) for p, real in pairs if real is not None))


def _workload(options: SimulateOptions, load: float) -> Workload:
    if options.poisson:
        return Workload(Poisson(load), options.output_tokens, options.prompt_tokens, options.cached_tokens)
    if load != int(load):
        raise ConfigError(f"{load:g} clients: not a whole number", "loads")
    clients = ClosedLoop(int(load))
    return Workload(clients, options.output_tokens, options.prompt_tokens, options.cached_tokens, max_sessions=max(1, int(load)))


def _profile(path: Path) -> ChanceTable:
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        return ChanceTable(np.asarray(record["conditional"], np.float64), float(record.get("spread", 0.0)))
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise ConfigError(f"{path}: cannot be read as an acceptance profile ({type(error).__name__}: {error})", "acceptance") from error


def _format_of(path: Path) -> str | None:
    """Of a file of columns; None where it is something else, of which its reader will complain."""
    try:
        with safe_open(path, framework="np") as file:
            return (file.metadata() or {}).get("format")
    except (OSError, SafetensorError):
        return None


def _row(point: OperatingPoint, plain: float | None) -> str:
    ratio = f"{point.tokens_per_second / plain:.2f}" if plain else ""
    numbers = f"{point.tokens_per_second:.0f} | {ratio} | {point.user_tokens_per_second:.1f} | {point.tau:.2f}"
    rows = f"{point.verified_per_round:.1f} | {point.rows_per_step:.0f}"
    shares = f"{point.target_utilisation:.0%} | {point.drafter_utilisation:.0%}"
    return f"| {point.policy} | {point.load:g} | {numbers} | {rows} | {shares} |"
