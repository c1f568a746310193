"""The whole way with a real model: target forward, store, gRPC, router, gRPC, drafter. The drafter holds the bits of plain decoding."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import numpy as np
import pytest

from dspark.config import SchedulingConfig
from dspark.fakes import FakeDrafter
from dspark.messages import DraftRequest, DraftResult, FeatureSpec
from dspark.routing.loop import SpeculativeLoop
from dspark.routing.placement import LocalDrafterPool, LocalVerifierPool
from dspark.session import Session
from dspark.tree import CandidateTree
from dspark.types import ModelCard, ReplicaId, RouterId, SamplingParams, SessionId, StopRules
from dspark.verifying.runner import VerifierRunner
from dspark.verifying.verifier import BatchVerifier
from dspark.wire.client import RemoteDrafter, RemoteVerifier
from dspark.wire.server import DraftingService, VerificationService, start_server
from tests.routing.parts import DRAFTER, GREEDY, CountingObserver, limits_with
from tests.runtime.tiny_models import VOCAB_SIZE, packed_model, random_prompts
from tests.verifying.rounds import Rounds

SPEC = FeatureSpec("recorder", (-1, 0))
CARD = ModelCard("tiny", VOCAB_SIZE, 512, (), "m1", "t1")
DRAFTER_CARD = ModelCard("recorder", VOCAB_SIZE, 512, (), "recorder", "t1", SPEC.tap_layers)
PROMPTS = random_prompts((40, 7, 150), seed=3)
NUM_TOKENS = 30


def verifier() -> BatchVerifier:
    """Deterministic: the bits do not depend on batches."""
    return BatchVerifier(packed_model("qwen3", num_cache_tokens=2048, deterministic=True), max_length=512, max_batch_rows=48)


class Oracle(FakeDrafter):
    """Drafts what it was told the texts are, reads features, keeps them after the session, and can lose its memory once."""

    def __init__(self, texts: list[list[int]], forget_at: int) -> None:
        super().__init__(self._guess_right, reads_features=True)
        self._texts = [tuple(prompt + text) for prompt, text in zip(PROMPTS, texts, strict=True)]
        self.kept: dict[SessionId, list[tuple[int, ...]]] = {}
        self._forget_at = forget_at
        self.num_answers = 0

    def answer(self, request: DraftRequest) -> DraftResult:
        self.num_answers += 1
        if self.num_answers == self._forget_at:
            self.forget_all()
        result = super().answer(request)
        self.kept[request.session_id] = list(self.features[request.session_id])
        return result

    def _guess_right(self, tokens: Sequence[int], sampling: SamplingParams, depth: int) -> CandidateTree:
        text = next(text for text in self._texts if text[: len(tokens)] == tuple(tokens))
        return CandidateTree.chain(list(text[len(tokens) : len(tokens) + depth]))


@asynccontextmanager
async def house(oracle: Oracle, observer: CountingObserver) -> AsyncIterator[SpeculativeLoop]:
    """A loop whose target and drafter are behind real servers."""
    runner = VerifierRunner(verifier())
    runner.start()
    target = VerificationService(runner, CARD, ReplicaId("target"), silence_timeout_s=5)
    drafting = DraftingService(oracle, DRAFTER_CARD, ReplicaId("draft"), silence_timeout_s=5)
    server, port = await start_server([target, drafting])
    router, address = RouterId("router"), f"127.0.0.1:{port}"
    options = {"silence_timeout_s": 5.0, "connect_timeout_s": 5.0}
    far_target = await RemoteVerifier.connect(address, router, **options)  # type: ignore[arg-type]
    far_drafter = await RemoteDrafter.connect(address, router, model_fingerprint=SPEC.drafter_fingerprint, **options)  # type: ignore[arg-type]
    loop = SpeculativeLoop(
        LocalVerifierPool(far_target, far_target.card),
        {"default": LocalDrafterPool(far_drafter, SPEC)},
        drafter_configs={"default": DRAFTER},
        limits=limits_with(draft_timeout_s=5.0),
        max_batch_rows=48,
        observer=observer,
        scheduling=SchedulingConfig(mode="fixed"),  # whether drafts pay on this machine is another question
    )
    assert far_drafter.card.tap_layers == SPEC.tap_layers
    try:
        yield loop
    finally:
        await loop.stop()
        await far_target.disconnect()
        await far_drafter.disconnect()
        await server.stop(None)
        await runner.stop()


@pytest.fixture(scope="module")
def plain() -> tuple[list[list[int]], list[list[tuple[int, ...]]]]:
    """Texts and features, without a drafter."""
    rounds = Rounds(verifier(), PROMPTS, specs=SPEC)
    texts = rounds.run(NUM_TOKENS)
    parts = [[part.values for part in answers if part is not None] for answers in rounds.features]
    return texts, [[tuple(row) for row in np.concatenate(part).tolist()] for part in parts]


@pytest.mark.parametrize("forget_at", [-1, 9], ids=["a good drafter", "one that starts again"])
async def test_a_remote_drafter_holds_the_targets_own_features(
    plain: tuple[list[list[int]], list[list[tuple[int, ...]]]], forget_at: int
) -> None:
    texts, features = plain
    oracle = Oracle(texts, forget_at)
    observer = CountingObserver()

    async def run(loop: SpeculativeLoop, which: int) -> list[int]:
        session = Session(SessionId(f"s{which}"), tuple(PROMPTS[which]), GREEDY, StopRules(NUM_TOKENS))
        async for _ in loop.run(session, speculate=True):
            pass
        return session.output_ids

    async with house(oracle, observer) as loop:
        found = await asyncio.wait_for(asyncio.gather(*(run(loop, which) for which in range(len(PROMPTS)))), 60)
    assert found == texts
    for which, expected in enumerate(features):
        kept = oracle.kept[SessionId(f"s{which}")]
        assert len(kept) > len(PROMPTS[which]) + NUM_TOKENS // 2
        assert kept == expected[: len(kept)]
    assert observer.num_accepted > NUM_TOKENS
    if forget_at < 0:
        assert observer.lost == {}
        assert oracle.num_repeated_rows == 0
        assert observer.num_feature_bytes == observer.num_feature_rows * 2 * 32 * 2, "m * d numbers of two bytes for each position"
    else:
        assert observer.lost.keys() == {"stale"}
