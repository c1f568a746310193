"""The training loop of the shipped pair, on a model of a few thousand weights: resumable, refusing what is not its own."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from dspark.demo import pretrain
from dspark.demo.pretrain import Recipe, TrainingText, train

TINY = {
    "vocab_size": 64,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "tie_word_embeddings": True,
    "bos_token_id": None,
    "eos_token_id": 0,
    "pad_token_id": None,
}
RECIPE = Recipe(TINY, num_steps=8, batch_size=2, sequence_length=16, warmup_steps=2)


@pytest.fixture
def text() -> TrainingText:
    stream = np.tile(np.arange(64, dtype=np.uint16), 200)
    return TrainingText(stream, stream[: 64 * 20])


def weights(model: torch.nn.Module) -> list[torch.Tensor]:
    return [parameter.detach().clone() for parameter in model.parameters()]


def held_out_losses(folder: Path) -> list[float]:
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [record["held_out_loss"] for record in records if "held_out_loss" in record]


def test_a_run_that_was_killed_goes_on_to_the_same_weights(text: TrainingText, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = weights(train(RECIPE, text, tmp_path / "whole"))
    original, calls = pretrain._train_step, []

    def killed_at_the_sixth(*arguments: object) -> float:
        calls.append(1)
        if len(calls) == 6:
            raise KeyboardInterrupt
        return original(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(pretrain, "_train_step", killed_at_the_sixth)
    with pytest.raises(KeyboardInterrupt):
        train(RECIPE, text, tmp_path / "killed", save_every_s=0.0)
    monkeypatch.setattr(pretrain, "_train_step", original)
    resumed = weights(train(RECIPE, text, tmp_path / "killed", save_every_s=0.0))
    assert all(torch.equal(a, b) for a, b in zip(whole, resumed, strict=True))
    assert held_out_losses(tmp_path / "killed")[-1] == held_out_losses(tmp_path / "whole")[-1]


def test_training_learns(text: TrainingText, tmp_path: Path) -> None:
    train(replace(RECIPE, num_steps=60), text, tmp_path, save_every_s=0.0)
    losses = held_out_losses(tmp_path)
    assert losses[-1] < losses[0] - 0.5


def test_a_checkpoint_of_another_recipe_is_refused(text: TrainingText, tmp_path: Path) -> None:
    train(RECIPE, text, tmp_path)
    with pytest.raises(ValueError, match="another recipe"):
        train(replace(RECIPE, seed=1), text, tmp_path)
