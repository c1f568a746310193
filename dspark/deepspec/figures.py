"""The pictures of a report, as PNG bytes: acceptance by position, reliability before and after calibration, threshold sweeps.

Knows the records of results.py and matplotlib, which is imported only when a picture is drawn. A drafter keeps its colour over all
panels of a report; the colours are the Okabe-Ito set, which colour-blind readers can tell apart, and markers differ too.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from typing import TYPE_CHECKING, Any

from dspark.deepspec.metrics import Interval, ReliabilityBins
from dspark.deepspec.results import EvaluationResult, PositionCalibration

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8C6D31", "#7F7F7F")
BRIGHT = ("#56B4E9", "#F0793A", "#2CC39A", "#E39CC5", "#F5C04A", "#0091E0", "#C9A66B", "#A8A8A8")
"""The same hues, legible on dark paper."""
MARKERS = "osD^vPX*"
MAX_COLUMNS = 4
SOLID_BIN = 20
"""Observations from which on a reliability bin is worth a line."""
DPI = 144


@dataclass(frozen=True, slots=True)
class Theme:
    """Paper and ink of a picture."""

    paper: str
    ink: str
    faint: str
    colours: tuple[str, ...]


LIGHT = Theme("#ffffff", "#1f2328", "#d5d9de", COLOURS)
DARK = Theme("#161b22", "#e6edf3", "#3a424c", BRIGHT)

Results = Sequence[EvaluationResult]


def acceptance_figure(results: Results, theme: Theme = LIGHT) -> bytes | None:
    """Share of rounds that accepted each position, one panel per prompt set and temperature."""
    return _acceptance(results, theme, lambda result: result.acceptance, "accepted, with all before it")


def conditional_acceptance_figure(results: Results, theme: Theme = LIGHT) -> bytes | None:
    """The same, given that all before the position were accepted."""
    return _acceptance(results, theme, lambda result: result.conditional_acceptance, "accepted, given all before it")


def sweep_figure(results: Results, theme: Theme = LIGHT) -> bytes | None:
    """tau against verified tokens per round over the thresholds; None where no result has a sweep."""
    swept = [result for result in results if result.sweep]
    if not swept:
        return None
    panels = _panels(swept)
    styles = _styles(results, theme)
    with _figure(len(panels), _columns(swept), theme) as (figure, axes):
        for ax, (title, members) in zip(axes, panels.items(), strict=False):
            for result in members:
                _draw_sweep(ax, result, styles[result.drafter], theme)
            ax.set_title(title)
            ax.set_xlabel("verified draft tokens per round")
        for ax in axes[:: _columns(swept)]:
            ax.set_ylabel("tau (committed tokens per round)")
        legend_above(figure, axes)
        return png_of(figure)


def reliability_figure(rows: Sequence[PositionCalibration], theme: Theme = LIGHT) -> bytes | None:
    """Claimed against observed survival, one panel per position; None without rows."""
    if not rows:
        return None
    with _figure(len(rows), MAX_COLUMNS, theme, square=True) as (figure, axes):
        for ax, row in zip(axes, rows, strict=False):
            ax.plot([0, 1], [0, 1], color=theme.faint, linewidth=1, zorder=0)
            _draw_bins(ax, row.before.bins, "before", theme.colours[1], "s", theme)
            _draw_bins(ax, row.after.bins, "after", theme.colours[0], "o", theme)
            title = f"position {row.position + 1}, T={row.confidence_temperature:.2f}{'' if row.fitted else ' (lent)'}"
            ax.set_title(f"{title}\nECE {row.before.ece:.1%} → {row.after.ece:.1%}")
            ax.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), aspect="equal", xlabel="claimed survival")
        for ax in axes[::MAX_COLUMNS]:
            ax.set_ylabel("observed survival")
        legend_above(figure, axes)
        return png_of(figure)


def _acceptance(results: Results, theme: Theme, values: Callable[[EvaluationResult], Sequence[Interval]], label: str) -> bytes | None:
    drawn = [result for result in results if values(result)]
    if not drawn:
        return None
    panels, styles = _panels(drawn), _styles(results, theme)
    with _figure(len(panels), _columns(drawn), theme) as (figure, axes):
        for ax, (title, members) in zip(axes, panels.items(), strict=False):
            for index, result in enumerate(members):
                shift = 0.07 * (index - (len(members) - 1) / 2)  # so that error bars do not cover each other
                _draw_intervals(ax, values(result), shift, result.drafter, styles[result.drafter])
            ax.set(title=title, ylim=(0, 1.02), xlabel="draft position")
            ax.set_xticks(range(1, 1 + max(len(values(result)) for result in members)))
        for ax in axes[:: _columns(drawn)]:
            ax.set_ylabel(f"share of rounds\n{label}")
        legend_above(figure, axes)
        return png_of(figure)


def _draw_intervals(ax: "Axes", values: Sequence[Interval], shift: float, label: str, style: dict[str, str]) -> None:
    _draw_line(ax, [1 + k + shift for k in range(len(values))], values, label, style)


def _draw_sweep(ax: "Axes", result: EvaluationResult, style: dict[str, str], theme: Theme) -> None:
    rows = sorted(result.sweep, key=lambda row: row.verified_per_round)
    _draw_line(ax, [row.verified_per_round for row in rows], [row.tau for row in rows], result.drafter, style)
    apart, last = 0.08 * (rows[-1].verified_per_round - rows[0].verified_per_round), float("-inf")
    for row in rows:
        if row.verified_per_round - last < apart:  # labels on top of each other say nothing
            continue
        place, last = (row.verified_per_round, row.tau.value), row.verified_per_round
        ax.annotate(f"{row.threshold:g}", place, (5, -11), textcoords="offset points", fontsize=7, color=theme.ink, alpha=0.75)


def _draw_line(ax: "Axes", places: Sequence[float], values: Sequence[Interval], label: str, style: dict[str, str]) -> None:
    """Points with their intervals."""
    errors = [[v.value - v.low for v in values], [v.high - v.value for v in values]]
    heights, colour, marker = [v.value for v in values], style["color"], style["marker"]
    ax.plot(places, heights, color=colour, marker=marker, label=label, markersize=4.5, linewidth=1.6)
    ax.errorbar(places, heights, yerr=errors, color=colour, linestyle="none", elinewidth=1, capsize=2)


def _draw_bins(ax: "Axes", bins: ReliabilityBins, label: str, colour: str, marker: str, theme: Theme) -> None:
    """Mean claim against share accepted; the area of a dot grows with the observations in its bin, and the line leaves out chance."""
    kept = [i for i, count in enumerate(bins.count) if count]
    claimed = [bins.predicted_sum[i] / bins.count[i] for i in kept]
    observed = [bins.outcome_sum[i] / bins.count[i] for i in kept]
    sizes = [4 + 90 * (bins.count[i] / sum(bins.count)) ** 0.5 for i in kept]
    solid = [k for k, i in enumerate(kept) if bins.count[i] >= SOLID_BIN]
    ax.plot([claimed[k] for k in solid], [observed[k] for k in solid], color=colour, linewidth=1.2, alpha=0.7)
    ax.scatter(claimed, observed, s=sizes, color=colour, marker=marker, edgecolors=theme.paper, linewidths=0.5, label=label, zorder=3)


def _panels(results: Results) -> dict[str, list[EvaluationResult]]:
    """Title -> the results that are compared under it: a row of panels per temperature, prompt sets in the order they came."""
    panels: dict[str, list[EvaluationResult]] = {}
    sets = list(dict.fromkeys(result.prompt_set for result in results))
    for result in sorted(results, key=lambda r: (r.temperature, sets.index(r.prompt_set))):
        panels.setdefault(f"{result.prompt_set}, temperature {result.temperature:g}", []).append(result)
    return panels


def _columns(results: Results) -> int:
    """One per prompt set, as far as they fit; with a single set the temperatures stand side by side."""
    num_sets = len({result.prompt_set for result in results})
    return min(num_sets, MAX_COLUMNS) if num_sets > 1 else MAX_COLUMNS


def _styles(results: Results, theme: Theme) -> dict[str, dict[str, str]]:
    """Drafter -> colour and marker."""
    names = list(dict.fromkeys(result.drafter for result in results))
    return {name: {"color": theme.colours[i % len(theme.colours)], "marker": MARKERS[i % len(MARKERS)]} for i, name in enumerate(names)}


@contextmanager
def canvas(
    inches: tuple[float, float], lines: int, columns: int, theme: Theme, sharey: bool = False
) -> Iterator[tuple["Figure", list["Axes"]]]:
    """An empty picture of `inches` (width, height) and its panels, line by line. No pyplot: nothing global is left open."""
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with matplotlib.rc_context(_settings(theme)):
        figure = Figure(figsize=inches, dpi=DPI, layout="constrained")
        FigureCanvasAgg(figure)
        yield figure, list(figure.subplots(lines, columns, squeeze=False, sharey=sharey).flat)


def legend_above(figure: "Figure", axes: Sequence["Axes"], max_columns: int = 4) -> None:
    """One for all panels."""
    entries = {label: handle for ax in axes for handle, label in zip(*ax.get_legend_handles_labels(), strict=True)}
    figure.legend(list(entries.values()), list(entries), loc="outside upper center", ncols=min(max_columns, len(entries)))


def png_of(figure: "Figure") -> bytes:
    """Equal pictures give equal bytes."""
    out = BytesIO()
    figure.savefig(out, format="png", metadata={"Software": None})
    return out.getvalue()


@contextmanager
def _figure(num_panels: int, max_columns: int, theme: Theme, square: bool = False) -> Iterator[tuple["Figure", list["Axes"]]]:
    """A grid of panels in the theme; surplus cells are empty."""
    columns = min(num_panels, max_columns)
    lines = -(-num_panels // columns)
    width, height = (2.5, 2.75) if square else (4.0 if columns < 3 else 3.2, 3.0)
    with canvas((max(4.2, width * columns), height * lines + 0.5), lines, columns, theme, sharey=not square) as (figure, axes):
        for ax in axes[num_panels:]:
            ax.set_visible(False)
        yield figure, axes[:num_panels]


def _settings(theme: Theme) -> dict[str, Any]:
    ink = dict.fromkeys(("text.color", "axes.labelcolor", "xtick.color", "ytick.color", "axes.titlecolor"), theme.ink)
    paper = dict.fromkeys(("figure.facecolor", "axes.facecolor", "savefig.facecolor"), theme.paper)
    lines = {"axes.edgecolor": theme.faint, "grid.color": theme.faint, "grid.linewidth": 0.6, "axes.grid": True, "axes.axisbelow": True}
    text = {"font.family": "DejaVu Sans", "font.size": 9, "axes.titlesize": 9.5, "axes.labelsize": 9, "legend.frameon": False}
    return {**ink, **paper, **lines, **text, "axes.spines.top": False, "axes.spines.right": False, "text.parse_math": False}
