"""config.json of a drafter's checkpoint and the one record of it (draft_spec.py), in both directions, for each format.

Knows keys and numbers; no tensors (draft_tensors.py) and no files but the name it gives in errors. The published formats:
DeepSpec (flat), SpecForge and SGLang (nested `dflash_config`), speculators (nested
`transformer_layer_config`). `eagle` is this project's own: the keys of DraftSpec beside those of the layers.

Where a tap layer is counted from: DraftSpec, DeepSpec and SpecForge name a decoder layer whose output is read. speculators numbers
the list of hidden states, whose entry 0 is the embedding: one more. Some writers mix the two up; deepspec/tap_probe.py finds out.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from dspark.errors import ModelLoadError
from dspark.runtime.draft_spec import EMBEDDING, DraftSpec, HeadKind

DraftFormat = Literal["deepspec", "specforge", "speculators", "eagle"]
FORMATS: tuple[DraftFormat, ...] = get_args(DraftFormat)

MAX_BLOCK_SIZE = 256
EAGLE_ARCHITECTURE = "DSparkEagleModel"
FINGERPRINT_KEY = "dspark_target_fingerprint"
"""This project's own addition to every format; other readers skip what they do not know."""

MASK_KEYS = ("mask_token_id", "dspark_noise_token_id", "pard_token", "ptd_token_id")
BLOCK_KEYS = ("block_size", "dspark_block_size")
TAP_KEYS = ("target_layer_ids", "dspark_target_layer_ids")

_HEAD_KEYS = ("markov_rank", "markov_head_type", "enable_confidence_head", "confidence_head_with_markov", "confidence_head_alpha")
_NESTED_KEYS = ("dflash_config", "eagle_config")

#: Of the drafter, not of its layers.
_DRAFT_KEYS = frozenset(
    (
        *(*MASK_KEYS, *BLOCK_KEYS, *TAP_KEYS, *_HEAD_KEYS, *_NESTED_KEYS),
        *("tap_layers", "num_target_layers", "num_anchors", "draft_vocab_size", FINGERPRINT_KEY),
    )
)
#: Of the file, of generation or of the vocabulary: nothing that shapes a layer.
_OTHER_KEYS = frozenset(
    (
        *("architectures", "transformers_version", "dtype", "torch_dtype", "_name_or_path", "vocab_size", "tie_word_embeddings"),
        *("use_cache", "return_dict", "output_hidden_states", "output_attentions", "id2label", "label2id", "problem_type"),
        *("chunk_size_feed_forward", "is_encoder_decoder", "bos_token_id", "eos_token_id", "pad_token_id"),
    )
)


def layer_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """`DraftSpec.layers` from the configuration of a model or a drafter: only what shapes a layer, so that formats agree on it."""
    return {key: value for key, value in config.items() if key not in _DRAFT_KEYS | _OTHER_KEYS}


def parse_config(path: Path, config: Mapping[str, Any]) -> tuple[DraftFormat, DraftSpec]:
    """Format and content of a drafter's config.json. Raises ModelLoadError naming file and key."""
    draft_format = detect_format(path, config)
    spec = {"speculators": _parse_speculators, "eagle": _parse_eagle}.get(draft_format, _parse_flat)(path, config)
    check_spec(path, spec)
    return draft_format, spec


