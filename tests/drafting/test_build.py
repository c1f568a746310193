"""From a checkpoint folder to a drafter at work: what is refused at the door, and the same tokens whoever guesses behind it."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dspark.config import DrafterConfig, EngineConfig, ModelSource, SchedulingConfig, TargetConfig
from dspark.deepspec.recipe import DrafterShape
from dspark.deepspec.setup import draft_spec
from dspark.deepspec.trainees import save_drafter
from dspark.drafting.block_model import BlockModel
from dspark.drafting.build import LoadedDrafter, load_drafter
from dspark.drafting.eagle_model import EagleModel
from dspark.drafting.shared_weights import SharedWeights
from dspark.drafting.vocabulary import DraftVocabulary
from dspark.engine import Engine
from dspark.errors import ConfigError, FingerprintMismatch, ModelLoadError
from dspark.local import LocalBackend
from dspark.messages import ContextFeatures, DraftRequest, SessionOpen
from dspark.runtime.draft_spec import DraftSpec
from dspark.runtime.fingerprints import model_fingerprint
from dspark.runtime.hub import resolve_folder
from dspark.runtime.loading import load_tokenizer
from dspark.scheduling.calibration import CALIBRATION_FILE, Calibration, TemperatureFit
from dspark.types import SamplingParams, SessionId
from tests.drafting.feature_drafters import bits_of

DEMO = ModelSource(model="demo:target")
SHAPES: dict[str, DrafterShape] = {
    "block": DrafterShape(kind="dspark", num_layers=1, intermediate_size=32, markov_rank=8, block_size=4),
    "eagle": DrafterShape(kind="eagle3", intermediate_size=32, block_size=3),
    "reduced eagle": DrafterShape(kind="eagle3", intermediate_size=32, block_size=3, draft_vocab_size=500),
}
A = SessionId("a")
LENGTH = 20


def spec_of(shape: str, target: Path) -> DraftSpec:
    return draft_spec(SHAPES[shape], target, load_tokenizer(target))


def written(
    folder: Path, shape: str, target: ModelSource = DEMO, own: dict[str, torch.Tensor] | None = None, **changes: Any
) -> DrafterConfig:
    """A checkpoint with random weights for the target, and the configuration that names it."""
    target_folder = resolve_folder(target)
    spec = replace(spec_of(shape, target_folder), **changes)
    shared = SharedWeights.from_folder(target_folder, torch.float32)
    with torch.random.fork_rng():
        torch.manual_seed(5)
        model: BlockModel | EagleModel
        if spec.kind == "block":
            model = BlockModel(spec, shared)
            torch.nn.init.normal_(model.get_parameter("markov_head.markov_w2.weight"))
        else:
            model = EagleModel(spec, shared, _vocabulary(spec))
    save_drafter(folder, spec, model.own_tensors() | (own or {}), torch.float32)
    return DrafterConfig(kind=spec.kind, model=str(folder), max_depth=4, max_nodes=4)


def _vocabulary(spec: DraftSpec) -> DraftVocabulary:
    if spec.draft_vocab_size == spec.vocab_size:
        return DraftVocabulary.whole(spec.vocab_size)
    return DraftVocabulary.of_tokens(torch.arange(spec.draft_vocab_size) * 7, spec.vocab_size)


def drafted(loaded: LoadedDrafter, width: int) -> tuple[list[int], list[float]]:
    """One greedy draft on random features: tokens and scores."""
    generator = torch.Generator().manual_seed(1)
    features = torch.randn(LENGTH - 1, width, generator=generator).bfloat16()
    tokens = torch.randint(5, 60, (LENGTH,), generator=generator).tolist()
    loaded.drafter.open(SessionOpen(A, tuple(tokens), SamplingParams(temperature=0.0)))
    report = loaded.drafter.draft([DraftRequest(A, LENGTH, (), 3, 3, ContextFeatures(0, bits_of(features), True))])
    assert report.failures == ()
    tree = report.results[0].tree
    return tree.token_ids.tolist(), tree.scores.tolist()


@pytest.mark.parametrize("shape", SHAPES)
def test_a_drafters_card_tells_what_it_reads_and_that_ids_mean_what_the_target_says(shape: str, tmp_path: Path) -> None:
    config = written(tmp_path / "mine", shape)
    loaded = load_drafter(config, DEMO)
    target = resolve_folder(DEMO)
    assert loaded.card.tap_layers == spec_of(shape, target).tap_layers
    assert (loaded.card.name, loaded.card.model_fingerprint) == ("mine", model_fingerprint(tmp_path / "mine"))
    assert (loaded.card.vocab_size, loaded.card.max_length) == (4096, 2048)
    tokens, _ = drafted(loaded, 256)
    assert len(tokens) == 3
    assert shape != "reduced eagle" or all(token % 7 == 0 for token in tokens)


@pytest.mark.parametrize("shape", ["block", "eagle"])
def test_a_new_drafter_has_the_memory_of_its_cache_before_the_first_session_and_holds_none(shape: str, tmp_path: Path) -> None:
    drafter = load_drafter(written(tmp_path / "mine", shape), DEMO).drafter
    assert drafter._cache.num_bytes > 0  # type: ignore[attr-defined]
    assert drafter.num_sessions == 0
    assert drafter._pool.num_free == drafter._pool.num_blocks


@pytest.mark.parametrize("shape", ["block", "eagle"])
def test_a_drafter_of_another_target_is_refused(shape: str, tmp_path: Path) -> None:
    config = written(tmp_path / "mine", shape, target_fingerprint="0" * 64)
    with pytest.raises(FingerprintMismatch, match="mine was trained for another target"):
        load_drafter(config, DEMO)


def test_a_drafter_of_another_vocabulary_is_refused(tmp_path: Path, folder: Path) -> None:
    config = written(tmp_path / "mine", "block", ModelSource(model=str(folder)), tap_layers=(0,), target_fingerprint="")
    with pytest.raises(ModelLoadError, match="vocab_size is .* but the target .* has 4096 tokens"):
        load_drafter(config, DEMO)


@pytest.mark.parametrize(("shape", "named"), [("block", "eagle"), ("eagle", "block")])
def test_another_kind_than_configured_is_a_configuration_error(shape: str, named: str, tmp_path: Path) -> None:
    config = written(tmp_path / "mine", shape).model_copy(update={"kind": named})
    with pytest.raises(ConfigError, match=f"holds a drafter of kind '{shape}'") as caught:
        load_drafter(config, DEMO)
    assert caught.value.field == "drafter.kind"


def test_a_kind_without_weights_is_a_configuration_error() -> None:
    with pytest.raises(ConfigError, match="'lookup' has no weights") as caught:
        load_drafter(DrafterConfig(kind="lookup"), DEMO)
    assert caught.value.field == "drafter.kind"


@pytest.mark.parametrize("shape", ["block", "eagle"])
def test_the_checkpoints_own_embedding_and_head_are_used(shape: str, tmp_path: Path) -> None:
    """Of a target whose two are tied, so that using the one for the other would show."""
    plain = drafted(load_drafter(written(tmp_path / "plain", shape), DEMO), 256)
    embedding = torch.randn(4096, 256, generator=torch.Generator().manual_seed(3))
    embedded = drafted(load_drafter(written(tmp_path / "embedding", shape, own={"embed_tokens.weight": embedding}), DEMO), 256)
    assert embedded[1] != plain[1]
    headed = drafted(load_drafter(written(tmp_path / "head", shape, own={"lm_head.weight": embedding}), DEMO), 256)
    assert headed[0] != plain[0]
    assert headed[1] != embedded[1]


@pytest.mark.parametrize("shape", ["block", "eagle"])
def test_a_drafter_runs_in_bfloat16(shape: str, tmp_path: Path) -> None:
    config = written(tmp_path / "mine", shape)
    tokens, scores = drafted(load_drafter(config.model_copy(update={"dtype": "bfloat16"}), DEMO), 256)
    exact, _ = drafted(load_drafter(config.model_copy(update={"dtype": "float32"}), DEMO), 256)
    assert tokens[0] == exact[0]
    assert len(scores) == 3
    assert np.isfinite(scores).all()


def test_calibration_beside_the_checkpoint_is_applied(tmp_path: Path) -> None:
    config = written(tmp_path / "mine", "block")
    tokens, uncalibrated = drafted(load_drafter(config, DEMO), 256)
    scores = {}
    for temperature in (1.0, 10.0):
        fit = TemperatureFit(0.0, (temperature,), (True,))
        (tmp_path / "mine" / CALIBRATION_FILE).write_text(Calibration((fit,)).to_json())
        again, scores[temperature] = drafted(load_drafter(config, DEMO), 256)
        assert again == tokens
    logits = np.log(np.asarray(scores[1.0][:1]) / (1 - np.asarray(scores[1.0][:1])))
    np.testing.assert_allclose(scores[10.0][0], 1 / (1 + np.exp(-logits[0] / 10)), rtol=1e-4)
    assert scores[1.0] != uncalibrated
    (tmp_path / "mine" / CALIBRATION_FILE).write_text(json.dumps({"method": "guess"}))
    with pytest.raises(ModelLoadError, match="'guess'"):
        load_drafter(config, DEMO)


PROMPTS = ["def main(", "import os\n\n", "class Node:\n    def __init__"]
OPTIONS: dict[str, Any] = {"max_tokens": 12, "seed": 4, "ignore_eos": True}
ALWAYS = SchedulingConfig(mode="fixed")
"""Planned decoding soon leaves random drafts alone, the sooner the busier the machine."""


@pytest.fixture(scope="module")
def plain() -> Engine:
    """No drafter, rows that do not depend on their neighbours: equality is exact."""
    return Engine.from_config(EngineConfig(target=TargetConfig(num_threads=1, deterministic=True), drafter=DrafterConfig(kind="none")))


@pytest.fixture(scope="module")
def answers(plain: Engine) -> dict[float, list[tuple[int, ...]]]:
    return {t: [c.token_ids for c in plain.generate(PROMPTS, temperature=t, **OPTIONS)] for t in (0.0, 0.9)}


@pytest.mark.parametrize("shape", ["block", "reduced eagle"])
def test_random_drafts_change_no_token_alone_or_in_company(
    shape: str, tmp_path: Path, plain: Engine, answers: dict[float, list[tuple[int, ...]]]
) -> None:
    config = written(tmp_path / "mine", shape)
    assert isinstance(plain.backend, LocalBackend)
    own = EngineConfig(target=TargetConfig(num_threads=1, deterministic=True), drafter=config, scheduling=ALWAYS)
    engine = Engine(plain.backend.with_drafter(config), plain.codec, own)
    for temperature, expected in answers.items():
        together = engine.generate(PROMPTS, temperature=temperature, **OPTIONS)
        alone = engine.generate(PROMPTS[:1], temperature=temperature, **OPTIONS)
        assert [completion.token_ids for completion in (*together, *alone)] == [*expected, expected[0]]
        assert all(completion.usage.drafted_tokens >= 12 for completion in together), "features arrived, and drafts came back"


def test_an_engine_loads_target_and_drafter_by_their_configuration(tmp_path: Path, answers: dict[float, list[tuple[int, ...]]]) -> None:
    target, drafter = TargetConfig(num_threads=1, deterministic=True), written(tmp_path / "mine", "block")
    config = EngineConfig(target=target, drafter=drafter, scheduling=ALWAYS)
    completions = Engine.from_config(config).generate(PROMPTS[:2], temperature=0.9, **OPTIONS)
    assert [completion.token_ids for completion in completions] == answers[0.9][:2]
    assert all(completion.usage.drafted_tokens >= 12 for completion in completions)
