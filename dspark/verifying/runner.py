"""VerifierRunner: one BatchVerifier on a thread of its own, shared by any number of routers.

The event loop only queues commands and hands out reports, so heartbeats and new requests are served while a forward runs.
Rounds of several routers that wait at the same moment share one forward.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from weakref import WeakSet

from dspark.errors import TargetUnavailable
from dspark.messages import SessionOpen, StepReport, VerifyRequest
from dspark.types import RouterId, SessionId
from dspark.verifying.verifier import BatchVerifier

logger = logging.getLogger(__name__)


class VerifierRunner:
    """Implements ports.VerifierHost. Lives on one event loop; `start` before use, `stop` at the end."""

    def __init__(self, verifier: BatchVerifier, thread: ThreadPoolExecutor | None = None) -> None:
        """`thread` has one worker; without it the runner has one of its own."""
        self._verifier = verifier
        self._commands: deque[Callable[[], None]] = deque()
        self._owners: dict[SessionId, VerifierConnection] = {}
        self._connections: WeakSet[VerifierConnection] = WeakSet()  # a router's stream that ended lets go of its view
        self._wake = asyncio.Event()
        self._thread = thread or ThreadPoolExecutor(1, thread_name_prefix="target")
        self._owns_thread = thread is None
        self._task: asyncio.Task[None] | None = None
        self.last_report = StepReport()

    @property
    def num_sessions(self) -> int:
        """Sessions open now, of all routers."""
        return len(self._owners)

    @property
    def alive(self) -> bool:
        """False once the step loop has ended, by `stop` or by an error."""
        return self._task is not None and not self._task.done()

    def start(self) -> None:
        """Begin to step; needs a running event loop."""
        self._task = asyncio.create_task(self._run())

    async def stop(self) -> None:
        """Finish the step in hand, end, and leave no session behind in the verifier."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        for connection in list(self._connections):
            connection.break_off()
        if self._owns_thread:
            self._thread.shutdown(wait=True)
        else:
            await asyncio.get_running_loop().run_in_executor(self._thread, _nothing)  # the step in hand, if any, is over after it
        for session_id in list(self._owners):
            self.forget(self._owners[session_id], session_id)
        while self._commands:
            self._commands.popleft()()

    def connect(self, router_id: RouterId) -> "VerifierConnection":
        """A view for one router."""
        connection = VerifierConnection(self, router_id)
        self._connections.add(connection)
        if self._task is not None and self._task.done():
            connection.break_off()
        return connection

    def command(self, connection: "VerifierConnection", session_id: SessionId, action: Callable[[], None]) -> None:
        """Queue a change of the verifier's sessions for the start of the next step."""
        self._owners[session_id] = connection
        self._commands.append(action)
        self._wake.set()

    def forget(self, connection: "VerifierConnection", session_id: SessionId) -> None:
        """Queue the end of a session, if it is this connection's."""
        if self._owners.get(session_id) is connection:
            del self._owners[session_id]
            self._commands.append(partial(self._verifier.close, session_id))
            self._wake.set()

    @property
    def verifier(self) -> BatchVerifier:
        """The model's side; only to be touched through `command`, except to check what is constant."""
        return self._verifier

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            while True:
                await self._wake.wait()
                self._wake.clear()
                while self._commands or self._verifier.has_work:
                    self.last_report = report = await loop.run_in_executor(self._thread, self._step)
                    idle = not (report.batch_rows or report.results or report.failures)
                    if idle and not self._verifier.has_work:
                        continue  # sessions came or went: told as a step, it would pass for the one that a router is waiting for
                    self._hand_out(report)
                    await asyncio.sleep(0)  # rounds that the reports set off join the next step
                    if idle and not self._commands:
                        break  # all that waits needs blocks of sessions that are between rounds: only a command can help
        except Exception:
            logger.exception("the target's step loop ended")
            raise
        finally:
            for connection in list(self._connections):
                connection.break_off()

    def _step(self) -> StepReport:
        while self._commands:
            self._commands.popleft()()
        return self._verifier.step()

    def _hand_out(self, report: StepReport) -> None:
        """Each router its own results; every router the cost of the step, which tells it that the target is free."""
        for failure in report.failures:
            logger.warning("session %s failed: %s", failure.session_id, failure.message)
        for connection in self._connections:
            connection.put(
                replace(
                    report,
                    results=tuple(r for r in report.results if self._owners.get(r.session_id) is connection),
                    failures=tuple(f for f in report.failures if self._owners.get(f.session_id) is connection),
                )
            )


class VerifierConnection:
    """Implements ports.Verifier for one router."""

    def __init__(self, runner: VerifierRunner, router_id: RouterId) -> None:
        self._runner = runner
        self.router_id = router_id
        self._reports: asyncio.Queue[StepReport | None] = asyncio.Queue()
        self._own_sessions: set[SessionId] = set()

    def open(self, session: SessionOpen) -> None:
        """See ports.Verifier."""
        self._runner.verifier.check_open(session)
        self._own_sessions.add(session.session_id)
        self._runner.command(self, session.session_id, partial(self._runner.verifier.open, session))

    def submit(self, requests: Sequence[VerifyRequest]) -> None:
        """See ports.Verifier."""
        for request in requests:
            self._runner.command(self, request.session_id, partial(self._runner.verifier.submit, request))

    async def next_report(self) -> StepReport:
        """See ports.Verifier."""
        report = await self._reports.get()
        if report is None:
            self._reports.put_nowait(None)  # everyone who asks from now on is told the same
            raise TargetUnavailable("the target has stopped")
        return report

    def close(self, session_id: SessionId) -> None:
        """See ports.Verifier."""
        self._own_sessions.discard(session_id)
        self._runner.forget(self, session_id)

    def put(self, report: StepReport) -> None:
        """Called by the runner after every step."""
        if self._own_sessions or report.results or report.failures:
            self._reports.put_nowait(report)

    def break_off(self) -> None:
        """Called by the runner when there will be no more reports."""
        self._reports.put_nowait(None)


def _nothing() -> None:
    """Waits its turn on the thread."""
