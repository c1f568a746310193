"""TapPoints: the states that transformers itself reports, on every architecture, and no hook left behind."""

import pytest
import torch

from dspark.errors import InvalidMessage
from dspark.runtime.packed import Segment
from dspark.runtime.taps import TapPoints
from tests.conftest import tiny_qwen3
from tests.runtime.tiny_models import ARCHITECTURES, packed_model, plain_model, random_prompts

(PROMPT,) = random_prompts((21,), seed=5)


def prompt_segment(num_logits: int) -> Segment:
    count = len(PROMPT)
    return Segment(PROMPT, list(range(count)), None, list(range(count)), 0, num_logits)


@pytest.mark.parametrize("num_logits", [0, 1], ids=["a chunk", "a round"])
@pytest.mark.parametrize("name", ARCHITECTURES)
@torch.inference_mode()
def test_taps_are_the_hidden_states_of_transformers(name: str, num_logits: int) -> None:
    model = packed_model(name)
    with model.taps.capture([-1, 0]) as taps:
        model.forward([prompt_segment(num_logits)])
    states = plain_model(name)(torch.tensor([PROMPT]), use_cache=False, output_hidden_states=True).hidden_states
    for layer in (-1, 0):
        torch.testing.assert_close(taps[layer], states[layer + 1][0], rtol=1e-4, atol=1e-4)
    assert (taps[-1] - taps[0]).abs().max() > 0.01, "the two differ, so that a mix-up would show"


def num_wrapped(model: torch.nn.Module) -> int:
    return sum("forward" in vars(module) for module in model.modules())


def test_no_layer_stays_wrapped_also_not_after_a_forward_that_failed() -> None:
    model = tiny_qwen3(64, num_hidden_layers=4)
    points = TapPoints(model)
    with pytest.raises(IndexError), points.capture([-1, 0, 2]):
        assert num_wrapped(model) == 2, "tap -1 and tap 0 are both sides of the first layer"
        model(torch.tensor([[64]]))
    assert num_wrapped(model) == 0


@torch.inference_mode()
def test_a_layer_with_a_forward_of_its_own_as_device_maps_set_one_keeps_it() -> None:
    model = tiny_qwen3(64, num_hidden_layers=4)
    layer, calls = model.model.layers[1], []
    forward = layer.forward
    layer.forward = own = lambda *args, **kwargs: (calls.append(1), forward(*args, **kwargs))[1]
    with TapPoints(model).capture([0, 1]) as taps:
        model(torch.tensor([[3]]))
    assert sorted(taps) == [0, 1]
    assert len(calls) == 1
    assert layer.forward is own


@pytest.mark.parametrize("layers", [(), (3,), (0, 3), (-2,), (1, 0), (1, 1), (4,), (-5, 2)])
def test_layers_that_cannot_be_tapped_are_refused_with_the_fields_name(layers: tuple[int, ...]) -> None:
    points = TapPoints(tiny_qwen3(64, num_hidden_layers=4))
    with pytest.raises(InvalidMessage, match=r"features\.tap_layers") as caught:
        points.check(layers)
    assert caught.value.field == "features.tap_layers"


def test_all_layers_but_the_last_can_be_tapped() -> None:
    points = TapPoints(tiny_qwen3(64, num_hidden_layers=4))
    points.check((-1, 0, 1, 2))
    assert points.num_layers == 4
