"""Every metric is documented, and rounds are counted as they were."""

import asyncio
import dataclasses
import re
from pathlib import Path
from typing import Any

import pytest

from deployments import telemetry
from deployments.telemetry import DESCRIPTIONS, STANDINGS, DrafterGauges, RouterMetrics
from dspark.messages import DraftReport, StepReport
from dspark.routing.economy import Standing
from dspark.session import Session, TokenChunk
from dspark.types import FinishReason, SamplingParams, SessionId, StopRules

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "metrics.md"


class Recorded:
    """Keeps what Ray's Counter, Gauge or Histogram would have been told."""

    all: dict[str, "Recorded"] = {}  # noqa: RUF012

    def __init__(self, name: str, description: str, tag_keys: tuple[str, ...] = (), **_: Any) -> None:
        self.tag_keys = tag_keys
        self.values: list[tuple[float, dict[str, str]]] = []
        Recorded.all[name] = self

    def set_default_tags(self, tags: dict[str, str]) -> None:
        self.tags = tags

    def inc(self, value: float, tags: dict[str, str] | None = None) -> None:
        assert value > 0, "Ray raises"
        self.values.append((value, tags or {}))

    set = observe = lambda self, value, tags=None: self.values.append((value, tags or {}))

    @property
    def total(self) -> float:
        return sum(value for value, _ in self.values)


@pytest.fixture
def metrics(monkeypatch: pytest.MonkeyPatch) -> RouterMetrics:
    Recorded.all.clear()
    for kind in ("Counter", "Gauge", "Histogram"):
        monkeypatch.setattr(telemetry, kind, Recorded)
    return RouterMetrics("demo:target")


@pytest.fixture
def session() -> Session:
    return Session(SessionId("one"), (1, 2), SamplingParams(), StopRules(max_tokens=9))


def test_every_metric_is_documented_and_every_documented_one_exists(metrics: RouterMetrics) -> None:
    documented = set(re.findall(r"^\| `(dspark_\w+)`", DOCUMENT.read_text(), re.MULTILINE))
    of_drafters = {f"dspark_drafter_{name}" for name in STANDINGS}
    assert documented == set(Recorded.all) | of_drafters | {f"dspark_{name}" for name in DESCRIPTIONS}


def test_a_round_is_counted_as_it_was(metrics: RouterMetrics, session: Session) -> None:
    metrics.round_done(session, TokenChunk((5, 6, 7), None, num_drafted=4, num_selected=3, num_accepted=2), round_ms=12.5)
    metrics.round_done(session, TokenChunk((8,), None), round_ms=2.5)
    totals = {name.removeprefix("dspark_").removesuffix("_total"): metric.total for name, metric in Recorded.all.items()}
    assert (totals["drafted_tokens"], totals["selected_tokens"], totals["accepted_tokens"]) == (4, 3, 2)
    assert (totals["committed_tokens"], totals["rounds"], totals["round_ms"]) == (4, 2, 15.0)
    assert [tags["position"] for _, tags in Recorded.all["dspark_accepted_at_position_total"].values] == ["1", "2"]


def test_counts_about_drafts_carry_the_drafters_name(metrics: RouterMetrics) -> None:
    for name, num_accepted in (("code", 2), (None, 0)):
        session = Session(SessionId("one"), (1, 2), SamplingParams(), StopRules(max_tokens=9), drafter=name)
        chunk = TokenChunk((5, 6, 7)[: num_accepted + 1], None, num_drafted=4, num_selected=3, num_accepted=num_accepted)
        metrics.round_done(session, chunk, round_ms=1.0)
    metrics.draft_done(DraftReport(draft_ms=2.0), "general")
    metrics.draft_lost("late", "code")

    def told(name: str) -> list[tuple[float, str]]:
        return [(value, tags["drafter"]) for value, tags in Recorded.all[f"dspark_{name}"].values]

    assert told("rounds_total") == [(1, "code"), (1, "none")]
    assert told("committed_tokens_total") == [(3, "code"), (1, "none")]
    assert told("drafted_tokens_total") == [(4, "code"), (4, "none")]
    assert told("selected_tokens_total") == [(3, "code"), (3, "none")]
    assert told("accepted_tokens_total") == [(2, "code")]
    assert told("accepted_at_position_total") == [(1, "code"), (1, "code")]
    assert told("draft_ms") == [(2.0, "general")]
    assert Recorded.all["dspark_draft_lost_total"].values == [(1, {"reason": "late", "drafter": "code"})]


