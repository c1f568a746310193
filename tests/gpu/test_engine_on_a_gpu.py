"""The promise where it was not developed: on a CUDA device, drafts change no token, features and training work, times are those of work.

    python -m pytest -m gpu tests/gpu
"""

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dspark.bench.lossless import GapMeter, compare
from dspark.bench.prompts import load_prompts
from dspark.bench.systems import PLAIN, EngineSystem, Workload, engine_systems
from dspark.config import DrafterConfig, EngineConfig, LimitsConfig, ProfileConfig, TargetConfig
from dspark.deepspec.job import JobOptions
from dspark.local import LocalBackend
from dspark.messages import ContextFeatures, FeatureSpec
from dspark.noise import NoiseKey, gumbel_noise, random_words
from dspark.runtime import packed
from dspark.runtime.grouping import ON_ACCELERATOR
from dspark.runtime.packed import EarlierRows, Segment, pack
from dspark.runtime.projection import load_projection
from dspark.sampling import process_logits
from dspark.types import SamplingParams
from dspark.verifying.profile import measure_curve
from dspark.verifying.target_model import LoadedTarget, load_target
from tests.deepspec.tiny_training import tiny_recipe, trainer_of, write_samples, write_target
from tests.verifying.rounds import Rounds
from tests.warm_drafters import write_drafter

DEVICE = "cuda"
CPU = torch.device("cpu")

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]

NUM_PROMPTS, MAX_TOKENS, SEED = 4, 24, 11
LIMITS = LimitsConfig(draft_timeout_s=60.0)  # the first drafts load kernels, which must not count as late


def target_config(dtype: str = "float32", *, deterministic: bool = False) -> TargetConfig:
    return TargetConfig.model_validate(
        {"device": DEVICE, "dtype": dtype, "deterministic": deterministic, "profile": ProfileConfig(budget_s=1.0)}
    )


def drafters(names: str, folder: Path, dtype: str = "float32") -> dict[str, DrafterConfig]:
    """Trees of up to 12 candidates. `joined` is the block drafter and lookup together; the EAGLE drafter is not trained."""
    fields: dict[str, dict[str, Any]] = {name: {"kind": name} for name in names.split()}
    fields |= {"joined": {"kind": "block", "with_lookup": True}} if "joined" in fields else {}
    fields |= {"eagle": {"kind": "eagle", "model": str(write_drafter(folder / "eagle", "eagle3"))}} if "eagle" in fields else {}
    common = {"device": DEVICE, "dtype": dtype, "max_depth": 5, "max_nodes": 12, "max_width": 3}
    return {name: DrafterConfig.model_validate(own | common) for name, own in fields.items()}


def answers(system: EngineSystem, prompts: list[list[int]], temperature: float) -> tuple[list[list[int]], int]:
    """(tokens of each prompt, candidates accepted)."""
    completions = system.run(prompts, Workload(MAX_TOKENS, temperature, SEED))
    return [list(one.token_ids) for one in completions], sum(one.usage.accepted_tokens for one in completions)


def encoded(system: EngineSystem) -> list[list[int]]:
    return [system.engine.encode(text) for text in load_prompts(None, NUM_PROMPTS)]


@pytest.fixture(scope="module")
def systems(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, EngineSystem]]:
    listed = drafters("block joined language_model lookup eagle", tmp_path_factory.mktemp("drafters"))
    made = engine_systems(EngineConfig(target=target_config(), drafters=listed, limits=LIMITS))
    yield made
    for system in made.values():
        system.close()


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_every_drafter_gives_the_tokens_of_plain_decoding(systems: dict[str, EngineSystem], temperature: float) -> None:
    plain = systems[PLAIN]
    assert isinstance(plain.engine.backend, LocalBackend)
    meter = GapMeter(plain.engine.backend.target.packed_model)
    prompts = encoded(plain)
    reference = [answers(plain, [prompt], temperature)[0][0] for prompt in prompts]  # one by one: also the batch is another
    sampling = SamplingParams(temperature=temperature, seed=SEED)
    for name, system in systems.items():
        tokens, accepted = answers(system, prompts, temperature)
        outcome = compare(prompts, reference, tokens, sampling, meter)
        assert not outcome.wrong, (name, outcome.line(), outcome.wrong)
        assert outcome.num_equal >= NUM_PROMPTS - 1, (name, "near-ties are rare", outcome.line())
        if name in ("block", "joined", "language_model"):
            assert accepted > 5 * NUM_PROMPTS, name


