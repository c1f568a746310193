"""LocalBackend: drafter and target in this process, for the offline API, tests and benchmarks."""

from concurrent.futures import ThreadPoolExecutor

from dspark.config import DrafterConfig, EngineConfig
from dspark.drafting.build import LoadedDrafter, load_drafter, lookup_drafter
from dspark.drafting.drafter import ThreadedDrafter
from dspark.errors import FingerprintMismatch
from dspark.ports import Drafter, Pools
from dspark.routing.placement import LocalDrafterPool, LocalVerifierPool
from dspark.types import ModelCard, RouterId
from dspark.verifying.runner import VerifierRunner
from dspark.verifying.target_model import LoadedTarget, load_target


class LocalBackend:
    """Implements engine.Backend. The weights stay loaded between `stop` and the next `start`."""

    def __init__(
        self,
        target: LoadedTarget,
        config: DrafterConfig,
        drafter: LoadedDrafter | None,
        foreign_drafter: Drafter | None = None,
    ) -> None:
        if drafter is not None and drafter.card.tokenizer_fingerprint != target.card.tokenizer_fingerprint:
            raise FingerprintMismatch(
                f"drafter {drafter.card.name} has another tokenizer than target {target.card.name}: "
                f"{drafter.card.tokenizer_fingerprint} is not {target.card.tokenizer_fingerprint}"
            )
        self._target = target
        self._config = config
        self._drafter_model = drafter
        self._foreign_drafter = foreign_drafter
        self._runner: VerifierRunner | None = None
        self._threaded_drafter: ThreadedDrafter | None = None
        self._thread: ThreadPoolExecutor | None = None
        """Of drafter and target together: two threads that both launch small operations slow each other down at the interpreter's lock."""

    @classmethod
    def load(cls, config: EngineConfig) -> "LocalBackend":
        """Load what the configuration names. Blocks for as long as that takes."""
        target = load_target(config.target)
        return cls(target, config.drafter, _load_drafter(config.drafter))

    def with_drafter(self, config: DrafterConfig, foreign_drafter: Drafter | None = None) -> "LocalBackend":
        """The same target weights with another drafter; `foreign_drafter` is any object of the port, for trying out one's own."""
        drafter = None if foreign_drafter is not None else _load_drafter(config)
        return LocalBackend(self._target.with_own_cache(), config, drafter, foreign_drafter)

    @property
    def card(self) -> ModelCard:
        """The target's card."""
        return self._target.card

    @property
    def target(self) -> LoadedTarget:
        """The model itself, for measurements while the backend is stopped."""
        return self._target

    async def start(self) -> Pools:
        """See engine.Backend."""
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="models")
        self._runner = VerifierRunner(self._target.verifier, self._thread)
        self._runner.start()
        targets = LocalVerifierPool(self._runner.connect(RouterId("local")), self.card)
        drafter = self._start_drafter()
        return Pools(targets, None if drafter is None else LocalDrafterPool(drafter))

    async def stop(self) -> None:
        """See engine.Backend."""
        if self._threaded_drafter is not None:
            await self._threaded_drafter.stop()
            self._threaded_drafter = None
        if self._runner is not None:
            await self._runner.stop()
            self._runner = None
        if self._thread is not None:
            self._thread.shutdown(wait=True)
            self._thread = None

    async def ready(self) -> bool:
        """See engine.Backend."""
        return self._runner is not None and self._runner.alive

    def _start_drafter(self) -> Drafter | None:
        if self._foreign_drafter is not None:
            return self._foreign_drafter
        if self._config.kind == "none":
            return None
        if self._drafter_model is None:
            return lookup_drafter(self._config)
        self._threaded_drafter = ThreadedDrafter(self._drafter_model.drafter, self._thread)
        return self._threaded_drafter


def _load_drafter(config: DrafterConfig) -> LoadedDrafter | None:
    return load_drafter(config) if config.kind == "language_model" else None
