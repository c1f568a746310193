"""Drives a BatchVerifier as a router would, in lockstep: every open session submits its next round as soon as the last is answered."""

from collections.abc import Callable, Sequence

from dspark.messages import NO_FEATURES, ContextFeatures, FeatureSpec, SessionFailure, SessionOpen, StepReport, VerifyRequest
from dspark.tree import CandidateTree
from dspark.types import SamplingParams, SessionId
from dspark.verifying.verifier import BatchVerifier

GREEDY = SamplingParams(temperature=0.0)

Propose = Callable[[int, Sequence[int]], CandidateTree]
"""(which prompt, its output so far) -> candidates."""


def no_candidates(which: int, output: Sequence[int]) -> CandidateTree:
    return CandidateTree.empty()


class Rounds:
    """Sessions "0", "1", ... on one verifier; `outputs` grow as rounds are answered, `failures` are final.

    With specs, sessions ask for the features that they lack in every round; `features` are the answers.
    """

    def __init__(
        self,
        verifier: BatchVerifier,
        prompts: Sequence[Sequence[int]],
        propose: Propose = no_candidates,
        sampling: Sequence[SamplingParams] | SamplingParams = GREEDY,
        specs: Sequence[FeatureSpec | None] | FeatureSpec | None = None,
    ) -> None:
        self._verifier = verifier
        self._propose = propose
        self.prompts = prompts
        self.outputs: list[list[int]] = [[] for _ in prompts]
        self.failures: dict[int, SessionFailure] = {}
        self.reports: list[StepReport] = []
        self.num_accepted = 0
        self._rounds = [0] * len(prompts)
        params = [sampling] * len(prompts) if isinstance(sampling, SamplingParams) else sampling
        self.features: list[list[ContextFeatures | None]] = [[] for _ in prompts]
        self.specs = [specs] * len(prompts) if specs is None or isinstance(specs, FeatureSpec) else specs
        self._features_stop = [0] * len(prompts)
        for which, prompt in enumerate(prompts):
            verifier.open(SessionOpen(SessionId(str(which)), tuple(prompt), params[which], features=self.specs[which]))
        self._idle = set(range(len(prompts)))

    def submit(self, num_tokens: int) -> None:
        """Hand in the next round of every session that waits for nothing and wants more."""
        for which in sorted(self._idle):
            if len(self.outputs[which]) < num_tokens:
                base = len(self.prompts[which]) + len(self.outputs[which])
                tree = self._propose(which, self.outputs[which])
                start = NO_FEATURES if self.specs[which] is None else self._features_stop[which]
                self._verifier.submit(VerifyRequest(SessionId(str(which)), self._rounds[which], base, tree, start))
                self._idle.discard(which)

    def step(self) -> StepReport:
        """One forward, and its results taken in."""
        report = self._verifier.step()
        self.reports.append(report)
        for result in report.results:
            which = int(result.session_id)
            self.outputs[which] += result.token_ids
            self.num_accepted += len(result.accepted)
            self._rounds[which] += 1
            self.features[which].append(result.features)
            if result.features is not None:
                self._features_stop[which] = result.features.stop
            self._idle.add(which)
        for failure in report.failures:
            self.failures[int(failure.session_id)] = failure
        return report

    def run(self, num_tokens: int, max_steps: int = 2000) -> list[list[int]]:
        """Until every session has its tokens or failed; a finished session is closed at once. Outputs, cut to `num_tokens`."""
        open_sessions = set(range(len(self.prompts)))
        for _ in range(max_steps):
            self.submit(num_tokens)
            self.step()
            for which in [w for w in open_sessions if len(self.outputs[w]) >= num_tokens or w in self.failures]:
                open_sessions.discard(which)
                self._verifier.close(SessionId(str(which)))
            if not open_sessions:
                return [output[:num_tokens] for output in self.outputs]
        raise AssertionError(f"sessions {open_sessions} are not done after {max_steps} steps")
