"""The pictures of `dspark bench`, as PNG bytes: speed against load, the frontier, the verification budget.

Knows operating points and matplotlib, which is imported only when a picture is drawn. Each policy keeps its colour and marker over all
pictures of a run; paper, ink and markers are those of deepspec/figures.py.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol

from dspark.deepspec.figures import LIGHT, MARKERS, Theme, canvas, legend_above, png_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PANEL_INCHES = (4.2, 3.2)


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


def _series(points: Points, theme: Theme) -> Iterator[tuple[str, list[Point], dict[str, Any]]]:
    """Policy, its points by load, its looks; policies in the order they came."""
    for index, policy in enumerate(dict.fromkeys(point.policy for point in points)):
        members = sorted((point for point in points if point.policy == policy), key=lambda point: point.load)
        looks = {"color": theme.colours[index % len(theme.colours)], "marker": MARKERS[index % len(MARKERS)]}
        yield policy, members, looks | {"markersize": 4.5, "linewidth": 1.6}


def _load_axis(ax: "Axes", points: Points, label: str) -> None:
    """Loads are doublings mostly."""
    loads = sorted({point.load for point in points})
    ax.set_xscale("log", base=2)
    ax.set_xticks(loads, [f"{load:g}" for load in loads], minor=False)
    ax.set_xlabel(label)


@contextmanager
def _figure(num_panels: int, title: str, theme: Theme) -> Iterator[tuple["Figure", list["Axes"]]]:
    """Panels side by side, the title small below them."""
    width, height = PANEL_INCHES
    with canvas((width * num_panels, height + 0.7), 1, num_panels, theme) as (figure, axes):
        figure.supxlabel(title, fontsize=7, wrap=True)
        yield figure, axes


def _finish(figure: "Figure", axes: Sequence["Axes"]) -> bytes:
    legend_above(figure, axes, max_columns=5)
    return png_of(figure)
