"""Router replica: the ingress (HTTP and gRPC on one class) before an Engine whose drafters and targets are leased replicas."""

import asyncio
import logging
from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI
from ray import serve
from ray.serve.handle import DeploymentHandle

from deployments.grpc_api import GenerationRpc
from deployments.http_api import build_http_app
from deployments.pools import DraftPool, TargetPool
from deployments.telemetry import DrafterGauges, RouterMetrics
from dspark.config import ServeArgs
from dspark.drafting.build import lookup_drafter
from dspark.engine import Engine
from dspark.errors import FingerprintMismatch, TargetUnavailable
from dspark.messages import FeatureSpec
from dspark.ports import DrafterPool, Pools, VerifierPool
from dspark.routing.placement import LocalDrafterPool
from dspark.runtime.draft_formats import feature_spec
from dspark.runtime.loading import load_tokenizer, resolve_folder
from dspark.serving.text_codec import TextCodec
from dspark.types import ModelCard, RouterId, SessionId
from dspark.verifying.target_model import target_card

logger = logging.getLogger(__name__)

READY_TIMEOUT_S = 1.0

TARGET_PAUSE_S = 1.0


class ClusterBackend:
    """Implements engine.Backend on Serve deployments."""

    def __init__(
        self,
        args: ServeArgs,
        card: ModelCard,
        router_id: RouterId,
        target: DeploymentHandle[Any],
        drafts: Mapping[str, DeploymentHandle[Any]],
        features: Mapping[str, FeatureSpec | None],
    ) -> None:
        """`drafts` are the deployments of the drafters that run a model, by name; `features` what those read of the target."""
        self._args = args
        self._card = card
        self._targets = TargetPool(target, router_id, card, args)
        self._drafts = {name: DraftPool(handle, router_id, card, args, features[name]) for name, handle in drafts.items()}

    @property
    def card(self) -> ModelCard:
        """The model served, as this router's own look at its folder tells; replicas that differ are refused."""
        return self._card

    async def start(self) -> Pools:
        """See engine.Backend. Connections are made when the first lease needs them."""
        return Pools(self._targets, self._drafters())

    async def stop(self) -> None:
        """See engine.Backend."""
        await self._targets.close()
        for pool in self._drafts.values():
            await pool.close()

    async def ready(self) -> bool:
        """See engine.Backend: true if a target gives a place now. Who asks wants an answer soon, so it does not wait as a request does."""
        try:
            async with asyncio.timeout(READY_TIMEOUT_S):
                lease = await self._targets.acquire(SessionId("ready"))
        except (TimeoutError, TargetUnavailable):
            return False
        await lease.release()
        return True

    async def meet_a_target(self) -> None:
        """See the function of this name."""
        await meet_a_target(self._targets)

    def _drafters(self) -> dict[str, DrafterPool]:
        named = self._args.named_drafters
        return {name: self._drafts.get(name) or LocalDrafterPool(lookup_drafter(config)) for name, config in named.items()}


class Router(GenerationRpc):
    """Owner of the sessions that came in through it."""

    async def __init__(  # type: ignore[misc]  # Serve awaits it
        self, args: ServeArgs, target: DeploymentHandle[Any], drafts: Mapping[str, DeploymentHandle[Any]]
    ) -> None:
        self._args = args
        self.limits = args.limits
        context = serve.get_replica_context()
        self._deployment, self._app_name = context.deployment, context.app_name
        codec, card = await asyncio.to_thread(_read_model, args)
        features = await asyncio.to_thread(_read_features, args)
        backend = ClusterBackend(args, card, RouterId(context.replica_tag), target, drafts, features)
        self._engine = self.service = Engine(backend, codec, args, RouterMetrics(card.name))
        await self._engine.start()
        self._gauges = DrafterGauges(card.name)
        self._gauges.start(self._engine.standings)
        await backend.meet_a_target()

    def __serve_build_asgi_app__(self) -> FastAPI:
        """Called by Serve after the constructor."""
        return build_http_app(lambda: self.service, self.limits)

    async def abort_anywhere(self, request_id: str) -> bool:
        """The request may have come in through another router."""
        if self.service.abort(request_id):
            return True
        if self._args.router_deployment.autoscaling.max_replicas == 1:
            return False
        routers = serve.get_deployment_handle(self._deployment, self._app_name)
        answers = await routers.broadcast("abort_here", request_id).results_async(return_exceptions=True)
        return any(answer is True for answer in answers)

    async def abort_here(self, request_id: str) -> bool:
        """Called by another router."""
        return self.service.abort(request_id)


async def meet_a_target(targets: VerifierPool, pause_s: float = TARGET_PAUSE_S) -> None:
    """The application is ready when its first request can be served, so wait for a target, however long it loads.

    Raises FingerprintMismatch if a target serves another model: waiting does not help, and Serve reports the reason.
    """
    said = ""
    while True:
        try:
            lease = await targets.acquire(SessionId("ready"))
            return await lease.release()
        except TargetUnavailable as error:
            if isinstance(error.__cause__, FingerprintMismatch):
                raise error.__cause__ from None
            if error.message != said:
                logger.warning("no target yet: %s", error.message)
                said = error.message
        await asyncio.sleep(pause_s)


def _read_model(args: ServeArgs) -> tuple[TextCodec, ModelCard]:
    folder = resolve_folder(args.target)
    return TextCodec(load_tokenizer(folder)), target_card(args.target, folder)


def _read_features(args: ServeArgs) -> dict[str, FeatureSpec | None]:
    """Of the drafters that have replicas, by name."""
    return {name: feature_spec(args.named_drafters[name]) for name in args.draft_pools}
