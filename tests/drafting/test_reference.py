"""Block drafters against other implementations: the golden outputs of the published reference one (vanilla head), and plain numpy written
from the paper's formulas (gated and rnn heads)."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from dspark.deepspec.probing import load_block_model
from dspark.drafting.block_model import BlockModel
from dspark.drafting.shared_weights import SharedWeights
from dspark.runtime.draft_formats import read_draft_checkpoint
from dspark.runtime.draft_spec import HeadKind

FIXTURE = Path(__file__).parents[1] / "fixtures" / "deepspec_checkpoint"
TOLERANCE = 1e-4
CASES = ("case0", "case1")


@pytest.fixture(scope="module")
def golden() -> dict[str, torch.Tensor]:
    return load_file(FIXTURE / "vanilla_golden.safetensors")


@pytest.mark.parametrize("case", CASES)
def test_the_vanilla_head_gives_the_golden_numbers_of_the_reference_implementation(golden: dict[str, torch.Tensor], case: str) -> None:
    model = load_block_model(FIXTURE / "vanilla", None)
    logits, ids = model.greedy(golden[f"{case}.taps"], int(golden[f"{case}.anchor_id"]))
    assert logits.confidence is not None
    torch.testing.assert_close(logits.base[0, 0], golden[f"{case}.base_logits"], atol=TOLERANCE, rtol=0)
    torch.testing.assert_close(logits.draft[0, 0], golden[f"{case}.draft_logits"], atol=TOLERANCE, rtol=0)
    torch.testing.assert_close(logits.confidence[0, 0], golden[f"{case}.confidence_logits"], atol=TOLERANCE, rtol=0)
    assert ids.tolist() == golden[f"{case}.draft_ids"].tolist()


def sigmoid(values: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-values))


def plain_chain(
    kind: str, head: dict[str, np.ndarray], confidence: dict[str, np.ndarray], hidden: np.ndarray, base: np.ndarray, anchor_id: int
) -> tuple[np.ndarray, list[int], list[float]]:
    """(draft logits [K, V], greedy ids, confidence logits) in double precision, one formula a line."""
    token, state = anchor_id, np.zeros(head["markov_w1.weight"].shape[1])
    logits, ids, sure = [], [], []
    for h, base_logits in zip(hidden, base, strict=True):
        w1 = head["markov_w1.weight"][token]
        if kind == "gated":
            inner = sigmoid(head["gate_proj.weight"] @ np.concatenate([h, w1]) + head["gate_proj.bias"]) * w1
        else:
            joint = head["joint_proj.weight"] @ np.concatenate([state, w1, h]) + head["joint_proj.bias"]
            gate, candidate, output = np.split(joint, 3)
            state = sigmoid(gate) * state + (1 - sigmoid(gate)) * np.tanh(candidate)
            inner = np.tanh(output)
        draft = base_logits + head["markov_w2.weight"] @ inner
        sure.append(float(confidence["proj.weight"][0] @ np.concatenate([h, w1]) + confidence["proj.bias"][0]))
        token = int(draft.argmax())
        logits.append(draft)
        ids.append(token)
    return np.stack(logits), ids, sure


@pytest.mark.parametrize("kind", ["gated", "rnn"])
@pytest.mark.parametrize("case", CASES)
def test_gated_and_rnn_heads_follow_the_formulas_of_the_paper(golden: dict[str, torch.Tensor], kind: HeadKind, case: str) -> None:
    checkpoint = read_draft_checkpoint(FIXTURE / "vanilla")
    torch.manual_seed(5)
    shared = SharedWeights(checkpoint.tensors["embed_tokens.weight"], checkpoint.tensors["lm_head.weight"])
    model = BlockModel(replace(checkpoint.spec, head=kind), shared).eval()
    with torch.no_grad():
        for name, parameter in model.own_parameters():
            parameter.copy_(checkpoint.tensors.get(name, 0.5 * torch.randn(parameter.shape)))
        taps, anchor_id = golden[f"{case}.taps"], int(golden[f"{case}.anchor_id"])
        hidden = model.hidden(taps.unsqueeze(0), torch.tensor([[anchor_id]]), torch.tensor([[len(taps)]]))[0, 0]
        logits, ids = model.greedy(taps, anchor_id)
    arrays = {name: parameter.detach().double().numpy() for name, parameter in model.own_parameters()}
    head = {name.removeprefix("markov_head."): value for name, value in arrays.items() if name.startswith("markov_head.")}
    confidence = {name.removeprefix("confidence_head."): value for name, value in arrays.items() if name.startswith("confidence_head.")}
    base = golden[f"{case}.base_logits"].double().numpy()
    expected_logits, expected_ids, expected_sure = plain_chain(kind, head, confidence, hidden.double().numpy(), base, anchor_id)
    assert logits.confidence is not None
    np.testing.assert_allclose(logits.draft[0, 0].detach().numpy(), expected_logits, atol=TOLERANCE, rtol=0)
    assert ids.tolist() == expected_ids
    np.testing.assert_allclose(logits.confidence[0, 0].detach().numpy(), expected_sure, atol=TOLERANCE, rtol=0)
    assert np.abs(expected_logits - base).max() > 0.1, "the head says something"
