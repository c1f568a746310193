"""Engine: text in, text out, on the speculative loop. The same class serves offline in one process and inside a Router replica.

    engine = Engine.from_config(EngineConfig())
    print(engine.generate("def fib(", max_tokens=64)[0].text)

What differs between the two is only where drafters and targets live: a Backend opens and closes the pools.
"""

import asyncio
import uuid
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Any, Protocol, Self

from dspark.config import EngineConfig
from dspark.errors import RequestAborted, TargetUnavailable
from dspark.local import LocalBackend
from dspark.ports import Pools
from dspark.routing.economy import Standing
from dspark.routing.loop import SpeculativeLoop
from dspark.routing.observer import Observer, SilentObserver
from dspark.runtime.loading import load_tokenizer, resolve_folder
from dspark.serving.buffer import BoundedBuffer
from dspark.serving.generation import GenerationChunk, GenerationRequest, Usage
from dspark.serving.limits import Admission
from dspark.serving.text import IncrementalText
from dspark.serving.text_codec import TextCodec
from dspark.serving.validation import RawOptions, generation_requests
from dspark.session import Session, TokenChunk
from dspark.types import FinishReason, ModelCard, SessionId, StopRules


class Backend(Protocol):
    """What stands behind an Engine."""

    @property
    def card(self) -> ModelCard:
        """The model served."""

    async def start(self) -> Pools:
        """Open the pools on the running event loop."""

    async def stop(self) -> None:
        """Close them; `start` may follow again."""

    async def ready(self) -> bool:
        """True if a target can be reached."""


@dataclass(frozen=True, slots=True)
class Completion:
    """A whole answer of the offline API."""

    text: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason
    usage: Usage
    seed: int


