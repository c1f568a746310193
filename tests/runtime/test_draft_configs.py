"""config.json of a drafter: a value is found wherever a format puts it, and what does not fit is refused by file and key."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from dspark.errors import ModelLoadError
from dspark.runtime.draft_configs import build_config, parse_config
from dspark.runtime.draft_formats import read_draft_spec
from tests.runtime.draft_folders import write
from tests.runtime.folders import edit_json
from tests.runtime.tiny_drafters import SPEC


def test_speculators_counts_hidden_states_and_the_embedding_is_the_first() -> None:
    config = build_config(SPEC, "speculators")
    assert config["aux_hidden_state_layer_ids"] == [0, 2, 5]
    assert parse_config(Path("config.json"), config)[1].tap_layers == (-1, 1, 4)


def test_a_target_number_of_layers_that_is_not_stated_is_zero() -> None:
    config = build_config(SPEC, "speculators")
    del config["num_target_layers"]
    assert parse_config(Path("config.json"), config)[1].num_target_layers == 0


LOOK_UPS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "dflash_config before eagle_config": (
        {"dflash_config": {"mask_token_id": 5}, "eagle_config": {"mask_token_id": 6}, "mask_token_id": 7},
        {"mask_token_id": 5},
    ),
    "eagle_config before the top level": ({"eagle_config": {"mask_token_id": 6}, "mask_token_id": 7}, {"mask_token_id": 6}),
    "a noise token is a mask token": ({"mask_token_id": None, "dspark_noise_token_id": 8}, {"mask_token_id": 8}),
    "a pard token is a mask token": ({"mask_token_id": None, "pard_token": 9, "ptd_token_id": 10}, {"mask_token_id": 9}),
    "a ptd token is a mask token": ({"mask_token_id": None, "ptd_token_id": 10}, {"mask_token_id": 10}),
    "the block size has two names": ({"block_size": None, "dspark_block_size": 3}, {"block_size": 3}),
    "the plain block size wins": ({"block_size": 2, "dspark_block_size": 3}, {"block_size": 2}),
    "the tap layers have two names": ({"target_layer_ids": None, "dspark_target_layer_ids": [0, 3]}, {"tap_layers": (0, 3)}),
}


@pytest.mark.parametrize(("changes", "found"), LOOK_UPS.values(), ids=LOOK_UPS)
def test_a_value_is_found_wherever_a_format_puts_it(changes: dict[str, Any], found: dict[str, Any]) -> None:
    config = build_config(SPEC, "deepspec") | changes
    assert parse_config(Path("config.json"), config)[1] == replace(SPEC, **found)


BAD_CONFIGS: dict[str, tuple[dict[str, Any], str]] = {
    "tap layers fall": ({"target_layer_ids": [4, 1]}, "tap layers"),
    "a tap layer twice": ({"target_layer_ids": [1, 1, 4]}, "tap layers"),
    "the last layer": ({"target_layer_ids": [1, 5]}, "without the target's last layer"),
    "a layer beyond the target": ({"target_layer_ids": [1, 6]}, "tap layers"),
    "a layer below the embeddings": ({"target_layer_ids": [-2, 1]}, "tap layers"),
    "no tap layer": ({"target_layer_ids": []}, "tap layers"),
    "tap layers of text": ({"target_layer_ids": ["1"]}, "target_layer_ids"),
    "block of nothing": ({"block_size": 0}, "block_size"),
    "a huge block": ({"block_size": 100_000}, "block_size"),
    "no block": ({"block_size": None}, "block_size"),
    "a block size of text": ({"block_size": "4"}, "block_size"),
    "true is no number": ({"block_size": True}, "block_size"),
    "mask beyond the vocabulary": ({"mask_token_id": 40}, "mask_token_id"),
    "negative mask": ({"mask_token_id": -1}, "mask_token_id"),
    "no mask": ({"mask_token_id": None}, "mask token"),
    "rank above the vocabulary": ({"markov_rank": 41}, "markov_rank"),
    "negative rank": ({"markov_rank": -1}, "markov_rank"),
    "no rank, though confidence wants it": ({"markov_rank": 0}, "confidence_head_with_markov"),
    "unknown head": ({"markov_head_type": "transformer"}, "markov_head_type"),
    "a draft vocabulary above the target's": ({"draft_vocab_size": 41}, "draft_vocab_size"),
    "a flag that is a number": ({"enable_confidence_head": 1}, "enable_confidence_head"),
    "no vocabulary": ({"vocab_size": None}, "vocab_size"),
    "no width": ({"hidden_size": None}, "hidden_size"),
    "a block without the anchor's guess": ({"dflash_config": {"projector_type": "dflash"}}, "projector_type"),
}


@pytest.mark.parametrize(("changes", "key"), BAD_CONFIGS.values(), ids=BAD_CONFIGS)
def test_a_value_that_does_not_fit_is_refused_by_file_and_key(tmp_path: Path, changes: dict[str, Any], key: str) -> None:
    edit_json(write(tmp_path) / "config.json", **changes)
    with pytest.raises(ModelLoadError, match=rf"config\.json: .*{key}"):
        read_draft_spec(tmp_path)


BAD_SPECULATORS: dict[str, tuple[dict[str, Any], str]] = {
    "another kind": ({"speculators_model_type": "eagle3"}, "speculators_model_type"),
    "no guess at the anchor": ({"sample_from_anchor": False}, "sample_from_anchor"),
    "DFlash does not guess at the anchor unless it says so": (
        {"speculators_model_type": "dflash", "sample_from_anchor": None},
        "sample_from_anchor",
    ),
    "no layers": ({"transformer_layer_config": None}, "transformer_layer_config"),
    "a wider target": ({"target_hidden_size": 32}, "target_hidden_size"),
}


@pytest.mark.parametrize(("changes", "key"), BAD_SPECULATORS.values(), ids=BAD_SPECULATORS)
def test_what_speculators_can_say_and_this_project_cannot_do_is_refused(tmp_path: Path, changes: dict[str, Any], key: str) -> None:
    edit_json(write(tmp_path, draft_format="speculators") / "config.json", **changes)
    with pytest.raises(ModelLoadError, match=rf"config\.json: .*{key}"):
        read_draft_spec(tmp_path)
