"""Weights stored by columns: the same numbers in another order of memory."""

import torch
from torch import nn

from dspark.runtime.weight_layout import by_columns, lay_out_linears


class _Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(11, 4)
        self.inner = nn.Linear(4, 4)
        self.head = nn.Linear(4, 11, bias=False)
        self.head.weight = self.embedding.weight


def test_a_weight_by_columns_has_the_same_shape_and_numbers_and_neighbours_down_a_column() -> None:
    weight = torch.randn(6, 3)
    stored = by_columns(weight)
    assert torch.equal(stored, weight)
    assert stored.shape == weight.shape
    assert stored.stride() == (1, 6)


def test_laying_out_twice_copies_nothing() -> None:
    stored = by_columns(torch.randn(6, 3))
    assert by_columns(stored).data_ptr() == stored.data_ptr()


def test_other_precisions_and_shapes_stay_as_they_are() -> None:
    for weight in (torch.randn(4, 3, dtype=torch.bfloat16), torch.randn(2, 3, 4), torch.ones(4, 3, dtype=torch.int64)):
        assert by_columns(weight) is weight


def test_a_model_answers_as_before_with_all_its_linear_layers_by_columns() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 32), nn.Tanh(), nn.Linear(32, 5, bias=False)).requires_grad_(False)
    rows = torch.randn(7, 8)
    before = model(rows)
    lay_out_linears(model)
    assert torch.allclose(model(rows), before, atol=1e-6)
    assert all(part.weight.stride(0) == 1 for part in model if isinstance(part, nn.Linear))


def test_an_embedding_that_shares_its_weight_with_the_head_keeps_it_row_by_row() -> None:
    model = _Tied().requires_grad_(False)
    lay_out_linears(model)
    assert model.embedding.weight.is_contiguous()
    assert model.head.weight.stride(0) == 1
    assert torch.equal(model.head.weight, model.embedding.weight)
