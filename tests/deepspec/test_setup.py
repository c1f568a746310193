"""From a recipe to a specification and first weights."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from dspark.config import ModelSource
from dspark.deepspec.data import SampleSet
from dspark.deepspec.features import OnlineFeatures
from dspark.deepspec.recipe import DrafterShape, Recipe
from dspark.deepspec.setup import build_trainee, check_start, default_taps, draft_spec
from dspark.errors import ConfigError
from dspark.runtime.draft_formats import read_draft_spec
from dspark.runtime.loading import load_tokenizer, resolve_folder
from tests.deepspec.tiny_training import tiny_recipe, trainer_of, write_samples, write_target

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_target(tmp_path_factory.mktemp("target"))


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_samples(tmp_path_factory.mktemp("samples") / "samples.jsonl")


@pytest.mark.parametrize(
    ("num_layers", "taps"), [(36, (1, 9, 17, 25, 33)), (8, (1, 2, 3, 4, 5)), (6, (0, 1, 2, 3, 4)), (3, (0, 1)), (2, (0,))]
)
def test_default_taps_are_spread_evenly_and_leave_the_last_layer_out(num_layers: int, taps: tuple[int, ...]) -> None:
    assert default_taps(num_layers) == taps


@pytest.mark.parametrize("taps", [(2,), (1, 0), (0, 0), (-2,)])
def test_taps_that_do_not_fit_the_target_are_refused(target: Path, taps: tuple[int, ...]) -> None:
    with pytest.raises(ConfigError, match="tap_layers"):
        draft_spec(DrafterShape(tap_layers=taps), target, load_tokenizer(target))


def test_a_mask_token_that_does_not_exist_is_refused(target: Path) -> None:
    with pytest.raises(ConfigError, match="no token '<nothing>'"):
        draft_spec(DrafterShape(mask_token="<nothing>"), target, load_tokenizer(target))


def test_a_reduced_vocabulary_is_that_of_the_samples(target: Path, samples: Path) -> None:
    trainee = trainer_of(tiny_recipe(target, samples, "eagle3", {"draft_vocab_size": 30})).trainee
    assert trainee.vocabulary.target_ids is not None
    assert trainee.vocabulary.target_ids.tolist() == list(range(10, 40))


def test_samples_may_hold_added_tokens(target: Path, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(target)
    last = len(tokenizer) - 1
    path = tmp_path / "samples.jsonl"
    path.write_text("".join(f'{{"id": "s{n}", "token_ids": [5, 6, {last}, 7, 8]}}\n' for n in range(8)))
    record = trainer_of(tiny_recipe(target, path)).train_step()
    assert record.loss > 0


def test_a_drafter_goes_on_from_a_checkpoint(target: Path, samples: Path, tmp_path: Path) -> None:
    recipe = tiny_recipe(target, samples, learning_rate=1e-2)
    first = trainer_of(recipe)
    for _ in range(3):
        first.train_step()
    first.trainee.save(tmp_path / "drafter", torch.float32)
    second = trainer_of(recipe.model_copy(update={"init_from": str(tmp_path / "drafter")}))
    learned = dict(first.trainee.trained())
    assert all(torch.equal(value, learned[name]) for name, value in second.trainee.trained())


def test_another_drafter_than_the_recipes_is_refused_as_a_start(target: Path, samples: Path, tmp_path: Path) -> None:
    trainer_of(tiny_recipe(target, samples)).trainee.save(tmp_path / "drafter", torch.float32)
    recipe = tiny_recipe(target, samples, drafter={"num_layers": 2}).model_copy(update={"init_from": str(tmp_path / "drafter")})
    with pytest.raises(ConfigError, match="another drafter"):
        trainer_of(recipe)


OTHER_STARTS: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "taps": ({"tap_layers": (0,)}, {"tap_layers": (1,)}, "drafter.tap_layers"),
    "mask token": ({"mask_token": "<|im_end|>"}, {"mask_token": "<|endoftext|>"}, "drafter.mask_token"),
    "confidence head": ({"confidence": True}, {"confidence": False}, "drafter.confidence"),
    "head": ({"head": "vanilla"}, {"head": "gated"}, "drafter.head"),
}


@pytest.mark.parametrize(("before", "after", "field"), OTHER_STARTS.values(), ids=OTHER_STARTS)
def test_a_start_whose_weights_would_mean_something_else_is_refused(
    target: Path, samples: Path, tmp_path: Path, before: dict[str, Any], after: dict[str, Any], field: str
) -> None:
    trainer_of(tiny_recipe(target, samples, drafter=before)).trainee.save(tmp_path / "drafter", torch.float32)
    recipe = tiny_recipe(target, samples, drafter=after).model_copy(update={"init_from": str(tmp_path / "drafter")})
    with pytest.raises(ConfigError) as caught:
        trainer_of(recipe)
    assert caught.value.field == field


def test_a_start_made_for_another_target_is_refused_and_one_that_only_grows_is_not(target: Path, tmp_path: Path) -> None:
    wanted = draft_spec(DrafterShape(markov_rank=8), target, load_tokenizer(target))
    others: list[dict[str, Any]] = [{"vocab_size": 7}, {"num_target_layers": 9}]
    for changes in others:
        with pytest.raises(ConfigError, match="made for a target of") as caught:
            check_start(tmp_path, replace(wanted, **changes), wanted)
        assert caught.value.field == "target"
    alike: list[dict[str, Any]] = [{"num_target_layers": 0}, {"block_size": 3}, {"target_fingerprint": "other"}, {"markov_rank": 4}]
    for changes in alike:
        check_start(tmp_path, replace(wanted, **changes), wanted)


def test_a_language_model_of_another_vocabulary_is_refused_as_a_start(target: Path, samples: Path, tmp_path: Path) -> None:
    other = write_target(tmp_path / "other", vocab_size=1234)
    recipe = tiny_recipe(target, samples, "language_model").model_copy(update={"init_from": str(other)})
    with pytest.raises(ConfigError, match="vocabulary of 1234 tokens"):
        trainer_of(recipe)


def test_a_start_that_drafts_from_another_vocabulary_is_refused_at_once(target: Path, samples: Path, tmp_path: Path) -> None:
    """Not when the first checkpoint is written, an hour later."""
    reduced = tiny_recipe(target, samples, "eagle3", {"draft_vocab_size": 30})
    trainer_of(reduced).trainee.save(tmp_path / "drafter", torch.float32)
    trainer_of(reduced.model_copy(update={"init_from": str(tmp_path / "drafter")}))
    for other in ({}, {"draft_vocab_size": 20}):
        recipe = tiny_recipe(target, samples, "eagle3", other).model_copy(update={"init_from": str(tmp_path / "drafter")})
        with pytest.raises(ConfigError, match="drafts from 30 tokens") as caught:
            trainer_of(recipe)
        assert caught.value.field == "drafter.draft_vocab_size"


def test_layers_start_as_the_targets_own(target: Path, samples: Path) -> None:
    recipe = tiny_recipe(target, samples, drafter={"start": "target", "num_layers": 2})
    features = OnlineFeatures(target, (0, 1), "cpu")
    spec = draft_spec(recipe.drafter, target, load_tokenizer(target))
    opened = SampleSet.open([samples], max_length=32, tokenizer_fingerprint=None)
    own = dict(build_trainee(recipe, features, spec, opened).trained())
    given = dict(features.model.named_parameters())
    for own_layer, target_layer in ((0, 0), (1, 2)):
        assert torch.equal(own[f"layers.{own_layer}.mlp.up_proj.weight"], given[f"model.layers.{target_layer}.mlp.up_proj.weight"])


@pytest.mark.parametrize("path", sorted((ROOT / "docs/examples").glob("*.yaml")), ids=lambda path: path.stem)
def test_the_recipes_of_the_documentation_fit_the_target_that_ships(path: Path) -> None:
    recipe = Recipe.model_validate(yaml.safe_load(path.read_text()))
    target = resolve_folder(ModelSource(model=recipe.target))
    spec = draft_spec(recipe.drafter, target, load_tokenizer(target))
    assert spec.kind == ("eagle" if recipe.drafter.kind == "eagle3" else "block")
    assert (spec.head == "none") == (recipe.drafter.kind != "dspark")
    assert spec.draft_vocab_size == (recipe.drafter.draft_vocab_size or spec.vocab_size)


def test_the_documentation_has_a_recipe_of_each_kind_that_is_compared() -> None:
    recipes = (yaml.safe_load(path.read_text()) for path in (ROOT / "docs/examples").glob("*.yaml"))
    assert {recipe["drafter"]["kind"] for recipe in recipes} == {"dspark", "dflash", "eagle3"}


def test_the_tutorials_recipe_goes_on_from_the_drafter_that_ships() -> None:
    recipe = Recipe.model_validate(yaml.safe_load((ROOT / "docs/examples/domain_recipe.yaml").read_text()))
    assert recipe.init_from == "dspark/demo/weights/dspark"
    target = resolve_folder(ModelSource(model=recipe.target))
    wanted, shipped = draft_spec(recipe.drafter, target, load_tokenizer(target)), read_draft_spec(ROOT / recipe.init_from)
    assert (wanted.layers, wanted.tap_layers) == (shipped.layers, shipped.tap_layers)
    assert (wanted.head, wanted.markov_rank, wanted.block_size) == (shipped.head, shipped.markov_rank, shipped.block_size)
