"""Every kind of drafter: reads nothing that it will not have when serving, learns, and is served as it was trained."""

import asyncio
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dspark.config import DrafterConfig, EngineConfig, SchedulingConfig, TargetConfig
from dspark.deepspec.batches import AnchoredSample, Batch, collate
from dspark.deepspec.data import Sample
from dspark.deepspec.features import TargetView
from dspark.deepspec.job import SERVED_KINDS
from dspark.deepspec.train import Trainer
from dspark.drafting.build import load_drafter
from dspark.drafting.growth import Draft
from dspark.engine import Engine
from dspark.local import LocalBackend
from dspark.runtime.loading import load_tokenizer
from dspark.serving.text_codec import TextCodec
from dspark.types import SessionId
from dspark.verifying.target_model import load_target
from tests.deepspec.tiny_training import tiny_recipe, trainer_of, write_samples, write_target

REDUCED = 24
"""Of the 30 tokens that the samples use."""
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "vanilla": ("dspark", {"head": "vanilla"}),
    "gated": ("dspark", {"head": "gated"}),
    "rnn": ("dspark", {"head": "rnn"}),
    "dflash": ("dflash", {}),
    "eagle3": ("eagle3", {"draft_vocab_size": REDUCED}),
    "language_model": ("language_model", {}),
}
CASES = [(name, "qwen3") for name in KINDS] + [(name, "llama") for name in ("vanilla", "eagle3")] + [("vanilla", "gemma3")]
STEPS = 40


@pytest.fixture(scope="module")
def targets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {family: write_target(tmp_path_factory.mktemp(family), family) for family in ("qwen3", "llama", "gemma3")}


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_samples(tmp_path_factory.mktemp("samples") / "samples.jsonl", 6)


def trainer(name: str, target: Path, samples: Path) -> Trainer:
    kind, shape = KINDS[name]
    schedule = {"num_steps": STEPS, "learning_rate": 1e-2, "num_anchors": 16, "held_out_fraction": 0.0}
    return trainer_of(tiny_recipe(target, samples, kind, {"start": "target"} | shape, **schedule))


def batch_of(ids: list[int], anchors: list[int], block_size: int) -> Batch:
    sample = AnchoredSample(Sample("s", np.asarray(ids, np.int32), 1), np.asarray(anchors))
    return collate([sample], len(anchors), block_size, "cpu")


@torch.no_grad()
def guesses(trainer: Trainer, ids: list[int], anchors: list[int], change_taps: slice | None = None) -> torch.Tensor:
    """[A, K, Vd] of blocks at `anchors`, with the features of some positions replaced. Features are those of the text given first."""
    trainee = trainer.trainee.eval()
    batch = batch_of(ids, anchors, trainee.block_size)
    base = torch.tensor([TEXT + [0] * (batch.token_ids.shape[1] - len(TEXT))])
    view = trainer._online.view(base, torch.tensor([len(TEXT)]))
    taps = view.taps.clone()
    if change_taps is not None:
        taps[:, change_taps] += 3.0
    logits, _ = trainee.guesses(TargetView(taps, view.hidden), batch)
    return logits[0]


TEXT = [10 + (7 * place) % 30 for place in range(24)]
EARLY, LATE = 5, 14


def changed(places: range) -> list[int]:
    return [token + 1 if place in places else token for place, token in enumerate(TEXT)]


@pytest.mark.parametrize("name", KINDS)
def test_a_block_sees_nothing_from_its_anchor_on(name: str, targets: dict[str, Path], samples: Path) -> None:
    trained = trainer(name, targets["qwen3"], samples)
    after = EARLY + trained.trainee.block_size  # its own tokens before each position are what it is told
    before = guesses(trained, TEXT, [EARLY, LATE])
    leaked = guesses(trained, changed(range(after, len(TEXT))), [EARLY, LATE], slice(EARLY, None))
    assert torch.allclose(before[0], leaked[0], atol=1e-5)
    assert not torch.allclose(before[1], leaked[1], atol=1e-2)


@pytest.mark.parametrize("name", ["vanilla", "gated", "rnn", "dflash"])
def test_a_block_sees_no_token_of_another_block(name: str, targets: dict[str, Path], samples: Path) -> None:
    trained = trainer(name, targets["qwen3"], samples)
    before = guesses(trained, TEXT, [EARLY, LATE])
    other = guesses(trained, changed(range(EARLY, EARLY + 3)), [EARLY, LATE])
    assert torch.allclose(before[1], other[1], atol=1e-5)
    assert not torch.allclose(before[0], other[0], atol=1e-3)
    assert torch.allclose(before[1], guesses(trained, TEXT, [LATE])[0], atol=1e-5)


