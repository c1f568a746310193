"""From logits to the one token that the shared noise chooses (DESIGN section 4; Daliri, Musco, Suresh, arXiv 2408.07978).

token = argmax(processed log-probs + Gumbel noise). For the target's logits this IS a sample of its distribution; for a drafter's logits
it is the guess most likely to coincide with it. Both sides call the same functions with the same noise.

Symbols: R rows (one per position to decide), V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from dspark.devices import on_device
from dspark.noise import NoiseKey, noise_cache
from dspark.types import SamplingParams

MINUS_INFINITY = float("-inf")
MIN_TEMPERATURE = 1e-6
"""Positive temperatures below it are taken as it: float32 cannot tell them from greedy."""


@dataclass(frozen=True, slots=True)
class RowSampling:
    """How one row is decided."""

    params: SamplingParams
    position: int
    """Absolute position of the token that the row's logits predict."""


@dataclass(frozen=True, slots=True)
class Choice:
    """The tokens chosen, and how clear each choice was."""

    token_ids: torch.Tensor  # [R] int64
    gaps: torch.Tensor  # [R] float32, best minus second-best noised score


class Sampler:
    """Decides rows of one vocabulary on one device; recent noise is kept by the thread."""

    def __init__(self, vocab_size: int, device: torch.device) -> None:
        self._vocab_size = vocab_size
        self._device = device

    def make_noise(self, rows: Sequence[RowSampling]) -> None:
        """Noise of rows that will be decided soon, all at once."""
        noise_cache(self._vocab_size, self._device).make([_key(row) for row in rows if row.params.temperature > 0])

    def choose(self, logits: torch.Tensor, rows: Sequence[RowSampling]) -> torch.Tensor:
        """[R] int64: the token of each row of `logits` [R, V]."""
        if all(row.params.temperature == 0 for row in rows):
            return logits.argmax(-1)
        return self.noised_scores(logits, rows).argmax(-1)

    def choose_with_gaps(self, logits: torch.Tensor, rows: Sequence[RowSampling]) -> Choice:
        """As `choose`, with the top-2 gap of the noised scores: small where the choice could tip."""
        best = self.noised_scores(logits, rows).topk(2, dim=-1)
        return Choice(best.indices[:, 0], best.values[:, 0] - best.values[:, 1])

    def noised_scores(self, logits: torch.Tensor, rows: Sequence[RowSampling]) -> torch.Tensor:
        """[R, V] float32 whose argmax is the token: processed logits plus noise; raw logits for greedy rows.

        Not normalised: a constant per row does not move an argmax.
        """
        scores = logits.float()
        sampled = [index for index, row in enumerate(rows) if row.params.temperature > 0]
        if not sampled:
            return scores
        chosen = [rows[index] for index in sampled]
        noise = noise_cache(self._vocab_size, self._device).rows([_key(row) for row in chosen])
        if len(sampled) == len(rows):
            return process_logits(scores, [row.params for row in chosen]).add_(noise)
        index = on_device(sampled, torch.int64, logits.device)
        processed = process_logits(scores[index], [row.params for row in chosen]).add_(noise)
        return scores.index_copy(0, index, processed)


def _key(row: RowSampling) -> NoiseKey:
    return NoiseKey(row.params.seed, row.params.choice, row.position)


def process_logits(logits: torch.Tensor, params: Sequence[SamplingParams]) -> torch.Tensor:
    """[R, V] new tensor: logits / temperature, with tokens outside top-k, top-p and min-p at minus infinity.

    Order and meaning are those of vLLM and transformers: each filter acts on what the one before it left. At least one token
    stays. Every row needs temperature > 0.
    """
    device = logits.device
    # The best token stands at 0: a tiny temperature then sends the others far down instead of everything to infinity.
    scores = (logits - logits.amax(-1, keepdim=True)) / _column([max(p.temperature, MIN_TEMPERATURE) for p in params], device)
    if any(0 < p.top_k < logits.shape[-1] for p in params):
        scores = _keep_top_k(scores, [p.top_k for p in params])
    if any(p.top_p < 1 for p in params):
        scores = _keep_top_p(scores, _column([p.top_p for p in params], device))
    if any(p.min_p > 0 for p in params):
        scores = _keep_min_p(scores, _column([p.min_p for p in params], device))
    return scores


def _keep_top_k(scores: torch.Tensor, top_k: list[int]) -> torch.Tensor:
    """Ties with the k-th value stay: dropping one of two equal tokens would depend on their order."""
    vocab_size = scores.shape[-1]
    ranks = [k - 1 if 0 < k < vocab_size else vocab_size - 1 for k in top_k]
    largest = scores.topk(max(r for r in ranks if r < vocab_size - 1) + 1, dim=-1).values  # [R, max k]
    index = on_device([[min(rank, largest.shape[-1] - 1)] for rank in ranks], torch.int64, scores.device)
    threshold = largest.gather(-1, index)  # [R, 1]
    unlimited = on_device([[rank == vocab_size - 1] for rank in ranks], torch.bool, scores.device)
    return scores.masked_fill((scores < threshold) & ~unlimited, MINUS_INFINITY)


def _keep_top_p(scores: torch.Tensor, top_p: torch.Tensor) -> torch.Tensor:
    """The smallest set of most likely tokens whose probabilities reach top_p."""
    ordered, order = scores.sort(dim=-1, descending=True, stable=True)
    probs = ordered.softmax(-1)
    before = probs.cumsum(-1) - probs  # [R, V] mass of the tokens that are more likely
    dropped = (before >= top_p) & (top_p < 1)
    dropped[:, 0] = False
    return scores.masked_fill(torch.zeros_like(dropped).scatter_(-1, order, dropped), MINUS_INFINITY)


def _keep_min_p(scores: torch.Tensor, min_p: torch.Tensor) -> torch.Tensor:
    """Tokens at least min_p times as likely as the best one."""
    return scores.masked_fill(scores < scores.amax(-1, keepdim=True) + min_p.log(), MINUS_INFINITY)


def _column(values: Sequence[float], device: torch.device) -> torch.Tensor:
    return on_device(values, torch.float32, device).unsqueeze(-1)  # [R, 1]
