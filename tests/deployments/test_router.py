"""How a new router waits for its first target, on a real LeasePool whose handle is played."""

import asyncio
import logging
from typing import Any

import pytest

from deployments.router import meet_a_target
from dspark.errors import FingerprintMismatch
from tests.deployments.test_leases import Handle, Network, dead, open_for_ever, over_at_once, pool_of


async def test_a_router_waits_for_a_target_and_says_once_why(caplog: pytest.LogCaptureFixture) -> None:
    handle = Handle(dead, dead, dead, over_at_once, over_at_once, open_for_ever)
    pool: Any = pool_of(handle, Network(), acquire_timeout_s=0.01)  # one try each
    with caplog.at_level(logging.WARNING, logger="deployments.router"):
        await asyncio.wait_for(meet_a_target(pool, pause_s=0.01), 2.0)
    reasons = [record.getMessage() for record in caplog.records if record.name == "deployments.router"]
    assert reasons == ["no target yet: no replica could be reached", "no target yet: the replica gave no place"]
    assert len(handle.calls) == 6
    assert all(call.cancelled for call in handle.calls)


async def test_a_router_pauses_between_tries() -> None:
    handle = Handle(dead)
    pool: Any = pool_of(handle, Network(), acquire_timeout_s=0.01)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(meet_a_target(pool), 0.3)
    assert len(handle.calls) == 1


async def test_a_router_does_not_start_with_a_target_of_another_model() -> None:
    handle, network = Handle(open_for_ever), Network()
    network.error = FingerprintMismatch("model: a is not b")
    pool: Any = pool_of(handle, network)
    with pytest.raises(FingerprintMismatch, match="a is not b"):
        await asyncio.wait_for(meet_a_target(pool, pause_s=0.01), 1.0)
    assert [call.cancelled for call in handle.calls] == [True]
