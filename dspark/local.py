"""LocalBackend: drafters and target in this process, for the offline API, tests and benchmarks."""

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

from dspark.config import DEFAULT_DRAFTER, MODEL_KINDS, DrafterConfig, EngineConfig, TargetConfig
from dspark.drafting.build import LoadedDrafter, load_drafter, lookup_drafter
from dspark.drafting.drafter import ThreadedDrafter
from dspark.errors import FingerprintMismatch
from dspark.messages import FeatureSpec
from dspark.ports import Drafter, Pools
from dspark.routing.placement import LocalDrafterPool, LocalVerifierPool
from dspark.scheduling.curve import ThroughputCurve
from dspark.scheduling.draft_cost import DraftCall
from dspark.types import ModelCard, RouterId
from dspark.verifying.runner import VerifierRunner
from dspark.verifying.target_model import LoadedTarget, load_target


class LocalBackend:
    """Implements engine.Backend. The weights stay loaded between `stop` and the next `start`."""

    def __init__(
        self,
        target: LoadedTarget,
        drafters: Mapping[str, LoadedDrafter | Drafter],
        curve: ThroughputCurve | None = None,
        calls: Mapping[str, Sequence[DraftCall]] | None = None,
    ) -> None:
        """`drafters` by name: models of this project, or any objects of the port. `curve`: what the target's steps cost; `calls`: what
        some calls of each drafter took."""
        for drafter in drafters.values():
            if isinstance(drafter, LoadedDrafter):
                _check_tokenizer(drafter.card, target.card)
        self._target = target
        self._drafters = drafters
        self._calls = calls or {}
        self._curve = curve
        self._runner: VerifierRunner | None = None
        self._threaded_drafters: list[ThreadedDrafter] = []
        self._thread: ThreadPoolExecutor | None = None
        """Of drafters and target together: two threads that both launch small operations slow each other down at the interpreter's lock."""

    @classmethod
    def load(cls, config: EngineConfig, *, profile: bool = False) -> "LocalBackend":
        """Load what the configuration names. Blocks for as long as that takes. `profile`: measure the target even if nobody drafts yet."""
        target = load_target(config.target, tuple(config.named_drafters.values()))
        drafters = {name: _load(drafter, config.target) for name, drafter in config.named_drafters.items()}
        return cls(target, drafters, target.profile() if drafters or profile else None, _profiled(drafters))

    def with_drafter(self, config: DrafterConfig, foreign_drafter: Drafter | None = None) -> "LocalBackend":
        """The same target weights with one other drafter; `foreign_drafter` is any object of the port, for trying out one's own."""
        drafters: dict[str, LoadedDrafter | Drafter] = {}
        if foreign_drafter is not None:
            drafters = {DEFAULT_DRAFTER: foreign_drafter}
        elif config.kind != "none":
            drafters = {DEFAULT_DRAFTER: _load(config, self._target.config)}
        return LocalBackend(self._target.with_own_cache((config,)), drafters, self._curve, _profiled(drafters))

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
        targets = LocalVerifierPool(self._runner.connect(RouterId("local")), self.card, self._curve)
        drafters = {
            name: LocalDrafterPool(self._start(drafter), _features(drafter), self._calls.get(name, ()))
            for name, drafter in self._drafters.items()
        }
        return Pools(targets, drafters, overlap=0.0)  # one thread does both

    async def stop(self) -> None:
        """See engine.Backend."""
        for drafter in self._threaded_drafters:
            await drafter.stop()
        self._threaded_drafters.clear()
        if self._runner is not None:
            await self._runner.stop()
            self._runner = None
        if self._thread is not None:
            self._thread.shutdown(wait=True)
            self._thread = None

    async def ready(self) -> bool:
        """See engine.Backend."""
        return self._runner is not None and self._runner.alive

    def _start(self, drafter: LoadedDrafter | Drafter) -> Drafter:
        if not isinstance(drafter, LoadedDrafter):
            return drafter
        threaded = ThreadedDrafter(drafter.drafter, self._thread)
        self._threaded_drafters.append(threaded)
        return threaded


def _load(config: DrafterConfig, target: TargetConfig) -> LoadedDrafter | Drafter:
    return load_drafter(config, target) if config.kind in MODEL_KINDS else lookup_drafter(config)


def _profiled(drafters: Mapping[str, LoadedDrafter | Drafter]) -> dict[str, Sequence[DraftCall]]:
    return {name: drafter.profile() for name, drafter in drafters.items() if isinstance(drafter, LoadedDrafter)}


def _features(drafter: LoadedDrafter | Drafter) -> FeatureSpec | None:
    """What sessions must ask the target for; a drafter from elsewhere reads tokens only."""
    if not isinstance(drafter, LoadedDrafter) or not drafter.card.tap_layers:
        return None
    return FeatureSpec(drafter.card.model_fingerprint, drafter.card.tap_layers)


def _check_tokenizer(drafter: ModelCard, target: ModelCard) -> None:
    if drafter.tokenizer_fingerprint != target.tokenizer_fingerprint:
        raise FingerprintMismatch(
            f"drafter {drafter.name} has another tokenizer than target {target.name}: "
            f"{drafter.tokenizer_fingerprint} is not {target.tokenizer_fingerprint}"
        )
