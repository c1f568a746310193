"""Sessions, limits and a counting observer for the tests of this room."""

from collections import Counter
from typing import Any

from dspark.config import DrafterConfig, LimitsConfig
from dspark.messages import DraftReport, StepReport
from dspark.routing.observer import SilentObserver
from dspark.scheduling.drafting_plan import DraftLimits
from dspark.session import Session, TokenChunk
from dspark.types import FinishReason, SamplingParams, SessionId, StopRules

GREEDY = SamplingParams(temperature=0.0)
NOISY = SamplingParams(temperature=1.0, top_p=0.95, seed=21)
DRAFTER = DrafterConfig(max_depth=4, max_nodes=8, max_width=1)
LIMITS_OF_DRAFTER = DraftLimits(4, 1, 8)
LIMITS: dict[str, Any] = {"draft_timeout_s": 0.05, "draft_retry_s": 0.02, "verify_timeout_s": 5.0}


def limits_with(**changes: float) -> LimitsConfig:
    return LimitsConfig(**(LIMITS | changes))


def session_named(name: str, prompt: tuple[int, ...] = (1, 2, 3), sampling: SamplingParams = GREEDY, max_tokens: int = 40) -> Session:
    return Session(SessionId(name), prompt, sampling, StopRules(max_tokens))


class CountingObserver(SilentObserver):
    """Counts what it is told; also a DraftObserver, for parts that know one drafter only."""

    def __init__(self) -> None:
        self.lost: Counter[str] = Counter()
        self.num_accepted = 0
        self.num_drafts = 0
        self.num_steps = 0
        self.num_feature_rows = 0
        self.num_feature_bytes = 0
        self.ended: list[FinishReason | None] = []

    def round_done(self, session: Session, chunk: TokenChunk, round_ms: float) -> None:
        self.num_accepted += chunk.num_accepted

    def step_done(self, report: StepReport) -> None:
        self.num_steps += 1

    def draft_done(self, report: DraftReport, drafter: str = "default") -> None:
        self.num_drafts += 1

    def draft_lost(self, reason: str, drafter: str = "default") -> None:
        self.lost[reason] += 1

    def features_received(self, num_rows: int, num_bytes: int, drafter: str = "default") -> None:
        self.num_feature_rows += num_rows
        self.num_feature_bytes += num_bytes

    def session_ended(self, session: Session, reason: FinishReason | None) -> None:
        self.ended.append(reason)
