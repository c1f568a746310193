"""Shared by all tests: a tiny random model with a real tokenizer, on disk as users have them."""

import random
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from transformers import PreTrainedModel

SEED = 20261123


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Hugging Face folder: Qwen3 with two layers and random weights, and a byte-level BPE tokenizer. Do not write to it."""
    from dspark.demo.tokenizer import save_tokenizer, train_tokenizer

    folder = tmp_path_factory.mktemp("tiny")
    words = random.Random(SEED).choices(["def", "return", "self", "value", "name", "(", ")", ":", "\n    "], k=4000)
    tokenizer = train_tokenizer([" ".join(words)])
    save_tokenizer(tokenizer, folder)
    tiny_qwen3(tokenizer.get_vocab_size()).save_pretrained(folder)
    return folder


@pytest.fixture
def folder(tiny_folder: Path, tmp_path: Path) -> Path:
    """A copy of the tiny model's folder that a test may spoil."""
    return Path(shutil.copytree(tiny_folder, tmp_path / "model"))


def tiny_qwen3(vocab_size: int, **changes: object) -> "PreTrainedModel":
    """A Qwen3 of two layers with random, always the same, weights."""
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    sizes = {
        "vocab_size": vocab_size,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": 256,
        "tie_word_embeddings": True,
        "eos_token_id": 0,
    }
    with torch.random.fork_rng():
        torch.manual_seed(SEED)
        return Qwen3ForCausalLM(Qwen3Config(**(sizes | changes))).eval()
