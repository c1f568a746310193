"""Make the shipped pair: `python -m dspark.demo.build --out build/demo`.

Stages, each skipped when its output is there: corpus and manifest, tokenizer, token streams, target, drafter, export
(bf16 safetensors, model cards, held-out prompts). Killed at any point, the same command goes on from the last checkpoint.
"""

import argparse
import json
import os
import random
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import nn

from dspark.demo import corpus
from dspark.demo.card import model_card
from dspark.demo.pretrain import Recipe, TrainingText, held_out_loss, perplexity, train
from dspark.demo.tokenizer import (
    END_OF_TEXT,
    SPECIAL_TOKENS,
    TURN_END,
    TURN_START,
    VOCABULARY_SIZE,
    save_tokenizer,
    train_tokenizer,
)

NUM_PROMPTS = 64
CHAT_SHARE_SEED = 7
MAX_CHAT_PAIRS = 12_000

_COMMON = {
    "vocab_size": VOCABULARY_SIZE,
    "max_position_embeddings": 2048,
    "tie_word_embeddings": True,
    "attention_bias": False,
    "bos_token_id": None,
    "eos_token_id": 0,
    "pad_token_id": 3,
    "rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0},
}
TARGET_CONFIG: dict[str, Any] = _COMMON | {
    "hidden_size": 256,
    "intermediate_size": 768,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
}
DRAFTER_CONFIG: dict[str, Any] = _COMMON | {
    "hidden_size": 160,
    "intermediate_size": 448,
    "num_hidden_layers": 1,
    "num_attention_heads": 5,
    "num_key_value_heads": 1,
    "head_dim": 32,
}


def main() -> None:
    """Parse the command line and run the stages."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("build/demo"))
    parser.add_argument("--target-steps", type=int, default=4200)
    parser.add_argument("--drafter-steps", type=int, default=4200)
    parser.add_argument("--sequence-length", type=int, default=512)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--compile", action="store_true", help="torch.compile the training forward")
    parser.add_argument("--stages", default="corpus,target,drafter,export", help="comma-separated subset, in this order")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    stages = arguments.stages.split(",")
    if "corpus" in stages:
        prepare_text(arguments.out)
    for name, config, steps in (
        ("target", TARGET_CONFIG, arguments.target_steps),
        ("drafter", DRAFTER_CONFIG, arguments.drafter_steps),
    ):
        recipe = Recipe(
            config,
            steps,
            batch_size=arguments.batch_size,
            sequence_length=arguments.sequence_length,
            device=arguments.device,
            compile=arguments.compile,
        )
        if name in stages:
            train(recipe, load_text(arguments.out), arguments.out / name)
        if "export" in stages:
            export(arguments.out, name, recipe)


def prepare_text(out: Path) -> None:
    """Manifest, tokenizer, token streams and held-out prompts in `out`."""
    if (out / "held_out.npy").exists():
        return
    out.mkdir(parents=True, exist_ok=True)
    files = corpus.corpus_files()
    corpus.write_manifest([file for file, _ in files], out / "manifest.jsonl")
    texts = {held_out: [text for file, text in files if file.held_out is held_out] for held_out in (False, True)}
    tokenizer = train_tokenizer(texts[False])
    save_tokenizer(tokenizer, out / "tokenizer")
    _write_stream(out / "train.npy", _documents(texts[False]), tokenizer)
    write_prompts(texts[True], out / "prompts.jsonl")
    _write_stream(out / "held_out.npy", texts[True], tokenizer)


def load_text(out: Path) -> TrainingText:
    """The two token streams of an earlier `prepare_text`."""
    return TrainingText(np.load(out / "train.npy", mmap_mode="r"), np.load(out / "held_out.npy", mmap_mode="r"))


def write_prompts(texts: list[str], path: Path) -> None:
    """Beginnings to complete, each from another held-out file: cut at a line's end after about 40 % of the file or 900 characters."""
    draw = random.Random(CHAT_SHARE_SEED)
    prompts = []
    for text in draw.sample(sorted(texts), len(texts)):
        start = max(0, text.find("\ndef "), text.find("\nclass "))
        piece = text[start : start + 900].lstrip("\n")
        if len(piece) > 700:
            prompts.append(piece[: piece.rfind("\n", 0, 700) + 1] or piece)
    lines = [json.dumps({"prompt": prompt}) for prompt in prompts[:NUM_PROMPTS]]
    path.write_text("\n".join(lines) + "\n")


def export(out: Path, name: str, recipe: Recipe) -> None:
    """Write the trained model as a Hugging Face folder in bf16, with its card and measured perplexity."""
    text = load_text(out)
    model: Any = train(recipe, text, out / name)
    _round_to_bfloat16(model)
    loss = held_out_loss(model, text.held_out, recipe)
    folder = out / "export" / name
    save_tokenizer(Tokenizer.from_file(str(out / "tokenizer" / "tokenizer.json")), folder)
    model.generation_config.eos_token_id = [SPECIAL_TOKENS.index(END_OF_TEXT), SPECIAL_TOKENS.index(TURN_END)]
    model.to(torch.bfloat16).save_pretrained(folder)
    files = [json.loads(line) for line in (out / "manifest.jsonl").read_text().splitlines()]
    (folder / "README.md").write_text(model_card(name, model, recipe, files, len(text.train), perplexity(loss)))


def _round_to_bfloat16(model: nn.Module) -> None:
    """Measure what ships: the card's perplexity is that of the rounded weights."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter.to(torch.bfloat16).float())


def _documents(texts: list[str]) -> list[str]:
    """Source files, and a seeded choice of their documented functions as chat turns, shuffled."""
    draw = random.Random(CHAT_SHARE_SEED)
    pairs = [pair for text in texts for pair in corpus.instruction_pairs(text)]
    chats = [_chat(*pair) for pair in draw.sample(pairs, min(MAX_CHAT_PAIRS, len(pairs)))]
    grouped = ["".join(chats[i : i + 20]) for i in range(0, len(chats), 20)]
    documents = [*texts, *grouped]
    draw.shuffle(documents)
    return documents


def _chat(question: str, answer: str) -> str:
    turns = f"{TURN_START}user\n{question}{TURN_END}\n{TURN_START}assistant\n{answer}{TURN_END}\n"
    return turns + END_OF_TEXT


def _write_stream(path: Path, documents: list[str], tokenizer: Tokenizer) -> None:
    """All documents as one uint16 array, an end-of-text token after each; renamed into place when complete."""
    end = tokenizer.token_to_id(END_OF_TEXT)
    pieces = []
    for start in range(0, len(documents), 256):
        for encoding in tokenizer.encode_batch(documents[start : start + 256], add_special_tokens=False):
            pieces.append(np.asarray([*encoding.ids, end], dtype=np.uint16))
    partial = path.with_suffix(".partial.npy")
    np.save(partial, np.concatenate(pieces))
    os.replace(partial, path)


if __name__ == "__main__":
    main()
