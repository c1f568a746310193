"""Is the output the target's own? Token equality against a reference, with every difference explained or counted as wrong.

The rule (DESIGN section 8): two outputs are equal, or they first differ where the two best noised scores lie closer than
NEAR_TIE: there float rounding decides, and rounding depends on how many rows share a matrix product. Near-ties are counted
and reported, never hidden.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from dspark.runtime.kv_cache import BlockTable
from dspark.runtime.model import PackedModel
from dspark.runtime.packed import Segment
from dspark.sampling import RowSampling, Sampler
from dspark.types import SamplingParams

NEAR_TIE = 1e-4
"""float32; 1e-2 for bfloat16."""


@dataclass(slots=True)
class Comparison:
    """Outcome over many prompts."""

    num_prompts: int = 0
    num_equal: int = 0
    near_tie_gaps: list[float] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    """One line per difference that no near-tie explains."""

    def line(self) -> str:
        """For a report."""
        ties = f"{len(self.near_tie_gaps)} first differ at a near-tie (largest gap {max(self.near_tie_gaps, default=0.0):.1e})"
        return f"{self.num_equal} of {self.num_prompts} equal, {ties}, {len(self.wrong)} wrong"


class GapMeter:
    """The target by itself, asked how close a decision was."""

    def __init__(self, model: PackedModel) -> None:
        self._model = model
        self._sampler = Sampler(model.vocab_size, model.device)

    def gap(self, token_ids: Sequence[int], sampling: SamplingParams) -> float:
        """Best minus second-best noised score for the token after `token_ids`."""
        table = BlockTable(self._model.pool)
        table.reserve(len(token_ids))
        segment = Segment(list(token_ids), list(range(len(token_ids))), None, table.slots(0, len(token_ids)), num_cached=0, num_logits=1)
        with torch.inference_mode():
            logits = self._model.forward([segment])
        table.release()
        return float(self._sampler.choose_with_gaps(logits, [RowSampling(sampling, len(token_ids))]).gaps[0])


def compare(
    prompts: Sequence[Sequence[int]],
    reference: Sequence[Sequence[int]],
    other: Sequence[Sequence[int]],
    sampling: SamplingParams,
    meter: GapMeter | None,
) -> Comparison:
    """Compare token by token; without a meter every difference is wrong (deterministic mode)."""
    outcome = Comparison(num_prompts=len(prompts))
    for index, (prompt, expected, got) in enumerate(zip(prompts, reference, other, strict=True)):
        if list(expected) == list(got):
            outcome.num_equal += 1
            continue
        place = next((i for i, (a, b) in enumerate(zip(expected, got, strict=False)) if a != b), min(len(expected), len(got)))
        gap = meter.gap([*prompt, *expected[:place]], sampling) if meter is not None else float("inf")
        if gap < NEAR_TIE:
            outcome.near_tie_gaps.append(gap)
        else:
            outcome.wrong.append(f"prompt {index} differs at token {place}, top-2 gap {gap:.2e}")
    return outcome
