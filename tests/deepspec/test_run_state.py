"""The files of a run: one recipe per folder, states and metrics that stay whole."""

import json
from pathlib import Path

import pytest
import torch

from dspark.deepspec.recipe import Recipe
from dspark.deepspec.run_state import MetricsReader, RunFolder
from dspark.errors import ConfigError, DSparkError, ModelLoadError
from tests.deepspec.limits import file_size_limit

RECIPE = Recipe(data=("a.jsonl",))


def changed(**training: object) -> Recipe:
    return Recipe.model_validate({"data": ["a.jsonl"], "training": training})


def test_a_folder_is_of_one_recipe_and_says_what_differs(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    folder.claim(RECIPE)
    folder.claim(RECIPE)
    with pytest.raises(ConfigError, match=r"different: training\.loss\.decay, training\.seed\)"):
        folder.claim(changed(seed=1, loss={"decay": 2.0}))


def test_a_folder_that_cannot_be_made_is_one_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DSparkError, match="cannot be written"):
        RunFolder(tmp_path / "file" / "run").claim(RECIPE)


def test_a_state_comes_back_as_it_was(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    assert folder.load() is None
    folder.save(7, {"w": torch.tensor([1.0, 2.0])})
    loaded = folder.load()
    assert loaded is not None
    assert loaded[0] == 7
    assert torch.equal(loaded[1]["w"], torch.tensor([1.0, 2.0]))


@pytest.mark.parametrize("content", [b"", b"no safetensors", b"\x08\0\0\0\0\0\0\0{}      "])
def test_a_file_that_is_no_state_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "state.safetensors").write_bytes(content)
    with pytest.raises(ModelLoadError, match=r"state\.safetensors is no state"):
        RunFolder(tmp_path).load()


def test_a_state_that_does_not_fit_the_disk_leaves_the_one_before(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.save(1, {"w": torch.ones(10)})
    with file_size_limit(1000), pytest.raises(DSparkError, match="cannot be written"):
        folder.save(2, {"w": torch.ones(1000)})
    loaded = folder.load()
    assert loaded is not None
    assert loaded[0] == 1
    assert [path.name for path in tmp_path.iterdir()] == ["state.safetensors"]


def test_a_line_that_does_not_fit_the_disk_leaves_those_before(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.log({"step": 1})
    with file_size_limit(30), pytest.raises(DSparkError, match="cannot be written"):
        folder.log({"step": 2, "text": "x" * 100})
    folder.log({"step": 3})
    assert [record["step"] for record in folder.records()] == [1, 3]


def test_lines_of_steps_after_the_state_are_forgotten_with_one_that_was_cut_off(tmp_path: Path) -> None:
    lines = [{"step": 1, "loss": 3.0}, {"step": 2, "loss": 2.0}, {"step": 2, "held_out_tau": 1.5}, {"step": 3, "loss": 1.0}]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"step": 1, "lo')
    folder = RunFolder(tmp_path)
    folder.forget_after(2)
    assert folder.records() == lines[:3]


def test_a_reader_follows_whole_lines_and_starts_again_with_a_new_file(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    reader = MetricsReader(folder)
    assert reader.new_records() == []
    folder.log({"step": 1})
    folder.log({"step": 2})
    assert reader.new_records() == [{"step": 1}, {"step": 2}]
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step"')
    assert reader.new_records() == []
    folder.forget_after(1)
    folder.log({"step": 2, "again": True})
    assert reader.new_records() == [{"step": 1}, {"step": 2, "again": True}]
