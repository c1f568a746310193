"""Many answers of the demo target at once, as its drafter learns from them."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from dspark.config import ModelSource
from dspark.deepspec.data import SampleSet
from dspark.demo.own_answers import SAMPLE_TOKENS, TEMPERATURES, AnswerBatch, answer_batches, lines
from dspark.runtime.hub import resolve_folder

NUM_SAMPLES = 3


@pytest.fixture(scope="module")
def stream() -> np.ndarray[Any, Any]:
    return np.random.default_rng(0).integers(5, 4000, 2000).astype(np.uint16)


@pytest.fixture(scope="module")
def batch(stream: np.ndarray[Any, Any]) -> AnswerBatch:
    return next(answer_batches(stream, "cpu", NUM_SAMPLES, seed=1))


def test_the_greedy_samples_are_what_the_target_generates(batch: AnswerBatch) -> None:
    row, size = TEMPERATURES.index(0.0), batch.prompt_tokens
    load: Any = AutoModelForCausalLM.from_pretrained
    model = load(resolve_folder(ModelSource(model="demo:target")), dtype=torch.float32).eval()
    prompt = torch.from_numpy(batch.token_ids[row : row + 1, :size].astype(np.int64))
    output = model.generate(
        prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=24, do_sample=False, eos_token_id=-1, pad_token_id=0
    )
    assert output[0, size:].tolist() == batch.token_ids[row, size : size + 24].tolist()


def test_the_same_seed_gives_the_same_samples(stream: np.ndarray[Any, Any], batch: AnswerBatch) -> None:
    again = next(answer_batches(stream, "cpu", NUM_SAMPLES, seed=1))
    other = next(answer_batches(stream, "cpu", NUM_SAMPLES, seed=2))
    assert np.array_equal(again.token_ids, batch.token_ids)
    assert not np.array_equal(other.token_ids, batch.token_ids)


def test_training_reads_what_was_written(batch: AnswerBatch, tmp_path: Path) -> None:
    path = tmp_path / "own.jsonl"
    path.write_bytes(b"".join(lines([batch])))
    samples = SampleSet.open([path], max_length=SAMPLE_TOKENS, tokenizer_fingerprint=None)
    assert len(samples) == NUM_SAMPLES
    assert samples[0].prompt_tokens == batch.prompt_tokens
    assert samples[0].token_ids.tolist() == batch.token_ids[0].tolist()
