"""A running service under load, over HTTP: requests with speculation switched off, and as the service is configured, in turn.

Answers are not streamed, because reading thousands of events would slow the service down on the machine that both share. A request that
lies partly in a window counts by its share of it; clients go on asking until all such requests are over, so none of them ends in a
quieter time than it began. What runs then is hung up on.
"""

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import Any

import httpx

from dspark.bench.http import TIMEOUT_S
from dspark.bench.load.clients import STRIDE, answer_tokens, request_number
from dspark.bench.load.plan import MIN_STEPS, LoadPlan, Patience
from dspark.bench.load.window import RequestSpeed, Window

POLL_S = 0.05
_COUNTS = {"rounds": "rounds", "drafted": "drafted_tokens", "selected": "selected_tokens"}
"""Of a Window -> in an answer."""


@dataclass(frozen=True, slots=True)
class Answered:
    """One request that is over."""

    client: int
    number: int
    started_s: float
    ended_s: float
    tokens: int
    counts: dict[str, int]
    """By their names in a Window."""

    def share_of(self, opened_s: float, closed_s: float) -> float:
        """How much of it lies in the window."""
        return max(0.0, min(self.ended_s, closed_s) - max(self.started_s, opened_s)) / (self.ended_s - self.started_s)


@dataclass
class ServedSystem:
    """Implements measure.Contender. Nothing of it lives on between its turns but the count of requests."""

    name: str
    url: str
    model: str
    prompts: Sequence[str]
    plan: LoadPlan
    patience: Patience
    speculate: bool
    drafters: set[str] = field(default_factory=set)
    """Who the service says has drafted."""
    prompt_tokens: list[int] = field(default_factory=list)
    """Of every request."""
    num_asked: Counter[int] = field(default_factory=Counter)
    """By client."""

    def turn(self, num_clients: int) -> Window:
        """See Contender. Raises httpx.HTTPError where the service does not answer well."""
        return asyncio.run(self._turn(num_clients))

    async def _turn(self, num_clients: int) -> Window:
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=num_clients)
        async with httpx.AsyncClient(base_url=self.url, timeout=TIMEOUT_S, limits=limits) as http:
            return await _Turn(self, http, num_clients).run()

    async def ask(self, http: httpx.AsyncClient, client: int, is_first: bool) -> Answered:
        """One request of a client, whole; the first one of a turn is cut short."""
        index = self.num_asked[client]
        self.num_asked[client] += 1
        body: dict[str, Any] = {
            "model": self.model,
            "prompt": self.prompts[(client + STRIDE * index) % len(self.prompts)],
            "max_tokens": answer_tokens(self.plan, client, 0 if is_first else 1),
            "temperature": self.plan.temperature,
            "seed": request_number(client, index),
            "ignore_eos": True,
            "speculation": {"enabled": self.speculate},
        }
        started_s = time.perf_counter()
        answer = (await http.post("/v1/completions", json=body)).raise_for_status().json()
        ended_s = time.perf_counter()
        told = answer["dspark"]
        self.prompt_tokens.append(answer["usage"]["prompt_tokens"])
        if told["drafter"]:
            self.drafters.add(told["drafter"])
        counts = {name: int(told[theirs]) for name, theirs in _COUNTS.items()}
        return Answered(client, request_number(client, index), started_s, ended_s, answer["usage"]["completion_tokens"], counts)


class _Turn:
    """Clients come, a window, clients go."""

    def __init__(self, system: ServedSystem, http: httpx.AsyncClient, num_clients: int) -> None:
        self._system = system
        self._http = http
        self._num_clients = num_clients
        self._answered: list[Answered] = []
        self._running_since_s: dict[int, float] = {}
        """By client."""
        self._changed = asyncio.Event()

    async def run(self) -> Window:
        """One window; it opens when every client has had an answer, so that all prompts that came together are behind."""
        clients = [asyncio.create_task(self._ask_for_ever(client)) for client in range(self._num_clients)]
        try:
            await self._until(lambda: len({one.client for one in self._answered}) == self._num_clients, clients)
            opened_s = time.perf_counter()
            await self._until(lambda: self._is_over(opened_s), clients)
            closed_s = time.perf_counter()
            await self._until(lambda: min(self._running_since_s.values(), default=closed_s) >= closed_s, clients)
        finally:
            for client in clients:
                client.cancel()
            await asyncio.gather(*clients, return_exceptions=True)
        return window_of(self._answered, opened_s, closed_s)

    def _is_over(self, opened_s: float) -> bool:
        now_s = time.perf_counter()
        tokens = sum(one.tokens * one.share_of(opened_s, now_s) for one in self._answered)
        return self._system.plan.is_over(now_s - opened_s, tokens / self._num_clients, MIN_STEPS)  # steps cannot be seen

    async def _until(self, condition: Callable[[], bool], clients: Sequence[asyncio.Task[None]]) -> None:
        """Looks again after every answer, and now and then. Raises what a client met."""
        while not (self._system.patience.over or condition()):
            self._changed.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(POLL_S):
                    await self._changed.wait()
            for client in clients:
                if client.done():
                    client.result()

    async def _ask_for_ever(self, client: int) -> None:
        for index in count():
            self._running_since_s[client] = time.perf_counter()
            self._answered.append(await self._system.ask(self._http, client, is_first=index == 0))
            self._changed.set()


def window_of(answered: Sequence[Answered], opened_s: float, closed_s: float) -> Window:
    """What fell into the window, requests by their share of it."""
    window = Window(seconds=max(0.0, closed_s - opened_s))
    for one in answered:
        share = one.share_of(opened_s, closed_s)
        if share <= 0:
            continue
        window.tokens += share * one.tokens
        for name, value in one.counts.items():
            setattr(window, name, getattr(window, name) + share * value)
        window.requests[one.number] = RequestSpeed(share * one.tokens, share * (one.ended_s - one.started_s))
    return window


def identity_of(url: str) -> tuple[str, str]:
    """The model's name, and what the service says that it is. Raises httpx.HTTPError."""
    with httpx.Client(base_url=url, timeout=TIMEOUT_S) as http:
        model = http.get("/v1/models").raise_for_status().json()["data"][0]
        version = http.get("/version").raise_for_status().json()["version"]
    return model["id"], f"{model['id']} of at most {model['max_model_len']} tokens, dspark {version}, over HTTP"
