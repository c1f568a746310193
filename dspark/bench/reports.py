"""The tables of `dspark bench`, as Markdown: which systems, which workload, which numbers."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from dspark.bench.http import ServedAnswer, complete_all
from dspark.bench.lossless import Comparison, GapMeter, compare
from dspark.bench.prompts import load_prompts
from dspark.bench.speed import forward_rate, interleave, ratios
from dspark.bench.systems import PLAIN, EngineSystem, System, TransformersSystem, Workload, engine_systems
from dspark.config import DrafterConfig, EngineConfig, SchedulingConfig
from dspark.engine import Completion, Engine
from dspark.fakes import LyingDrafter
from dspark.local import LocalBackend
from dspark.runtime.loading import load_tokenizer, resolve_folder
from dspark.runtime.model import PackedModel
from dspark.serving.text_codec import TextCodec
from dspark.types import SamplingParams

BATCH = 8
SEED = 20261123


@dataclass(frozen=True, slots=True)
class SpeedPlan:
    """What `dspark bench speed` was asked for."""

    prompts: Path | None
    count: int
    max_tokens: int
    clients: int
    temperature: float
    transformers: bool
    deterministic: bool


@dataclass(frozen=True, slots=True)
class LosslessPlan:
    """What `dspark bench lossless` was asked for."""

    prompts: Path | None
    count: int
    max_tokens: int
    temperature: float = 0.8
    """Of sampled text."""
    url: str | None = None
    """Of a running service that is compared too."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """One system's answers beside the reference, and how many candidates they cost: equality would be cheap if nobody drafted."""

    name: str
    comparison: Comparison
    num_verified: int
    num_accepted: int

    def line(self) -> str:
        """For the report."""
        return f"{self.name}: {self.comparison.line()}; {self.num_verified} candidates verified, {self.num_accepted} accepted"


def accept_table(config: EngineConfig, path: Path | None, count: int, max_tokens: int) -> str:
    """tau and accepted share per drafter and temperature."""
    made = engine_systems(config)
    prompts = [made[PLAIN].engine.encode(text) for text in load_prompts(path, count)]
    systems = {name: made.pop(name) for name in config.named_drafters}  # what a planner verifies depends on the machine
    _close(made)
    rows = ["| drafter | temperature | tau | accepted of drafted | drafted per round |", "|---|---|---|---|---|"]
    for temperature in (0.0, 0.7, 1.0):
        for system in systems.values():
            usages = [a.usage for a in _in_batches(system, prompts, Workload(max_tokens, temperature, SEED))]
            rounds, tokens = sum(u.rounds for u in usages), sum(u.completion_tokens for u in usages)
            drafted, accepted = sum(u.drafted_tokens for u in usages), sum(u.accepted_tokens for u in usages)
            rows.append(
                f"| {system.name} | {temperature:g} | {tokens / rounds:.2f} | {accepted / max(1, drafted):.2f} | {drafted / rounds:.2f} |"
            )
    _close(systems)
    return "\n".join(rows)


def speed_table(config: EngineConfig, plan: SpeedPlan) -> str:
    """Rates, ratios to plain decoding in the same stack, tau, and efficiency against the bare forward."""
    engines = engine_systems(config)
    model = _target_model(engines[PLAIN])
    systems = [*engines.values(), *_others(config, plan)]
    prompts = [engines[PLAIN].engine.encode(text) for text in load_prompts(plan.prompts, plan.count)]
    timings = interleave(systems, prompts, plan.clients, Workload(plan.max_tokens, plan.temperature, SEED))
    relative = ratios(timings, PLAIN)
    context = sum(map(len, prompts)) // len(prompts) + plan.max_tokens // 2
    rows = [
        f"{plan.count} prompts x {plan.max_tokens} tokens, {plan.clients} at a time, temperature {plan.temperature:g}, "
        f"{torch.get_num_threads()} thread(s), depth {_depth(config)}",
        "",
        "| system | tokens/s (median) | against plain | tau | bare forwards/s | efficiency |",
        "|---|---|---|---|---|---|",
    ]
    for name, timing in timings.items():
        bare, efficiency = "", ""
        if name in engines:
            rate = forward_rate(model, plan.clients, timing.rows_per_round, context)
            bare, efficiency = f"{rate:.0f}", f"{timing.median / (timing.tau * plan.clients * rate):.2f}"
        tau = f"{timing.tau:.2f}" if timing.tau else ""
        label = "plain (same stack)" if name == PLAIN else name
        rows.append(f"| {label} | {timing.median:.0f} | {relative[name]:.2f} | {tau} | {bare} | {efficiency} |")
    _close(engines)
    return "\n".join(rows)


def _others(config: EngineConfig, plan: SpeedPlan) -> list[System]:
    """What else the plan asks for: deterministic mode, and transformers by itself."""
    systems: list[System] = []
    if plan.deterministic:
        exact = _deterministic(config).model_copy(update={"drafters": {}, "drafter": DrafterConfig(kind="none")})
        systems += [_renamed(system, "deterministic") for system in engine_systems(exact).values()]
    if plan.transformers:
        systems += [TransformersSystem("transformers generate", config)]
    if plan.transformers and plan.clients == 1:
        assistants = [drafter.model for drafter in config.named_drafters.values() if drafter.kind == "language_model"]
        systems += [TransformersSystem("transformers assisted", config, assistant=model) for model in assistants[:1]]
        systems += [TransformersSystem("transformers prompt lookup", config, prompt_lookup=_depth(config))]
    return systems


