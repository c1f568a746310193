"""What a target replica remembers of a session: tokens, blocks, and the fence that keeps rounds in order."""

from dataclasses import dataclass

from dspark.errors import InvalidMessage, StaleRound
from dspark.messages import SessionOpen, VerifyRequest, VerifyResult
from dspark.runtime.kv_cache import BlockTable
from dspark.runtime.packed import Segment
from dspark.sampling import RowSampling
from dspark.tree import CandidateTree
from dspark.types import SamplingParams, SessionId
from dspark.verifying.rows import Work


@dataclass(slots=True)
class TargetSession:
    """A rebuildable cache of the router's truth. Changed by the verifier's thread only."""

    session_id: SessionId
    token_ids: list[int]
    """Prompt and committed tokens; the last one is the anchor."""
    sampling: SamplingParams
    table: BlockTable
    arrival: int
    """Order of opening: the youngest is preempted first."""
    asked: int = 0
    """Order of the last request: who asked first is served first."""
    num_cached: int = 0
    """Tokens whose keys and values stand in slots 0..num_cached-1 of the table; never the anchor's."""
    round: int = 0
    pending: VerifyRequest | None = None
    last_result: VerifyResult | None = None

    @staticmethod
    def from_open(message: SessionOpen, table: BlockTable, arrival: int) -> "TargetSession":
        """A session with nothing cached yet."""
        return TargetSession(message.session_id, list(message.token_ids), message.sampling, table, arrival)

    def accept_request(self, request: VerifyRequest, max_length: int) -> VerifyResult | None:
        """Take the next round, or return the last one's result if it is asked for again.

        Raises StaleRound for any other round or length, InvalidMessage for a tree that would pass `max_length`.
        """
        last = self.last_result
        if last is not None and (request.round, request.base_length) == (last.round, last.base_length):
            return last
        if (request.round, request.base_length) != (self.round, len(self.token_ids)):
            raise StaleRound(
                f"round {request.round} at length {request.base_length}; this replica is at round {self.round}, "
                f"length {len(self.token_ids)}"
            )
        if len(request.tree) and len(self.token_ids) + int(request.tree.depths.max()) > max_length:
            raise InvalidMessage(f"the tree reaches past the model's length of {max_length} tokens", "tree")
        self.pending = request
        return None

    @property
    def tree(self) -> CandidateTree:
        """The pending round's candidates."""
        return CandidateTree.empty() if self.pending is None else self.pending.tree

    def work(self) -> Work:
        """What this session needs to answer its pending round."""
        return Work(self.session_id, len(self.token_ids) - self.num_cached, len(self.tree))

    def completes_with(self, num_rows: int) -> bool:
        """True if that many rows include the anchor and all candidates."""
        return num_rows == self.work().num_rows

    def segment(self, num_rows: int) -> Segment:
        """The next rows: a chunk of the prompt, or all that is left and the candidates. Their slots must be reserved."""
        cached, slots = self.num_cached, self.table.slots(0, self.num_cached + num_rows)
        if not self.completes_with(num_rows):
            stop = cached + num_rows
            return Segment(self.token_ids[cached:stop], list(range(cached, stop)), None, slots, cached, 0)
        base, tree = len(self.token_ids), self.tree
        uncached = base - cached
        positions = [*range(cached, base), *(base - 1 + depth for depth in tree.depths.tolist())]
        parents = None
        if not tree.is_chain:
            parents = [*range(-1, uncached - 1), *(uncached + parent for parent in tree.parents.tolist())]
        return Segment([*self.token_ids[cached:], *tree.token_ids.tolist()], positions, parents, slots, cached, 1 + len(tree))

    def row_sampling(self) -> list[RowSampling]:
        """How the anchor's and the candidates' rows are decided, in the order of the segment's logits."""
        base = len(self.token_ids)
        return [RowSampling(self.sampling, base), *(RowSampling(self.sampling, base + d) for d in self.tree.depths.tolist())]
