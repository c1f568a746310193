"""Pictures of operating points."""

from io import BytesIO

import pytest
from matplotlib.image import imread

from dspark.bench.plots import budget_figure, frontier_figure, load_figure, planner_figure, trees_figure
from dspark.bench.simulator.tally import OperatingPoint
from dspark.bench.trees import LAWS, TreePoint, tree_curves
from dspark.deepspec.figures import DARK, LIGHT, Theme
from dspark.deepspec.metrics import Interval

POINTS = [
    OperatingPoint(policy, load, speed * load, speed, 2.0, 4.0, 3.0, 8.0, 0.9, 0.5, 100)
    for policy, speed in (("plain", 100.0), ("planned", 180.0))
    for load in (1.0, 4.0, 16.0)
]
TREES = [
    TreePoint("block", temperature, nodes, law, nodes, Interval(2.0 + nodes / 8, 1.8, 5.0))
    for temperature in (0.0, 0.7, 1.0, 1.3)
    for law in LAWS
    for nodes in (2, 7, 16)
]
TIMES_MS = {"plan": [0.1, 0.2, 0.4], "with all": [0.2, 0.5, 1.1]}


@pytest.mark.parametrize("theme", [LIGHT, DARK])
def test_all_are_pictures_in_the_themes_colours(theme: Theme) -> None:
    for data in (
        load_figure(POINTS, "clients", "a title", theme),
        frontier_figure(POINTS, "a title", theme),
        budget_figure(POINTS, "clients", "a title", theme),
        trees_figure(tree_curves(TREES), "a title", theme),
        planner_figure([1, 16, 256], TIMES_MS, "a title", theme),
    ):
        pixels = imread(BytesIO(data))
        assert min(pixels.shape[:2]) > 300
        paper = [int(theme.paper[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        assert pixels[0, 0, :3].tolist() == pytest.approx(paper, abs=0.01)
        colour = [int(theme.colours[1][i : i + 2], 16) / 255 for i in (1, 3, 5)]
        assert (abs(pixels[..., :3] - colour).max(-1) < 0.02).sum() > 100, "the second line is there"


def test_the_same_points_give_the_same_bytes() -> None:
    assert load_figure(POINTS, "clients", "a title") == load_figure(POINTS, "clients", "a title")
