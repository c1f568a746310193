"""Watches one Engine: opens and closes the window of a turn, counts what falls into it, and knows when everybody rests.

A window opens and closes at a step of the target, so it holds whole steps. Requests are known by their seeds.

    begin -> (clients go on) -> settled: window open -> over: window closed, `closed` set -> rest -> everybody parked, `parked` set
"""

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Sequence

from dspark.bench.load.plan import SETTLING_STEPS, LoadPlan, Patience
from dspark.bench.load.window import RequestSpeed, Window
from dspark.messages import DraftReport, DraftRequest, StepReport
from dspark.routing.observer import SilentObserver
from dspark.session import Session, TokenChunk

READ_AHEAD = 2
"""Rounds that a session does after its client stopped reading: one chunk lies in the buffer, the next waits to get in."""


class LoadMeter(SilentObserver):
    """Implements routing.observer.Observer. Lives on the engine's event loop."""

    def __init__(self, plan: LoadPlan, patience: Patience, clock: Callable[[], float] = time.perf_counter) -> None:
        self._plan = plan
        self._patience = patience
        self._clock = clock
        self.window = Window()
        self.closed = asyncio.Event()
        self.parked = asyncio.Event()
        self._is_open = False
        self._resting = True
        self._opened_s = 0.0
        self._num_clients = 0
        self._steps_since_rest = 0
        self._seen_clients: set[int] = set()
        """Clients that have had a first round: their prompts are behind them."""
        self._since_s: dict[int, float] = {}
        """Requests that live -> from when on they are watched."""
        self._client_of: dict[int, int] = {}
        self._tokens: Counter[int] = Counter()
        """Committed for a request that lives."""
        self._unread: Counter[int] = Counter()
        """Rounds done for a request that its client has not read."""
        self._finished: set[int] = set()

    def begin(self, num_clients: int) -> None:
        """A turn: so many clients are about to go on."""
        self.window = Window()
        self._num_clients = num_clients
        self._steps_since_rest = 0
        self._resting = False
        self.closed.clear()
        self.parked.clear()

    def tokens_of(self, client: int) -> int | None:
        """Committed of the answer that the client is getting; None where it has none."""
        found = [self._tokens[request] for request, owner in self._client_of.items() if owner == client and request not in self._finished]
        return found[0] if found else None

    def unseen(self, client: int) -> None:
        """The client is about to have a prompt read: the window opens after it."""
        self._seen_clients.discard(client)

    def rest(self) -> None:
        """The clients have stopped reading."""
        self._resting = True
        self._see_if_parked()

    # Clients

    def asked(self, client: int, request: int) -> None:
        """A client asks for something."""
        self._client_of[request] = client
        self._since_s[request] = self._clock()
        self._unread[request] = 0

    def read(self, request: int) -> None:
        """Its client took a chunk."""
        self._unread[request] -= 1

    def left(self, request: int) -> None:
        """The request is over for its client too."""
        for book in (self._client_of, self._since_s, self._unread, self._tokens):
            book.pop(request, None)
        self._finished.discard(request)
        self._see_if_parked()

    # Engine

    def round_done(self, session: Session, chunk: TokenChunk, round_ms: float) -> None:
        """See Observer."""
        request = session.sampling.seed
        self._unread[request] += 1
        self._tokens[request] += len(chunk.token_ids)
        self._seen_clients.add(self._client_of[request])
        if self._is_open:
            self._count(request, chunk)
        if chunk.finish_reason is not None:
            self._watched(request)
            del self._since_s[request]
            self._finished.add(request)
        self._see_if_parked()

    def step_done(self, report: StepReport) -> None:
        """See Observer."""
        self._steps_since_rest += 1
        if self._is_open:
            self._count_step(report)
        if not (self._resting or self.closed.is_set()):
            self._open_or_close()
        if self._is_open:
            self.window.rows += report.batch_rows  # the rounds of a step are told of after it: with the one that closes, they are left out

    def drafted(self, requests: Sequence[DraftRequest], report: DraftReport) -> None:
        """The drafter answered."""
        if not self._is_open:
            return
        depths = [request.max_depth for request in requests if request.max_depth > 0]
        self.window.draft_ms += report.draft_ms
        if depths and not report.failures:
            self.window.draft_calls += 1
            self.window.draft_samples.append((len(depths), max(depths), report.draft_ms))

    def _open_or_close(self) -> None:
        if not self._is_open and self._is_settled:
            self._open()
        elif self._patience.over or (self._is_open and self._plan.is_over(*self._progress)):
            self._close()

    @property
    def _is_settled(self) -> bool:
        return self._steps_since_rest > SETTLING_STEPS and len(self._seen_clients) >= self._num_clients

    @property
    def _progress(self) -> tuple[float, float, int]:
        return self._clock() - self._opened_s, self.window.tokens / self._num_clients, self.window.steps

    def _open(self) -> None:
        self._is_open = True
        self._opened_s = self._clock()
        self._since_s = dict.fromkeys(self._since_s, self._opened_s)

    def _close(self) -> None:
        """A window that was never open lasted no time."""
        for request in self._since_s:
            self._watched(request)
        self.window.seconds = self._clock() - self._opened_s if self._is_open else 0.0
        self._is_open = False
        self.closed.set()

    def _count(self, request: int, chunk: TokenChunk) -> None:
        window = self.window
        window.tokens += len(chunk.token_ids)
        window.rounds += 1
        window.drafted += chunk.num_drafted
        window.selected += chunk.num_selected
        window.requests.setdefault(request, RequestSpeed()).tokens += len(chunk.token_ids)

    def _count_step(self, report: StepReport) -> None:
        self.window.steps += 1
        self.window.verify_ms += report.verify_ms
        if report.results:
            cached = sum(result.base_length for result in report.results)
            self.window.step_samples.append((report.batch_rows, len(report.results), cached, report.verify_ms))

    def _watched(self, request: int) -> None:
        if self._is_open:
            self.window.requests.setdefault(request, RequestSpeed()).seconds += self._clock() - self._since_s[request]

    def _see_if_parked(self) -> None:
        if self._resting and all(request in self._finished or count >= READ_AHEAD for request, count in self._unread.items()):
            self.parked.set()
