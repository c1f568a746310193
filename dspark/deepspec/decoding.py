"""Real decoding for evaluation: the Engine with one drafter over a set of prompts, and a trace of every round. No teacher forcing:
what is measured went through the same loop, planner, sampler and noise as in the service.
"""

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from dspark.config import DrafterConfig, EngineConfig, LimitsConfig, SchedulingConfig, TargetConfig
from dspark.deepspec.data import Sample
from dspark.deepspec.node_traces import NodeTrace, NodeTraceRecorder
from dspark.deepspec.traces import DecodingTrace, TraceRecorder
from dspark.drafting.build import LoadedDrafter, load_drafter, lookup_drafter
from dspark.drafting.growth import UNKNOWN, Draft
from dspark.engine import Completion, Engine
from dspark.local import LocalBackend
from dspark.messages import StepReport
from dspark.ports import Drafter
from dspark.routing.observer import SilentObserver
from dspark.runtime.loading import load_tokenizer, resolve_folder
from dspark.serving.text_codec import TextCodec
from dspark.session import Session, TokenChunk
from dspark.types import SessionId
from dspark.verifying.target_model import LoadedTarget, load_target

Place = tuple[SessionId, int]
"""A session and the committed length that a round was built on."""


@dataclass(frozen=True, slots=True)
class DecodingPlan:
    """What is decoded, and how."""

    max_tokens: int = 128
    depth: int = 7
    max_nodes: int | None = None
    """Candidates per round; None: as many as a chain of this depth has."""
    max_width: int = 1
    """Children per candidate; 1: chains."""
    concurrency: int = 8
    """Prompts in flight together."""
    seed: int = 20261125
    """Of the sampling noise: prompt n draws from seed + n with every drafter. With one seed for all, prompts would share the noise of
    equal positions, and intervals over prompts would be too narrow."""

    @property
    def limits(self) -> dict[str, int]:
        """Fields of a DrafterConfig."""
        nodes = self.depth if self.max_nodes is None else self.max_nodes
        return {"max_depth": self.depth, "max_nodes": nodes, "max_width": self.max_width}


class TraceCollector(SilentObserver):
    """Puts together what drafter, target and loop tell of each round."""

    def __init__(self) -> None:
        self.recorder = TraceRecorder()
        self.nodes = NodeTraceRecorder()
        self._numbers: dict[SessionId, int] = {}
        self._drafts: dict[Place, Draft] = {}
        self._verdicts: dict[Place, tuple[int, ...]] = {}

    def on_draft(self, session_id: SessionId, base_length: int, draft: Draft) -> None:
        """A drafting.batch.Listener; called on the drafter's thread, before its answer is on its way."""
        self._drafts[session_id, base_length] = draft

    def session_started(self, session: Session) -> None:
        """See Observer."""
        self._numbers[session.session_id] = len(self._numbers)

    def step_done(self, report: StepReport) -> None:
        """See Observer."""
        for result in report.results:
            self._verdicts[result.session_id, result.base_length] = result.accepted

    def round_done(self, session: Session, chunk: TokenChunk, round_ms: float) -> None:
        """See Observer. The target's own verdict counts: the end of a session cuts its last round."""
        place = (session.session_id, session.base_length - len(chunk.token_ids))
        nodes = self._verdicts.pop(place)
        accepted = len(nodes)
        number, temperature = self._numbers[session.session_id], session.sampling.temperature
        draft = self._drafts.pop(place, None)
        if draft is None or len(draft.tree) != chunk.num_drafted:  # a drafter that tells nothing, or a draft that came too late
            unknown = [UNKNOWN] * chunk.num_drafted
            self.recorder.add(number, temperature, accepted, unknown, num_verified=chunk.num_selected)
        else:
            known = draft.signals
            self.recorder.add(
                number,
                temperature,
                accepted,
                draft.tree.scores,
                known.confidence_logits,
                known.gaps,
                known.log_draft_probs,
                chunk.num_selected,
            )
            if chunk.num_selected == chunk.num_drafted:
                self.nodes.add(number, temperature, draft.tree, known, None, nodes)


