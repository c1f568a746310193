"""The small heads on top of a block drafter's backbone: what makes parallel guesses depend on each other, and how sure they are.

The backbone gives base logits U_1..U_K for all positions of a block at once. A sequential head adds a bias B_k(x_{k-1}, .) from the token
before, left to right; the confidence head says with what probability position k is accepted if all before it were
(paper: "Sequential head", "Confidence head").

Symbols: S sessions (or anchors), V target vocabulary, Vd draft vocabulary, d hidden size, r rank.
"""

from dataclasses import dataclass

import torch
from torch import nn

from dspark.runtime.draft_spec import DraftSpec


@dataclass(frozen=True, slots=True)
class HeadStep:
    """What a sequential head says of one position."""

    bias: torch.Tensor  # [S, Vd]
    embedded: torch.Tensor  # [S, r] W1 of the token before; the confidence head reads it too
    state: torch.Tensor | None  # [S, r] of the rnn head

W1_STD = 0.25
"""At first. W2 starts at zero, so W1 decides how fast the bias grows: with the usual 0.02 it learns bigrams ten times as slowly."""


class VanillaHead(nn.Module):
    """B = W2 W1[x_{k-1}]: a first-order Markov chain of rank r."""

    def __init__(self, spec: DraftSpec) -> None:
        super().__init__()
        self.markov_w1 = nn.Embedding(spec.vocab_size, spec.markov_rank)
        self.markov_w2 = nn.Linear(spec.markov_rank, spec.draft_vocab_size, bias=False)
        nn.init.normal_(self.markov_w1.weight, std=W1_STD)
        nn.init.zeros_(self.markov_w2.weight)  # training starts from the backbone alone

    def forward(self, hidden: torch.Tensor, token_before: torch.Tensor, state: torch.Tensor | None) -> HeadStep:
        """One position: `hidden` [S, d] of the backbone, `token_before` [S], the state of the position before."""
        embedded = self.markov_w1(token_before)
        return HeadStep(self.markov_w2(embedded), embedded, None)


class GatedHead(VanillaHead):
    """B = W2 (sigmoid(G [h_k; W1[x_{k-1}]]) * W1[x_{k-1}])."""

    def __init__(self, spec: DraftSpec) -> None:
        super().__init__(spec)
        self.gate_proj = nn.Linear(spec.hidden_size + spec.markov_rank, spec.markov_rank)

    def forward(self, hidden: torch.Tensor, token_before: torch.Tensor, state: torch.Tensor | None) -> HeadStep:
        """See VanillaHead."""
        embedded = self.markov_w1(token_before)
        gate = self.gate_proj(torch.cat((hidden, embedded), dim=-1)).sigmoid()
        return HeadStep(self.markov_w2(gate * embedded), embedded, None)


class RnnHead(VanillaHead):
    """s_k = g * s_{k-1} + (1 - g) * tanh(c), B = W2 tanh(o), where (g, c, o) come from one linear of [s_{k-1}; W1[x_{k-1}]; h_k]."""

    def __init__(self, spec: DraftSpec) -> None:
        super().__init__(spec)
        self.joint_proj = nn.Linear(2 * spec.markov_rank + spec.hidden_size, 3 * spec.markov_rank)

    def forward(self, hidden: torch.Tensor, token_before: torch.Tensor, state: torch.Tensor | None) -> HeadStep:
        """See VanillaHead; a state of None is s_0 = 0."""
        embedded = self.markov_w1(token_before)
        before = torch.zeros_like(embedded) if state is None else state
        gate, candidate, output = self.joint_proj(torch.cat((before, embedded, hidden), dim=-1)).chunk(3, dim=-1)
        gate = gate.sigmoid()
        after = gate * before + (1 - gate) * candidate.tanh()
        return HeadStep(self.markov_w2(output.tanh()), embedded, after)


class ConfidenceHead(nn.Module):
    """c_k = sigmoid(w [h_k; W1[x_{k-1}]] + b), given as a logit. It does not see x_k."""

    def __init__(self, spec: DraftSpec) -> None:
        super().__init__()
        self._with_markov = spec.confidence_with_markov
        self.proj = nn.Linear(spec.hidden_size + (spec.markov_rank if self._with_markov else 0), 1)

    def forward(self, hidden: torch.Tensor, embedded: torch.Tensor | None) -> torch.Tensor:
        """[...] logits of `hidden` [..., d] and `embedded` [..., r], in float32."""
        features = torch.cat((hidden, embedded), dim=-1) if self._with_markov and embedded is not None else hidden
        logits: torch.Tensor = self.proj(features).squeeze(-1).float()
        return logits


HEADS: dict[str, type[VanillaHead]] = {"vanilla": VanillaHead, "gated": GatedHead, "rnn": RnnHead}
"""By `markov_head_type`; a drafter without one of them is a DFlash drafter."""


def build_head(spec: DraftSpec) -> VanillaHead | None:
    """The sequential head that the specification names, as new."""
    return HEADS[spec.head](spec) if spec.head != "none" else None
