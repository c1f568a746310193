"""The pictures of `dspark bench`, as PNG bytes: speed against load, the frontier, the verification budget, tau against candidates, the
planner's time.

Knows operating points and matplotlib, which is imported only when a picture is drawn. Each policy keeps its colour and marker over all
pictures of a run; paper, ink and markers are those of deepspec/figures.py.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol

from dspark.deepspec.figures import LIGHT, MARKERS, Theme, canvas, legend_above, png_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from dspark.bench.trees import TreePoint

PANEL_INCHES = (4.2, 3.2)
WIDE_INCHES = 5.4
"""Of a panel alone under a legend of long labels."""
MOST_COLUMNS = 3


class Point(Protocol):
    """One policy under one load, measured or simulated; a simulator's OperatingPoint is one."""

    @property
    def policy(self) -> str:
        """What is compared."""

    @property
    def load(self) -> float:
        """Clients, or requests per second."""

    @property
    def tokens_per_second(self) -> float:
        """Of all sessions."""

    @property
    def user_tokens_per_second(self) -> float:
        """Of one session."""

    @property
    def tau(self) -> float:
        """Committed tokens per session and round."""

    @property
    def verified_per_round(self) -> float:
        """Candidates per session and round."""


Points = Sequence[Point]


def load_figure(points: Points, load_label: str, title: str, theme: Theme = LIGHT) -> bytes:
    """Throughput, and the speed of one user, against load."""
    with _figure(2, title, theme) as (figure, (total, user)):
        for policy, members, style in _series(points, theme):
            loads = [point.load for point in members]
            total.plot(loads, [point.tokens_per_second for point in members], label=policy, **style)
            user.plot(loads, [point.user_tokens_per_second for point in members], label=policy, **style)
        total.set(title="throughput", ylabel="tokens/s, all sessions")
        user.set(title="per-user speed", ylabel="tokens/s of one session")
        for ax in (total, user):
            _load_axis(ax, points, load_label)
            ax.set_ylim(bottom=0)
        return _finish(figure, [total, user])


def frontier_figure(points: Points, title: str, theme: Theme = LIGHT) -> bytes:
    """Throughput against per-user speed: what a promise of speed costs. Up and to the right is better."""
    with _figure(1, title, theme) as (figure, (ax,)):
        for policy, members, style in _series(points, theme):
            speeds = [point.user_tokens_per_second for point in members]
            ax.plot(speeds, [point.tokens_per_second for point in members], label=policy, **style)
        ax.set(xlabel="tokens/s of one session", ylabel="tokens/s, all sessions", title="frontier")
        ax.set_xlim(left=0)
        ax.set_ylim(bottom=0)
        return _finish(figure, [ax])


def budget_figure(points: Points, load_label: str, title: str, theme: Theme = LIGHT) -> bytes:
    """Verified candidates and committed tokens per session and round, against load."""
    with _figure(2, title, theme) as (figure, (budget, tau)):
        for policy, members, style in _series(points, theme):
            loads = [point.load for point in members]
            budget.plot(loads, [point.verified_per_round for point in members], label=policy, **style)
            tau.plot(loads, [point.tau for point in members], label=policy, **style)
        budget.set(title="verification budget", ylabel="verified candidates per session and round")
        tau.set(title="tau", ylabel="committed tokens per session and round")
        for ax in (budget, tau):
            _load_axis(ax, points, load_label)
            ax.set_ylim(bottom=0)
        return _finish(figure, [budget, tau])


def trees_figure(panels: "Mapping[str, Mapping[str, Sequence[TreePoint]]]", title: str, theme: Theme = LIGHT) -> bytes:
    """tau against verified candidates per round, a panel for each drafter and temperature, with 95 % intervals; bench/trees.py has
    the curves."""
    laws = list(dict.fromkeys(law for curves in panels.values() for law in curves))
    counts = {float(point.nodes) for curves in panels.values() for curve in curves.values() for point in curve}
    columns = min(len(panels), MOST_COLUMNS)
    with _figure(len(panels), title, theme, columns, sharey=True) as (figure, axes):
        for ax, (panel, curves) in zip(axes, panels.items(), strict=True):
            for law, curve in curves.items():
                _draw_law(ax, curve, law, _looks(laws.index(law), theme))
            _doubling_axis(ax, counts, "verified candidates per session and round")
            ax.set_title(panel)
        for ax in axes[::columns]:
            ax.set_ylabel("tau (committed tokens per round)")
        return _finish(figure, axes)


