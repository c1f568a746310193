"""The systems that meet the load in this process: one target's weights, and an Engine for each way to draft and verify.

    plain     no drafter (`plain_again`: once more, to see the noise)
    fixed3    chains of three, always all of it verified (any fixedN)
    tree      trees of MOST, always all of it verified
    planned   up to MOST, as much of it as pays

All have room for every client: a target that drops sessions for lack of memory, or a step that has no room for a candidate, would
measure the configuration. Patience is without end for the same reason: on one thread a draft waits for the step before it.
"""

import asyncio
import re
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from dspark.bench.load.clients import ClosedLoop
from dspark.bench.load.meter import LoadMeter
from dspark.bench.load.metered import MeteredBackend, OnVerdict
from dspark.bench.load.plan import PLAIN, PLAIN_AGAIN, PLANNED, SYSTEMS, LoadPlan, Patience
from dspark.bench.load.window import Window
from dspark.bench.speed import forward_rate
from dspark.config import DrafterConfig, EngineConfig, KvCacheConfig, LimitsConfig, SchedulingConfig, TargetConfig
from dspark.engine import Engine
from dspark.errors import ConfigError
from dspark.local import LocalBackend
from dspark.runtime.loading import load_tokenizer, resolve_folder
from dspark.scheduling.curve import ThroughputCurve
from dspark.scheduling.drafting_plan import DraftLimits
from dspark.serving.text_codec import TextCodec

MOST = DraftLimits(max_depth=7, max_width=4, max_nodes=16)
"""A whole tree, and the most that is planned."""
FOR_EVER_S = 7 * 24 * 3600.0
BLOCK_TOKENS = 16
CANDIDATE_SLOTS = 32
"""Of the cache, for one session: the candidates of the largest trees, those of a recording."""
RECORDING_CLIENTS = 8
PROBE_ROWS = 8
PROBE_CONTEXT = 64
PROBE_REPEATS = 5


def limits_of(name: str) -> DraftLimits:
    """What a system may draft. Raises ConfigError for a word that is no system."""
    if name in (PLAIN, PLAIN_AGAIN):
        return DraftLimits(0, 1, 0)
    if fixed := re.fullmatch(r"fixed([1-9]\d?)", name):
        return DraftLimits(int(fixed[1]), 1, int(fixed[1]))
    if name in SYSTEMS:
        return MOST
    raise ConfigError(f"{name!r} is no system; there are {', '.join(SYSTEMS)}, {PLAIN_AGAIN}, and fixedN for chains of N", "systems")


