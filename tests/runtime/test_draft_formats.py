"""Reading drafters: every format says the same, and everything that does not fit is refused by file and tensor or key."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from dspark.config import DrafterConfig, ModelSource
from dspark.errors import ModelLoadError, UnsupportedModel
from dspark.runtime.draft_configs import build_config, parse_config
from dspark.runtime.draft_formats import DraftCheckpoint, check_target, feature_spec, read_draft_checkpoint, read_draft_spec
from dspark.runtime.draft_spec import DraftSpec
from dspark.runtime.draft_tensors import target_ids
from dspark.runtime.fingerprints import model_fingerprint
from dspark.runtime.hub import resolve_folder
from tests.runtime.folders import edit_json, edit_weights
from tests.runtime.tiny_drafters import EAGLE, SPEC, SPECS, random_tensors

FIXTURE = Path(__file__).parents[1] / "fixtures" / "deepspec_checkpoint" / "vanilla"
WEIGHTS = "model.safetensors"
Tensors = dict[str, torch.Tensor]


def write(folder: Path, spec: DraftSpec = SPEC, tensors: Tensors | None = None, draft_format: Any = "deepspec") -> Path:
    """A checkpoint without the writer's own checks."""
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(build_config(spec, draft_format)))
    save_file(random_tensors(spec) if tensors is None else tensors, folder / WEIGHTS)
    return folder


