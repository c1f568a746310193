"""Which models the packed forward can run, decided from a model's configuration and class, before any weight is read.

The packed forward puts the rows of many sessions and tree branches in one sequence and tells attention who sees whom. A layer
that carries a state from one position to the next (state space, linear attention, convolution) cannot be told that.
"""

from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

from dspark.errors import ModelLoadError, UnsupportedModel
from dspark.runtime.checkpoint import CONFIG, WeightSummary, read_json

#: Layers whose only memory is keys and values, and whose mask is a rule on positions.
ATTENTION_LAYERS = frozenset({"full_attention", "sliding_attention", "chunked_attention"})

#: Packed quantised weights hold several parameters in one element.
MAX_PARAMETERS_PER_ELEMENT = 2
MAX_QUANTISED_PARAMETERS_PER_ELEMENT = 32


def load_config(folder: Path) -> PreTrainedConfig:
    """The folder's configuration. Raises UnsupportedModel for an unknown model type, ModelLoadError for unusable values."""
    model_type = read_json(folder / CONFIG).get("model_type")
    if model_type not in transformers.CONFIG_MAPPING:
        raise UnsupportedModel(f"{folder / CONFIG}: transformers {transformers.__version__} has no model type {model_type!r}")
    try:
        config: PreTrainedConfig = AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    except Exception as error:  # each model's own configuration class raises what it likes
        raise ModelLoadError(f"{folder / CONFIG}: {_first_line(error)}") from error
    return config


def check_architecture(folder: Path, config: PreTrainedConfig) -> None:
    """Raise UnsupportedModel with the reason if the packed forward cannot run this model."""
    model_class = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(config), None)
    reason = _config_reason(config) or _class_reason(model_class)
    if reason is not None:
        raise UnsupportedModel(f"{folder}: {config.model_type}: {reason}")


def check_skeleton(folder: Path, config: PreTrainedConfig, weights: WeightSummary) -> None:
    """Build the model without memory for its weights, and refuse it if it is not causal or far larger than its files.

    Without this a forged size would make the real construction allocate it.
    """
    build: Any = AutoModelForCausalLM
    try:
        with torch.device("meta"):
            skeleton: PreTrainedModel = build.from_config(config, trust_remote_code=False)
    except Exception as error:  # nonsense sizes fail wherever the model's code meets them
        raise ModelLoadError(f"{folder / CONFIG}: no model can be built from it ({_first_line(error)})") from error
    _check_causal(folder, skeleton)
    num_parameters = sum(parameter.numel() for parameter in skeleton.parameters())
    quantised = getattr(config, "quantization_config", None) is not None
    ratio = MAX_QUANTISED_PARAMETERS_PER_ELEMENT if quantised else MAX_PARAMETERS_PER_ELEMENT
    if num_parameters > ratio * weights.num_elements:
        raise ModelLoadError(
            f"{folder / CONFIG}: describes {num_parameters} parameters, but the weight files hold {weights.num_elements} numbers"
        )


def _config_reason(config: PreTrainedConfig) -> str | None:
    if getattr(config, "is_encoder_decoder", False):
        return "an encoder-decoder is not a causal language model"
    if config.get_text_config() is not config:
        return "a model of several modalities; only text models are served"
    other = sorted(set(getattr(config, "layer_types", None) or ()) - ATTENTION_LAYERS)
    if other:
        return f"has layers of the kind {', '.join(other)}, whose state cannot be packed; only attention layers can"
    return None


def _class_reason(model_class: Any) -> str | None:
    if model_class is None:
        return "transformers has no causal language model of this type"
    if model_class._is_stateful:
        return "has state-space or linear-attention layers, whose state cannot be packed; only attention layers can"
    # `_supports_attention_backend` says that the class takes its attention function from the AttentionInterface and hands all
    # keyword arguments down to it: exactly what the packed forward needs.
    if not model_class._supports_attention_backend:
        return f"{model_class.__name__} does not support the attention interface of transformers"
    return None


def _check_causal(folder: Path, skeleton: PreTrainedModel) -> None:
    for name, module in skeleton.named_modules():
        if getattr(module, "is_causal", True) is False:
            raise UnsupportedModel(f"{folder}: {skeleton.config.model_type}: {name} looks at later tokens; not a causal model")


def _first_line(error: BaseException) -> str:
    text = str(error).strip()
    return f"{type(error).__name__}: {text.splitlines()[0]}" if text else type(error).__name__
