"""A newly fitted estimator is taken up while the drafter runs, a broken one is not, and no token depends on either."""

import logging
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dspark.config import DrafterConfig, EngineConfig, LimitsConfig, ModelSource, SchedulingConfig, TargetConfig
from dspark.drafting import calibration_watch
from dspark.drafting.build import LoadedDrafter, load_drafter
from dspark.drafting.calibration_watch import PERIOD_S, WatchedCalibration
from dspark.drafting.drafter import ThreadedDrafter
from dspark.engine import Engine
from dspark.errors import ModelLoadError
from dspark.local import LocalBackend
from dspark.runtime.hub import resolve_folder
from dspark.scheduling.calibration import CALIBRATION_FILE, Estimator
from dspark.scheduling.fitted_net import INPUTS, FittedNet, Layer
from tests.warm_drafters import write_drafter


def sure_of(chance: float) -> str:
    """A fitted net, as stored, that gives every candidate this chance."""
    mean, weights = np.zeros(len(INPUTS), np.float32), np.zeros((len(INPUTS), 1), np.float32)
    bias = np.asarray([np.log(chance / (1 - chance))], np.float32)
    return FittedNet(mean, np.ones_like(mean), (Layer(weights, bias),)).to_json()


def store(folder: Path, text: str) -> None:
    """As `deepspec calibrate` does: another file takes the place."""
    partial = folder / "partial"
    partial.write_text(text)
    os.replace(partial, folder / CALIBRATION_FILE)


def text_of(estimator: Estimator | None) -> str:
    assert estimator is not None
    return estimator.to_json()


class Clock:
    seconds = 100.0

    def __call__(self) -> float:
        return self.seconds

    def past_a_look(self) -> None:
        self.seconds += PERIOD_S


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def watched(tmp_path: Path, clock: Clock) -> WatchedCalibration:
    """Of a folder that holds an estimator and weights."""
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    store(tmp_path, sure_of(0.5))
    return WatchedCalibration(tmp_path, clock)


def test_a_new_file_is_taken_up_once_and_not_before_its_time(
    watched: WatchedCalibration, tmp_path: Path, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    first = watched.latest()
    store(tmp_path, sure_of(0.9))
    clock.seconds += PERIOD_S / 2
    assert watched.latest() is first
    clock.past_a_look()
    second = watched.latest()
    assert text_of(second) == sure_of(0.9)
    clock.past_a_look()
    assert watched.latest() is second
    assert watched.num_refits == 1
    assert caplog.messages == [f"{tmp_path / CALIBRATION_FILE}: a new estimator (fitted_net) is in use"]


def test_between_looks_the_file_system_is_left_alone(watched: WatchedCalibration, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibration_watch, "identity_of", lambda _: pytest.fail("asked the file system"))
    for _ in range(3):
        assert watched.latest() is not None


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        (sure_of(0.9)[:200], "cannot be read as JSON"),
        ("", "cannot be read as JSON"),
        ('{"method": "guess"}', "'guess' is none of"),
        (sure_of(0.9).replace('"mean"', '"means"'), "mean is missing"),
        (" " * 2**21, "larger than"),
    ],
    ids=["truncated", "empty", "of another method", "misnamed", "large"],
)
def test_a_broken_file_is_refused_with_one_line_and_the_old_estimator_stays(
    watched: WatchedCalibration, tmp_path: Path, clock: Clock, caplog: pytest.LogCaptureFixture, text: str, complaint: str
) -> None:
    first = watched.latest()
    store(tmp_path, text)
    for _ in range(3):
        clock.past_a_look()
        assert watched.latest() is first
    (line,) = caplog.messages
    assert line.startswith("the new estimator is refused, the one in use stays: ")
    assert complaint in line
    assert watched.num_refits == 0
    store(tmp_path, sure_of(0.8))
    clock.past_a_look()
    assert text_of(watched.latest()) == sure_of(0.8)


def test_a_file_that_is_written_in_place_is_noticed_when_it_is_whole(
    watched: WatchedCalibration, tmp_path: Path, clock: Clock
) -> None:
    """Not how `calibrate` writes, but how a copy arrives."""
    first, text = watched.latest(), sure_of(0.9)
    with (tmp_path / CALIBRATION_FILE).open("w") as file:
        file.write(text[:300])
        file.flush()
        clock.past_a_look()
        assert watched.latest() is first
        file.write(text[300:])
    clock.past_a_look()
    assert text_of(watched.latest()) == text