class Decoder:
    """One target in memory, and any number of drafters tried on it."""

    def __init__(self, target: TargetConfig) -> None:
        self._config = target
        self._target: LoadedTarget = load_target(target)
        self.codec = TextCodec(load_tokenizer(resolve_folder(target)))

    @property
    def target_facts(self) -> dict[str, object]:
        """What the target's answers depend on."""
        return {"config": self._config.model_dump(mode="json"), "weights": self._target.card.model_fingerprint}

    def node_trace(
        self,
        drafter: DrafterConfig,
        prompts: Sequence[Sequence[int]],
        temperature: float,
        plan: DecodingPlan,
        done: Callable[[], None] = lambda: None,
    ) -> NodeTrace:
        """As `trace`: the verdict on every candidate whose parent was accepted, with all that the drafter knew of it."""
        return self._decoded(drafter, prompts, temperature, plan, done)[0].nodes.trace()

    def trace(
        self,
        drafter: DrafterConfig,
        prompts: Sequence[Sequence[int]],
        temperature: float,
        plan: DecodingPlan,
        done: Callable[[], None] = lambda: None,
    ) -> tuple[DecodingTrace, float]:
        """Decode all prompts; the trace, and how many seconds it took. `done` is called after each prompt."""
        collector, seconds = self._decoded(drafter, prompts, temperature, plan, done)
        return collector.recorder.trace(), seconds

    def answers(self, prompts: Sequence[Sequence[int]], temperature: float, plan: DecodingPlan) -> list[Sample]:
        """The target's own, by plain decoding; each with its prompt."""
        config = EngineConfig(target=self._config, drafter=DrafterConfig(kind="none"))
        engine = Engine(LocalBackend(self._target.with_own_cache(()), {}), self.codec, config)
        completions = asyncio.run(_decode(engine, prompts, temperature, plan, lambda: None))
        pairs = zip(prompts, completions, strict=True)
        return [Sample(str(n), np.asarray([*ids, *made.token_ids], np.int32), len(ids)) for n, (ids, made) in enumerate(pairs)]

    def _decoded(
        self,
        drafter: DrafterConfig,
        prompts: Sequence[Sequence[int]],
        temperature: float,
        plan: DecodingPlan,
        done: Callable[[], None],
    ) -> tuple[TraceCollector, float]:
        collector = TraceCollector()
        config = EngineConfig(
            target=self._config,
            drafter=drafter.model_copy(update=plan.limits),
            limits=LimitsConfig(draft_timeout_s=60.0),  # a machine at work on something else must not count as bad drafts
            scheduling=SchedulingConfig(mode="fixed"),  # the same drafts on every machine
        )
        backend = LocalBackend(self._target.with_own_cache((drafter,)), {"default": self._drafter(config.drafter, collector)})
        engine = Engine(backend, self.codec, config, collector)
        started = time.perf_counter()
        asyncio.run(_decode(engine, prompts, temperature, plan, done))
        return collector, time.perf_counter() - started

    def _drafter(self, config: DrafterConfig, collector: TraceCollector) -> LoadedDrafter | Drafter:
        if config.kind == "lookup":
            return lookup_drafter(config)
        loaded = load_drafter(config, self._config)
        loaded.drafter.listener = collector.on_draft
        return loaded


async def _decode(
    engine: Engine, prompts: Sequence[Sequence[int]], temperature: float, plan: DecodingPlan, done: Callable[[], None]
) -> list[Completion]:
    places = asyncio.Semaphore(plan.concurrency)

    async def one(number: int, prompt: Sequence[int]) -> Completion:
        async with places:
            (request,) = engine.requests(
                [prompt], max_tokens=plan.max_tokens, temperature=temperature, seed=plan.seed + number, ignore_eos=True
            )
            completion = await engine.complete(request)
            done()
            return completion

    async with engine, asyncio.TaskGroup() as tasks:
        running = [tasks.create_task(one(number, prompt)) for number, prompt in enumerate(prompts)]
    return [task.result() for task in running]
