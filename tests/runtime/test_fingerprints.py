"""Tokenizers, and who a model says it is."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from dspark.config import DrafterConfig, TargetConfig
from dspark.demo.tokenizer import save_tokenizer, train_tokenizer
from dspark.errors import ConfigError, ModelLoadError
from dspark.runtime.loading import (
    eos_token_ids,
    load_tokenizer,
    model_card,
    model_fingerprint,
    tokenizer_fingerprint,
)
from tests.runtime.folders import edit_json, edit_weights


def test_the_tokenizer_round_trips(folder: Path) -> None:
    tokenizer = load_tokenizer(folder)
    text = "def value(self):\n    return name\n"
    assert tokenizer.decode(tokenizer.encode(text, add_special_tokens=False)) == text


def test_a_folder_without_a_tokenizer_is_refused(tmp_path: Path, tiny_folder: Path) -> None:
    shutil.copy(tiny_folder / "config.json", tmp_path)
    with pytest.raises(ModelLoadError, match="holds no tokenizer"):
        load_tokenizer(tmp_path)


def test_a_broken_tokenizer_file_is_refused(folder: Path) -> None:
    (folder / "tokenizer.json").write_text('{"model": "nonsense"}')
    with pytest.raises(ModelLoadError, match="no usable tokenizer"):
        load_tokenizer(folder)


def test_a_tokenizer_larger_than_the_model_is_refused(folder: Path) -> None:
    edit_json(folder / "config.json", vocab_size=50)
    with pytest.raises(ModelLoadError, match="the model only 50"):
        load_tokenizer(folder)


def test_the_model_fingerprint_follows_configuration_and_weights(folder: Path) -> None:
    before = model_fingerprint(folder)
    assert before == model_fingerprint(folder)
    edit_weights(folder, lambda tensors: tensors["model.norm.weight"].add_(1.0))
    changed_weights = model_fingerprint(folder)
    edit_json(folder / "config.json", rms_norm_eps=1e-5)
    assert len({before, changed_weights, model_fingerprint(folder)}) == 3


def test_the_tokenizer_fingerprint_is_of_ids_and_special_tokens_alone(folder: Path, tmp_path: Path) -> None:
    before = tokenizer_fingerprint(folder)
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    (copy / "chat_template.jinja").write_text("{{ messages }}")
    edit_json(copy / "config.json", hidden_size=64)
    assert tokenizer_fingerprint(copy) == before
    content = json.loads((copy / "tokenizer.json").read_text())
    vocabulary = content["model"]["vocab"]
    first, second = (next(token for token, index in vocabulary.items() if index == wanted) for wanted in (40, 41))
    vocabulary[first], vocabulary[second] = 41, 40
    (copy / "tokenizer.json").write_text(json.dumps(content))
    assert tokenizer_fingerprint(copy) != before


def test_another_text_gives_another_tokenizer_fingerprint(folder: Path, tmp_path: Path) -> None:
    save_tokenizer(train_tokenizer(["quite other words than the rest " * 50]), tmp_path)
    assert tokenizer_fingerprint(tmp_path) != tokenizer_fingerprint(folder)


@pytest.mark.parametrize(
    ("generation", "config", "expected"),
    [(None, 5, (5,)), ([7, 8, 7], 5, (7, 8)), (3, None, (3,)), (None, None, ()), (None, [0, 1], (0, 1))],
)
def test_end_of_text_ids_come_from_the_generation_config_first(
    folder: Path, generation: Any, config: Any, expected: tuple[int, ...]
) -> None:
    edit_json(folder / "config.json", eos_token_id=config)
    edit_json(folder / "generation_config.json", eos_token_id=generation)
    assert eos_token_ids(folder) == expected


@pytest.mark.parametrize("value", ["stop", -1, [1, "x"], True])
def test_end_of_text_ids_that_are_no_ids_are_refused(folder: Path, value: Any) -> None:
    edit_json(folder / "generation_config.json", eos_token_id=value)
    with pytest.raises(ModelLoadError, match="eos_token_id"):
        eos_token_ids(folder)


def test_the_card_tells_what_a_router_needs(folder: Path) -> None:
    card = model_card(folder, TargetConfig(model=str(folder), served_name="tiny", max_length=100))
    assert (card.name, card.max_length, card.eos_token_ids) == ("tiny", 100, (0,))
    assert card.vocab_size == json.loads((folder / "config.json").read_text())["vocab_size"]
    assert card.model_fingerprint == model_fingerprint(folder)
    assert card.tokenizer_fingerprint == tokenizer_fingerprint(folder)


def test_without_names_and_limits_the_card_uses_the_models_own(folder: Path) -> None:
    card = model_card(folder, DrafterConfig(model=f"{folder}/"))
    assert (card.name, card.max_length) == ("model", 256)


def test_a_length_above_the_models_own_is_refused(folder: Path) -> None:
    with pytest.raises(ConfigError, match="above the model's own limit of 256"):
        model_card(folder, TargetConfig(model=str(folder), max_length=257))