def lossless_report(config: EngineConfig, plan: LosslessPlan) -> tuple[str, bool]:
    """Lines of the report, and whether anything is wrong."""
    systems = engine_systems(config)
    systems["lying"] = _lying_system(systems[PLAIN], config)
    prompts = [systems[PLAIN].engine.encode(text) for text in load_prompts(plan.prompts, plan.count)]
    meter = GapMeter(_target_model(systems[PLAIN]))
    greedy, sampled = Workload(plan.max_tokens, 0.0, SEED), Workload(plan.max_tokens, plan.temperature, SEED)
    reference = TransformersSystem("generate", config).run(prompts, greedy)
    outcomes = _compare_all("greedy against generate", systems, prompts, greedy, reference, meter, plan.url)
    plain = [list(a.token_ids) for a in _in_batches(systems[PLAIN], prompts, sampled, batch=1)]
    outcomes += _compare_all(f"temperature {plan.temperature:g} against plain", systems, prompts, sampled, plain, meter, plan.url)
    _close(systems)
    outcomes += _deterministic_outcomes(config, prompts, greedy, sampled)
    lines = [f"{plan.count} prompts x {plan.max_tokens} tokens, seed {SEED}", ""]
    lines += [f"- {outcome.line()}" for outcome in outcomes]
    lines += [f"  - {outcome.name}: {wrong}" for outcome in outcomes for wrong in outcome.comparison.wrong]
    return "\n".join(lines), any(outcome.comparison.wrong for outcome in outcomes)


def _compare_all(
    title: str,
    systems: dict[str, EngineSystem],
    prompts: list[list[int]],
    workload: Workload,
    reference: list[list[int]],
    meter: GapMeter | None,
    url: str | None = None,
) -> list[Outcome]:
    sampling = SamplingParams(temperature=workload.temperature, seed=workload.seed)

    def outcome(name: str, answers: Sequence[Completion | ServedAnswer]) -> Outcome:
        comparison = compare(prompts, reference, [list(answer.token_ids) for answer in answers], sampling, meter)
        work = [answer.usage if isinstance(answer, Completion) else answer for answer in answers]
        return Outcome(f"{title}, {name}", comparison, sum(w.selected_tokens for w in work), sum(w.accepted_tokens for w in work))

    outcomes = [
        outcome(f"drafter {name}, batch {batch}", _in_batches(system, prompts, workload, batch))
        for batch in (1, BATCH)
        for name, system in systems.items()
    ]
    for speculate in (True, False) if url is not None else ():
        served = complete_all(url or "", prompts, workload, clients=BATCH, speculate=speculate)
        outcomes.append(outcome(f"over HTTP, {BATCH} clients, speculation {'on' if speculate else 'off'}", served))
    return outcomes


def _deterministic_outcomes(config: EngineConfig, prompts: list[list[int]], greedy: Workload, sampled: Workload) -> list[Outcome]:
    """Exact equality, no near-ties allowed; a quarter of the prompts, because this mode is slow."""
    exact = _deterministic(config)
    systems = engine_systems(exact)
    systems["lying"] = _lying_system(systems[PLAIN], exact)
    chosen = prompts[: max(BATCH, len(prompts) // 4)]
    outcomes = []
    for title, workload in (("deterministic greedy", greedy), (f"deterministic at {sampled.temperature:g}", sampled)):
        plain = [list(a.token_ids) for a in _in_batches(systems[PLAIN], chosen, workload, batch=1)]
        outcomes += _compare_all(f"{title} against plain", systems, chosen, workload, plain, None)
    _close(systems)
    return outcomes


def _lying_system(plain: EngineSystem, config: EngineConfig) -> EngineSystem:
    """The same target with a drafter that makes things up."""
    backend = plain.engine.backend
    assert isinstance(backend, LocalBackend)
    drafter = DrafterConfig(kind="lookup", max_depth=_depth(config), max_nodes=_depth(config))
    lying = backend.with_drafter(drafter, LyingDrafter(vocab_size=plain.engine.card.vocab_size, seed=SEED))
    codec = TextCodec(load_tokenizer(resolve_folder(config.target)))
    fixed = SchedulingConfig(mode="fixed")  # a planner soon leaves a liar alone
    return EngineSystem("lying", Engine(lying, codec, config.model_copy(update={"drafters": {}, "drafter": drafter, "scheduling": fixed})))


def _deterministic(config: EngineConfig) -> EngineConfig:
    return config.model_copy(update={"target": config.target.model_copy(update={"deterministic": True})})


def _depth(config: EngineConfig) -> int:
    return max(drafter.max_depth for drafter in config.named_drafters.values())


def _target_model(system: EngineSystem) -> PackedModel:
    backend = system.engine.backend
    assert isinstance(backend, LocalBackend)
    return backend.target.packed_model


def _renamed(system: EngineSystem, name: str) -> EngineSystem:
    system.name = name
    return system


def _in_batches(system: EngineSystem, prompts: list[list[int]], workload: Workload, batch: int = BATCH) -> list[Completion]:
    return [answer for i in range(0, len(prompts), batch) for answer in system.run(prompts[i : i + batch], workload)]


def _close(systems: dict[str, EngineSystem]) -> None:
    for system in systems.values():
        system.close()