def _draw_law(ax: "Axes", curve: "Sequence[TreePoint]", law: str, looks: dict[str, Any]) -> None:
    taus = [point.tau for point in curve]
    places = [point.verified for point in curve]
    ax.plot(places, [tau.value for tau in taus], label=law, **looks)
    errors = [[tau.value - tau.low for tau in taus], [tau.high - tau.value for tau in taus]]
    ax.errorbar(places, [tau.value for tau in taus], yerr=errors, color=looks["color"], linestyle="none", elinewidth=1, capsize=2)


def planner_figure(num_sessions: Sequence[int], curves: Mapping[str, Sequence[float]], title: str, theme: Theme = LIGHT) -> bytes:
    """ms against the number of sessions, both in powers; bench/planner.py has the curves."""
    with _figure(1, title, theme, width_inches=WIDE_INCHES) as (figure, (ax,)):
        for index, (label, times_ms) in enumerate(curves.items()):
            ax.plot(num_sessions, times_ms, label=label, **_looks(index, theme))
        _doubling_axis(ax, set(map(float, num_sessions)), "sessions in one step")
        _log_ms_axis(ax)
        ax.set(title="planner", ylabel="ms of one plan")
        return _finish(figure, [ax], legend_columns=2)


def _looks(index: int, theme: Theme) -> dict[str, Any]:
    looks = {"color": theme.colours[index % len(theme.colours)], "marker": MARKERS[index % len(MARKERS)]}
    return looks | {"markersize": 4.5, "linewidth": 1.6}


def _series(points: Points, theme: Theme) -> Iterator[tuple[str, list[Point], dict[str, Any]]]:
    """Policy, its points by load, its looks; policies in the order they came."""
    for index, policy in enumerate(dict.fromkeys(point.policy for point in points)):
        members = sorted((point for point in points if point.policy == policy), key=lambda point: point.load)
        yield policy, members, _looks(index, theme)


def _load_axis(ax: "Axes", points: Points, label: str) -> None:
    _doubling_axis(ax, {point.load for point in points}, label)


def _doubling_axis(ax: "Axes", values: set[float], label: str) -> None:
    """Loads and sizes are doublings mostly."""
    ticks = sorted(values)
    ax.set_xscale("log", base=2)
    ax.set_xticks(ticks, [f"{tick:g}" for tick in ticks], minor=False)
    ax.set_xlabel(label)


def _log_ms_axis(ax: "Axes") -> None:
    """1, 2 and 5 of each power, written out."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    ax.set_yscale("log")
    ax.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    ax.yaxis.set_minor_formatter(NullFormatter())


@contextmanager
def _figure(
    num_panels: int,
    title: str,
    theme: Theme,
    columns: int | None = None,
    width_inches: float = PANEL_INCHES[0],
    *,
    sharey: bool = False,
) -> Iterator[tuple["Figure", list["Axes"]]]:
    """Panels side by side, or in lines of so many columns; the title small below them."""
    columns = columns or num_panels
    lines = -(-num_panels // columns)
    inches = (width_inches * columns, PANEL_INCHES[1] * lines + 0.7)
    with canvas(inches, lines, columns, theme, sharey) as (figure, axes):
        figure.supxlabel(title, fontsize=7, wrap=True)
        for ax in axes[num_panels:]:
            ax.set_visible(False)
        yield figure, axes[:num_panels]


def _finish(figure: "Figure", axes: Sequence["Axes"], legend_columns: int = 5) -> bytes:
    legend_above(figure, axes, max_columns=legend_columns)
    return png_of(figure)
