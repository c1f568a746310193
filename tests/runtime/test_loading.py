"""Model folders: what is loaded, and what is refused with a reason."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

from dspark.config import DrafterConfig, ModelSource, TargetConfig
from dspark.demo.tokenizer import train_tokenizer
from dspark.errors import ConfigError, ModelLoadError, UnsupportedModel
from dspark.runtime.loading import (
    check_folder,
    eos_token_ids,
    load_causal_lm,
    load_tokenizer,
    model_card,
    model_fingerprint,
    resolve_folder,
    tokenizer_fingerprint,
)
from tests.conftest import tiny_qwen3

WEIGHTS = "model.safetensors"
Edit = Callable[[dict[str, Any]], None]


@pytest.fixture
def folder(tiny_folder: Path, tmp_path: Path) -> Path:
    """A copy that a test may spoil."""
    return Path(shutil.copytree(tiny_folder, tmp_path / "model"))


def edit_json(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def edit_weights(folder: Path, edit: Edit) -> None:
    tensors = load_file(folder / WEIGHTS)
    edit(tensors)
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})


def write_raw(path: Path, header: bytes, data: bytes = b"") -> None:
    path.write_bytes(len(header).to_bytes(8, "little") + header + data)


def load(folder: Path, **options: Any) -> Any:
    return load_causal_lm(ModelSource(model=str(folder), **options), attention="eager")


# --- finding the folder -------------------------------------------------------------------------------------------------


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


# --- what is loaded -----------------------------------------------------------------------------------------------------


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


# --- tensors that do not fit --------------------------------------------------------------------------------------------


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


# --- forged folders -----------------------------------------------------------------------------------------------------


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


# --- architectures ------------------------------------------------------------------------------------------------------

UNSUPPORTED = {
    "mamba": "state",
    "rwkv": "state",
    "jamba": "layers of the kind|state-space",
    "qwen3_next": "linear_attention",
    "minimax": "linear_attention",
    "bloom": "attention interface",
    "t5": "encoder-decoder",
    "bart": "encoder-decoder",
    "qwen2_vl": "several modalities",
    "gemma3": "several modalities",
    "vit": "no causal language model",
}


@pytest.mark.parametrize(("model_type", "reason"), UNSUPPORTED.items())
def test_models_the_packed_forward_cannot_run_are_refused_with_the_reason(folder: Path, model_type: str, reason: str) -> None:
    (folder / "config.json").write_text(AutoConfig.for_model(model_type).to_json_string(use_diff=False))
    with pytest.raises(UnsupportedModel, match=reason) as caught:
        load(folder)
    assert model_type in str(caught.value)


def test_convolution_layers_are_refused(folder: Path) -> None:
    config = AutoConfig.for_model("lfm2", num_hidden_layers=2, layer_types=["conv", "full_attention"])
    (folder / "config.json").write_text(config.to_json_string(use_diff=False))
    with pytest.raises(UnsupportedModel, match="layers of the kind conv"):
        load(folder)


def test_a_model_that_looks_at_later_tokens_is_refused(folder: Path) -> None:
    config = AutoConfig.for_model("bert", num_hidden_layers=2, hidden_size=32, intermediate_size=64, num_attention_heads=4)
    (folder / "config.json").write_text(config.to_json_string(use_diff=False))
    with pytest.raises(UnsupportedModel, match="later tokens"):
        load(folder)


def test_an_unknown_model_type_is_refused(folder: Path) -> None:
    edit_json(folder / "config.json", model_type="of_the_future")
    with pytest.raises(UnsupportedModel, match="no model type 'of_the_future'"):
        load(folder)


@pytest.mark.parametrize("model_type", ["llama", "mistral", "gemma2", "qwen2", "gpt2", "phi3"])
def test_common_architectures_are_accepted(tmp_path: Path, model_type: str) -> None:
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 64}
    config = AutoConfig.for_model(model_type, num_key_value_heads=2, head_dim=8, pad_token_id=0, eos_token_id=0, **sizes)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    assert load(tmp_path).config.model_type == model_type


# --- tokenizers and identity --------------------------------------------------------------------------------------------


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
    from dspark.demo.tokenizer import save_tokenizer

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
