"""What every ingress (HTTP, gRPC, command line) asks for and gets: one request record, one chunk record, one service.

The records are already validated (serving/validation.py); the service behind them is `dspark.Engine`.
"""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Protocol

from dspark.types import FinishReason, ModelCard, SamplingParams


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """One prompt, one choice: `n` choices and several prompts are several of these."""

    request_id: str
    """Of the client's request: its choices share it, and Abort ends them all."""
    prompt_ids: tuple[int, ...]
    sampling: SamplingParams
    max_tokens: int
    stop: tuple[str, ...] = ()
    """Stop strings: the text ends before the first of them."""
    ignore_eos: bool = False
    speculation_enabled: bool = True
    drafter: str | None = None
    """One of the service's drafters; None lets the service choose."""
    max_nodes: int | None = None
    """Candidates per round at most; 0 goes with `speculation_enabled` false, None leaves it to the service."""
    min_tokens_per_second: float | None = None
    """The speed asked for; None asks for none."""
    priority: int = 0
    """Lower goes first, as in vLLM."""
    timeout_s: float | None = None
    """None: the service's own limit."""


@dataclass(frozen=True, slots=True)
class Usage:
    """Counts of one choice so far; completion_tokens / rounds is tau."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    drafted_tokens: int = 0
    selected_tokens: int = 0
    accepted_tokens: int = 0
    rounds: int = 0
    drafter: str | None = None
    """Who was to draft; None where nobody was."""
    max_nodes: int | None = None
    """The request's cap on candidates per round, as in effect: 0 is plain decoding, None no cap of its own."""
    min_tokens_per_second: float | None = None
    """The speed it asked for."""
    priority: int = 0


@dataclass(frozen=True, slots=True)
class GenerationChunk:
    """What one round added. The last chunk of a choice, and only it, has a finish_reason."""

    text: str
    """Whole code points, nothing of a stop string; may be empty."""
    token_ids: tuple[int, ...]
    finish_reason: FinishReason | None
    usage: Usage


class GenerationService(Protocol):
    """The one way in, whatever the protocol in front of it."""

    @property
    def card(self) -> ModelCard:
        """The model served."""

    @property
    def drafters(self) -> tuple[str, ...]:
        """Names that a request may have in `drafter`."""

    def encode(self, text: str) -> list[int]:
        """Token ids of plain text; text that looks like a special token stays text."""

    def encode_chat(self, messages: list[dict[str, str]]) -> list[int]:
        """Token ids of a conversation through the model's own chat template, ready for the assistant's turn."""

    def stream(self, request: GenerationRequest) -> AsyncIterator[GenerationChunk]:
        """Chunks as they are committed. Closing the iterator ends the work and frees its memory.

        Raises Overloaded (SpeedUnavailable where speeds are promised), DeadlineExceeded, RequestAborted, ReplicaUnavailable.
        """

    def abort(self, request_id: str) -> bool:
        """End all choices of a request; False if there is none."""

    async def ready(self) -> bool:
        """True if a target can be reached."""
