"""What the parts cost in a measurement under load, put together for a simulator of the same: target steps, drafting calls, the rest.

The target was profiled by bare forwards of few sessions with several rows each; a real step also makes noise, walks the tree, captures
features, and reads the cache of every session. So the profile is corrected by the steps that were seen, by rows and by cached tokens.
What is left of a turn when all steps and calls are taken away is the router's: of plain turns it is what a round costs, and what turns
with drafts lose beyond that is put on the drafting calls, as the router itself sees it.
"""

import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from dspark.bench.load.window import DraftSample, StepSample, Window
from dspark.bench.simulator.costs import DraftCosts, RouterCosts, Setup, TargetCosts, curve_of
from dspark.scheduling.curve import Floats, ThroughputCurve, isotonic

LEAST_FACTOR = 0.2
"""Of the profile: whatever the fit says of cached tokens, rows cost something too."""


@dataclass(frozen=True, slots=True, eq=False)
class MeasuredCosts:
    """All of one target and one drafter that share a thread."""

    profile: ThroughputCurve
    """Bare forwards, as measured at the start."""
    target: TargetCosts
    """Real steps."""
    draft: DraftCosts
    router: RouterCosts
    max_rows: int
    reads_features: bool
    """The drafter, of the target."""

    def setup(self, label: str) -> Setup:
        """For a simulation. Nothing overlaps: drafter and target take turns."""
        return Setup(
            label,
            self.target,
            self.draft,
            self.router,
            one_processor=True,
            max_rows=self.max_rows,
            plain_first_round=self.reads_features,
        )

    def record(self) -> dict[str, Any]:
        """For JSON."""
        target = _curve_record(self.target.curve) | {"kv_us_per_token": round(self.target.kv_us_per_token, 5)}
        curves = {"profile": _curve_record(self.profile), "target": target}
        others = {"max_rows": self.max_rows, "reads_features": self.reads_features, "overlap": 0.0}
        return curves | {"draft": asdict(self.draft), "router": asdict(self.router)} | others

    @staticmethod
    def from_record(record: Mapping[str, Any]) -> "MeasuredCosts":
        """Raises KeyError, TypeError, ValueError or InvalidMessage where it is none."""
        curve = {name: value for name, value in record["target"].items() if name != "kv_us_per_token"}
        return MeasuredCosts(
            profile=curve_of(**record["profile"]),
            target=TargetCosts(curve_of(**curve), float(record["target"]["kv_us_per_token"])),
            draft=DraftCosts(**record["draft"]),
            router=RouterCosts(**record["router"]),
            max_rows=int(record["max_rows"]),
            reads_features=bool(record["reads_features"]),
        )


def measured_costs(
    profile: ThroughputCurve, max_rows: int, windows: Sequence[tuple[int, Window]], reads_features: bool
) -> MeasuredCosts:
    """`windows` with their clients, of all systems. Times are those of the machine at its usual speed."""
    usual_ms = usual_probe_ms([window for _, window in windows])
    paces = [slowness(window, usual_ms) for _, window in windows]
    paced = [(clients, window, pace) for (clients, window), pace in zip(windows, paces, strict=True)]
    steps = [(rows, sessions, cached, ms / pace) for _, w, pace in paced for rows, sessions, cached, ms in w.step_samples]
    drafts = [(sessions, depth, ms / pace) for _, w, pace in paced for sessions, depth, ms in w.draft_samples]
    spare = [_Spare(clients, w.steps, w.draft_calls, _unexplained_ms(w) / pace) for clients, w, pace in paced if w.steps]
    router = _router_costs([one for one in spare if not one.draft_calls] or spare)
    draft = _draft_costs(drafts, [one for one in spare if one.draft_calls], router)
    return MeasuredCosts(profile, target_costs(profile, steps), draft, router, max_rows, reads_features)


def usual_probe_ms(windows: Sequence[Window]) -> float | None:
    """What the probe mostly took; None where there was none."""
    probes = [window.probe_ms for window in windows if window.probe_ms is not None]
    return statistics.median(probes) if probes else None


def slowness(window: Window, usual_ms: float | None) -> float:
    """How much longer things took in this window than usual, by the probe."""
    return 1.0 if window.probe_ms is None or usual_ms is None else window.probe_ms / usual_ms


@dataclass(frozen=True, slots=True)
class _Spare:
    """Time of a window that neither steps nor drafting calls account for."""

    clients: int
    steps: int
    draft_calls: int
    ms: float


