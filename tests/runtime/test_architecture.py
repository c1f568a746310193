"""Which models the packed forward takes, and the reason given for those it does not."""

from pathlib import Path

import pytest
from transformers import AutoConfig, AutoModelForCausalLM

from dspark.errors import UnsupportedModel
from tests.runtime.folders import edit_json, load

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
