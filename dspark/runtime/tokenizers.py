"""The tokenizer of a model folder: a fast one, without code from the checkpoint, and no larger than the model."""

from pathlib import Path

from transformers import AutoTokenizer, PreTrainedTokenizerFast

from dspark.errors import ModelLoadError
from dspark.runtime.checkpoint import CONFIG, check_no_code, read_json

#: Without one of these transformers would make an empty tokenizer out of the model's type.
VOCABULARY_FILES = ("tokenizer.json", "vocab.json", "vocab.txt", "tokenizer.model", "spiece.model", "tekken.json")


def load_tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    """The folder's tokenizer, which must be a fast one: others are neither quick nor exact about offsets.

    Raises ModelLoadError, also when the vocabulary is larger than the model's.
    """
    check_no_code(folder)
    if not any((folder / name).is_file() for name in VOCABULARY_FILES):
        raise ModelLoadError(f"{folder}: holds no tokenizer (none of {', '.join(VOCABULARY_FILES)})")
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    except Exception as error:  # tokenizers raises bare Exception for a malformed file
        raise ModelLoadError(f"{folder}: no usable tokenizer ({type(error).__name__}: {error})") from error
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise ModelLoadError(f"{folder}: {type(tokenizer).__name__} is a slow tokenizer; a tokenizer.json is needed")
    _check_vocabulary(folder, tokenizer)
    return tokenizer


def _check_vocabulary(folder: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    """Plain text must only give ids that the model has; tokens added on top (say, of images) cannot come from text."""
    vocab_size = read_json(folder / CONFIG).get("vocab_size") if (folder / CONFIG).is_file() else None
    if isinstance(vocab_size, int) and tokenizer.vocab_size > vocab_size:
        raise ModelLoadError(f"{folder}: the tokenizer has {tokenizer.vocab_size} tokens, the model only {vocab_size}")
