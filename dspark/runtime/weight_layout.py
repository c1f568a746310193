"""How weights lie in memory for serving on a CPU, where a round multiplies a few rows (an anchor and its candidates) with every weight.

A product of few rows should cost what reading the weight costs, once. With weights as checkpoints have them, row by row, it costs two to
eight times that (docs/measurements.md, "Weights for few rows"). So large weights are packed into the blocks that oneDNN's kernels read,
once, when the model is loaded. A call of them takes some 10 us more than a plain product, so small weights are only turned around,
column by column, which helps a plain product too.

Weights in bfloat16 are packed from a smaller size on, where the CPU multiplies them: a plain product would pack them anew each time.

Names and shapes stay as they are. The numbers are the same; sums round in another order. Weights on GPUs, whose libraries choose kernels
for either order, and in other precisions stay where they are.
"""

from typing import Any

import torch
from torch import nn
from torch.nn import functional

PACKED_FROM = 2**18
"""Numbers in a weight, from which packing pays."""
HALVES_PACKED_FROM = 2**12
"""The same of a weight in bfloat16."""
PACKED_FOR_ROWS = 16
"""What oneDNN is told to expect; the layout that it chooses is the same for 4 to 32."""
LEAST_ROWS = 4
"""Of a packed weight that no cache holds: the kernels for one to three rows read memory more slowly than the one for four."""
LEAST_ROWS_FROM = 2**21
"""Numbers in such a weight."""


def by_columns(weight: torch.Tensor) -> torch.Tensor:
    """The same matrix [out, in], stored column by column; another tensor, unless it is not a float32 matrix on a CPU."""
    if not _can_move(weight):
        return weight
    return weight.detach().t().contiguous().t()


class PackedLinear(nn.Module):
    """A linear layer whose weight [out, in] lies in oneDNN's blocks. For inference only."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None = None) -> None:
        super().__init__()
        mkldnn: Any = torch.ops.mkldnn
        self._product = mkldnn._linear_pointwise.default
        self._packed = mkldnn._reorder_linear_weight.default(weight.detach(), PACKED_FOR_ROWS)
        self.bias = None if bias is None else nn.Parameter(bias.detach(), requires_grad=False)
        self.out_features, self.in_features = weight.shape
        self._least_rows = LEAST_ROWS if weight.numel() >= LEAST_ROWS_FROM else 1

    @property
    def weight(self) -> torch.Tensor:
        """A copy as it was, for whoever looks; [out, in]."""
        weight: torch.Tensor = self._packed.to_dense()
        return weight

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        """[..., in] -> [..., out]."""
        missing = self._least_rows - rows.shape[:-1].numel()
        if missing > 0:
            padded = self._multiplied(functional.pad(rows.reshape(-1, rows.shape[-1]), (0, 0, 0, missing)))
            return padded[:-missing].view(*rows.shape[:-1], self.out_features)
        return self._multiplied(rows)

    def _multiplied(self, rows: torch.Tensor) -> torch.Tensor:
        product: torch.Tensor = self._product(rows, self._packed, self.bias, "none", [], "")
        return product


def packed(weight: torch.Tensor) -> bool:
    """Whether this weight is better packed: a large float32 matrix on a CPU, or one of bfloat16 where the CPU multiplies that, which a
    plain product would pack anew each time; and a torch that has the kernels."""
    if weight.dtype == torch.bfloat16:
        on_cpu = weight.device.type == "cpu" and weight.ndim == 2
        fits = on_cpu and weight.numel() >= HALVES_PACKED_FROM and multiplies_bfloat16(weight.device)
    else:
        fits = _can_move(weight) and weight.numel() >= PACKED_FROM
    return fits and _has_kernels()


def multiplies_bfloat16(device: torch.device) -> bool:
    """Whether the device has instructions for it, so that a product takes about half of what one of float32 takes."""
    if device.type == "cuda":
        with torch.cuda.device(device):
            return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    has_instructions: Any = getattr(torch.cpu, "_is_avx512_bf16_supported", bool)  # torch's own: a later one may name it otherwise
    return device.type == "cpu" and bool(has_instructions())


def lay_out_linears(module: nn.Module, *, pack: bool = True) -> None:
    """Lay the weight of every linear layer out for serving; without `pack` all of them by columns.

    A weight that is an embedding's too gets a copy of its own: embeddings are read row by row.
    """
    embeddings = {id(part.weight) for part in module.modules() if isinstance(part, nn.Embedding)}
    for parent in list(module.modules()):
        for name, part in list(parent.named_children()):
            if type(part) is nn.Linear and pack and packed(part.weight):  # a subclass may do more than a product
                setattr(parent, name, PackedLinear(part.weight, part.bias))
            elif isinstance(part, nn.Linear):
                _turn_around(part, is_shared=id(part.weight) in embeddings)


def linear(rows: torch.Tensor, weight: torch.Tensor | PackedLinear) -> torch.Tensor:
    """The product of rows [..., in] with a weight [out, in] that may have been packed."""
    return weight(rows) if isinstance(weight, PackedLinear) else functional.linear(rows, weight)


def _turn_around(part: nn.Linear, *, is_shared: bool) -> None:
    stored = by_columns(part.weight)
    if is_shared:
        part.weight = nn.Parameter(stored, requires_grad=False)
    else:
        part.weight.data = stored


def _can_move(weight: torch.Tensor) -> bool:
    return weight.device.type == "cpu" and weight.dtype == torch.float32 and weight.ndim == 2


def _has_kernels() -> bool:
    """The operators are torch's own, made for its compiler; a later torch may name them otherwise."""
    mkldnn: Any = torch.ops.mkldnn
    return bool(torch._C._has_mkldnn) and hasattr(mkldnn, "_linear_pointwise") and hasattr(mkldnn, "_reorder_linear_weight")
