"""The words of the project, and the small values everyone shares.

Glossary
--------
anchor      the last committed token; not yet in the target's KV cache
drafted     proposed by a drafter                  selected   kept by the planner and sent to the target
verified    looked at by the target                accepted   drafted tokens that the target agreed with
bonus       the target's own token after the last accepted one
committed   accepted and bonus tokens: what the client gets
round       one draft -> plan -> verify -> commit  tau        committed tokens per round, bonus included
choice      one of the `n` answers to one request; choices differ in their noise only
"""

from dataclasses import dataclass
from enum import StrEnum
from typing import NewType

SessionId = NewType("SessionId", str)
RouterId = NewType("RouterId", str)
ReplicaId = NewType("ReplicaId", str)

MAX_SEED = 2**63 - 1
"""Seeds are 0..MAX_SEED: what an int64 of the wire and of the OpenAI API can carry without a sign."""


class FinishReason(StrEnum):
    """Why a session ended; the values are those of the OpenAI API."""

    STOP = "stop"
    LENGTH = "length"
    ABORT = "abort"


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How the next token is chosen; the same record acts on the target and on the drafter (DESIGN section 4)."""

    temperature: float = 1.0
    """0 is greedy: no noise."""
    top_k: int = 0
    """0 keeps all tokens."""
    top_p: float = 1.0
    min_p: float = 0.0
    seed: int = 0
    """Drawn at admission where the request has none, and reported back."""
    choice: int = 0


@dataclass(frozen=True, slots=True)
class StopRules:
    """What ends a session on token level; stop strings are the text layer's."""

    max_tokens: int
    stop_token_ids: frozenset[int] = frozenset()
    """End-of-text tokens of the model; empty with `ignore_eos`."""


@dataclass(frozen=True, slots=True)
class ModelCard:
    """What a replica tells of the model it runs, when router and replica meet."""

    name: str
    vocab_size: int
    max_length: int
    """Longest prompt plus output, in tokens."""
    eos_token_ids: tuple[int, ...]
    model_fingerprint: str
    tokenizer_fingerprint: str
    tap_layers: tuple[int, ...] = ()
    """Of a drafter: the target's layers it reads; empty for one that needs nothing but tokens."""