def test_every_label_is_announced_with_its_metric_or_ray_would_refuse_it(metrics: RouterMetrics, session: Session) -> None:
    metrics.round_done(session, TokenChunk((5, 6), None, num_drafted=4, num_selected=3, num_accepted=1), round_ms=1.0)
    metrics.draft_done(DraftReport(), "code")
    metrics.draft_lost("late", "code")
    metrics.features_received(3, 96, "code")
    metrics.session_ended(session, None)
    for metric in Recorded.all.values():
        assert all({*tags, "model"} == set(metric.tag_keys) for _, tags in metric.values), metric.tag_keys


def test_features_are_counted_in_rows_and_bytes(metrics: RouterMetrics) -> None:
    metrics.features_received(3, 96, "code")
    metrics.features_received(1, 32, "code")
    assert Recorded.all["dspark_feature_rows_total"].values == [(3, {"drafter": "code"}), (1, {"drafter": "code"})]
    assert Recorded.all["dspark_feature_bytes_total"].total == 128


def test_sessions_are_counted_up_and_down_with_the_reason(metrics: RouterMetrics, session: Session) -> None:
    for _ in range(2):
        metrics.session_started(session)
    metrics.session_ended(session, FinishReason.LENGTH)
    metrics.session_ended(session, None)
    assert [value for value, _ in Recorded.all["dspark_sessions"].values] == [0, 1, 2, 1, 0]
    assert [tags["reason"] for _, tags in Recorded.all["dspark_sessions_ended_total"].values] == ["length", "left"]


def test_a_report_without_a_forward_is_no_forward(metrics: RouterMetrics) -> None:
    metrics.step_done(StepReport(verify_ms=0.1, batch_rows=0))
    metrics.step_done(StepReport(verify_ms=8.0, batch_rows=5))
    assert [value for value, _ in Recorded.all["dspark_verify_ms"].values] == [8.0]
    assert [value for value, _ in Recorded.all["dspark_batch_rows"].values] == [5]


def test_all_that_is_known_of_a_drafter_is_published() -> None:
    assert list(STANDINGS) == [field.name for field in dataclasses.fields(Standing)]


async def test_how_drafters_do_is_published_again_and_again_but_not_what_nobody_knows(
    metrics: RouterMetrics, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(telemetry, "GAUGE_PERIOD_S", 0.001)
    standings = {"code": Standing(float("nan"), True, 0.25, 0.125, 0.5, waits=3)}
    gauges = DrafterGauges("demo:target")
    gauges.start(lambda: standings)
    await asyncio.sleep(0)
    told = {name: Recorded.all[f"dspark_drafter_{name}"] for name in STANDINGS}
    tags = {"model": "demo:target", "drafter": "code"}
    assert {name: gauge.values for name, gauge in told.items()} == {
        "speed_ratio": [],
        "drafts": [(1.0, tags)],
        "served_ece": [(0.25, tags)],
        "corrected_ece": [(0.125, tags)],
        "drift": [(0.5, tags)],
        "waves": [],
        "gain_of_two_waves": [],
        "waits": [(3.0, tags)],
    }
    assert all(set(gauge.tag_keys) == set(tags) for gauge in told.values())
    standings["code"] = Standing(0.75, False, 0.0, 0.0, 0.0)
    standings["general"] = Standing(1.5, True, 0.0, 0.0, 0.0)
    async with asyncio.timeout(5):
        while len(told["speed_ratio"].values) < 2:
            await asyncio.sleep(0.001)
    assert told["speed_ratio"].values[:2] == [(0.75, tags), (1.5, tags | {"drafter": "general"})]
    assert (0.0, tags) in told["drafts"].values
