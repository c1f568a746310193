"""Reading drafters: every format says the same, and what is no drafter, or one of another target, is refused."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from dspark.config import DrafterConfig, ModelSource
from dspark.errors import ModelLoadError, UnsupportedModel
from dspark.runtime.draft_formats import DraftCheckpoint, check_target, feature_spec, read_draft_checkpoint, read_draft_spec
from dspark.runtime.draft_spec import DraftSpec
from dspark.runtime.fingerprints import model_fingerprint
from dspark.runtime.hub import resolve_folder
from tests.runtime.draft_folders import FIXTURE, write
from tests.runtime.folders import WEIGHTS, edit_json, edit_weights
from tests.runtime.tiny_drafters import EAGLE, SPEC, SPECS, random_tensors


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


def test_speculators_copies_for_its_trainer_are_left_out_but_their_shape_is_checked(tmp_path: Path) -> None:
    copies = {"verifier_lm_head.weight": torch.zeros(40, 16), "verifier_norm.weight": torch.zeros(16)}
    maps = {"d2t": torch.zeros(40, dtype=torch.int64), "t2d": torch.ones(40, dtype=torch.bool)}
    write(tmp_path, SPEC, random_tensors(SPEC) | copies | maps, "speculators")
    assert read_draft_checkpoint(tmp_path).tensors.keys() == random_tensors(SPEC).keys()
    edit_weights(tmp_path, lambda tensors: tensors.update({"verifier_norm.weight": torch.zeros(15)}))
    with pytest.raises(ModelLoadError, match=r"tensor 'verifier_norm.weight' is \[15\] instead of \[16\]"):
        read_draft_checkpoint(tmp_path)


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
    fitting = [replace(FITTING, target_fingerprint=model_fingerprint(demo_target())), replace(FITTING, num_target_layers=0)]
    assert [refusal(spec) for spec in fitting] == [None, None]


def refusal(spec: DraftSpec) -> str | None:
    """Why a drafter does not fit the demonstration's target; None if it does."""
    try:
        check_target(Path("drafter"), spec, demo_target())
    except ModelLoadError as error:
        return str(error)
    return None


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