def edit_nested(folder: Path, key: str, **changes: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    config[key] |= changes
    (folder / "config.json").write_text(json.dumps(config))


def test_the_published_checkpoint_is_read() -> None:
    checkpoint = read_draft_checkpoint(FIXTURE)
    assert checkpoint.format == "deepspec"
    assert checkpoint.spec.tap_layers == (1, 3, 5)
    assert (checkpoint.spec.block_size, checkpoint.spec.mask_token_id, checkpoint.spec.markov_rank) == (5, 159, 16)
    assert (checkpoint.spec.head, checkpoint.spec.confidence, checkpoint.spec.confidence_with_markov) == ("vanilla", True, True)
    assert (checkpoint.spec.num_target_layers, checkpoint.spec.num_draft_layers, checkpoint.spec.hidden_size) == (8, 2, 64)
    stored = load_file(FIXTURE / WEIGHTS)
    assert checkpoint.tensors.keys() == stored.keys()
    assert all(torch.equal(checkpoint.tensors[name], stored[name]) for name in stored)
    assert checkpoint.fingerprint == model_fingerprint(FIXTURE)


def test_only_the_wanted_tensors_are_kept() -> None:
    checkpoint = read_draft_checkpoint(FIXTURE, tensors=("fc.weight", "hidden_norm.weight", "no such"))
    assert sorted(checkpoint.tensors) == ["fc.weight", "hidden_norm.weight"]


def test_tensors_that_are_not_wanted_are_checked_all_the_same(tmp_path: Path) -> None:
    edit_weights(write(tmp_path), lambda tensors: tensors["norm.weight"].fill_(float("nan")))
    with pytest.raises(ModelLoadError, match="model.safetensors: tensor 'norm.weight' holds NaN"):
        read_draft_checkpoint(tmp_path, tensors=("fc.weight",))


@pytest.mark.parametrize("name", SPECS)
@pytest.mark.parametrize("draft_format", ["deepspec", "specforge", "speculators"])
def test_every_format_says_the_same(tmp_path: Path, name: str, draft_format: str) -> None:
    tensors = random_tensors(SPECS[name], shared=True)
    checkpoint = read_draft_checkpoint(write(tmp_path, SPECS[name], tensors, draft_format))
    assert (checkpoint.format, checkpoint.spec) == (draft_format, SPECS[name])
    assert checkpoint.tensors.keys() == tensors.keys()
    assert all(torch.equal(checkpoint.tensors[key], tensors[key]) for key in tensors)


def test_an_eagle_drafter_is_read(tmp_path: Path) -> None:
    checkpoint = read_draft_checkpoint(write(tmp_path, EAGLE, draft_format="eagle"))
    assert (checkpoint.format, checkpoint.spec) == ("eagle", EAGLE)
    assert checkpoint.tensors["midlayer.self_attn.q_proj.weight"].shape == (16, 32)  # queries of embedding and feature, 2d
    assert checkpoint.tensors["midlayer.self_attn.o_proj.weight"].shape == (16, 16)


def test_weights_in_several_files_are_read(tmp_path: Path) -> None:
    tensors = random_tensors(SPEC)
    write(tmp_path, SPEC, tensors)
    (tmp_path / WEIGHTS).unlink()
    names = sorted(tensors)
    shards = {"model-1.safetensors": names[:5], "model-2.safetensors": names[5:]}
    for file, part in shards.items():
        save_file({name: tensors[name] for name in part}, tmp_path / file)
    index = {"weight_map": {name: file for file, part in shards.items() for name in part}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    assert read_draft_checkpoint(tmp_path).tensors.keys() == tensors.keys()


def test_speculators_counts_hidden_states_and_the_embedding_is_the_first() -> None:
    config = build_config(SPEC, "speculators")
    assert config["aux_hidden_state_layer_ids"] == [0, 2, 5]
    assert parse_config(Path("config.json"), config)[1].tap_layers == (-1, 1, 4)


def test_speculators_copies_for_its_trainer_are_left_out_but_their_shape_is_checked(tmp_path: Path) -> None:
    copies = {"verifier_lm_head.weight": torch.zeros(40, 16), "verifier_norm.weight": torch.zeros(16)}
    maps = {"d2t": torch.zeros(40, dtype=torch.int64), "t2d": torch.ones(40, dtype=torch.bool)}
    write(tmp_path, SPEC, random_tensors(SPEC) | copies | maps, "speculators")
    assert read_draft_checkpoint(tmp_path).tensors.keys() == random_tensors(SPEC).keys()
    edit_weights(tmp_path, lambda tensors: tensors.update({"verifier_norm.weight": torch.zeros(15)}))
    with pytest.raises(ModelLoadError, match=r"tensor 'verifier_norm.weight' is \[15\] instead of \[16\]"):
        read_draft_checkpoint(tmp_path)


def test_a_map_that_leaves_ids_out_does_not_pass_for_a_whole_vocabulary(tmp_path: Path) -> None:
    d2t = torch.zeros(40, dtype=torch.int64)
    d2t[-1] = 1
    write(tmp_path, SPEC, random_tensors(SPEC) | {"d2t": d2t}, "speculators")
    with pytest.raises(ModelLoadError, match="tensor 'd2t' leaves ids out"):
        read_draft_checkpoint(tmp_path)


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


def resize(name: str) -> Callable[[Tensors], Any]:
    return lambda tensors: tensors.update({name: torch.zeros(3, 3)})


BAD_TENSORS: dict[str, tuple[DraftSpec, Callable[[Tensors], Any], str]] = {
    "missing": (SPEC, lambda tensors: tensors.pop("layers.1.mlp.up_proj.weight"), "'layers.1.mlp.up_proj.weight' .* is missing"),
    "extra": (SPEC, lambda tensors: tensors.update({"layers.2.extra": torch.zeros(1)}), "'layers.2.extra' is not part of"),
    "misshapen": (SPEC, resize("fc.weight"), r"'fc.weight' is \[3, 3\] instead of \[16, 48\]"),
    "embedding of another vocabulary": (SPEC, resize("embed_tokens.weight"), "'embed_tokens.weight' is"),
    "head of another vocabulary": (SPEC, resize("lm_head.weight"), "'lm_head.weight' is"),
    "infinite": (SPEC, lambda tensors: tensors["fc.weight"].view(-1)[7:8].fill_(float("-inf")), "'fc.weight' holds NaN or infinity"),
    "whole numbers": (
        SPEC,
        lambda tensors: tensors.update({"norm.weight": torch.ones(16, dtype=torch.int32)}),
        "'norm.weight' holds torch.int32",
    ),
    "gated without its gate": (SPECS["gated"], lambda tensors: tensors.pop("markov_head.gate_proj.weight"), "gate_proj.weight' .* missing"),
    "rnn without its cell": (SPECS["rnn"], lambda tensors: tensors.pop("markov_head.joint_proj.bias"), "joint_proj.bias' .* missing"),
    "a gate on a vanilla head": (
        SPEC,
        lambda tensors: tensors.update({"markov_head.gate_proj.bias": torch.zeros(4)}),
        "not part of .*vanilla",
    ),
    "a sequential head on DFlash": (
        SPECS["dflash"],
        lambda tensors: tensors.update({"markov_head.markov_w1.weight": torch.zeros(40, 4)}),
        "not part",
    ),
    "no confidence head": (SPEC, lambda tensors: tensors.pop("confidence_head.proj.bias"), "confidence_head.proj.bias' .* missing"),
    "a reduced vocabulary without its head": (
        SPECS["reduced"],
        lambda tensors: tensors.pop("lm_head.weight"),
        "lm_head.weight' .* missing",
    ),
    "a reduced vocabulary without its map": (SPECS["reduced"], lambda tensors: tensors.pop("d2t"), "'d2t' .* missing"),
    "a map on a whole vocabulary": (
        SPEC,
        lambda tensors: tensors.update({"d2t": torch.zeros(40, dtype=torch.int64)}),
        "'d2t' is not part of",
    ),
    "d2t of floats": (SPECS["reduced"], lambda tensors: tensors.update({"d2t": tensors["d2t"].float()}), "'d2t' holds torch.float32"),
    "t2d of numbers": (SPECS["reduced"], lambda tensors: tensors.update({"t2d": tensors["t2d"].long()}), "'t2d' holds torch.int64"),
    "d2t beyond the target": (SPECS["reduced"], lambda tensors: tensors["d2t"][-1:].fill_(40), "'d2t' maps draft id 11 to 51"),
    "d2t below zero": (SPECS["reduced"], lambda tensors: tensors["d2t"][:1].fill_(-1), "'d2t' maps draft id 0 to -1"),
    "d2t falls": (SPECS["reduced"], lambda tensors: tensors["d2t"][1:2].fill_(-1), "'d2t' maps draft id 1 no higher"),
    "d2t holds target ids": (SPECS["reduced"], lambda tensors: tensors["d2t"].add_(torch.arange(12)), "'d2t' maps draft id"),
    "t2d marks another token": (SPECS["reduced"], lambda tensors: tensors["t2d"].logical_not_(), "'t2d' marks other target ids"),
}


@pytest.mark.parametrize(("spec", "edit", "message"), BAD_TENSORS.values(), ids=BAD_TENSORS)
def test_a_tensor_that_does_not_fit_is_refused_by_file_and_name(
    tmp_path: Path, spec: DraftSpec, edit: Callable[[Tensors], Any], message: str
) -> None:
    edit_weights(write(tmp_path, spec), edit)
    with pytest.raises(ModelLoadError, match=rf"model\.safetensors: tensor .*{message}"):
        read_draft_checkpoint(tmp_path)


def test_d2t_holds_offsets_and_not_ids() -> None:
    assert target_ids(torch.tensor([1, 3, 3])).tolist() == [1, 4, 5]


@pytest.mark.parametrize("name", ["pytorch_model.bin", "training_args.pt", "old.ckpt"])
def test_a_pickle_is_refused_even_beside_safetensors(tmp_path: Path, name: str) -> None:
    (write(tmp_path) / name).write_bytes(b"\x80\x04.")
    with pytest.raises(ModelLoadError, match=f"{name}: a pickle can run code"):
        read_draft_spec(tmp_path)


@pytest.mark.parametrize("draft_format", ["deepspec", "specforge", "speculators"])
def test_a_wish_for_code_is_refused_with_a_hint(tmp_path: Path, draft_format: str) -> None:
    edit_json(write(tmp_path, draft_format=draft_format) / "config.json", auto_map={"AutoModel": "dspark.DSparkDraftModel"})
    with pytest.raises(ModelLoadError, match=r"config\.json: `auto_map` .* remove that key"):
        read_draft_checkpoint(tmp_path)


def test_a_wish_for_code_is_found_wherever_it_hides(tmp_path: Path) -> None:
    edit_nested(write(tmp_path, draft_format="specforge"), "dflash_config", auto_map={"AutoModel": "x.Y"})
    with pytest.raises(ModelLoadError, match=r"config\.json: `auto_map`"):
        read_draft_checkpoint(tmp_path)


def test_a_language_model_is_no_drafter() -> None:
    with pytest.raises(ModelLoadError, match=r"config\.json: describes no drafter"):
        read_draft_spec(resolve_folder(ModelSource(model="demo:target")))


def test_an_empty_folder_is_no_drafter(tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError, match=r"holds no config\.json"):
        read_draft_spec(tmp_path)


def test_an_unknown_family_of_layers_is_refused(tmp_path: Path) -> None:
    write(tmp_path)
    edit_json(tmp_path / "config.json", model_type="no_such_family")
    with pytest.raises(UnsupportedModel, match="no_such_family"):
        read_draft_checkpoint(tmp_path)


def test_a_forged_size_is_refused_without_memory_for_it(tmp_path: Path) -> None:
    edit_json(write(tmp_path) / "config.json", hidden_size=2**40, intermediate_size=2**20)
    with pytest.raises(ModelLoadError):
        read_draft_checkpoint(tmp_path)


def demo_target() -> Path:
    return resolve_folder(ModelSource(model="demo:target"))


FITTING = replace(SPEC, vocab_size=4096, layers=SPEC.layers | {"hidden_size": 256}, target_fingerprint="")


def test_a_drafter_that_fits_its_target_passes() -> None:
    check_target(Path("drafter"), replace(FITTING, target_fingerprint=model_fingerprint(demo_target())), demo_target())
    check_target(Path("drafter"), replace(FITTING, num_target_layers=0), demo_target())


MISFITS: dict[str, tuple[dict[str, Any], str]] = {
    "vocabulary": ({"vocab_size": 4095}, "vocab_size is 4095, but the target .* 4096"),
    "width": ({"layers": SPEC.layers}, "hidden_size is 16"),
    "depth": ({"num_target_layers": 7}, "num_target_layers is 7"),
    "the last layer": ({"num_target_layers": 0, "tap_layers": (1, 5)}, "last layer"),
    "another target": ({"target_fingerprint": "abc"}, "fingerprints differ"),
}


@pytest.mark.parametrize(("changes", "message"), MISFITS.values(), ids=MISFITS)
def test_a_drafter_of_another_target_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelLoadError, match=rf"config\.json: .*{message}"):
        check_target(Path("drafter"), replace(FITTING, **changes), demo_target())


def test_a_trained_drafter_names_the_features_it_reads() -> None:
    spec = feature_spec(DrafterConfig(kind="block", model=str(FIXTURE)))
    assert spec is not None
    assert (spec.tap_layers, spec.drafter_fingerprint) == ((1, 3, 5), model_fingerprint(FIXTURE))


@pytest.mark.parametrize("kind", ["none", "lookup", "language_model"])
def test_other_drafters_read_no_features(kind: Any) -> None:
    assert feature_spec(DrafterConfig(kind=kind)) is None


def test_a_checkpoint_of_another_kind_than_configured_is_refused() -> None:
    with pytest.raises(ModelLoadError, match="kind 'block', not 'eagle'"):
        feature_spec(DrafterConfig(kind="eagle", model=str(FIXTURE)))


def test_a_checkpoint_knows_its_folder() -> None:
    checkpoint = read_draft_checkpoint(FIXTURE, tensors=())
    assert checkpoint == DraftCheckpoint(FIXTURE, "deepspec", read_draft_spec(FIXTURE), {}, model_fingerprint(FIXTURE))
