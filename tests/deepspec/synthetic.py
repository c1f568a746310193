"""Traces of an imagined drafter whose true confidence is known: position k is accepted with sigmoid(logit), and it claims
sigmoid(logit * overconfidence[k])."""

import numpy as np

from dspark.deepspec.traces import DecodingTrace, TraceRecorder


def synthetic_trace(
    seed: int, overconfidence: tuple[float, ...], sessions: int = 40, rounds: int = 100, temperature: float = 1.0, mean: float = 1.2
) -> DecodingTrace:
    draw, recorder = np.random.default_rng(seed), TraceRecorder()
    logits = draw.normal(mean, 1.2, (sessions, rounds, len(overconfidence)))
    agreed = draw.random(logits.shape) < 1 / (1 + np.exp(-logits))
    accepted = np.cumprod(agreed, axis=-1).sum(axis=-1)
    claimed = logits * np.asarray(overconfidence)
    survival = np.cumprod(1 / (1 + np.exp(-claimed)), axis=-1)
    for session in range(sessions):
        for r in range(rounds):
            recorder.add(session, temperature, int(accepted[session, r]), survival[session, r], claimed[session, r])
    return recorder.trace()
