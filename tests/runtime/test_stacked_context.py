"""One product for the context's keys and values of all layers: each layer's own numbers."""

import pytest
import torch

from dspark.runtime.layer_stack import LayerStack
from dspark.runtime.stacked_context import StackedContext
from dspark.runtime.weight_layout import lay_out_linears
from tests.runtime.tiny_drafters import LAYERS
from tests.runtime.tiny_layers import CAUSAL, FAMILY_LAYERS, randomise, register_causal

POSITIONS = torch.tensor([[3, 4, 5, 9, 40]])


@pytest.mark.parametrize("laid_out", [False, True])
@pytest.mark.parametrize("family", FAMILY_LAYERS)
@torch.no_grad()
def test_all_layers_at_once_are_the_layers_one_by_one(family: str, laid_out: bool) -> None:
    register_causal()
    stack = LayerStack(FAMILY_LAYERS[family], CAUSAL)
    randomise(stack.layers.parameters())
    if laid_out:
        lay_out_linears(stack.layers)
    stacked = StackedContext(stack)
    context = torch.randn(1, POSITIONS.shape[1], LAYERS["hidden_size"], generator=torch.Generator().manual_seed(2))
    rotations = stack.rotations(context, POSITIONS)
    made = list(stacked.keys_values(context, rotations))
    assert len(made) == len(stack.layers)
    for layer, (keys, values) in enumerate(made):
        expected_keys, expected_values = stack.context_keys_values(layer, context, rotations)
        torch.testing.assert_close(keys.transpose(0, 1), expected_keys[0])
        torch.testing.assert_close(values.transpose(0, 1), expected_values[0])