@dataclass(frozen=True, slots=True)
class Room:
    """What so many sessions need."""

    num_sessions: int
    session_tokens: int
    """Longest prompt and answer."""

    @property
    def kv_cache(self) -> KvCacheConfig:
        """Slots for all of them with their candidates, for one more that probes, and never less than the default."""
        blocks = -(-(self.session_tokens + 1 + CANDIDATE_SLOTS) // BLOCK_TOKENS)
        num_tokens = max(KvCacheConfig().num_tokens, (self.num_sessions + 1) * blocks * BLOCK_TOKENS)
        return KvCacheConfig(num_tokens=num_tokens, block_tokens=BLOCK_TOKENS)

    @property
    def max_batch_rows(self) -> int:
        """Anchors and candidates of all of them in one step."""
        return max(TargetConfig().max_batch_rows, self.num_sessions * (1 + MOST.max_nodes))

    @property
    def limits(self) -> LimitsConfig:
        """One chunk of buffer, so that a client that rests stops its session; nothing runs out of time meanwhile."""
        times = ("client_stall_timeout_s", "request_timeout_s", "verify_timeout_s", "draft_timeout_s")
        most = max(LimitsConfig().max_sessions, self.num_sessions)
        return LimitsConfig.model_validate({"max_sessions": most, "max_buffered_chunks": 1} | dict.fromkeys(times, FOR_EVER_S))


@dataclass
class LoadSystem:
    """An Engine that stays started, with its clients and its meter, on an event loop of its own that runs in its turns only."""

    name: str
    engine: Engine
    meter: LoadMeter
    backend: MeteredBackend
    prompts: Sequence[Sequence[int]]
    plan: LoadPlan
    probe_ms: Callable[[], float]
    """Times one and the same forward of the target."""
    speculate: bool
    """False: its requests ask for no drafts."""
    _loop: asyncio.AbstractEventLoop = field(default_factory=asyncio.new_event_loop)
    _clients: ClosedLoop | None = None

    def turn(self, num_clients: int) -> Window:
        """One window with so many clients, at least as many as in the turn before."""
        before_ms = self.probe_ms()
        window: Window = self._run(self._turn(num_clients))
        window.probe_ms = (before_ms + self.probe_ms()) / 2
        return window

    @property
    def curve(self) -> ThroughputCurve | None:
        """What the target was profiled at."""
        return self.backend.curve

    def close(self) -> None:
        """Send the clients away and free the engine's memory."""
        if self._clients is not None:
            self._run(self._clients.stop())
            self._run(self.engine.stop())
        self._loop.close()

    async def _turn(self, num_clients: int) -> Window:
        if self._clients is None:
            await self.engine.start()
            self._clients = ClosedLoop(self.engine, self.meter, self.prompts, self.plan, self.speculate)
        return await self._clients.turn(num_clients)

    def _run(self, work: Coroutine[Any, Any, Any]) -> Any:
        return self._loop.run_until_complete(work)


class Workbench:
    """One target in memory, and any number of systems on it."""

    def __init__(self, target: TargetConfig, drafter: DrafterConfig, prompts: Sequence[str], plan: LoadPlan, patience: Patience) -> None:
        """Loads the target and profiles it; blocks for as long as that takes."""
        self._drafter = drafter
        self._plan = plan
        self._patience = patience
        self._codec = TextCodec(load_tokenizer(resolve_folder(target)))
        self.prompts = [self._codec.encode(text) for text in prompts]
        room = Room(max(RECORDING_CLIENTS, *plan.clients), max(map(len, self.prompts)) + plan.max_tokens)
        self.config = _with_room(target, room)
        self._cache = room.kv_cache
        self._base = LocalBackend.load(self.config, profile=True)

    @property
    def device(self) -> torch.device:
        """Where the target is."""
        return self._base.target.packed_model.device

    def system(self, name: str, limits: DraftLimits | None = None, on_verdict: OnVerdict | None = None) -> LoadSystem:
        """A system by its name. `limits` instead of those that the name says; `on_verdict` is told of every tree."""
        limits = limits or limits_of(name)
        config, backend, speculate = self.config, self._base, not limits.skips
        if speculate:
            # Drafter and target share one thread: nothing hides anything.
            scheduling = SchedulingConfig(mode="planned" if name == PLANNED else "fixed", overlap=0.0)
            config = config.model_copy(update={"drafter": self._limited(limits), "scheduling": scheduling})
            backend = backend.with_drafter(config.drafter)
        elif name == PLAIN_AGAIN:
            backend = backend.with_drafter(config.drafter)  # a target's steps serve one engine
        meter = LoadMeter(self._plan, self._patience)
        metered = MeteredBackend(backend, on_drafts=meter.drafted, on_verdict=on_verdict)
        engine = Engine(metered, self._codec, config, meter)
        return LoadSystem(name, engine, meter, metered, self.prompts, self._plan, self._probe_ms, speculate)

    def _probe_ms(self) -> float:
        """Between turns only, when nobody runs the model."""
        return 1e3 / forward_rate(self._base.target.packed_model, 1, PROBE_ROWS, PROBE_CONTEXT, PROBE_REPEATS)

    def _limited(self, limits: DraftLimits) -> DrafterConfig:
        own = {"max_depth": limits.max_depth, "max_width": limits.max_width, "max_nodes": limits.max_nodes, "kv_cache": self._cache}
        return self._drafter.model_copy(update=own)


def _with_room(target: TargetConfig, room: Room) -> EngineConfig:
    """Of the target alone."""
    own = {
        "kv_cache": room.kv_cache,
        "max_batch_rows": max(target.max_batch_rows, room.max_batch_rows),
    }
    return EngineConfig(target=target.model_copy(update=own), drafter=DrafterConfig(kind="none"), limits=room.limits)