def test_a_file_that_is_gone_leaves_the_estimator_in_use(
    watched: WatchedCalibration, tmp_path: Path, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    first = watched.latest()
    (tmp_path / CALIBRATION_FILE).unlink()
    clock.past_a_look()
    assert watched.latest() is first
    assert caplog.messages == [f"{tmp_path / CALIBRATION_FILE} is gone; the estimator in use stays"]


def test_the_first_calibration_of_a_checkpoint_is_taken_up_too(tmp_path: Path, clock: Clock) -> None:
    watched = WatchedCalibration(tmp_path, clock)
    assert watched.latest() is None
    store(tmp_path, sure_of(0.9))
    clock.past_a_look()
    assert text_of(watched.latest()) == sure_of(0.9)


def test_the_calibration_of_other_weights_waits_for_a_restart(
    watched: WatchedCalibration, tmp_path: Path, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    """A checkpoint that was trained on and calibrated anew, while the old one is being served."""
    first = watched.latest()
    (tmp_path / "model.safetensors").write_bytes(b"other weights")
    store(tmp_path, sure_of(0.9))
    clock.past_a_look()
    assert watched.latest() is first
    assert caplog.messages == [f"{tmp_path}: the checkpoint has other weights than those in use; its calibration waits for a restart"]


def test_nothing_starts_on_a_broken_file(tmp_path: Path) -> None:
    store(tmp_path, "{")
    with pytest.raises(ModelLoadError, match=CALIBRATION_FILE):
        WatchedCalibration(tmp_path)


PROMPTS = ["def main(", "import os\n\nclass Node:"]
OPTIONS: dict[str, Any] = {"max_tokens": 16, "seed": 4, "temperature": 0.8, "ignore_eos": True}


@pytest.fixture(scope="module")
def plain() -> Engine:
    """No drafter, rows that do not depend on their neighbours: equality is exact."""
    return Engine.from_config(EngineConfig(target=TargetConfig(num_threads=1, deterministic=True), drafter=DrafterConfig(kind="none")))


def checkpoint_of(kind: str, folder: Path) -> DrafterConfig:
    """One of the user's own: he may calibrate it."""
    if kind == "eagle":
        write_drafter(folder, "eagle3")
    else:
        shutil.copytree(resolve_folder(DrafterConfig.model_validate({"kind": kind})), folder)
        (folder / CALIBRATION_FILE).unlink(missing_ok=True)
    return DrafterConfig.model_validate({"kind": kind, "model": str(folder), "max_depth": 4, "max_nodes": 6, "max_width": 2})


class Running:
    """An engine that stays started, and the scores that its drafter serves."""

    def __init__(self, plain: Engine, config: DrafterConfig, loaded: LoadedDrafter) -> None:
        assert isinstance(plain.backend, LocalBackend)
        target = plain.backend.target.with_own_cache((config,))
        settings = EngineConfig(
            target=target.config, drafter=config, scheduling=SchedulingConfig(mode="fixed"), limits=LimitsConfig(draft_timeout_s=60.0)
        )
        self.engine = Engine(LocalBackend(target, {"default": loaded}), plain.codec, settings)
        self._scores: dict[int, set[float]] = {}
        loaded.drafter.listener = self._listen

    def _listen(self, _: Any, __: int, draft: Any) -> None:
        for depth, score in zip(draft.signals.depths.tolist(), draft.tree.scores.tolist(), strict=True):
            self._scores.setdefault(depth, set()).add(round(score, 4))

    async def answers(self) -> tuple[list[tuple[int, ...]], dict[int, set[float]]]:
        """(tokens of each prompt, scores by depth)."""
        self._scores.clear()
        completions = [await self.engine.complete(request) for request in self.engine.requests(PROMPTS, **OPTIONS)]
        return [one.token_ids for one in completions], dict(self._scores)


@pytest.mark.parametrize("kind", ["block", "eagle", "language_model"])
async def test_a_running_engine_takes_up_a_new_estimator_and_gives_the_same_tokens(
    kind: str, plain: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(calibration_watch, "PERIOD_S", 0.0)
    folder = tmp_path / "mine"
    config = checkpoint_of(kind, folder)
    loaded = load_drafter(config, ModelSource(model="demo:target"))
    running = Running(plain, config, loaded)
    async with running.engine:
        tokens, uncalibrated = await running.answers()
        for refits, chance in enumerate((0.5, 0.75), start=1):
            store(folder, sure_of(chance))
            again, scores = await running.answers()
            assert again == tokens
            assert scores == {depth: {round(chance**depth, 4)} for depth in scores}
            assert 1 in scores
            assert scores != uncalibrated
            assert loaded.drafter.num_refits == refits
        store(folder, sure_of(0.9)[:250])
        refused = await running.answers()
    assert refused == (tokens, scores)
    (line,) = [message for message in caplog.messages if "refused" in message]
    assert "cannot be read as JSON" in line
    assert ThreadedDrafter(loaded.drafter).num_refits == 2
