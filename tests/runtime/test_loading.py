"""A model in memory: where its folder is found, and that all of it came from the files."""

from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from transformers import AutoModelForCausalLM

from dspark.config import DrafterConfig, ModelSource, TargetConfig
from dspark.errors import ConfigError, ModelLoadError
from dspark.runtime.loading import (
    check_folder,
    dtype_of,
    load_tokenizer,
    model_card,
    model_fingerprint,
    resolve_folder,
    tokenizer_fingerprint,
)
from tests.conftest import tiny_qwen3
from tests.runtime.folders import WEIGHTS, edit_weights, load


@pytest.mark.parametrize(("name", "last"), [("demo:target", "target"), ("demo:drafter", "drafter")])
def test_the_demo_pair_lies_inside_the_package_and_is_sound(name: str, last: str) -> None:
    folder = resolve_folder(ModelSource(model=name))
    assert folder.parts[-4:] == ("dspark", "demo", "weights", last)
    assert check_folder(folder).num_tensors > 0
    assert load_tokenizer(folder).vocab_size <= model_card(folder, ModelSource(model=name)).vocab_size


def test_the_demo_pair_shares_its_tokenizer() -> None:
    folders = [resolve_folder(ModelSource(model=f"demo:{name}")) for name in ("target", "drafter")]
    assert tokenizer_fingerprint(folders[0]) == tokenizer_fingerprint(folders[1])
    assert model_fingerprint(folders[0]) != model_fingerprint(folders[1])


def test_a_folder_is_used_as_it_is(folder: Path) -> None:
    assert resolve_folder(ModelSource(model=str(folder))) == folder


@pytest.mark.parametrize("name", ["/no/such/folder", "./nothing", "~/nothing-here", "a/b/c", "x\\y", "demo:other", "a b"])
def test_a_path_or_demo_name_that_is_not_there_is_an_error_and_no_download(name: str, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")  # a request would fail with another message
    with pytest.raises(ModelLoadError, match="no such") as caught:
        resolve_folder(ModelSource(model=name))
    assert name in str(caught.value)


def test_a_file_is_not_a_folder(folder: Path) -> None:
    with pytest.raises(ModelLoadError, match="is a file"):
        resolve_folder(ModelSource(model=str(folder / WEIGHTS)))


@pytest.mark.parametrize(("multiplies", "expected"), [(True, torch.bfloat16), (False, torch.float32)])
def test_drafters_are_in_bfloat16_where_the_device_multiplies_it(multiplies: bool, expected: torch.dtype, monkeypatch: Any) -> None:
    monkeypatch.setattr("dspark.runtime.loading.multiplies_bfloat16", lambda device: multiplies)
    assert dtype_of(DrafterConfig()) == expected
    assert dtype_of(DrafterConfig(dtype="float16")) == torch.float16
    assert dtype_of(TargetConfig()) == torch.float32


def test_no_target_is_in_a_precision_of_the_machines_choosing() -> None:
    with pytest.raises(ValidationError, match="dtype"):
        TargetConfig.model_validate({"dtype": "auto"})


def test_a_loaded_model_computes_what_the_saved_one_did(folder: Path) -> None:
    model = load(folder)
    token_ids = torch.arange(24).view(1, 24)
    expected = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="sdpa").eval()
    with torch.no_grad():
        torch.testing.assert_close(model(token_ids).logits, expected(token_ids).logits)
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert model.config._attn_implementation == "eager"


def test_the_dtype_of_the_source_is_used(folder: Path) -> None:
    assert {parameter.dtype for parameter in load(folder, dtype="bfloat16").parameters()} == {torch.bfloat16}


def test_a_device_map_reaches_transformers(folder: Path) -> None:
    assert load(folder, device_map={"": "cpu"}).device == torch.device("cpu")
    with pytest.raises(ModelLoadError, match="device_map"):
        load(folder, device_map="everywhere")


def test_sharded_weights_are_loaded(folder: Path) -> None:
    model = load(folder)
    (folder / WEIGHTS).unlink()
    model.save_pretrained(folder, max_shard_size="60KB")
    assert len(list(folder.glob("model-*.safetensors"))) > 1
    again = load(folder)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))


def test_untied_and_tied_embeddings_both_load(tmp_path: Path) -> None:
    for tied in (True, False):
        folder = tmp_path / str(tied)
        tiny_qwen3(64, tie_word_embeddings=tied).save_pretrained(folder)
        model = load(folder)
        assert (model.lm_head.weight is model.model.embed_tokens.weight) is tied


def test_a_device_that_is_not_there_is_a_configuration_error(folder: Path) -> None:
    with pytest.raises(ConfigError, match="not a device") as caught:
        load(folder, device="toaster")
    assert caught.value.field == "device"


@pytest.mark.skipif(torch.cuda.is_available(), reason="looks at a machine without CUDA")
def test_cuda_without_cuda_is_a_configuration_error(folder: Path) -> None:
    with pytest.raises(ConfigError, match="no CUDA device"):
        load(folder, device="cuda:0")


def test_a_missing_tensor_is_named(folder: Path) -> None:
    edit_weights(folder, lambda tensors: tensors.pop("model.norm.weight"))
    with pytest.raises(ModelLoadError, match=r"missing: model\.norm\.weight"):
        load(folder)


def test_an_extra_tensor_is_named(folder: Path) -> None:
    edit_weights(folder, lambda tensors: tensors.update({"model.surprise": torch.zeros(2)}))
    with pytest.raises(ModelLoadError, match=r"not part of the model: model\.surprise"):
        load(folder)


def test_a_tensor_of_the_wrong_shape_is_named(folder: Path) -> None:
    edit_weights(folder, lambda tensors: tensors.update({"model.norm.weight": torch.ones(31)}))
    with pytest.raises(ModelLoadError, match=r"wrong shape: model\.norm\.weight \(\[31\] instead of \[32\]\)"):
        load(folder)
