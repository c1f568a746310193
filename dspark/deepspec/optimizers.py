"""Optimizers of a training run and their state as plain tensors: no pickle is written or read."""

import math
from collections.abc import Iterable, Iterator

import torch
from torch import nn

from dspark.deepspec.recipe import TrainingConfig

EMBEDDING_LIKE = ("embed", "markov_w1", "lm_head", "markov_w2")
"""Matrices with a row or column per token: Muon's orthogonal updates are for maps between hidden vectors."""


class Optimizers:
    """One or two optimizers with one schedule."""

    def __init__(self, parameters: Iterable[tuple[str, nn.Parameter]], config: TrainingConfig) -> None:
        named = list(parameters)
        self._config = config
        self._parameters = [parameter for _, parameter in named]
        matrices = [p for name, p in named if config.optimizer == "muon" and _is_inner_matrix(name, p)]
        inner = {id(p) for p in matrices}
        others = [p for p in self._parameters if id(p) not in inner]
        self._all: list[torch.optim.Optimizer] = [
            torch.optim.AdamW(others, lr=config.learning_rate, betas=(0.9, 0.95), weight_decay=config.weight_decay)
        ]
        if matrices:
            self._all.append(
                torch.optim.Muon(
                    matrices, lr=config.muon_learning_rate, weight_decay=config.weight_decay, adjust_lr_fn="match_rms_adamw"
                )
            )
        self._peaks = [[group["lr"] for group in optimizer.param_groups] for optimizer in self._all]

    def step(self, step: int) -> float:
        """Clip, move, forget the gradients; returns the rate as a share of its peak."""
        torch.nn.utils.clip_grad_norm_(self._parameters, self._config.gradient_clip)
        share = rate_share(step, self._config)
        for optimizer, peaks in zip(self._all, self._peaks, strict=True):
            for group, peak in zip(optimizer.param_groups, peaks, strict=True):
                group["lr"] = peak * share
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        return share

    def tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        """The whole state by name."""
        for number, optimizer in enumerate(self._all):
            for index, state in optimizer.state_dict()["state"].items():
                for name, value in state.items():
                    yield f"{number}.{index}.{name}", torch.as_tensor(value).detach().clone().contiguous()

    def load(self, tensors: dict[str, torch.Tensor]) -> None:
        """Take `tensors()` of an earlier run back."""
        for number, optimizer in enumerate(self._all):
            state: dict[int, dict[str, torch.Tensor]] = {}
            for key, value in tensors.items():
                own, index, name = key.split(".", 2)
                if int(own) == number:
                    state.setdefault(int(index), {})[name] = value
            optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def rate_share(step: int, config: TrainingConfig) -> float:
    """Linear warm-up, then a cosine down to `final_rate_fraction`; 0..1 for steps counted from 0."""
    warmup = max(1, round(config.num_steps * config.warmup_fraction))
    if step < warmup:
        return (step + 1) / warmup
    progress = (step - warmup) / max(1, config.num_steps - warmup)
    return config.final_rate_fraction + (1 - config.final_rate_fraction) * 0.5 * (1 + math.cos(math.pi * progress))


def _is_inner_matrix(name: str, parameter: nn.Parameter) -> bool:
    return parameter.ndim == 2 and min(parameter.shape) > 1 and not any(part in name for part in EMBEDDING_LIKE)
