"""Many answers of the demo target to beginnings of its own training text, in large batches:
`python -m dspark.demo.own_answers --out build/demo/own.jsonl --device cuda --minutes 1`.

What `deepspec prepare` does through the Engine, for any model and with the service's own rules, this does for the demo corpus as fast as a
GPU allows: one batch is prompts of one length, sampled together by plain decoding, the end of a text ignored as the benchmarks do. An H100
wrote 80,000 samples in a minute. The samples were read by the shipped drafter (docs/examples/shipped_drafter_1.yaml).

Symbols: B samples of a batch, S tokens so far, V vocabulary.
"""

import argparse
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import torch
from numpy.typing import NDArray
from transformers import AutoModelForCausalLM, DynamicCache

from dspark.config import ModelSource
from dspark.runtime.hub import resolve_folder

SAMPLE_TOKENS = 352
"""Prompt and answer together."""
PROMPT_TOKENS = (144, 96, 176, 48, 128, 160, 112, 80)
"""Of the batches in turn: benchmarks ask with about 150 tokens."""
TEMPERATURES = (0.0, 1.0, 0.7, 0.0, 1.0)
"""Of the samples in turn. Greedy text is where a young drafter is worst."""


@dataclass(frozen=True, slots=True, eq=False)
class AnswerBatch:
    """Samples of one prompt length."""

    prompt_tokens: int
    token_ids: NDArray[np.int32]  # [B, SAMPLE_TOKENS]


def main() -> None:
    """Parse the command line and write the samples."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stream", type=Path, default=Path("build/demo/train.npy"), help="tokens that prompts are cut from")
    parser.add_argument("--out", type=Path, default=Path("build/demo/own.jsonl"))
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--batch-size", type=int, default=3072)
    parser.add_argument("--minutes", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=7)
    arguments = parser.parse_args()
    until_s = time.monotonic() + 60 * arguments.minutes
    made = []
    for batch in answer_batches(np.load(arguments.stream, mmap_mode="r"), arguments.device, arguments.batch_size, arguments.seed):
        made.append(batch)
        if time.monotonic() > until_s:
            break
    partial = arguments.out.with_suffix(".partial")
    partial.write_bytes(b"".join(lines(made)))
    partial.replace(arguments.out)
    print(f"{arguments.out}: {sum(len(batch.token_ids) for batch in made)} samples of {SAMPLE_TOKENS} tokens")


def answer_batches(stream: NDArray[Any], device: str, batch_size: int, seed: int) -> Iterator[AnswerBatch]:
    """Batches without end. The same arguments on the same device give the same samples."""
    load: Any = AutoModelForCausalLM.from_pretrained
    dtype = torch.float32 if device == "cpu" else torch.bfloat16
    model = load(resolve_folder(ModelSource(model="demo:target")), dtype=dtype, local_files_only=True).to(device).eval()
    draw, noise = np.random.default_rng(seed), torch.Generator(device).manual_seed(seed)
    for number in count():
        size = PROMPT_TOKENS[number % len(PROMPT_TOKENS)]
        starts = draw.integers(0, len(stream) - size, batch_size)
        prompts = torch.from_numpy(np.stack([stream[start : start + size] for start in starts]).astype(np.int64)).to(device)
        temperatures = torch.tensor([TEMPERATURES[(number + row) % len(TEMPERATURES)] for row in range(batch_size)], device=device)
        yield AnswerBatch(size, continued(model, prompts, temperatures, noise).cpu().numpy().astype(np.int32))


@torch.inference_mode()
def continued(model: Any, prompts: torch.Tensor, temperatures: torch.Tensor, noise: torch.Generator) -> torch.Tensor:
    """[B, SAMPLE_TOKENS] prompts [B, S] with their continuations, each at its own temperature [B]."""
    cache, last, pieces = DynamicCache(), prompts, [prompts]
    for _ in range(SAMPLE_TOKENS - prompts.shape[1]):
        logits = model(input_ids=last, past_key_values=cache, use_cache=True, logits_to_keep=1).logits[:, -1].float()  # [B, V]
        gumbel = -torch.empty_like(logits).exponential_(generator=noise).log()
        last = (logits + temperatures.unsqueeze(-1) * gumbel).argmax(-1, keepdim=True)
        pieces.append(last)
    return torch.cat(pieces, dim=1)


def lines(batches: list[AnswerBatch]) -> Iterator[bytes]:
    """JSONL that `deepspec train` reads."""
    for number, batch in enumerate(batches):
        for row, ids in enumerate(batch.token_ids):
            yield orjson.dumps({"id": f"{number}.{row}", "token_ids": ids.tolist(), "prompt_tokens": batch.prompt_tokens}) + b"\n"


if __name__ == "__main__":
    main()