class Engine:
    """Implements serving.generation.GenerationService. Between `start` and `stop` it belongs to one event loop."""

    def __init__(self, backend: Backend, codec: TextCodec, config: EngineConfig, observer: Observer | None = None) -> None:
        self._backend = backend
        self._codec = codec
        self._config = config
        self._observer = observer or SilentObserver()
        self._admission = Admission(config.limits.max_sessions, config.limits.max_queued)
        self._running: dict[str, set[asyncio.Task[None]]] = {}
        self._loop: SpeculativeLoop | None = None

    @classmethod
    def from_config(cls, config: EngineConfig | None = None, observer: Observer | None = None) -> "Engine":
        """Load the models of `config` (default: the shipped pair) into this process."""
        config = config or EngineConfig()
        codec = TextCodec(load_tokenizer(resolve_folder(config.target)))
        return cls(LocalBackend.load(config), codec, config, observer)

    @property
    def card(self) -> ModelCard:
        """The model served."""
        return self._backend.card

    @property
    def drafters(self) -> tuple[str, ...]:
        """See GenerationService."""
        return tuple(self._config.named_drafters)

    @property
    def backend(self) -> Backend:
        """What stands behind this engine."""
        return self._backend

    @property
    def codec(self) -> TextCodec:
        """The model's tokenizer."""
        return self._codec

    async def start(self) -> None:
        """Open the pools; needed before `stream`."""
        pools = await self._backend.start()
        scheduling = self._config.scheduling
        if pools.overlap is not None:  # what stands behind the engine knows better
            scheduling = scheduling.model_copy(update={"overlap": pools.overlap})
        self._loop = SpeculativeLoop(
            pools.targets,
            pools.drafters,
            drafter_configs=self._config.named_drafters,
            limits=self._config.limits,
            max_batch_rows=self._config.target.max_batch_rows,
            observer=self._observer,
            scheduling=scheduling,
        )

    def standings(self) -> dict[str, Standing]:
        """How each drafter does, by name; empty while the engine is stopped."""
        return {} if self._loop is None else self._loop.economy.standings()

    async def stop(self) -> None:
        """End what runs, close the pools."""
        running = [task for tasks in self._running.values() for task in tasks]
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
        if self._loop is not None:
            await self._loop.stop()
            self._loop = None
        await self._backend.stop()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self.stop()

    def encode(self, text: str) -> list[int]:
        """See GenerationService."""
        return self._codec.encode(text)

    def encode_chat(self, messages: list[dict[str, str]]) -> list[int]:
        """See GenerationService."""
        return self._codec.encode_chat(messages)

    async def ready(self) -> bool:
        """See GenerationService."""
        return self._loop is not None and await self._backend.ready()

    def abort(self, request_id: str) -> bool:
        """See GenerationService."""
        tasks = self._running.get(request_id, set())
        for task in tasks:
            task.cancel("aborted")
        return bool(tasks)

    def requests(self, prompts: str | Sequence[str] | Sequence[Sequence[int]], **options: Any) -> list[GenerationRequest]:
        """Checked requests for `stream`: one per prompt and choice. `options` are fields of serving.validation.RawOptions."""
        listed = (prompts,) if isinstance(prompts, str) else tuple(p if isinstance(p, str) else tuple(p) for p in prompts)
        raw = RawOptions(listed, **options)
        return generation_requests(raw, self.card, self._config.limits, self.encode, drafters=self.drafters)

    def generate(self, prompts: str | Sequence[str] | Sequence[Sequence[int]], **options: Any) -> list[Completion]:
        """Whole answers, all prompts batched together; for programs without an event loop.

        Raises InvalidRequest for bad options, and what `stream` raises.
        """
        requests = self.requests(prompts, **options)

        async def run() -> list[Completion]:
            async with self:
                return list(await asyncio.gather(*(self.complete(request) for request in requests)))

        return asyncio.run(run())

    async def complete(self, request: GenerationRequest) -> Completion:
        """One whole answer."""
        texts: list[str] = []
        token_ids: list[int] = []
        async with aclosing(self.stream(request)) as chunks:
            async for chunk in chunks:
                texts.append(chunk.text)
                token_ids.extend(chunk.token_ids)
        assert chunk.finish_reason is not None, "a stream ends with a finish reason or an error"
        return Completion("".join(texts), tuple(token_ids), chunk.finish_reason, chunk.usage, request.sampling.seed)

    async def stream(self, request: GenerationRequest) -> AsyncGenerator[GenerationChunk, None]:
        """See GenerationService."""
        limits = self._config.limits
        timeout_s = min(request.timeout_s or limits.request_timeout_s, limits.request_timeout_s)
        deadline_s = asyncio.get_running_loop().time() + timeout_s
        buffer: BoundedBuffer[GenerationChunk] = BoundedBuffer(limits.max_buffered_chunks, limits.client_stall_timeout_s)
        pump = asyncio.create_task(self._pump(request, buffer))
        self._running.setdefault(request.request_id, set()).add(pump)  # also while it queues: Abort must find it
        try:
            async with aclosing(buffer.items(deadline_s)) as chunks:
                async for chunk in chunks:
                    yield chunk
        finally:
            self._forget(request.request_id, pump)
            pump.cancel()
            await asyncio.gather(pump, return_exceptions=True)

    async def _pump(self, request: GenerationRequest, buffer: BoundedBuffer[GenerationChunk]) -> None:
        """Wait for a place, then fill the buffer as fast as rounds are done; whatever ends the session ends the buffer."""
        try:
            async with self._admission.place(request.priority), aclosing(self._chunks(request)) as chunks:
                async for chunk in chunks:
                    await buffer.put(chunk)
        except asyncio.CancelledError:
            buffer.end(RequestAborted("the request was aborted"))
            raise
        except Exception as error:
            buffer.end(error)
        else:
            buffer.end()

    async def _chunks(self, request: GenerationRequest) -> AsyncGenerator[GenerationChunk, None]:
        """Rounds of the session as text."""
        if self._loop is None:
            raise TargetUnavailable("the engine is not started")
        session = self._session(request)
        text = IncrementalText(self._codec.backend, request.stop)
        usage = Usage(
            prompt_tokens=len(request.prompt_ids),
            max_nodes=request.max_nodes,
            min_tokens_per_second=request.min_tokens_per_second,
            priority=request.priority,
        )
        running = self._loop.run(session, speculate=request.speculation_enabled, drafter=request.drafter)
        async with aclosing(running) as rounds:
            async for round_chunk in rounds:
                chunk = _text_chunk(round_chunk, text, replace(usage, drafter=session.drafter))
                usage = chunk.usage
                yield chunk
                if chunk.finish_reason is not None:
                    return

    def _session(self, request: GenerationRequest) -> Session:
        stop_ids = frozenset() if request.ignore_eos else frozenset(self.card.eos_token_ids)
        return Session(
            SessionId(uuid.uuid4().hex),
            request.prompt_ids,
            request.sampling,
            StopRules(request.max_tokens, stop_ids),
            max_nodes=request.max_nodes,
            min_tokens_per_second=request.min_tokens_per_second,
            priority=request.priority,
        )

    def _forget(self, request_id: str, pump: asyncio.Task[None]) -> None:
        tasks = self._running.get(request_id, set())
        tasks.discard(pump)
        if not tasks:
            self._running.pop(request_id, None)


def _text_chunk(chunk: TokenChunk, text: IncrementalText, usage: Usage) -> GenerationChunk:
    """The round's tokens with their text; a stop string ends the answer with the token that completed it."""
    piece = text.push(chunk.token_ids)
    finish_reason = chunk.finish_reason
    shown = piece.text
    if piece.hit_stop:
        finish_reason = FinishReason.STOP
    elif finish_reason is not None:
        rest = text.finish()
        shown += rest.text
        finish_reason = FinishReason.STOP if rest.hit_stop else finish_reason
    token_ids = chunk.token_ids[: piece.tokens_used]
    return GenerationChunk(shown, token_ids, finish_reason, _counted(usage, chunk, len(token_ids)))


def _counted(usage: Usage, chunk: TokenChunk, num_tokens: int) -> Usage:
    return replace(
        usage,
        completion_tokens=usage.completion_tokens + num_tokens,
        drafted_tokens=usage.drafted_tokens + chunk.num_drafted,
        selected_tokens=usage.selected_tokens + chunk.num_selected,
        accepted_tokens=usage.accepted_tokens + min(chunk.num_accepted, num_tokens),
        rounds=usage.rounds + 1,
    )