def test_the_gpu_says_nearly_always_what_the_cpu_says(systems: dict[str, EngineSystem]) -> None:
    on_cpu = engine_systems(EngineConfig(target=TargetConfig(profile=ProfileConfig(enabled=False)), drafter=DrafterConfig(kind="none")))
    for temperature in (0.0, 0.8):
        prompts = encoded(on_cpu[PLAIN])
        here, there = answers(systems[PLAIN], prompts, temperature)[0], answers(on_cpu[PLAIN], prompts, temperature)[0]
        assert sum(a == b for a, b in zip(here, there, strict=True)) >= NUM_PROMPTS - 1
    on_cpu[PLAIN].close()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_in_deterministic_mode_a_row_has_the_same_bits_in_every_batch(dtype: str) -> None:
    model = load_target(target_config(dtype, deterministic=True)).packed_model
    draw = np.random.default_rng(3)
    tokens = draw.integers(0, model.vocab_size, 75).tolist()
    alone = model.forward([rows_of(tokens, 0, 75, 0)])
    for edges in ((0, 1, 75), (0, 8, 41, 75), (0, 64, 65, 75)):
        pieces = [model.forward([rows_of(tokens, a, b, 100)]) for a, b in itertools.pairwise(edges)]
        assert torch.equal(torch.cat(pieces), alone), edges
    others = [rows_of(draw.integers(0, model.vocab_size, size).tolist(), 0, size, 200 + 100 * i) for i, size in enumerate((3, 90, 17))]
    together = model.forward([others[0], rows_of(tokens, 0, 75, 0), *others[1:]])
    assert torch.equal(together[3:78], alone)


def rows_of(tokens: list[int], start: int, stop: int, first_slot: int) -> Segment:
    """Rows start..stop-1 of a text whose slots are neighbours; all their logits are wanted."""
    slots = list(range(first_slot, first_slot + stop))
    return Segment(tokens[start:stop], list(range(start, stop)), None, slots, start, stop - start)


def test_bfloat16_drafts_are_taken_and_in_deterministic_mode_no_token_differs(tmp_path: Path) -> None:
    listed = drafters("block lookup", tmp_path, "bfloat16")
    systems = engine_systems(EngineConfig(target=target_config("bfloat16", deterministic=True), drafters=listed, limits=LIMITS))
    prompts = encoded(systems[PLAIN])[:2]
    for temperature in (0.0, 0.8):
        reference = [answers(systems[PLAIN], [prompt], temperature)[0][0] for prompt in prompts]
        for name, system in systems.items():
            tokens, accepted = answers(system, prompts, temperature)
            assert tokens == reference, name
            assert accepted > 0 or name != "block"
    for system in systems.values():
        system.close()


def test_bfloat16_decodes_without_deterministic_mode(tmp_path: Path) -> None:
    listed = drafters("block", tmp_path, "bfloat16")
    systems = engine_systems(EngineConfig(target=target_config("bfloat16"), drafters=listed, limits=LIMITS))
    tokens, accepted = answers(systems["block"], encoded(systems[PLAIN]), 0.8)
    for system in systems.values():
        system.close()
    assert [len(one) for one in tokens] == [MAX_TOKENS] * NUM_PROMPTS
    assert accepted > 5 * NUM_PROMPTS


def test_features_are_projected_on_the_gpu_as_on_the_cpu() -> None:
    drafter = DrafterConfig()
    projection = load_projection(drafter, CPU)
    spec = FeatureSpec(projection.fingerprint, projection.tap_layers)
    here = features_of(load_target(target_config(), (drafter,)), spec)
    there = features_of(load_target(TargetConfig(), (drafter,)), spec)
    for ours, theirs in zip(here, there, strict=True):
        assert ours.projected
        torch.testing.assert_close(floats(ours), floats(theirs), rtol=2e-2, atol=2e-2)


def features_of(target: LoadedTarget, spec: FeatureSpec) -> list[ContextFeatures]:
    """Of the first round of two prompts, one of them in chunks beside the other."""
    draw = np.random.default_rng(5)
    prompts = [draw.integers(0, target.card.vocab_size, size).tolist() for size in (700, 9)]
    rounds = Rounds(target.verifier, prompts, specs=spec)
    rounds.run(2)
    found = [features[0] for features in rounds.features]
    assert [one is not None and one.stop for one in found] == [700, 9]
    return [one for one in found if one is not None]


def floats(features: ContextFeatures) -> torch.Tensor:
    return torch.from_numpy(features.values.copy()).view(torch.bfloat16).float()


