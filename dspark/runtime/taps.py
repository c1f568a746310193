"""Hidden states of a model at chosen layers, read by forward hooks that live for one forward: a forward that nobody taps pays nothing.

Tap l is the output of decoder layer l, which transformers calls `hidden_states[l + 1]`; tap -1 is what enters layer 0. The last
layer is no tap: drafters are trained on states that are still on their way (paper, "evenly spread, never the last"). Knows no
session and no projection.

Symbols: R rows of a forward, d hidden size.
"""

from collections.abc import Iterator, Mapping, Sequence
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
        """Every forward inside the block leaves its taps in the mapping; the hooks are gone after it, whatever happens."""
        taken: dict[int, torch.Tensor] = {}
        with ExitStack() as hooks:
            for layer in tap_layers:
                if layer == EMBEDDING:
                    # Not the embedding module: some families scale its output before the first layer.
                    handle = self._layers[0].register_forward_pre_hook(partial(_keep_input, taken), with_kwargs=True)
                else:
                    handle = self._layers[layer].register_forward_hook(partial(_keep_output, taken, layer))
                hooks.callback(handle.remove)
            yield taken


def _keep_input(taken: dict[int, torch.Tensor], _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    states: torch.Tensor = args[0] if args else kwargs["hidden_states"]
    taken[EMBEDDING] = states[0]


def _keep_output(taken: dict[int, torch.Tensor], layer: int, _: nn.Module, __: tuple[Any, ...], output: Any) -> None:
    states: torch.Tensor = output[0] if isinstance(output, tuple) else output
    taken[layer] = states[0]


def _decoder_layers(model: Any) -> Sequence[nn.Module]:
    """The list of decoder layers, whatever the family calls it; nothing where there is none to be found."""
    count = model.config.get_text_config().num_hidden_layers
    lists = [child for child in model.get_decoder().children() if isinstance(child, nn.ModuleList) and len(child) == count]
    return list(lists[0]) if lists else []
