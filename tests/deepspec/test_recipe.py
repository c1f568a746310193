"""Recipes: what is refused, and how a file and the command line come together."""

from pathlib import Path

import pytest
from pydantic import ValidationError

from dspark.deepspec.recipe import Recipe
from dspark.deepspec.train_command import read_recipe
from dspark.errors import ConfigError


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"drafter": {"draft_vocab_size": 8}}, "eagle3"),
        ({"drafter": {"hidden_size": 8}}, "language_model"),
        ({"training": {"batch_size": 2, "micro_batch_size": 3}}, "micro_batch_size"),
        ({"training": {"learning_rate": 0}}, "learning_rate"),
        ({"drafter": {"kind": "medusa"}}, "kind"),
        ({"unknown": 1}, "unknown"),
    ],
)
def test_values_that_do_not_fit_are_named(values: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Recipe.model_validate({"data": ["a"]} | values)


def test_a_source_counts_as_often_as_it_says() -> None:
    recipe = Recipe.model_validate({"data": ["a", {"path": "b", "repeat": 3}]})
    assert recipe.data_paths == [Path("a"), Path("b"), Path("b"), Path("b")]


def test_the_command_line_wins_over_the_file(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text("data: [a]\ntarget: there\ntraining: {num_steps: 5, seed: 3}\n")
    recipe = read_recipe(path, ["training.num_steps=7", "drafter.tap_layers=[0, 2]"], [Path("b")], "here", "dflash")
    assert (recipe.target, recipe.data, recipe.drafter.kind) == ("here", ("b",), "dflash")
    assert (recipe.training.num_steps, recipe.training.seed, recipe.drafter.tap_layers) == (7, 3, (0, 2))


@pytest.mark.parametrize(
    ("text", "settings", "message"),
    [
        ("- a list", [], "not a mapping"),
        ("data: [", [], "cannot be read"),
        ("data: [a]\ntraining: {num_steps: none}", [], r"training\.num_steps"),
        ("data: [a]", ["training.num_steps"], "key=value"),
        ("data: [a]\ntraining: 5", ["training.num_steps=3"], "not a mapping"),
        ("target: x", [], "data"),
    ],
)
def test_recipes_that_cannot_be_used_say_why(tmp_path: Path, text: str, settings: list[str], message: str) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message):
        read_recipe(path, settings, [], None, None)


def test_a_recipe_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nothing\.yaml: cannot be read"):
        read_recipe(tmp_path / "nothing.yaml", [], [], None, None)


def test_a_recipe_reads_back_as_it_was_written() -> None:
    recipe = Recipe.model_validate({"data": ["a", {"path": "b", "repeat": 2}], "drafter": {"tap_layers": [1, 2]}})
    assert Recipe.model_validate_json(recipe.model_dump_json()) == recipe
