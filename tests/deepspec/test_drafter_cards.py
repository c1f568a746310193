"""Model cards of checkpoints: what their files say, and nothing that no file says."""

import json
from pathlib import Path

import pytest
import torch

from dspark.config import DrafterConfig
from dspark.deepspec.drafter_cards import card_facts, write_cards
from dspark.deepspec.results import Report, evaluation_result
from tests.deepspec.synthetic import synthetic_trace
from tests.deepspec.tiny_training import tiny_recipe, trainer_of, write_samples, write_target


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder with a checkpoint and its recipe."""
    folder = tmp_path_factory.mktemp("run")
    recipe = tiny_recipe(write_target(folder / "target"), write_samples(folder / "samples.jsonl"))
    trainer_of(recipe).trainee.save(folder / "checkpoint", torch.float32)
    (folder / "recipe.json").write_text(recipe.model_dump_json())
    return folder


def report(*drafters: str) -> Report:
    trace = synthetic_trace(11, (2.0, 2.0), sessions=4, rounds=10)
    rest = {"prompt_set": "held-out", "temperature": 1.0, "depth": 2, "max_tokens": 8, "seconds": 1.0}
    return Report("t", tuple(evaluation_result(trace, drafter=name, **rest) for name in drafters))  # type: ignore[arg-type]


def test_cards_are_written_for_checkpoints_of_this_machine_beside_the_report(run: Path, tmp_path: Path) -> None:
    drafters = {
        "mine/new": DrafterConfig(kind="block", model=str(run / "checkpoint")),
        "copy": DrafterConfig(kind="lookup"),
        "far": DrafterConfig(kind="eagle", model="someone/drafter"),
    }
    before = sorted(run.rglob("*"))
    written = write_cards(tmp_path / "out", drafters, report("mine/new", "copy", "far"), "demo:target")
    assert written == [tmp_path / "out" / "cards" / "mine_new.md"]
    card = written[0].read_text()
    assert sorted(run.rglob("*")) == before
    assert "# mine/new" in card
    assert card.count("| held-out |") == 2, "its own results alone"
    for said in ("vanilla, rank 8", "3 draft positions", str(run / "samples.jsonl"), "license: unknown", f"model: {run / 'checkpoint'}"):
        assert said in card


def test_what_no_file_tells_is_said_to_be_unknown(run: Path, tmp_path: Path) -> None:
    (run / "checkpoint").rename(tmp_path / "alone")
    try:
        (tmp_path / "recipe.json").write_text(json.dumps({"another": "file"}))
        facts = card_facts("a", DrafterConfig(kind="block", model=str(tmp_path / "alone")), "demo:target")
        assert facts.training == {"run": "not known: no recipe beside the checkpoint"}
        (tmp_path / "alone").rename(tmp_path / "best")
        facts = card_facts("a", DrafterConfig(kind="block", model=str(tmp_path / "best")), "demo:target")
        assert facts.data == ("not known: no recipe beside the checkpoint",)
    finally:
        next(path for path in (tmp_path / "alone", tmp_path / "best") if path.exists()).rename(run / "checkpoint")


def test_the_drafter_that_ships_has_a_card(tmp_path: Path) -> None:
    [path] = write_cards(tmp_path, {"shipped": DrafterConfig()}, report("shipped"), "demo:target")
    card = path.read_text()
    assert "A DSpark drafter for demo:target: 7 tokens" in card
    assert "calibration.json is stored" in card