def target_costs(profile: ThroughputCurve, steps: Sequence[StepSample]) -> TargetCosts:
    """Times by rows, and on top what every cached token costs. Row counts that no step was near are the profile's, off by as much as their
    neighbours are. Without steps it is the profile as it is.
    """
    groups = _step_groups(profile, steps)
    if not groups:
        return TargetCosts(profile)
    kv_ms = _cached_token_ms(groups)
    ratios: dict[int, list[float]] = defaultdict(list)
    for nearest, cached, ms, weight in groups:
        ratios[nearest] += [max(0.0, ms - kv_ms * cached) / float(profile.step_ms[0, nearest])] * weight
    known = sorted(ratios)
    octaves = np.log2(profile.rows)
    factors = np.interp(octaves, octaves[known], [max(LEAST_FACTOR, statistics.median(ratios[index])) for index in known])
    curve = ThroughputCurve(profile.rows, np.zeros(1, np.int64), isotonic(profile.step_ms[0] * factors)[np.newaxis, :])
    return TargetCosts(curve, 1e3 * kv_ms)


_Group = tuple[int, float, float, int]
"""Nearest row count of the profile, cached tokens, ms, and how many steps these are the medians of."""


def _step_groups(profile: ThroughputCurve, steps: Sequence[StepSample]) -> list[_Group]:
    """Steps of about the same rows, and of the same number of sessions, together."""
    octaves = np.log2(profile.rows)
    groups: dict[tuple[int, int], list[tuple[int, float]]] = defaultdict(list)
    for rows, sessions, cached, ms in steps:
        nearest = int(np.argmin(np.abs(octaves - np.log2(max(1, rows)))))
        groups[nearest, sessions].append((cached, ms * float(profile.step_ms[0, nearest] / profile.step_ms_of([rows], 0)[0])))
    return [
        (nearest, statistics.median(cached for cached, _ in group), statistics.median(ms for _, ms in group), len(group))
        for (nearest, _), group in groups.items()
    ]


def _cached_token_ms(groups: Sequence[_Group]) -> float:
    """From steps of the same rows over few sessions and over many: the slope of least squares with a level for each row count."""
    above = below = 0.0
    for nearest in {group[0] for group in groups}:
        cached, ms, weights = (np.asarray(column) for column in list(zip(*(g for g in groups if g[0] == nearest), strict=True))[1:])
        off = cached - np.average(cached, weights=weights)
        above += float(np.sum(weights * off * (ms - np.average(ms, weights=weights))))
        below += float(np.sum(weights * off * off))
    return max(0.0, above / below) if below else 0.0


def non_negative_fit(terms: Floats, values: Floats) -> list[float]:
    """[t] weights >= 0 for terms [n, t], by least squares of relative errors: the term with the most negative weight is left out, until
    none is. Zeros without observations."""
    weights = np.zeros(terms.shape[1])
    kept = list(range(terms.shape[1])) if len(values) else []
    scale = 1.0 / np.maximum(np.abs(values), 1e-3)
    while kept:
        found = np.linalg.lstsq(terms[:, kept] * scale[:, np.newaxis], values * scale, rcond=None)[0]
        if found.min() >= 0:
            weights[kept] = found
            break
        del kept[int(found.argmin())]
    return [float(weight) for weight in weights]


def _router_costs(windows: Sequence[_Spare]) -> RouterCosts:
    """Of a round of so many sessions."""
    terms = np.asarray([[1.0, one.clients] for one in windows]).reshape(-1, 2)
    round_ms, session_ms = non_negative_fit(terms, np.asarray([one.ms / one.steps for one in windows]))
    return RouterCosts(round_ms, 1e3 * session_ms)


def _draft_costs(drafts: Sequence[DraftSample], windows: Sequence[_Spare], router: RouterCosts) -> DraftCosts:
    times: dict[tuple[int, int], list[float]] = defaultdict(list)
    for sessions, depth, ms in drafts:
        times[sessions, depth].append(ms)
    if not times:
        return DraftCosts()
    terms = np.asarray([[1.0, sessions, depth, sessions * depth] for sessions, depth in times])
    medians = np.asarray([statistics.median(samples) for samples in times.values()])
    fixed_ms, session_ms, depth_ms, session_depth_ms = non_negative_fit(terms, medians)
    excess = [(one.ms - one.steps * router.ms(one.clients)) / one.draft_calls for one in windows]
    more = non_negative_fit(np.asarray([[1.0, one.clients] for one in windows]).reshape(-1, 2), np.asarray(excess))
    return DraftCosts(fixed_ms + more[0], session_ms + more[1], depth_ms, session_depth_ms)


def _unexplained_ms(window: Window) -> float:
    return max(0.0, 1e3 * window.seconds - window.verify_ms - window.draft_ms)


def _curve_record(curve: ThroughputCurve) -> dict[str, Any]:
    step_ms = [[round(ms, 4) for ms in line] for line in curve.step_ms.tolist()]
    return {"rows": curve.rows.tolist(), "step_ms": step_ms, "context_tokens": curve.context_tokens.tolist()}
