"""What training tests share: tiny random targets of three families with a tokenizer, samples, and recipes that fit them."""

import json
import random
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, Gemma3TextConfig, LlamaConfig, Qwen3Config

from dspark.deepspec.job import JobOptions, build_trainer
from dspark.deepspec.recipe import Recipe
from dspark.deepspec.train import Trainer
from dspark.deepspec.workers import OneWorker
from dspark.demo.tokenizer import save_tokenizer, train_tokenizer

FAMILIES: dict[str, Any] = {"qwen3": Qwen3Config, "llama": LlamaConfig, "gemma3": Gemma3TextConfig}
NUM_SAMPLES, SAMPLE_TOKENS, PROMPT_TOKENS = 24, 24, 4
WORDS = ["def", "return", "self", "value", "name", "(", ")", ":", "\n    "]


def write_target(folder: Path, family: str = "qwen3", **changes: Any) -> Path:
    """Three layers, weights large enough that its distributions are no coin tosses."""
    tokenizer = train_tokenizer([" ".join(random.Random(1).choices(WORDS, k=400))])
    save_tokenizer(tokenizer, folder)
    sizes: dict[str, Any] = {"initializer_range": 0.2, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3}
    sizes["num_attention_heads"] = 4
    sizes["num_key_value_heads"] = 2
    if family == "gemma3":
        sizes |= {"sliding_window": 128}
    config = FAMILIES[family](
        head_dim=8,
        max_position_embeddings=128,
        tie_word_embeddings=False,  # tied random weights repeat the last token for ever
        **({"vocab_size": tokenizer.get_vocab_size()} | sizes | changes),
    )
    build: Any = AutoModelForCausalLM
    with torch.random.fork_rng():
        torch.manual_seed(3)
        build.from_config(config).save_pretrained(folder)
    return folder


def write_samples(path: Path, count: int = NUM_SAMPLES) -> Path:
    """Ids from a small part of the vocabulary, of different lengths; every prompt is four tokens long."""
    draw = random.Random(2)
    lines = [
        {"id": f"s{number}", "prompt_tokens": PROMPT_TOKENS, "token_ids": draw.choices(range(10, 40), k=SAMPLE_TOKENS - number % 3)}
        for number in range(count)
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def tiny_recipe(target: Path, samples: Path, kind: str = "dspark", drafter: dict[str, Any] | None = None, **training: Any) -> Recipe:
    """One layer, blocks of three, four anchors in each of four samples per step."""
    shape = {"kind": kind, "num_layers": 1, "block_size": 3, "markov_rank": 8, "start": "random"} | (drafter or {})
    schedule = {"num_steps": 40, "batch_size": 4, "num_anchors": 4, "max_length": 32, "held_out_fraction": 0.1} | training
    return Recipe.model_validate({"target": str(target), "data": [str(samples)], "drafter": shape, "training": schedule})


def trainer_of(recipe: Recipe, options: JobOptions | None = None) -> Trainer:
    """Alone, on the CPU."""
    with torch.random.fork_rng():
        return build_trainer(recipe, options or JobOptions(), OneWorker())


def write_recipe(path: Path, recipe: Recipe) -> Path:
    """As a file for the command line; YAML reads JSON."""
    path.write_text(recipe.model_dump_json())
    return path


def losses_of(out: Path) -> list[tuple[int, float]]:
    """(step, loss) of each step that a run logged."""
    records = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [(record["step"], record["loss"]) for record in records if "loss" in record]
