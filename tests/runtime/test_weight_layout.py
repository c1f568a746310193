"""Weights laid out for products of few rows: the same numbers in another order of memory."""

from pathlib import Path

import pytest
import torch
from torch import nn

from dspark.runtime.weight_layout import (
    HALVES_PACKED_FROM,
    LEAST_ROWS_FROM,
    PACKED_FROM,
    PackedLinear,
    by_columns,
    lay_out_linears,
    linear,
    multiplies_bfloat16,
    packed,
)

CPU = torch.device("cpu")
with_bfloat16 = pytest.mark.skipif(not multiplies_bfloat16(CPU), reason="this CPU does not multiply bfloat16")

WIDE = 1024
LARGE = (PACKED_FROM // WIDE, WIDE)
"""[out, in] of the smallest weight that is packed."""


class _Tied(nn.Module):
    def __init__(self, num_tokens: int, width: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(num_tokens, width)
        self.inner = nn.Linear(width, width)
        self.head = nn.Linear(width, num_tokens, bias=False)
        self.head.weight = self.embedding.weight


def _model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, WIDE), nn.Tanh(), nn.Linear(WIDE, LARGE[0]), nn.Linear(LARGE[0], 5, bias=False)).requires_grad_(False)


def test_a_weight_by_columns_has_the_same_shape_and_numbers_and_neighbours_down_a_column() -> None:
    weight = torch.randn(6, 3)
    stored = by_columns(weight)
    assert torch.equal(stored, weight)
    assert stored.shape == weight.shape
    assert stored.stride() == (1, 6)


def test_laying_out_twice_copies_nothing() -> None:
    stored = by_columns(torch.randn(6, 3))
    assert by_columns(stored).data_ptr() == stored.data_ptr()
    model = _model()
    lay_out_linears(model)
    before = model[2]
    lay_out_linears(model)
    assert model[2] is before


def test_other_precisions_and_shapes_stay_as_they_are() -> None:
    for weight in (torch.randn(4, 3, dtype=torch.bfloat16), torch.randn(2, 3, 4), torch.ones(4, 3, dtype=torch.int64)):
        assert by_columns(weight) is weight
    assert not packed(torch.empty(LARGE, dtype=torch.float16))


def test_only_large_weights_are_packed() -> None:
    assert packed(torch.empty(LARGE))
    assert not packed(torch.empty(LARGE[0] - 1, LARGE[1]))


def test_whether_a_cpu_multiplies_bfloat16_is_what_it_says_of_itself() -> None:
    told = Path("/proc/cpuinfo")
    if told.exists():
        assert multiplies_bfloat16(CPU) == ("avx512_bf16" in told.read_text())
    assert not multiplies_bfloat16(torch.device("meta"))


def test_weights_in_bfloat16_are_packed_from_a_smaller_size_where_the_cpu_multiplies_them(monkeypatch: pytest.MonkeyPatch) -> None:
    small = torch.empty((HALVES_PACKED_FROM // 64, 64), dtype=torch.bfloat16)
    for can in (True, False):
        monkeypatch.setattr("dspark.runtime.weight_layout.multiplies_bfloat16", lambda device, can=can: can)
        assert packed(small) == can
        assert not packed(small[1:])


@with_bfloat16
@pytest.mark.parametrize("num_rows", [1, 3, 7, 33])
@torch.inference_mode()
def test_a_packed_product_in_bfloat16_is_the_plain_one_up_to_rounding(num_rows: int) -> None:
    torch.manual_seed(1)
    layer = nn.Linear(64, 128).to(torch.bfloat16)
    rows = torch.randn(2, num_rows, 64, dtype=torch.bfloat16)
    model = nn.Sequential(layer)
    lay_out_linears(model)
    assert isinstance(model[0], PackedLinear)
    torch.testing.assert_close(model(rows), layer(rows), rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("num_rows", [1, 2, 7, 33])
@pytest.mark.parametrize("pack", [True, False])
@torch.inference_mode()
def test_a_model_answers_as_before_with_all_its_linear_layers_laid_out(num_rows: int, pack: bool) -> None:
    model = _model()
    rows = torch.randn(2, num_rows, 8)
    before = model(rows)
    lay_out_linears(model, pack=pack)
    assert torch.allclose(model(rows), before, atol=1e-5)
    assert isinstance(model[2], PackedLinear) == pack
    assert all(part.weight.stride(0) == 1 for part in model if isinstance(part, nn.Linear))


@torch.inference_mode()
def test_rows_that_do_not_lie_side_by_side_are_multiplied_as_well() -> None:
    weight, rows = torch.randn(LARGE), torch.randn(1, 9, WIDE)[:, ::2]
    assert torch.allclose(linear(rows, PackedLinear(weight)), linear(rows, weight), atol=1e-3)


@pytest.mark.parametrize("shape", [(0,), (1,), (2,), (1, 3), (1, 4), (2, 1), (5,)])
@torch.inference_mode()
def test_few_rows_of_a_weight_beyond_all_caches_have_company_and_the_same_answers(shape: tuple[int, ...]) -> None:
    weight, bias, rows = torch.randn(LEAST_ROWS_FROM // WIDE, WIDE), torch.randn(LEAST_ROWS_FROM // WIDE), torch.randn(*shape, WIDE)
    product = PackedLinear(weight, bias)(rows)
    assert product.shape == (*shape, len(weight))
    assert torch.allclose(product, nn.functional.linear(rows, weight, bias), atol=1e-3)


def test_a_packed_weight_can_still_be_read() -> None:
    weight = torch.randn(LARGE)
    assert torch.equal(PackedLinear(weight).weight, weight)


@pytest.mark.parametrize(("num_tokens", "width"), [(11, 4), LARGE])
def test_an_embedding_that_shares_its_weight_with_the_head_keeps_it_row_by_row(num_tokens: int, width: int) -> None:
    model = _Tied(num_tokens, width).requires_grad_(False)
    lay_out_linears(model)
    assert model.embedding.weight.is_contiguous()
    assert torch.equal(model.head.weight, model.embedding.weight)
    assert model.head.weight.data_ptr() != model.embedding.weight.data_ptr()
