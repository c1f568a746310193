"""Drafters on the shipped pair whose candidates are real and whose scores are somebody's whim: what is verified is then whim too."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

import numpy as np

from dspark.drafting.batch import CachedDrafter
from dspark.drafting.build import LoadedDrafter
from dspark.messages import DraftReport, DraftRequest, DraftResult, SessionOpen
from dspark.tree import ANCHOR, CandidateTree, FloatArray
from dspark.types import SessionId

Tokens = Sequence[int]
Scorer = Callable[[CandidateTree, Tokens], FloatArray]
"""(tree, committed tokens) -> scores [N]."""


class Rescored:
    """A drafter of the project, as ThreadedDrafter knows one, with other scores. Knows each session's tokens, as any drafter does."""

    def __init__(self, inner: CachedDrafter[Any], scorer: Scorer) -> None:
        self._inner = inner
        self._scorer = scorer
        self._tokens: dict[SessionId, list[int]] = {}

    @property
    def num_sessions(self) -> int:
        return self._inner.num_sessions

    def open(self, session: SessionOpen) -> None:
        self._tokens[session.session_id] = list(session.token_ids)
        self._inner.open(session)

    def draft(self, requests: Sequence[DraftRequest]) -> DraftReport:
        for request in requests:
            tokens = self._tokens[request.session_id]
            tokens[request.base_length - len(request.new_token_ids) :] = request.new_token_ids
        report = self._inner.draft(requests)
        return replace(report, results=tuple(self._rescored(result) for result in report.results))

    def close(self, session_id: SessionId) -> None:
        self._tokens.pop(session_id, None)
        self._inner.close(session_id)

    def _rescored(self, result: DraftResult) -> DraftResult:
        tree = result.tree
        scores = np.asarray(self._scorer(tree, self._tokens[result.session_id]), np.float32)
        return replace(result, tree=CandidateTree(tree.token_ids, tree.parents, scores))


def rescored(loaded: LoadedDrafter, scorer: Scorer) -> LoadedDrafter:
    """The same weights with this scorer's scores."""
    return replace(loaded, drafter=cast(Any, Rescored(loaded.drafter, scorer)))


def honest(tree: CandidateTree, tokens: Tokens) -> FloatArray:
    """What the drafter says."""
    return tree.scores


def at_random(tree: CandidateTree, tokens: Tokens) -> FloatArray:
    """Another whim for every text; the seed is the text's length."""
    return np.random.default_rng(len(tokens)).random(len(tree)).astype(np.float32)


def inverted(tree: CandidateTree, tokens: Tokens) -> FloatArray:
    """The unlikeliest first."""
    return 1.0 - tree.scores


def constant(tree: CandidateTree, tokens: Tokens) -> FloatArray:
    """All alike."""
    return np.full(len(tree), 0.5, np.float32)


def not_a_number(tree: CandidateTree, tokens: Tokens) -> FloatArray:
    """Refused where drafts arrive: these rounds go without candidates."""
    return np.full(len(tree), np.nan, np.float32)


class Peeking:
    """Knows the target's own continuation of every prompt, and puts right candidates first, or last."""

    def __init__(self, texts: Mapping[tuple[int, ...], Tokens], right: float, wrong: float) -> None:
        """`texts`: prompt -> what plain decoding says after it. `right` and `wrong` are chances given the parent."""
        self._texts = texts
        self._chances = {True: right, False: wrong}
        self.num_right = 0
        """Candidates found to be the target's own."""

    def __call__(self, tree: CandidateTree, tokens: Tokens) -> FloatArray:
        coming = self._coming(tokens)
        is_right: list[bool] = []
        scores = np.ones(len(tree), np.float32)
        nodes = zip(tree.parents.tolist(), tree.token_ids.tolist(), tree.depths.tolist(), strict=True)
        for node, (parent, token, depth) in enumerate(nodes):
            above = parent == ANCHOR or is_right[parent]
            is_right.append(above and depth <= len(coming) and coming[depth - 1] == token)
            scores[node] = self._chances[is_right[node]] * (1.0 if parent == ANCHOR else scores[parent])
        self.num_right += sum(is_right)
        return scores

    def _coming(self, tokens: Tokens) -> Tokens:
        """What the target will say after `tokens`."""
        for prompt, text in self._texts.items():
            if tuple(tokens[: len(prompt)]) == prompt:
                return text[len(tokens) - len(prompt) :]
        return ()
