"""Hidden states of a model at chosen layers, read by wrapping these layers for one forward: a forward that nobody taps pays nothing.
Hooks of torch would do it too, at five times the cost: a layer that has one takes the long way through `Module.__call__`.

Tap l is the output of decoder layer l, which transformers calls `hidden_states[l + 1]`; tap -1 is what enters layer 0. The last
layer is no tap: drafters are trained on states that are still on their way (paper, "evenly spread, never the last"). Knows no
session and no projection.

Symbols: R rows of a forward, d hidden size.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import nn

from dspark.errors import InvalidMessage
from dspark.runtime.draft_spec import EMBEDDING

Taps = Mapping[int, torch.Tensor]
"""Tap -> [R, d] in the model's own precision."""


class TapPoints:
    """Where one model can be tapped."""

    def __init__(self, model: Any) -> None:
        self._layers = _decoder_layers(model)

    @property
    def num_layers(self) -> int:
        """Decoder layers of the model."""
        return len(self._layers)

    def check(self, tap_layers: Sequence[int]) -> None:
        """Raises InvalidMessage naming `features.tap_layers` unless all of them can be tapped, each once and in growing order."""
        field = "features.tap_layers"
        if not tap_layers or any(after <= before for before, after in pairwise(tap_layers)):
            raise InvalidMessage(f"{field} must be at least one layer, in growing order", field)
        if tap_layers[0] < EMBEDDING or tap_layers[-1] > self.num_layers - 2:
            raise InvalidMessage(f"{field} must be in {EMBEDDING}..{self.num_layers - 2} (never the last layer)", field)

    @contextmanager
    def capture(self, tap_layers: Sequence[int]) -> Iterator[Taps]:
        """Every forward inside the block leaves its taps in the mapping; the layers are as before after it, whatever happens."""
        taken: dict[int, torch.Tensor] = {}
        with ExitStack() as wrapped:
            for layer in tap_layers:
                # Not the embedding module: some families scale its output before the first layer.
                keep = partial(_keep_input, taken) if layer == EMBEDDING else partial(_keep_output, taken, layer)
                wrapped.enter_context(_wrapped(self._layers[max(layer, 0)], keep))
            yield taken


@contextmanager
def _wrapped(module: nn.Module, keep: Callable[..., Any]) -> Iterator[None]:
    """The module runs as `keep(forward, ...)`. An instance's own `forward`, as device maps set one, is wrapped and put back."""
    own = module.__dict__.get("forward")
    module.__dict__["forward"] = partial(keep, module.forward)  # past Module.__setattr__, which looks for parameters first
    try:
        yield
    finally:
        if own is None:
            del module.__dict__["forward"]
        else:
            module.__dict__["forward"] = own


def _keep_input(taken: dict[int, torch.Tensor], forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    states: torch.Tensor = args[0] if args else kwargs["hidden_states"]
    taken[EMBEDDING] = states[0]
    return forward(*args, **kwargs)


def _keep_output(taken: dict[int, torch.Tensor], layer: int, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    output = forward(*args, **kwargs)
    states: torch.Tensor = output[0] if isinstance(output, tuple) else output
    taken[layer] = states[0]
    return output


def _decoder_layers(model: Any) -> Sequence[nn.Module]:
    """The list of decoder layers, whatever the family calls it; nothing where there is none to be found."""
    count = model.config.get_text_config().num_hidden_layers
    lists = [child for child in model.get_decoder().children() if isinstance(child, nn.ModuleList) and len(child) == count]
    return list(lists[0]) if lists else []
