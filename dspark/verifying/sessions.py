"""What a target replica remembers of a session: tokens, blocks, and the fence that keeps rounds in order."""

from collections.abc import Sequence
from dataclasses import dataclass

from dspark.errors import InvalidMessage, StaleRound
from dspark.messages import NO_FEATURES, FeatureSpec, SessionOpen, VerifyRequest, VerifyResult
from dspark.runtime.kv_cache import BlockTable
from dspark.runtime.packed import Segment
from dspark.sampling import RowSampling
from dspark.tree import CandidateTree
from dspark.types import SamplingParams, SessionId
from dspark.verifying.feature_store import KeptRows, SessionFeatures
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
    spec: FeatureSpec | None = None
    """What its drafter reads of this target."""
    features: SessionFeatures | None = None
    """Where that is kept; None exactly where `spec` is."""

    @staticmethod
    def from_open(message: SessionOpen, table: BlockTable, arrival: int) -> "TargetSession":
        """A session with nothing cached yet."""
        return TargetSession(message.session_id, list(message.token_ids), message.sampling, table, arrival, spec=message.features)

    def accept_request(self, request: VerifyRequest, max_length: int) -> VerifyResult | None:
        """Take the next round, or return the last one's result if it is asked for again.

        Raises StaleRound for any other round or length, InvalidMessage for a tree that would pass `max_length` and for features
        that the session did not ask for when it was opened, or that start after its anchor.
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
        self._check_features_from(request.features_from)
        self.pending = request
        return None

    def _check_features_from(self, start: int) -> None:
        if start == NO_FEATURES:
            return
        if self.spec is None:
            raise InvalidMessage("features_from: the session was opened without features", "features_from")
        if not 0 <= start < len(self.token_ids):
            raise InvalidMessage(f"features_from must be in 0..{len(self.token_ids) - 1}", "features_from")

    def forget_cache(self) -> None:
        """Preempted: its tokens stay, so keys, values and features are computed again later."""
        self.table.release()
        self.num_cached = 0
        if self.features is not None:
            self.features.num_kept = 0

    @property
    def captured(self) -> SessionFeatures | None:
        """Where this session's features of the next forward go; None for a plain session, or where earlier ones are missing."""
        complete = self.features is not None and self.features.complete(self.num_cached)
        return self.features if complete else None

    def kept_rows(self, first_row: int, rows: Sequence[int]) -> KeptRows | None:
        """The features of these rows of its segment, which starts at `first_row` of the batch, go to the slots after the cached ones."""
        features = self.captured
        if features is None:
            return None
        slots = self.table.slots(self.num_cached, self.num_cached + len(rows))
        return KeptRows(features, [first_row + row for row in rows], slots)

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
