"""What a drafter knows of a session's committed tokens, kept right by deltas."""

from dataclasses import dataclass

from dspark.errors import StaleRound
from dspark.messages import DraftRequest, SessionOpen
from dspark.types import SamplingParams


@dataclass(slots=True)
class DraftContext:
    """Committed tokens of one session, as far as the router has told."""

    token_ids: list[int]
    sampling: SamplingParams

    @staticmethod
    def from_open(message: SessionOpen) -> "DraftContext":
        """The state at the session's opening."""
        return DraftContext(list(message.token_ids), message.sampling)

    def bring_up_to(self, request: DraftRequest) -> None:
        """Append what is new. A delta may start before what is already known: an answer may have been lost on its way.

        Raises StaleRound if tokens are missing in between; the router then opens the session again.
        """
        start = request.base_length - len(request.new_token_ids)
        if not 0 <= start <= len(self.token_ids):
            raise StaleRound(f"the delta starts at {start}, this drafter knows {len(self.token_ids)} tokens")
        del self.token_ids[start:]
        self.token_ids.extend(request.new_token_ids)
        if not self.token_ids:
            raise StaleRound("a draft needs at least one committed token")
