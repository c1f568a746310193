"""Schedules, which matrices Muon moves, and a state that comes back without pickle."""

import pytest
import torch
from torch import nn

from dspark.deepspec.optimizers import Optimizers, rate_share
from dspark.deepspec.recipe import TrainingConfig


def test_the_rate_rises_in_a_line_and_falls_as_a_cosine() -> None:
    config = TrainingConfig(num_steps=100, warmup_fraction=0.1, final_rate_fraction=0.2)
    shares = [rate_share(step, config) for step in range(101)]
    assert shares[:10] == pytest.approx([(step + 1) / 10 for step in range(10)])
    assert shares[10] == 1.0
    assert shares[55] == pytest.approx(0.6)
    assert shares[100] == pytest.approx(0.2)


def test_a_run_without_warm_up_begins_near_its_peak() -> None:
    assert rate_share(0, TrainingConfig(num_steps=100, warmup_fraction=0.0)) == 1.0


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Parameter(torch.ones(8, 4))
        self.fc = nn.Linear(4, 4)
        self.confidence = nn.Linear(4, 1)


def test_muon_moves_inner_matrices_and_adam_the_rest() -> None:
    model = Model()
    optimizers = Optimizers(model.named_parameters(), TrainingConfig(optimizer="muon"))
    by_kind = {type(optimizer).__name__: optimizer for optimizer in optimizers._all}
    moved = {id(p) for group in by_kind["Muon"].param_groups for p in group["params"]}
    assert moved == {id(model.fc.weight)}
    assert len(by_kind["AdamW"].param_groups[0]["params"]) == 4


def moved(model: Model, optimizers: Optimizers, steps: range) -> list[torch.Tensor]:
    for step in steps:
        value = model.confidence(model.fc(model.embed * (step + 1))).square().mean()
        torch.autograd.backward(value)
        optimizers.step(step)
    return [p.detach().clone() for p in model.parameters()]


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_a_state_that_was_taken_back_goes_on_to_the_last_bit(kind: str) -> None:
    config = TrainingConfig.model_validate({"optimizer": kind, "num_steps": 10})
    torch.manual_seed(1)
    first = Model()
    before = Optimizers(first.named_parameters(), config)
    moved(first, before, range(4))
    second = Model()
    second.load_state_dict(first.state_dict())
    after = Optimizers(second.named_parameters(), config)
    after.load(dict(before.tensors()))
    for one, other in zip(moved(first, before, range(4, 8)), moved(second, after, range(4, 8)), strict=True):
        assert torch.equal(one, other)


def test_gradients_are_clipped_and_forgotten() -> None:
    model = Model()
    optimizers = Optimizers(model.named_parameters(), TrainingConfig(gradient_clip=1.0))
    for p in model.parameters():
        p.grad = torch.full_like(p, 1e6)
    optimizers.step(0)
    assert all(p.grad is None for p in model.parameters())
    assert all(torch.isfinite(p).all() for p in model.parameters())
