"""What Target and Draft replicas have in common: an identity, an address for their data service, and leases.

Knows nothing of models.
"""

import os
import uuid
from collections.abc import AsyncIterator
from typing import Any

import ray
from ray import serve

from deployments.lease_book import LeaseBook
from dspark.types import ReplicaId, SessionId

DATA_HOST_VARIABLE = "DSPARK_DATA_HOST"
"""Where replicas listen for routers: an address of the node, `node` for the one Ray knows, or unset.

Unset means loopback while the cluster has one node and `node` otherwise, decided when the replica starts: set it to `node` where
nodes come later. The data service has no login and no encryption, so it must not be reachable from outside the cluster.
"""
LOOPBACK = "127.0.0.1"


class LeasedReplica:
    """Base of Target and Draft."""

    def __init__(self, lease_silence_timeout_s: float) -> None:
        context = serve.get_replica_context()
        self.deployment = context.deployment
        self.replica_id = ReplicaId(context.replica_tag)
        self.epoch = uuid.uuid4().hex
        self.book = LeaseBook(lease_silence_timeout_s)
        self.address = ""
        """host:port of the data service, once it runs."""

    async def lease(self, session_id: str) -> AsyncIterator[dict[str, str]]:
        """A place for one session: yields where it may live, then stays open as long as the session does.

        Serve counts the open call for autoscaling and waits for it before it stops the replica.
        """
        # In the book before the router knows where to go: its open may come before this call goes on.
        with self.book.entry(SessionId(session_id)) as entry:
            yield self._place()
            await entry.until_over()

    def record_replica_metadata(self) -> dict[str, str]:
        """Published by Serve with the replica's name."""
        return self._place()

    def _place(self) -> dict[str, str]:
        return {"replica_id": self.replica_id, "epoch": self.epoch, "address": self.address}


def data_host() -> str:
    """The address to listen on, see DATA_HOST_VARIABLE."""
    wanted = os.environ.get(DATA_HOST_VARIABLE, "")
    if wanted and wanted != "node":
        return wanted
    nodes: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
    several_nodes = len([node for node in nodes if node["Alive"]]) > 1
    if wanted != "node" and not several_nodes:
        return LOOPBACK
    return str(ray.util.get_node_ip_address())  # type: ignore[no-untyped-call]
