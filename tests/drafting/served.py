"""What the tests of block and eagle drafters share: untrained drafters of the shipped target, and real features of real text."""

from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch

from dspark.config import DrafterConfig, KvCacheConfig, ModelSource
from dspark.deepspec.features import OnlineFeatures
from dspark.drafting.batch import CachedDrafter
from dspark.drafting.build import load_drafter
from dspark.messages import ContextFeatures, DraftReport, DraftRequest, SessionOpen
from dspark.runtime.hub import resolve_folder
from dspark.runtime.projection import FeatureProjection, load_projection
from dspark.types import SamplingParams, SessionId

GREEDY = SamplingParams(temperature=0.0)
NOISY = SamplingParams(temperature=0.9, top_k=40, top_p=0.95, seed=12, choice=1)
TARGET = ModelSource(model="demo:target")
TAPS = (0, 1, 2, 3, 4)


@cache
def online() -> OnlineFeatures:
    return OnlineFeatures(resolve_folder(TARGET), TAPS, "cpu")


def text_of(length: int, seed: int = 0) -> list[int]:
    return np.random.default_rng(seed).integers(5, 4096, length).tolist()


@cache
def taps_of(token_ids: tuple[int, ...]) -> torch.Tensor:
    """[S, m * d] raw taps in bfloat16, as they travel."""
    view = online().view(torch.tensor([token_ids]), torch.tensor([len(token_ids)]))
    return view.taps[0].to(torch.bfloat16)


def bits(values: torch.Tensor) -> np.ndarray:
    return values.contiguous().view(torch.uint16).numpy()


@dataclass
class Bench:
    """One drafter of a checkpoint and what it takes to ask it."""

    folder: Path
    kind: str
    num_tokens: int = 4096
    min_survival: float = 0.0

    def __post_init__(self) -> None:
        config = DrafterConfig.model_validate(
            {"kind": self.kind, "model": str(self.folder), "max_depth": 7, "max_nodes": 7, "min_survival": self.min_survival}
            | {"kv_cache": KvCacheConfig(num_tokens=self.num_tokens)}
        )
        self.projection: FeatureProjection = load_projection(config, torch.device("cpu"))
        self.drafter: CachedDrafter = load_drafter(config, TARGET).drafter  # type: ignore[type-arg]

    def open(self, name: str, tokens: list[int], sampling: SamplingParams = GREEDY) -> SessionId:
        session_id = SessionId(name)
        self.drafter.open(SessionOpen(session_id, tuple(tokens), sampling))
        return session_id

    def features(self, tokens: list[int], start: int, stop: int, *, projected: bool = True) -> ContextFeatures:
        taps = taps_of(tuple(tokens))[start:stop]
        return ContextFeatures(start, bits(self.projection(taps.float()) if projected else taps), projected)

    def request(
        self, session_id: SessionId, tokens: list[int], start: int = 0, *, new: int = 0, depth: int = 7, projected: bool = True
    ) -> DraftRequest:
        """A draft on `tokens`, bringing features from `start` on up to the anchor, and the last `new` tokens."""
        base = len(tokens)
        features = self.features(tokens, start, base - 1, projected=projected) if start < base - 1 else None
        return DraftRequest(session_id, base, tuple(tokens[base - new :]) if new else (), depth, 7, features)

    def ask(self, *requests: DraftRequest) -> DraftReport:
        return self.drafter.draft(requests)

    def chain(self, tokens: list[int], sampling: SamplingParams = GREEDY) -> list[int]:
        """Of a fresh session that gets everything at once."""
        session_id = self.open("fresh", tokens, sampling)
        return chains(self.ask(self.request(session_id, tokens)))[0]


def chains(report: DraftReport) -> list[list[int]]:
    assert report.failures == ()
    return [result.tree.token_ids.tolist() for result in report.results]
