"""Clients of one Engine: each asks again as soon as it has its answer, and between turns all of them rest where they are.

Rest means that nobody reads: with a buffer of one chunk a session soon waits for its client, between two rounds, so neither a round nor
a draft is under way while other systems have their turns, and no time that the engine learns from has a hole in it.
"""

import asyncio
import random
from collections.abc import Sequence
from contextlib import aclosing
from itertools import count

from dspark.bench.load.meter import LoadMeter
from dspark.bench.load.plan import LoadPlan
from dspark.bench.load.window import Window
from dspark.engine import Engine

STRIDE = 7
"""Prompts between two requests of one client."""
MAX_REQUESTS = 1_000_000
"""Of one client; so many seeds lie between those of two clients."""


def request_number(client: int, index: int) -> int:
    """A client's requests, numbered: a seed for each, the same in every system."""
    return client * MAX_REQUESTS + index


def answer_tokens(plan: LoadPlan, client: int, index: int) -> int:
    """What a request asks for: all answers are of one length, but for the first one of each client."""
    if index > 0 or plan.decode_only:
        return plan.max_tokens
    return random.Random(f"{plan.seed} {client}").randint(1, plan.max_tokens)


class ClosedLoop:
    """Lives on the engine's event loop; the engine is started."""

    def __init__(self, engine: Engine, meter: LoadMeter, prompts: Sequence[Sequence[int]], plan: LoadPlan, speculate: bool) -> None:
        self._engine = engine
        self._meter = meter
        self._prompts = prompts
        self._plan = plan
        self._speculate = speculate
        self._goes = asyncio.Event()
        self._clients: list[asyncio.Task[None]] = []
        self._turns_had: dict[int, int] = {}
        """Of the answer that each client is getting."""
        self._asks_anew: set[int] = set()
        """Clients that give up what they are getting when they go on."""

    async def turn(self, num_clients: int) -> Window:
        """Let so many clients go, at least as many as before, for one window. Raises what a client meets."""
        for client in range(len(self._clients), num_clients):
            self._clients.append(asyncio.create_task(self._ask_for_ever(client)))
        assert len(self._clients) == num_clients, "clients come and stay"
        if self._plan.decode_only:
            self._renew()
        self._meter.begin(num_clients)
        self._goes.set()
        await self._until(self._meter.closed)
        self._goes.clear()
        self._meter.rest()
        await self._until(self._meter.parked)
        return self._meter.window

    def _renew(self) -> None:
        """Nobody shall come to the end of an answer in this turn. Counted in turns, not in tokens: so contexts are of one length in all
        systems, of which some commit a few tokens more in a turn than others."""
        for client in range(len(self._clients)):
            done = self._meter.tokens_of(client)
            if done is None or self._turns_had[client] >= self._plan.turns_per_answer:
                self._meter.unseen(client)
                self._turns_had[client] = 0
                if done is not None:
                    self._asks_anew.add(client)
            self._turns_had[client] += 1

    async def stop(self) -> None:
        """All clients hang up."""
        for client in self._clients:
            client.cancel()
        await asyncio.gather(*self._clients, return_exceptions=True)
        self._clients.clear()

    async def _until(self, event: asyncio.Event) -> None:
        waiting = asyncio.create_task(event.wait())
        try:
            await asyncio.wait({waiting, *self._clients}, return_when=asyncio.FIRST_COMPLETED)
            for client in self._clients:
                if client.done():
                    client.result()
        finally:
            waiting.cancel()

    async def _ask_for_ever(self, client: int) -> None:
        for index in count():
            await self._goes.wait()
            await self._ask(client, index)

    async def _ask(self, client: int, index: int) -> None:
        number = request_number(client, index)
        (request,) = self._engine.requests(
            [self._prompts[(client + STRIDE * index) % len(self._prompts)]],
            max_tokens=answer_tokens(self._plan, client, index),
            temperature=self._plan.temperature,
            seed=number,
            ignore_eos=True,
            speculation_enabled=self._speculate,
        )
        self._meter.asked(client, number)
        try:
            async with aclosing(self._engine.stream(request)) as chunks:
                async for _ in chunks:
                    self._meter.read(number)
                    await self._goes.wait()
                    if client in self._asks_anew:
                        self._asks_anew.discard(client)
                        break
        finally:
            self._meter.left(number)
