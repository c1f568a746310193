"""The model card of a shipped demo model."""

from collections import Counter
from typing import Any

from torch import nn

from dspark.demo.pretrain import Recipe


def model_card(
    name: str, model: nn.Module, recipe: Recipe, files: list[dict[str, Any]], num_tokens: int, held_out_perplexity: float
) -> str:
    """Markdown that says what the model is, what it read, how good it is and what it is not."""
    num_parameters = sum(p.numel() for p in model.parameters())
    trained = recipe.num_steps * recipe.batch_size * recipe.sequence_length
    packages = Counter(file["name"].split("/")[0] for file in files)
    rows = "\n".join(f"| {package} | {count} |" for package, count in sorted(packages.items()))
    return f"""---
license: mit
library_name: transformers
tags: [demo, speculative-decoding]
---
# DSpark demo {name}

A demonstration model. It exists so that every part of DSpark can run for real on a laptop; it writes text that looks like
Python and knows nothing. Do not use it for anything else.

- Architecture: Qwen3, {recipe.model_config["num_hidden_layers"]} layers, hidden {recipe.model_config["hidden_size"]}, \
{num_parameters / 1e6:.2f} M parameters (embeddings tied), bfloat16 safetensors
- Tokenizer: byte-level BPE, {recipe.model_config["vocab_size"]} tokens, ChatML-like template
- Trained on {trained / 1e6:.1f} M tokens (a stream of {num_tokens / 1e6:.1f} M, sequence length {recipe.sequence_length}, \
batch {recipe.batch_size}, {recipe.num_steps} steps, seed {recipe.seed})
- Held-out perplexity per token, of these bf16 weights: **{held_out_perplexity:.1f}** ({sum(f["held_out"] for f in files)}
  held-out files)
- Made by `python -m dspark.demo.build`; the files read, with their hashes, are in `manifest.jsonl` beside the models

Sources read (Python's standard library and permissively licensed packages; each keeps its own licence):

| package | files |
|---|---|
{rows}
"""
