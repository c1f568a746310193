"""Who a model is: fingerprints of weights and tokenizer, end-of-text ids, and the card a replica shows to routers.

Two ends that show the same fingerprints run the same model; the handshake refuses anything else.
"""

import hashlib
import json
from pathlib import Path
from typing import Any, BinaryIO

from transformers import PreTrainedTokenizerFast

from dspark.config import ModelSource, TargetConfig
from dspark.errors import ConfigError, ModelLoadError
from dspark.runtime.architecture import load_config
from dspark.runtime.checkpoint import CONFIG, read_json, weight_files
from dspark.runtime.tokenizers import load_tokenizer
from dspark.types import ModelCard

SAMPLE_BYTES = 1024 * 1024
MAX_HEADER_BYTES = 100_000_000
"""safetensors' own limit."""


def model_fingerprint(folder: Path) -> str:
    """sha256 (hex) of config.json and, for each weight file by name: its name, size, header, and first and last MiB of data.

    A sample keeps start-up short for large models: it tells checkpoints apart, but is no defence against someone who forges one.
    """
    digest = hashlib.sha256()
    _add(digest, (folder / CONFIG).read_bytes())
    for path in weight_files(folder):
        _add(digest, path.name.encode())
        with path.open("rb") as file:
            _add_weights(digest, file, path.stat().st_size)
    return digest.hexdigest()


def tokenizer_fingerprint(folder: Path) -> str:
    """sha256 (hex) of the vocabulary with its ids and of the special tokens: what ids mean, not how text is split.

    A drafter's folder with the same tokenizer gives the same value, whatever its chat template or its end-of-text token.
    """
    return vocabulary_fingerprint(load_tokenizer(folder))


def vocabulary_fingerprint(tokenizer: PreTrainedTokenizerFast) -> str:
    """`tokenizer_fingerprint` of a tokenizer that is loaded already."""
    added = tokenizer.added_tokens_decoder
    special = sorted((token_id, token.content) for token_id, token in added.items() if token.special)
    record = json.dumps([sorted(tokenizer.get_vocab().items()), special], separators=(",", ":"))
    return hashlib.sha256(record.encode()).hexdigest()


def eos_token_ids(folder: Path) -> tuple[int, ...]:
    """End-of-text ids from generation_config.json, else config.json; empty if the model names none."""
    for name in ("generation_config.json", CONFIG):
        path = folder / name
        value = read_json(path).get("eos_token_id") if path.is_file() else None
        if value is not None:
            return _token_ids(path, value)
    return ()


def model_card(folder: Path, source: ModelSource, tokenizer: PreTrainedTokenizerFast | None = None) -> ModelCard:
    """The card of the model in `folder`. For a TargetConfig it takes over the served name and the length limit.

    `tokenizer` is that of the folder, where the caller has loaded it already. Raises ModelLoadError for an unusable folder,
    ConfigError if `max_length` is above what the model was made for.
    """
    config = load_config(folder)
    target = source if isinstance(source, TargetConfig) else None
    name = target.served_name if target else None
    return ModelCard(
        name=name or source.model.rstrip("/").split("/")[-1],
        vocab_size=config.vocab_size,
        max_length=_max_length(getattr(config, "max_position_embeddings", None), target.max_length if target else None),
        eos_token_ids=eos_token_ids(folder),
        model_fingerprint=model_fingerprint(folder),
        tokenizer_fingerprint=vocabulary_fingerprint(tokenizer or load_tokenizer(folder)),
    )


def _max_length(limit: int | None, wanted: int | None) -> int:
    if limit is None and wanted is None:
        raise ConfigError("the model does not say how long a text it can take; set max_length", "max_length")
    if limit is not None and wanted is not None and wanted > limit:
        raise ConfigError(f"max_length {wanted} is above the model's own limit of {limit} tokens", "max_length")
    return wanted or limit or 0


def _token_ids(path: Path, value: Any) -> tuple[int, ...]:
    ids = value if isinstance(value, list) else [value]
    if not all(isinstance(item, int) and not isinstance(item, bool) and item >= 0 for item in ids):
        raise ModelLoadError(f"{path}: eos_token_id is {value!r}, not a token id or a list of them")
    return tuple(dict.fromkeys(ids))


def _add(digest: Any, part: bytes) -> None:
    """Each part with its length before it, so that no two lists of parts look alike."""
    digest.update(len(part).to_bytes(8, "little"))
    digest.update(part)


def _add_weights(digest: Any, file: BinaryIO, num_bytes: int) -> None:
    header_bytes = int.from_bytes(file.read(8), "little")
    if header_bytes > min(num_bytes, MAX_HEADER_BYTES):
        raise ModelLoadError(f"{file.name}: not a safetensors file (header of {header_bytes} bytes)")
    digest.update(num_bytes.to_bytes(8, "little"))
    _add(digest, file.read(header_bytes))
    _add(digest, file.read(SAMPLE_BYTES))
    file.seek(max(file.tell(), num_bytes - SAMPLE_BYTES))
    _add(digest, file.read(SAMPLE_BYTES))
