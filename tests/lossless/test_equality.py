"""The promise itself, on the shipped pair: the same tokens whatever drafts, however many are in flight, and the tokens of `generate`.

Equality is DESIGN's: equal, or first different where the two best noised scores lie within NEAR_TIE; exact in deterministic mode.
"""

from collections.abc import Iterator
from pathlib import Path

import pytest

from dspark.bench.drafters import listed_drafters
from dspark.bench.lossless import GapMeter, compare
from dspark.bench.prompts import load_prompts
from dspark.bench.systems import PLAIN, EngineSystem, TransformersSystem, Workload, engine_systems
from dspark.config import DrafterConfig, EngineConfig, SchedulingConfig, TargetConfig
from dspark.engine import Engine
from dspark.fakes import LyingDrafter
from dspark.local import LocalBackend
from dspark.types import SamplingParams
from tests.warm_drafters import TrainedKind, write_drafter

KINDS: dict[TrainedKind, str] = {"dspark": "block", "dflash": "block", "eagle3": "eagle"}
LIAR = DrafterConfig(kind="lookup", max_depth=4, max_nodes=8)
SEED = 11
LEAST_ACCEPTED = {"lookup": 1, "language_model": 20, "dspark": 5, "dflash": 5, "eagle3": 1, "lying": 0}
NUM_PROMPTS = 6
MAX_TOKENS = 24
Answers = list[list[int]]


def _systems(folder: Path, deterministic: bool) -> dict[str, EngineSystem]:
    """Every kind of drafter; those that read hidden states start from the target's own layers and are not trained."""
    listed = ["lookup", "language_model"]
    for kind, name in KINDS.items():
        listed.append(f"{kind}={name}:{write_drafter(folder / kind, kind)}")
    config = EngineConfig(
        target=TargetConfig(num_threads=1, deterministic=deterministic), drafters=listed_drafters(",".join(listed), depth=4)
    )
    systems = engine_systems(config)
    for name in [name for name in systems if name.endswith(" planned") and name != "dspark planned"]:
        systems.pop(name).close()  # test_selection.py has the planner's part; one is enough to see it beside the others
    plain = systems[PLAIN].engine
    assert isinstance(plain.backend, LocalBackend)
    liar = LyingDrafter(vocab_size=plain.card.vocab_size, seed=SEED)
    backend = plain.backend.with_drafter(LIAR, liar)
    fixed = EngineConfig(target=config.target, drafter=LIAR, scheduling=SchedulingConfig(mode="fixed"))  # planned soon leaves a liar alone
    systems["lying"] = EngineSystem("lying", Engine(backend, plain.codec, fixed))
    return systems


@pytest.fixture(scope="module", params=[False, True], ids=["default", "deterministic"])
def systems(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[dict[str, EngineSystem], bool]]:
    made = _systems(tmp_path_factory.mktemp("drafters"), request.param)
    yield made, request.param
    for system in made.values():
        system.close()


def _answers(system: EngineSystem, prompts: list[list[int]], workload: Workload, batch: int) -> Answers:
    groups = [prompts[i : i + batch] for i in range(0, len(prompts), batch)]
    return [list(answer.token_ids) for group in groups for answer in system.run(group, workload)]


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_every_drafter_and_batch_size_gives_the_tokens_of_plain_decoding(
    systems: tuple[dict[str, EngineSystem], bool], temperature: float
) -> None:
    made, deterministic = systems
    plain = made[PLAIN]
    assert isinstance(plain.engine.backend, LocalBackend)
    meter = None if deterministic else GapMeter(plain.engine.backend.target.packed_model)
    count, tokens = (NUM_PROMPTS // 2, MAX_TOKENS // 2) if deterministic else (NUM_PROMPTS, MAX_TOKENS)  # that mode is slow
    prompts = [plain.engine.encode(text) for text in load_prompts(None, count)]
    workload = Workload(tokens, temperature, SEED)
    reference = _answers(plain, prompts, workload, batch=1)
    sampling = SamplingParams(temperature=temperature, seed=SEED)
    for name, system in made.items():
        for batch in (1, count):
            outcome = compare(prompts, reference, _answers(system, prompts, workload, batch), sampling, meter)
            assert not outcome.wrong, (name, batch, outcome.line(), outcome.wrong)
            assert outcome.num_equal >= count - 1, (name, batch, "near-ties are rare", outcome.line())


def test_the_drafters_really_were_at_work(systems: tuple[dict[str, EngineSystem], bool]) -> None:
    """Equality would be cheap if nobody drafted."""
    made, deterministic = systems
    share = 2 if deterministic else 1  # that mode is slow
    prompts = [made[PLAIN].engine.encode(text) for text in load_prompts(None, NUM_PROMPTS // share)]
    for name, least_accepted in LEAST_ACCEPTED.items():
        usages = [answer.usage for answer in made[name].run(prompts, Workload(MAX_TOKENS, 0.8, SEED))]
        assert sum(usage.selected_tokens for usage in usages) > 50 // share, name
        assert sum(usage.accepted_tokens for usage in usages) >= least_accepted // share, name


def test_greedy_output_is_that_of_generate() -> None:
    config = EngineConfig(target=TargetConfig(num_threads=1))
    systems = engine_systems(config)
    made = systems["default"]
    prompts = [made.engine.encode(text) for text in load_prompts(None, NUM_PROMPTS)]
    reference = TransformersSystem("generate", config).run(prompts, Workload(MAX_TOKENS, 0.0))
    assert isinstance(made.engine.backend, LocalBackend)
    meter = GapMeter(made.engine.backend.target.packed_model)
    answers = _answers(made, prompts, Workload(MAX_TOKENS, 0.0), batch=NUM_PROMPTS)
    for system in systems.values():
        system.close()
    outcome = compare(prompts, reference, answers, SamplingParams(temperature=0.0), meter)
    assert not outcome.wrong, outcome.wrong
    assert outcome.num_equal >= NUM_PROMPTS - 1


def test_a_difference_that_is_no_near_tie_is_called_wrong() -> None:
    """The comparison itself must be able to fail."""
    none = DrafterConfig(kind="none")
    (system,) = engine_systems(EngineConfig(target=TargetConfig(num_threads=1), drafter=none)).values()
    prompt = system.engine.encode("def main(")
    (answer,) = _answers(system, [prompt], Workload(8, 0.0), batch=1)
    assert isinstance(system.engine.backend, LocalBackend)
    meter = GapMeter(system.engine.backend.target.packed_model)
    system.close()
    changed = [*answer[:5], (answer[5] + 1) % 4096, *answer[6:]]
    outcome = compare([prompt], [answer], [changed], SamplingParams(temperature=0.0), meter)
    assert len(outcome.wrong) == 1
    assert "token 5" in outcome.wrong[0]
