"""Trees of an imagined pair under the shared-noise law: target logits are draft logits plus an error, both see the same Gumbel noise.

How large the error is varies from place to place, and only the confidence logit knows. Symbols: F parents of one depth, V vocabulary.
"""

import numpy as np

from dspark.acceptance import walk
from dspark.deepspec.node_traces import NodeTrace, NodeTraceRecorder
from dspark.scheduling.signals import NodeSignals
from dspark.tree import ANCHOR, CandidateTree

VOCAB = 48
WIDTH = 4
EXPANDED_RANKS = 2


def synthetic_nodes(
    seed: int, sessions: int = 60, rounds: int = 25, temperatures: tuple[float, ...] = (0.0, 1.0), depth: int = 3, num_kept: int = 10
) -> NodeTrace:
    """Every session is decoded at every temperature."""
    draw, recorder = np.random.default_rng(seed), NodeTraceRecorder()
    for session in range(sessions):
        for temperature in temperatures:
            for _ in range(rounds):
                tree, signals, target_tokens = synthetic_round(draw, temperature, depth)
                kept = sorted(np.lexsort((np.arange(len(tree)), -tree.scores))[:num_kept].tolist())
                tokens = [target_tokens[place + 1] for place in (ANCHOR, *kept)]
                recorder.add(session, temperature, tree, signals, kept, walk(tree.select(kept), tokens).nodes)
    return recorder.trace()


def synthetic_round(draw: np.random.Generator, temperature: float, depth: int) -> tuple[CandidateTree, NodeSignals, list[int]]:
    """A tree, its signals, and the target's token after the anchor and after each node (-1 where none was drawn)."""
    tokens, parents, scores, target_tokens = [], [], [], [-1]
    depths, ranks, gaps, log_draft_probs, confidence_logits = [], [], [], [], []
    frontier = [(ANCHOR, 1.0)]
    for level in range(1, depth + 1):
        logits = draw.normal(0, 2.0, (len(frontier), VOCAB))  # [F, V]
        error = np.exp(draw.normal(-0.2, 0.6, len(frontier)))  # [F]
        target_logits = logits + error[:, None] * draw.normal(0, 1, logits.shape)
        noise = draw.gumbel(size=VOCAB)
        noised, target = (x / temperature + noise if temperature else x for x in (logits, target_logits))
        best = np.argsort(-noised, axis=1)[:, :WIDTH]
        log_probs = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
        following = []
        for row, (parent, survival) in enumerate(frontier):
            target_tokens[parent + 1] = int(target[row].argmax())
            confidence = 2.0 - 1.5 * error[row] + draw.normal(0, 0.3)
            top = noised[row, best[row]]
            for rank, token in enumerate(best[row].tolist()):
                gap = top[rank] - (top[1] if rank == 0 else top[0])
                score = survival / (1 + np.exp(-gap))
                if rank < EXPANDED_RANKS:
                    following.append((len(tokens), score))
                for column, value in (
                    (tokens, token),
                    (parents, parent),
                    (scores, score),
                    (target_tokens, -1),
                    (depths, level),
                    (ranks, rank),
                    (gaps, gap),
                    (log_draft_probs, log_probs[row, token]),
                    (confidence_logits, confidence),
                ):
                    column.append(value)
        frontier = following
    tree = CandidateTree(np.asarray(tokens, np.int32), np.asarray(parents, np.int32), np.asarray(scores, np.float32))
    floats = (np.asarray(x, np.float32) for x in (gaps, log_draft_probs, confidence_logits, np.full(len(tokens), temperature)))
    return tree, NodeSignals(np.asarray(depths, np.int32), np.asarray(ranks, np.int32), *floats), target_tokens


def without_confidence(trace: NodeTrace) -> NodeTrace:
    columns = {name: getattr(trace, name) for name in trace.__dataclass_fields__}
    return NodeTrace(**columns | {"confidence_logit": np.full(len(trace), np.nan, np.float32)})