@pytest.mark.parametrize("name", [name for name in KINDS if name != "language_model"])
def test_a_block_sees_the_features_right_before_its_anchor(name: str, targets: dict[str, Path], samples: Path) -> None:
    trained = trainer(name, targets["qwen3"], samples)
    before, moved = (guesses(trained, TEXT, [EARLY, LATE], taps) for taps in (None, slice(LATE - 1, LATE)))
    assert torch.allclose(before[0], moved[0], atol=1e-5)
    assert not torch.allclose(before[1], moved[1], atol=1e-2)


def test_a_later_position_knows_the_token_before_it_only_through_a_sequential_head(targets: dict[str, Path], samples: Path) -> None:
    for name in ("vanilla", "gated", "rnn", "dflash"):
        trained = trainer(name, targets["qwen3"], samples)
        for _ in range(3):
            trained.train_step()  # heads begin with no say
        before, moved = guesses(trained, TEXT, [EARLY]), guesses(trained, changed(range(EARLY + 1, EARLY + 2)), [EARLY])
        assert torch.allclose(before[0, 0], moved[0, 0], atol=1e-5), name
        assert torch.allclose(before[0, 1], moved[0, 1], atol=1e-5) == (name == "dflash"), name


def served(config: DrafterConfig, target: Path, prompt: list[int]) -> tuple[list[int], list[tuple[int, Draft]]]:
    """The whole text, and (base length, draft) of each round of a real Engine at temperature 1."""
    drafts: list[tuple[int, Draft]] = []

    def listen(session: SessionId, base_length: int, draft: Draft) -> None:
        drafts.append((base_length, draft))

    config = config.model_copy(update={"max_depth": 4, "max_width": 1})
    own = TargetConfig(model=str(target), num_threads=1)
    loaded = load_drafter(config, own)
    loaded.drafter.listener = listen
    backend = LocalBackend(load_target(own).with_own_cache((config,)), {"default": loaded})
    settings = EngineConfig(target=own, drafter=config, scheduling=SchedulingConfig(mode="fixed"))
    engine = Engine(backend, TextCodec(load_tokenizer(target)), settings)
    (request,) = engine.requests([prompt], max_tokens=24, temperature=1.0, seed=1, ignore_eos=True)

    async def run() -> list[int]:
        async with engine:
            return list((await engine.complete(request)).token_ids)

    return prompt + asyncio.run(run()), drafts


@torch.no_grad()
def differences(trainer: Trainer, text: list[int], drafts: list[tuple[int, Draft]], shift: int) -> float:
    """Mean distance of log draft_probs of the drafted tokens, served and teacher-forced; `shift` 0 is where they belong."""
    found, trainee = [], trainer.trainee.eval()
    for base_length, draft in drafts:
        drafted = draft.tree.token_ids.tolist()
        ids = text[:base_length] + drafted
        batch = batch_of(ids, [base_length - 1 - shift], trainee.block_size)
        logits, _ = trainee.guesses(trainer._online.view(batch.token_ids, batch.lengths), batch)
        log_probs = trainee.vocabulary.to_target_logits(logits[0, 0]).log_softmax(-1)
        for k, (token, served_log_prob) in enumerate(zip(drafted, draft.signals.log_draft_probs.tolist(), strict=True)):
            if k < trainee.block_size:
                found.append(abs(float(log_probs[k, token]) - served_log_prob))
    assert len(found) > 5
    return float(np.mean(found))


@pytest.mark.parametrize(("name", "family"), CASES)
def test_it_learns_is_saved_and_is_served_as_it_was_trained(
    name: str, family: str, targets: dict[str, Path], samples: Path, tmp_path: Path
) -> None:
    trained = trainer(name, targets[family], samples)
    losses = [trained.train_step().loss for _ in range(STEPS)]
    assert np.mean(losses[-5:]) < 0.92 * np.mean(losses[:3])
    trained.trainee.save(tmp_path / "drafter", torch.bfloat16)
    config = DrafterConfig.model_validate({"kind": SERVED_KINDS[KINDS[name][0]], "model": str(tmp_path / "drafter"), "num_threads": 1})
    text, drafts = served(config, targets[family], TEXT[:8])
    aligned, shifted = (differences(trained, text, drafts, shift) for shift in (0, 1))
    assert aligned < 0.02  # weights and features travel as bfloat16
    assert shifted > 10 * aligned
