"""Session: the only mutable state of a request, owned by the router. Once it is said who drafts, `commit` is its only change."""

from dataclasses import dataclass, field

from dspark.errors import ProtocolError
from dspark.messages import NO_FEATURES, FeatureSpec, SessionOpen, VerifyRequest, VerifyResult
from dspark.tree import CandidateTree
from dspark.types import FinishReason, SamplingParams, SessionId, StopRules


@dataclass(frozen=True, slots=True)
class TokenChunk:
    """What one round gave the client."""

    token_ids: tuple[int, ...]
    finish_reason: FinishReason | None = None
    num_drafted: int = 0
    num_selected: int = 0
    num_accepted: int = 0


@dataclass(slots=True)
class Session:
    """Prompt, committed tokens and the rules that end them."""

    session_id: SessionId
    prompt_ids: tuple[int, ...]
    sampling: SamplingParams
    stop: StopRules
    output_ids: list[int] = field(default_factory=list)
    round: int = 0
    epoch: int = 0
    finish_reason: FinishReason | None = None
    drafter: str | None = None
    """Name of its drafter, said once, before the first round; None decodes plainly."""
    drafter_was_chosen: bool = False
    """True where the request left the drafter to the service."""
    max_nodes: int | None = None
    """The request's own cap on candidates per round; 0 decodes plainly, None leaves it to the service."""
    min_tokens_per_second: float | None = None
    """The speed that its client was promised; None is none."""
    priority: int = 0
    """Lower goes first."""

    @property
    def base_length(self) -> int:
        """Committed tokens, prompt included; the anchor is the last of them."""
        return len(self.prompt_ids) + len(self.output_ids)

    @property
    def finished(self) -> bool:
        """True once a stop rule was met."""
        return self.finish_reason is not None

    @property
    def tokens_left(self) -> int:
        """How many tokens `max_tokens` still allows."""
        return self.stop.max_tokens - len(self.output_ids)

    def node_cap(self, most: int) -> int:
        """Candidates per round that both the service (`most`) and the request allow."""
        return most if self.max_nodes is None else min(most, self.max_nodes)

    def opening(self, features: FeatureSpec | None = None) -> SessionOpen:
        """The message that rebuilds this session on a replica; `features` are what a target is to capture for its drafter."""
        return SessionOpen(self.session_id, (*self.prompt_ids, *self.output_ids), self.sampling, self.epoch, features)

    def tokens_since(self, length: int) -> tuple[int, ...]:
        """Committed tokens from absolute position `length` on: the delta that a drafter lacks."""
        return (*self.prompt_ids, *self.output_ids)[length:] if length < len(self.prompt_ids) else tuple(
            self.output_ids[length - len(self.prompt_ids) :]
        )

    def verify_request(self, tree: CandidateTree, features_from: int = NO_FEATURES) -> VerifyRequest:
        """This round's question to the target."""
        return VerifyRequest(self.session_id, self.round, self.base_length, tree, features_from)

    def commit(self, result: VerifyResult, *, num_drafted: int = 0, num_selected: int = 0) -> TokenChunk:
        """Append the round's tokens up to the first stop; exact inside a block.

        Raises ProtocolError if the result is not this session's current round.
        """
        if (result.session_id, result.round, result.base_length) != (self.session_id, self.round, self.base_length):
            raise ProtocolError(
                f"result of round {result.round} at length {result.base_length} does not continue "
                f"round {self.round} at length {self.base_length}"
            )
        kept = self._up_to_stop(result.token_ids)
        self.output_ids.extend(kept)
        self.round += 1
        num_accepted = min(len(result.accepted), len(kept))
        return TokenChunk(kept, self.finish_reason, num_drafted, num_selected, num_accepted)

    def _up_to_stop(self, token_ids: tuple[int, ...]) -> tuple[int, ...]:
        """The tokens that still belong to the answer; sets `finish_reason`. A stop token is part of the answer's ids."""
        for index, token_id in enumerate(token_ids[: self.tokens_left]):
            if token_id in self.stop.stop_token_ids:
                self.finish_reason = FinishReason.STOP
                return token_ids[: index + 1]
        if len(token_ids) >= self.tokens_left:
            self.finish_reason = FinishReason.LENGTH
        return token_ids[: self.tokens_left]
