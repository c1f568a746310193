"""The small heads against the paper's formulas, written a second time with numpy (reference: "Semi-autoregressive drafter")."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from dspark.drafting.heads import ConfidenceHead, GatedHead, RnnHead, VanillaHead, build_head
from dspark.runtime.draft_spec import HeadKind
from tests.runtime.tiny_drafters import SPEC, SPECS, random_tensors

Array = NDArray[np.float64]
NUM_SESSIONS, NUM_POSITIONS, RANK = 3, 4, SPEC.markov_rank
RANDOM = np.random.default_rng(5)
HIDDEN: Array = RANDOM.normal(size=(NUM_POSITIONS, NUM_SESSIONS, SPEC.hidden_size))
TOKENS = RANDOM.integers(0, SPEC.vocab_size, (NUM_POSITIONS, NUM_SESSIONS))


def sigmoid(x: Array) -> Array:
    return np.asarray(1 / (1 + np.exp(-x)))


def loaded(kind: str) -> tuple[VanillaHead, dict[str, Array]]:
    """The head with a drafter's random weights, and these by their short names."""
    tensors = {name[len("markov_head.") :]: t for name, t in random_tensors(SPECS[kind]).items() if name.startswith("markov_head.")}
    head = build_head(SPECS[kind])
    assert head is not None
    head.load_state_dict(tensors)
    return head.requires_grad_(False), {name: t.double().numpy() for name, t in tensors.items()}


def vanilla(weights: dict[str, Array], k: int, state: Array) -> tuple[Array, Array]:
    return weights["markov_w1.weight"][TOKENS[k]] @ weights["markov_w2.weight"].T, state


def gated(weights: dict[str, Array], k: int, state: Array) -> tuple[Array, Array]:
    embedded = weights["markov_w1.weight"][TOKENS[k]]
    joint = np.concatenate((HIDDEN[k], embedded), axis=-1)  # [h; W1[x]]
    gate = sigmoid(joint @ weights["gate_proj.weight"].T + weights["gate_proj.bias"])
    return (gate * embedded) @ weights["markov_w2.weight"].T, state


def rnn(weights: dict[str, Array], k: int, state: Array) -> tuple[Array, Array]:
    embedded = weights["markov_w1.weight"][TOKENS[k]]
    joint = np.concatenate((state, embedded, HIDDEN[k]), axis=-1)  # [s; W1[x]; h]
    mixed = joint @ weights["joint_proj.weight"].T + weights["joint_proj.bias"]
    gate, candidate, output = sigmoid(mixed[:, :RANK]), np.tanh(mixed[:, RANK : 2 * RANK]), np.tanh(mixed[:, 2 * RANK :])
    return output @ weights["markov_w2.weight"].T, gate * state + (1 - gate) * candidate


FORMULAS: dict[str, Any] = {"vanilla": vanilla, "gated": gated, "rnn": rnn}


@pytest.mark.parametrize("kind", FORMULAS)
def test_a_head_follows_its_formula_from_left_to_right(kind: str) -> None:
    head, weights = loaded(kind)
    state: torch.Tensor | None = None
    expected_state: Array = np.zeros((NUM_SESSIONS, RANK))
    for k in range(NUM_POSITIONS):
        step = head(torch.from_numpy(HIDDEN[k]).float(), torch.from_numpy(TOKENS[k]), state)
        bias, expected_state = FORMULAS[kind](weights, k, expected_state)
        np.testing.assert_allclose(step.bias.numpy(), bias, rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(step.embedded.numpy(), weights["markov_w1.weight"][TOKENS[k]], rtol=1e-6)
        state = step.state
        assert (state is not None) == (kind == "rnn")
        if state is not None:
            np.testing.assert_allclose(state.numpy(), expected_state, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("with_markov", [True, False])
def test_confidence_reads_hidden_state_and_where_asked_the_token_before(with_markov: bool) -> None:
    spec = replace(SPEC, confidence_with_markov=with_markov)
    tensors = random_tensors(spec)
    weight, bias = tensors["confidence_head.proj.weight"], tensors["confidence_head.proj.bias"]
    head = ConfidenceHead(spec).requires_grad_(False)
    head.load_state_dict({"proj.weight": weight, "proj.bias": bias})
    embedded = RANDOM.normal(size=(NUM_POSITIONS, NUM_SESSIONS, RANK))
    features = np.concatenate((HIDDEN, embedded), axis=-1) if with_markov else HIDDEN
    logits = head(torch.from_numpy(HIDDEN).float(), torch.from_numpy(embedded).float())
    expected = features @ weight.double().numpy()[0] + bias.double().numpy()
    np.testing.assert_allclose(logits.numpy(), expected, rtol=1e-4, atol=1e-4)


def test_confidence_without_the_token_before_needs_no_sequential_head() -> None:
    head = ConfidenceHead(replace(SPEC, confidence_with_markov=False)).bfloat16()
    logits = head(torch.ones(2, SPEC.hidden_size, dtype=torch.bfloat16), None)
    assert (logits.shape, logits.dtype) == ((2,), torch.float32)


@pytest.mark.parametrize(("kind", "made"), [("vanilla", VanillaHead), ("gated", GatedHead), ("rnn", RnnHead), ("none", type(None))])
def test_the_specification_names_the_head_and_a_new_one_says_nothing(kind: HeadKind, made: type) -> None:
    head = build_head(replace(SPEC, head=kind))
    assert type(head) is made
    if head is not None:
        step = head(torch.randn(2, SPEC.hidden_size), torch.tensor([1, 2]), None)
        assert not step.bias.any()
        assert step.embedded.any()
