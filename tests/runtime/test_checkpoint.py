"""Model folders that must not be loaded: each is refused before anything of it is used, with file and tensor named."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from dspark.errors import ModelLoadError
from dspark.runtime.loading import (
    check_folder,
    load_tokenizer,
)
from tests.runtime.folders import WEIGHTS, edit_json, edit_weights, load, write_raw


def test_a_folder_without_configuration_is_refused(folder: Path) -> None:
    (folder / "config.json").unlink()
    with pytest.raises(ModelLoadError, match=r"no config\.json"):
        load(folder)


@pytest.mark.parametrize("where", ["config.json", "tokenizer_config.json"])
@pytest.mark.parametrize(
    "change", [{"auto_map": {"AutoConfig": "evil.Config"}}, {"text_config": {"deep": [{"auto_map": {}}]}}], ids=["top", "nested"]
)
def test_code_from_the_checkpoint_is_refused(folder: Path, where: str, change: dict[str, Any]) -> None:
    edit_json(folder / where, **change)
    with pytest.raises(ModelLoadError, match="auto_map"):
        load(folder)
    with pytest.raises(ModelLoadError, match="auto_map"):
        load_tokenizer(folder)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "model.safetensors"])
def test_a_pickle_is_refused_and_never_run(folder: Path, name: str) -> None:
    canary = folder.parent / "canary"
    (folder / WEIGHTS).unlink()
    (folder / name).write_bytes(b"cposix\nsystem\n(S'touch " + str(canary).encode() + b"'\ntR.")
    with pytest.raises(ModelLoadError, match=r"pickle can run code|not a sound safetensors"):
        load(folder)
    assert not canary.exists()


FORGED = {
    "header longer than the file": (2**40).to_bytes(8, "little") + b"{}",
    "header length beyond int64": (2**63).to_bytes(8, "little") + b"{}",
    "empty file": b"",
}


@pytest.mark.parametrize("content", FORGED.values(), ids=FORGED.keys())
def test_forged_lengths_are_refused(folder: Path, content: bytes) -> None:
    (folder / WEIGHTS).write_bytes(content)
    with pytest.raises(ModelLoadError, match=r"model\.safetensors: not a sound"):
        check_folder(folder)


FORGED_HEADERS = {
    "data past the end": {"a": [[4], [0, 16]]},
    "overlap": {"a": [[2], [0, 8]], "b": [[2], [4, 12]]},
    "hole": {"a": [[1], [0, 4]], "b": [[1], [8, 12]]},
    "shape overflow": {"a": [[2**32, 2**32, 2**32], [0, 8]]},
    "negative shape": {"a": [[-2], [0, 8]]},
}


@pytest.mark.parametrize("tensors", FORGED_HEADERS.values(), ids=FORGED_HEADERS.keys())
def test_forged_headers_are_refused(folder: Path, tensors: dict[str, Any]) -> None:
    header = {name: {"dtype": "F32", "shape": shape, "data_offsets": offsets} for name, (shape, offsets) in tensors.items()}
    write_raw(folder / WEIGHTS, json.dumps(header).encode(), b"\0" * 12)
    with pytest.raises(ModelLoadError, match=r"model\.safetensors: not a sound"):
        check_folder(folder)


def test_a_truncated_file_is_refused(folder: Path) -> None:
    content = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(content[:-100])
    with pytest.raises(ModelLoadError, match="not a sound"):
        check_folder(folder)


@pytest.mark.parametrize("name", ["../outside.safetensors", "/etc/passwd", "sub/x.safetensors", "x.bin", 7, "..\\x.safetensors"])
def test_an_index_cannot_point_out_of_the_folder(folder: Path, name: Any) -> None:
    shutil.copy(folder / WEIGHTS, folder.parent / "outside.safetensors")
    (folder / WEIGHTS).unlink()
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"model.norm.weight": name}}))
    with pytest.raises(ModelLoadError, match=r"'model\.norm\.weight' is mapped to"):
        check_folder(folder)


def test_an_index_that_names_a_tensor_its_file_lacks_is_refused(folder: Path) -> None:
    (folder / WEIGHTS).rename(folder / "part.safetensors")
    index = {"weight_map": {"model.absent.weight": "part.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ModelLoadError, match=r"part\.safetensors: tensor 'model\.absent\.weight' is missing"):
        check_folder(folder)


def test_a_link_out_of_the_folder_is_refused(folder: Path) -> None:
    (folder / WEIGHTS).rename(folder.parent / "outside.safetensors")
    (folder / WEIGHTS).symlink_to(folder.parent / "outside.safetensors")
    with pytest.raises(ModelLoadError, match="a link that leaves"):
        check_folder(folder)


def test_links_of_the_hub_cache_are_followed_into_its_blobs_only(folder: Path, tmp_path: Path) -> None:
    snapshot = tmp_path / "models--a--b" / "snapshots" / "c0ffee"
    shutil.copytree(folder, snapshot)
    blobs = tmp_path / "models--a--b" / "blobs"
    blobs.mkdir()
    (snapshot / WEIGHTS).rename(blobs / "1234")
    (snapshot / WEIGHTS).symlink_to("../../blobs/1234")
    check_folder(snapshot)
    (snapshot / "config.json").rename(tmp_path / "elsewhere.json")
    (snapshot / "config.json").symlink_to(tmp_path / "elsewhere.json")
    with pytest.raises(ModelLoadError, match="a link that leaves"):
        check_folder(snapshot)


IMPOSSIBLE = [
    {"num_hidden_layers": 10**9, "layer_types": None},
    {"num_hidden_layers": -1, "layer_types": None},
    {"vocab_size": -5},
    {"vocab_size": 10**12},
    {"hidden_size": 10**9},
    {"num_hidden_layers": "many"},
    {"num_key_value_heads": 0},
]


@pytest.mark.parametrize("change", IMPOSSIBLE, ids=str)
def test_impossible_sizes_are_refused_before_memory_is_taken(folder: Path, change: dict[str, Any]) -> None:
    edit_json(folder / "config.json", **change)
    with pytest.raises(ModelLoadError, match=r"config\.json"):
        load(folder)


@pytest.mark.parametrize("text", ["", "[]", "{", "[" * 100_000, '"x"'], ids=["empty", "list", "open", "deep", "string"])
def test_a_configuration_that_is_no_object_is_refused(folder: Path, text: str) -> None:
    (folder / "config.json").write_text(text)
    with pytest.raises(ModelLoadError, match=r"config\.json"):
        load(folder)


def test_an_adapter_is_refused(folder: Path) -> None:
    (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "someone/else"}')
    with pytest.raises(ModelLoadError, match="adapter"):
        load(folder)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float8_e5m2])
def test_numbers_that_are_not_finite_are_refused(folder: Path, value: float, dtype: torch.dtype) -> None:
    def spoil(tensors: dict[str, Any]) -> None:
        weight = tensors["model.norm.weight"]
        weight[7] = value
        tensors["model.norm.weight"] = weight.to(dtype)

    edit_weights(folder, spoil)
    with pytest.raises(ModelLoadError, match=r"model\.safetensors: tensor 'model\.norm\.weight' holds NaN or infinity"):
        check_folder(folder)


@pytest.mark.parametrize("name", ["../../escape", "a/b", "a\\b", "line\nbreak"])
def test_a_tensor_name_like_a_path_is_refused(folder: Path, name: str) -> None:
    edit_weights(folder, lambda tensors: tensors.update({name: torch.zeros(1)}))
    with pytest.raises(ModelLoadError, match="name like a path"):
        check_folder(folder)