def test_a_curve_of_the_gpu_is_one_of_work_and_not_of_telling() -> None:
    """A forward of this model takes a GPU longer than a tenth of a millisecond, and many rows longer than few."""
    target = load_target(target_config("float32", deterministic=False))
    curve = measure_curve(target.packed_model, max_rows=512, max_length=target.card.max_length, budget_s=2.0)
    assert curve is not None
    times = curve.step_ms_of([1, 512], 512.0)
    assert 0.1 < times[0] <= times[1] < 1000.0


def test_a_step_of_prompt_rows_alone_is_waited_for() -> None:
    """Nothing of it is read back, so that only waiting for the device gives its time."""
    target = load_target(target_config())
    rounds = Rounds(target.verifier, [[5] * 900])
    rounds.submit(1)
    rounds.step()
    assert torch.cuda.current_stream().query()
    assert rounds.reports[0].batch_rows == 512


@pytest.mark.parametrize("kind", ["dspark", "eagle3", "language_model"])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_training_lowers_the_loss(tmp_path: Path, kind: str, precision: str) -> None:
    target, samples = write_target(tmp_path / "target"), write_samples(tmp_path / "samples.jsonl")
    recipe = tiny_recipe(target, samples, kind, num_steps=30, precision=precision, learning_rate=5e-3, micro_batch_size=2)
    trainer = trainer_of(recipe, JobOptions(device=DEVICE))
    losses = [trainer.train_step().loss for _ in range(30)]
    assert np.isfinite(losses).all()
    assert np.mean(losses[-5:]) < 0.97 * np.mean(losses[:5])
    assert len(trainer.held_out()) == trainer.trainee.block_size
    trainer.restore(trainer.step, {name: tensor.cpu() for name, tensor in trainer.tensors().items()})
    assert np.isfinite(trainer.train_step().loss)


def test_noise_has_the_same_bits_on_both_and_nearly_the_same_numbers() -> None:
    keys = [NoiseKey(seed, choice, position) for seed, choice, position in ((0, 0, 0), (2**64 - 1, 3, 17), (2**63, 0, 10**6))]
    assert random_words(keys, 5000, torch.device(DEVICE)).tolist() == random_words(keys, 5000, CPU).tolist()
    here, there = gumbel_noise(keys, 9999, torch.device(DEVICE)).cpu(), gumbel_noise(keys, 9999, CPU)
    torch.testing.assert_close(here, there, rtol=1e-5, atol=1e-5)


def test_sampling_filters_keep_the_same_tokens_on_both() -> None:
    logits = 4 * torch.randn(5, 1000, generator=torch.Generator().manual_seed(2))
    filters = ({}, {"top_k": 20}, {"top_p": 0.7}, {"min_p": 0.05}, {"top_k": 50, "top_p": 0.9})
    params = [SamplingParams(temperature=0.7, seed=1, **one) for one in filters]
    here, there = process_logits(logits.to(DEVICE), params).cpu(), process_logits(logits, params)
    assert torch.equal(torch.isfinite(here), torch.isfinite(there))
    torch.testing.assert_close(here, there)


def test_a_batch_is_laid_out_alike_on_both(monkeypatch: pytest.MonkeyPatch) -> None:
    """But for which segments attend together: that goes by what a call costs on each."""
    monkeypatch.setattr(packed, "call_cost", lambda _: ON_ACCELERATOR)
    grown = Segment([7, 8], [4, 4], None, [9, 3, 4, 5, 6, 7, 8], 4, 2, earlier=EarlierRows([4], [[0], [0]]))
    segments = [rows_of([1, 2, 3, 4], 2, 4, 30), grown, rows_of(list(range(40)), 0, 40, 50)]
    here, there = pack(segments, torch.device(DEVICE)), pack(segments, CPU)
    for name in ("input_ids", "position_ids", "write_slots", "logit_rows"):
        assert torch.equal(getattr(here, name).cpu(), getattr(there, name)), name
    for ours, theirs in zip(here.groups, there.groups, strict=True):
        assert type(ours.slots) is type(theirs.slots)
        assert ours.slots == theirs.slots if isinstance(ours.slots, slice) else torch.equal(ours.slots.cpu(), theirs.slots)
        assert ours.places is not None
        assert theirs.places is not None
        assert torch.equal(ours.places.gather.cpu(), theirs.places.gather)
        assert torch.equal(ours.places.output_rows.cpu(), theirs.places.output_rows)
        assert torch.equal(ours.places.batch_rows.cpu(), theirs.places.batch_rows)
