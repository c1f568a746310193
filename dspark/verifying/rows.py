"""Which sessions get how many rows of the next forward. Pure: counts in, counts out."""

from collections.abc import Sequence
from dataclasses import dataclass

from dspark.types import SessionId

PROMPT_SHARE = 4
"""One row in so many is kept for the first waiting prompt."""


@dataclass(frozen=True, slots=True)
class Work:
    """What one session still needs before its round can be answered."""

    session_id: SessionId
    num_uncached: int
    """Committed tokens without keys and values, the anchor included: 1 while decoding, more while the prompt is prefilled."""
    num_nodes: int

    @property
    def num_rows(self) -> int:
        """Rows that complete the round."""
        return self.num_uncached + self.num_nodes


def share_rows(waiting: Sequence[Work], max_rows: int) -> dict[SessionId, int]:
    """Rows per session, at most `max_rows` together; `waiting` is in order of asking.

    Decoding sessions come first, whole: a long prompt must not hold up those who stream. But a quarter of the rows is kept for the first
    prompt, so that streams cannot hold it up for ever either. Prompts get what is left in chunks; a chunk stops before the
    anchor unless the whole round fits. A session of no rows waits for the next step. The first decoding session always gets
    its rows, so that a tree larger than `max_rows` cannot wait for ever.
    """
    decoding = [work for work in waiting if work.num_uncached == 1]
    prompts = [work for work in waiting if work.num_uncached > 1]
    left = max_rows - (min(prompts[0].num_rows, max_rows // PROMPT_SHARE) if prompts else 0)
    shares: dict[SessionId, int] = {}
    for work in decoding:
        if work.num_rows <= left or not shares:
            shares[work.session_id] = work.num_rows
            left -= work.num_rows
    left = max_rows - sum(shares.values())
    for work in prompts:
        rows = work.num_rows if work.num_rows <= left else min(work.num_uncached - 1, left)
        if rows > 0:
            shares[work.session_id] = rows
            left -= rows
    return shares
