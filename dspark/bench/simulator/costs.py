"""What everything costs in a simulated service: target steps, drafting calls, the router; and how many of each there are.

Costs are measured (`dspark bench`, a replica's saved curve) or derived (published.py); a file says which in its `label`.

    {"label": "shipped pair, this machine", "max_rows": 512, "num_targets": 1, "num_drafters": 1, "one_processor": true,
     "target": {"rows": [1, 8, 64], "step_ms": [4.1, 5.0, 12.0]},
     "draft": {"fixed_ms": 6.0, "depth_ms": 0.5}, "router": {"round_ms": 0.4, "session_us": 150},
     "noise": {"single": 0.1, "mood": 0.08}}

`target` may name a replica's saved curve instead: {"curve_file": "curve.json"}; or give `context_tokens` and step_ms by context.
"""

import json
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np

from dspark.bench.simulator.noise import Noise
from dspark.errors import ConfigError, DSparkError
from dspark.scheduling.curve import ThroughputCurve, sessions_measured
from dspark.scheduling.curve_file import read_curve
from dspark.scheduling.draft_cost import USUAL_NEWS


@dataclass(frozen=True, slots=True)
class TargetCosts:
    """One target replica."""

    curve: ThroughputCurve
    kv_us_per_token: float = 0.0
    """Reading the keys and values of one cached token, once per session and step; where the curve's own contexts hold it, 0."""
    session_us: float = 0.0
    """What each session adds to a step beside its rows; no profile knows of it."""

    def step_ms(self, rows: int, context_tokens: float, cached_tokens: float, num_sessions: int = 0) -> float:
        """A step of so many rows. `context_tokens`: mean over the rows; `cached_tokens`: sum over the sessions."""
        added_us = self.kv_us_per_token * cached_tokens + self.session_us * num_sessions
        return float(self.curve.step_ms_of([rows], context_tokens)[0]) + added_us / 1e3

    def profiled(self) -> ThroughputCurve:
        """What a replica of these costs would measure when it starts, of the sessions that it does that with."""
        if self.kv_us_per_token == 0.0:
            return self.curve
        contexts = np.asarray([0, 1000], np.int64)
        reading_ms = self.kv_us_per_token / 1e3 * contexts[:, np.newaxis] * sessions_measured(self.curve.rows)
        times = np.stack([self.curve.at_context(float(context)) for context in contexts]) + reading_ms
        return ThroughputCurve(self.curve.rows, contexts, np.maximum.accumulate(times, axis=1))


@dataclass(frozen=True, slots=True)
class DraftCosts:
    """One draft replica. The terms are those that scheduling/draft_cost.py learns."""

    fixed_ms: float = 0.0
    session_ms: float = 0.0
    depth_ms: float = 0.0
    session_depth_ms: float = 0.0
    side_node_us: float = 0.0
    """Of each candidate beyond a chain of its session's depth."""
    news_us: float = 0.0
    """Of each token of context that the drafter has not been told yet, beyond what a round commits."""

    def ms(self, sessions: int, depth: float, side_nodes: int = 0, num_news: float = 0.0) -> float:
        """One call for so many sessions; `side_nodes` and `num_news` of all of them."""
        more_us = self.side_node_us * side_nodes + self.news_us * max(0.0, num_news - USUAL_NEWS * sessions)
        return self.fixed_ms + self.session_ms * sessions + depth * (self.depth_ms + self.session_depth_ms * sessions) + more_us / 1e3


@dataclass(frozen=True, slots=True)
class RouterCosts:
    """What stands between two steps of a target: planning, wire, commits. The target is idle meanwhile."""

    round_ms: float = 0.0
    session_us: float = 0.0

    def ms(self, sessions: int) -> float:
        """One round of so many sessions."""
        return self.round_ms + self.session_us * sessions / 1e3


@dataclass(frozen=True, slots=True)
class Setup:
    """A whole service."""

    label: str
    """What it is and where its numbers come from: stands above every table."""
    target: TargetCosts
    draft: DraftCosts = field(default_factory=DraftCosts)
    router: RouterCosts = field(default_factory=RouterCosts)
    num_targets: int = 1
    num_drafters: int = 1
    one_processor: bool = False
    """Drafters and targets take turns on one processor, as in the Engine, or where one GPU does both."""
    max_rows: int = 512
    """Of one step."""
    noise: Noise = field(default_factory=Noise)
    """Of steps and calls; what the router does takes its time exactly."""
    plain_first_round: bool = False
    """The drafter reads the target's hidden states, so there is no draft in the round in which the target reads the prompt. It keeps
    sessions apart: one that came in the middle of others' drafting goes on between them."""

    def __post_init__(self) -> None:
        for name in ("num_targets", "num_drafters", "max_rows"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1", name)


def read_setup(path: Path) -> Setup:
    """Raises ConfigError naming file and key."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        return _setup(record, path.parent)
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise ConfigError(f"{path}: cannot be read as a simulated set-up ({type(error).__name__}: {error})", "setup") from error
    except DSparkError as error:
        raise ConfigError(f"{path}: {error.message}", error.field) from error


def _setup(record: dict[str, Any], folder: Path) -> Setup:
    parts = {"draft": DraftCosts, "router": RouterCosts, "noise": Noise}
    plain = {field.name for field in fields(Setup)} - {"target", *parts}
    _check_keys(record, plain | {"target", *parts}, "")
    for part, kind in parts.items():
        _check_keys(record.get(part, {}), {field.name for field in fields(kind)}, f"{part}.")
        _check_costs(record.get(part, {}), f"{part}.")
    return Setup(
        target=_target(record["target"], folder),
        draft=DraftCosts(**record.get("draft", {})),
        router=RouterCosts(**record.get("router", {})),
        noise=Noise(**record.get("noise", {})),
        **{name: record[name] for name in plain if name in record},
    )


def _target(record: dict[str, Any], folder: Path) -> TargetCosts:
    added = ("kv_us_per_token", "session_us")
    _check_keys(record, {"rows", "step_ms", "context_tokens", "curve_file", *added}, "target.")
    _check_costs({name: record[name] for name in added if name in record}, "target.")
    added_us = [float(record.get(name, 0.0)) for name in added]
    if "curve_file" in record:
        return TargetCosts(read_curve(folder / record["curve_file"]).curve, *added_us)
    return TargetCosts(curve_of(record["rows"], record["step_ms"], record.get("context_tokens", [0])), *added_us)


def curve_of(rows: list[int], step_ms: list[float] | list[list[float]], context_tokens: list[int] | None = None) -> ThroughputCurve:
    """A curve from plain lists; one list of times is one for all contexts. Raises InvalidMessage naming the field."""
    times = np.atleast_2d(np.asarray(step_ms, np.float64))
    curve = ThroughputCurve(np.asarray(rows, np.int64), np.asarray(context_tokens or [0], np.int64), times)
    curve.check()
    return curve


def _check_keys(record: dict[str, Any], known: set[str], prefix: str) -> None:
    for key in sorted(set(record) - known):
        raise ConfigError(f"{prefix}{key} is unknown", f"{prefix}{key}")


def _check_costs(record: dict[str, Any], prefix: str) -> None:
    for key, value in record.items():
        if not 0 <= value < float("inf"):
            raise ConfigError(f"{prefix}{key} is {value!r}; a cost is finite and not negative", f"{prefix}{key}")