def build_config(spec: DraftSpec, draft_format: DraftFormat, verifier: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The config.json that `parse_config` reads back as the same record.

    `verifier`: name_or_path and architectures of the target, which speculators wants to be told; other formats have no place for it.
    """
    if (draft_format == "eagle") != (spec.kind == "eagle"):
        raise ModelLoadError(f"a drafter of kind {spec.kind} cannot be written in the {draft_format} format")
    build = {"deepspec": _build_deepspec, "specforge": _build_specforge, "speculators": _build_speculators, "eagle": _build_eagle}
    config = build[draft_format](spec)
    if draft_format == "speculators":
        config["speculators_config"]["verifier"] = dict(verifier or {"name_or_path": None, "architectures": []})
    return config | ({FINGERPRINT_KEY: spec.target_fingerprint} if spec.target_fingerprint else {})


def detect_format(path: Path, config: Mapping[str, Any]) -> DraftFormat:
    """Which format this is, from its keys. Raises ModelLoadError for anything that is not a drafter."""
    architectures = config.get("architectures") or ()
    names = [name for name in architectures if isinstance(name, str)] if isinstance(architectures, Sequence) else []
    if "speculators_model_type" in config:
        return "speculators"
    if EAGLE_ARCHITECTURE in names:
        return "eagle"
    if isinstance(config.get("dflash_config"), Mapping):
        return "specforge"
    if any(name.endswith("DSparkModel") for name in names) or any(key in config for key in TAP_KEYS):
        return "deepspec"
    raise ModelLoadError(f"{path}: describes no drafter of a known format ({', '.join(FORMATS)}); its architectures are {names}")


def check_spec(path: Path, spec: DraftSpec) -> None:
    """Every number in its range and in agreement with the others. Raises ModelLoadError naming `path` and the key."""
    for key in ("hidden_size", "num_hidden_layers"):
        _require(path, key, _is_integer(spec.layers.get(key)) and spec.layers[key] > 0, spec.layers.get(key), "a positive number")
    _require(path, "model_type", isinstance(spec.layers.get("model_type"), str), spec.layers.get("model_type"), "a model type's name")
    _require(path, "vocab_size", spec.vocab_size > 0, spec.vocab_size, "a positive number")
    _require(path, "draft_vocab_size", 0 < spec.draft_vocab_size <= spec.vocab_size, spec.draft_vocab_size, f"1..{spec.vocab_size}")
    _require(path, "block_size", 0 < spec.block_size <= MAX_BLOCK_SIZE, spec.block_size, f"1..{MAX_BLOCK_SIZE}")
    check_taps(path, spec.tap_layers, spec.num_target_layers)
    _check_mask(path, spec)
    _check_heads(path, spec)


def check_taps(path: Path, taps: Sequence[int], num_target_layers: int) -> None:
    """Tap layers ascend from -1 (embeddings) and stay below the last layer; `num_target_layers` 0 leaves the upper end open."""
    _require(path, "tap layers", len(taps) > 0, list(taps), "at least one layer")
    _require(path, "tap layers", list(taps) == sorted(set(taps)), list(taps), "in strictly ascending order")
    _require(path, "tap layers", taps[0] >= EMBEDDING, list(taps), f"at least {EMBEDDING} (the embeddings)")
    if num_target_layers:
        _require(path, "tap layers", taps[-1] < num_target_layers, list(taps), f"layers of a target of {num_target_layers} layers")
        _require(path, "tap layers", taps[-1] != num_target_layers - 1, list(taps), "without the target's last layer")


def _check_mask(path: Path, spec: DraftSpec) -> None:
    if spec.mask_token_id is not None:
        in_range = 0 <= spec.mask_token_id < spec.vocab_size
        _require(path, "mask_token_id", in_range, spec.mask_token_id, f"0..{spec.vocab_size - 1}")
    elif spec.kind == "block" and spec.block_size > 1:
        raise ModelLoadError(f"{path}: names no mask token (any of {', '.join(MASK_KEYS)})")


def _check_heads(path: Path, spec: DraftSpec) -> None:
    if spec.kind == "eagle":
        _require(path, "num_hidden_layers", spec.num_draft_layers == 1, spec.num_draft_layers, "1 in an EAGLE drafter")
        _require(path, "markov_head_type", spec.head == "none" and not spec.confidence, spec.head, "absent in an EAGLE drafter")
    if spec.head == "none":
        _require(path, "markov_rank", spec.markov_rank == 0, spec.markov_rank, "0 without a sequential head")
        _require(path, "confidence_head_with_markov", not spec.confidence_with_markov, True, "false without a sequential head")
    else:
        _require(path, "markov_rank", 0 < spec.markov_rank <= spec.vocab_size, spec.markov_rank, f"1..{spec.vocab_size}")
    _require(path, "confidence_head_with_markov", spec.confidence or not spec.confidence_with_markov, True, "false without the head")


def _require(path: Path, key: str, holds: bool, found: Any, wanted: str) -> None:
    if not holds:
        raise ModelLoadError(f"{path}: {key} is {found!r}; it must be {wanted}")


def _is_integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


@dataclass(frozen=True, slots=True)
class _Values:
    """Typed look-up of a key in several objects, the first that has it wins."""

    path: Path
    places: tuple[Mapping[str, Any], ...]

    @classmethod
    def of(cls, path: Path, config: Mapping[str, Any]) -> "_Values":
        """dflash_config, then eagle_config, then the top level."""
        nested = [config[key] for key in _NESTED_KEYS if isinstance(config.get(key), Mapping)]
        return cls(path, (*nested, config))

    def find(self, *keys: str) -> tuple[str, Any]:
        for key in keys:
            for place in self.places:
                if place.get(key) is not None:
                    return key, place[key]
        return keys[0], None

    def integer(self, *keys: str, default: int | None = None) -> int:
        key, value = self.find(*keys)
        value = default if value is None else value
        _require(self.path, key, _is_integer(value), value, "a whole number")
        return int(value or 0)

    def optional_integer(self, *keys: str) -> int | None:
        return None if self.find(*keys)[1] is None else self.integer(*keys)

    def flag(self, key: str, default: bool = False) -> bool:
        value = self.find(key)[1]
        value = default if value is None else value
        _require(self.path, key, isinstance(value, bool), value, "true or false")
        return bool(value)

    def text(self, key: str, default: str = "") -> str:
        value = self.find(key)[1]
        value = default if value is None else value
        _require(self.path, key, isinstance(value, str), value, "a text")
        return str(value)

    def integers(self, *keys: str) -> tuple[int, ...]:
        key, value = self.find(*keys)
        is_list = isinstance(value, list) and all(_is_integer(item) for item in value)
        _require(self.path, key, is_list, value, "a list of layer numbers")
        return tuple(value)

    def head(self) -> HeadKind:
        """A rank of 0 means no sequential head, whatever type the file names beside it."""
        name = self.text("markov_head_type", "vanilla")
        _require(self.path, "markov_head_type", name in get_args(HeadKind), name, f"one of {', '.join(get_args(HeadKind))}")
        heads: dict[str, HeadKind] = {"vanilla": "vanilla", "gated": "gated", "rnn": "rnn"}
        return "none" if self.integer("markov_rank", default=0) == 0 else heads.get(name, "none")

    def block_spec(self, layers: Mapping[str, Any], vocab_size: int, tap_layers: tuple[int, ...]) -> DraftSpec:
        """What all formats of block drafters say in the same words."""
        confidence = self.flag("enable_confidence_head")
        return DraftSpec(
            kind="block",
            layers=layer_config(layers),
            num_target_layers=self.integer("num_target_layers", default=0),
            tap_layers=tap_layers,
            vocab_size=vocab_size,
            draft_vocab_size=self.integer("draft_vocab_size", default=vocab_size),
            block_size=self.integer(*BLOCK_KEYS),
            mask_token_id=self.optional_integer(*MASK_KEYS),
            head=self.head(),
            markov_rank=self.integer("markov_rank", default=0),
            confidence=confidence,
            confidence_with_markov=confidence and self.flag("confidence_head_with_markov"),
            target_fingerprint=self.text(FINGERPRINT_KEY),
        )


def _parse_flat(path: Path, config: Mapping[str, Any]) -> DraftSpec:
    """DeepSpec, and SpecForge: the same keys, some of them nested."""
    values = _Values.of(path, config)
    projector = values.text("projector_type", "dspark")
    if projector != "dspark":
        raise ModelLoadError(f"{path}: projector_type is {projector!r}: a block that predicts from its mask positions only; not supported")
    return values.block_spec(config, values.integer("vocab_size"), values.integers(*TAP_KEYS))


def _parse_speculators(path: Path, config: Mapping[str, Any]) -> DraftSpec:
    values, layers = _Values.of(path, config), config.get("transformer_layer_config")
    kind = values.text("speculators_model_type")
    if kind not in ("dspark", "dflash"):
        raise ModelLoadError(f"{path}: speculators_model_type is {kind!r}; dspark and dflash are supported")
    if not values.flag("sample_from_anchor", default=kind == "dspark"):
        raise ModelLoadError(f"{path}: sample_from_anchor is false: a block that predicts from its mask positions only; not supported")
    if not isinstance(layers, Mapping):
        raise ModelLoadError(f"{path}: has no transformer_layer_config")
    taps = tuple(index - 1 for index in values.integers("aux_hidden_state_layer_ids"))  # entry 0 of the hidden states is the embedding
    spec = values.block_spec(layers, _Values(path, (layers,)).integer("vocab_size"), taps)
    width = values.integer("target_hidden_size", default=spec.layers.get("hidden_size"))
    _require(path, "target_hidden_size", width == spec.layers.get("hidden_size"), width, "the hidden size of the draft layers")
    return spec


def _parse_eagle(path: Path, config: Mapping[str, Any]) -> DraftSpec:
    values = _Values.of(path, config)
    vocab_size = values.integer("vocab_size")
    return DraftSpec(
        kind="eagle",
        layers=layer_config(config),
        num_target_layers=values.integer("num_target_layers"),
        tap_layers=values.integers("tap_layers"),
        vocab_size=vocab_size,
        draft_vocab_size=values.integer("draft_vocab_size", default=vocab_size),
        block_size=values.integer("block_size", default=1),
        target_fingerprint=values.text(FINGERPRINT_KEY),
    )


def _build_deepspec(spec: DraftSpec) -> dict[str, Any]:
    family = {"gemma4_text": "Gemma4"}.get(spec.layers["model_type"], str(spec.layers["model_type"]).title().replace("_", ""))
    return _layers(spec) | _heads(spec) | {"architectures": [f"{family}DSparkModel"], "target_layer_ids": list(spec.tap_layers)}


def _build_specforge(spec: DraftSpec) -> dict[str, Any]:
    flat = _heads(spec)
    nested = {key: flat.pop(key) for key in sorted(flat) if key not in ("block_size", "num_target_layers", "draft_vocab_size")}
    nested |= {"projector_type": "dspark", "target_layer_ids": list(spec.tap_layers)}
    return _layers(spec) | flat | {"architectures": ["DSparkDraftModel"], "dflash_config": nested}


def _build_speculators(spec: DraftSpec) -> dict[str, Any]:
    proposal = {"proposal_type": "greedy", "speculative_tokens": spec.block_size}
    return _heads(spec) | {
        "architectures": ["DSparkDraftModel"],
        "model_type": "speculators",
        "speculators_model_type": "dspark",
        "transformer_layer_config": _layers(spec),
        "draft_vocab_size": spec.draft_vocab_size,
        "target_hidden_size": spec.hidden_size,
        "aux_hidden_state_layer_ids": [layer + 1 for layer in spec.tap_layers],
        "sample_from_anchor": True,
        "tie_word_embeddings": False,
        "speculators_config": {
            "algorithm": "dspark",
            "proposal_methods": [proposal],
            "default_proposal_method": "greedy",
        },
    }


def _build_eagle(spec: DraftSpec) -> dict[str, Any]:
    return _layers(spec) | {
        "architectures": [EAGLE_ARCHITECTURE],
        "num_target_layers": spec.num_target_layers,
        "tap_layers": list(spec.tap_layers),
        "draft_vocab_size": spec.draft_vocab_size,
        "block_size": spec.block_size,
    }


def _layers(spec: DraftSpec) -> dict[str, Any]:
    return layer_config(spec.layers) | {"vocab_size": spec.vocab_size, "tie_word_embeddings": False}


def _heads(spec: DraftSpec) -> dict[str, Any]:
    """Keys that all formats of block drafters share."""
    reduced = {"draft_vocab_size": spec.draft_vocab_size} if spec.draft_vocab_size < spec.vocab_size else {}
    return reduced | {
        "num_target_layers": spec.num_target_layers,
        "block_size": spec.block_size,
        "mask_token_id": spec.mask_token_id,
        "markov_rank": spec.markov_rank,
        "markov_head_type": "vanilla" if spec.head == "none" else spec.head,
        "enable_confidence_head": spec.confidence,
        "confidence_head_with_markov": spec.confidence_with_markov,
    }
