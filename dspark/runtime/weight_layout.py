"""How weights lie in memory. A CPU's product of a few rows (an anchor and its candidates) with a weight stored row by row, as checkpoints
have it, costs two to three times the product of one row; with the same weight stored column by column it costs about as much as one
(docs/measurements.md, "Weights by columns"). Shapes, names and values stay as they are: only strides change.

GPU libraries choose kernels for either order, so nothing is moved there.
"""

import torch
from torch import nn


def by_columns(weight: torch.Tensor) -> torch.Tensor:
    """The same matrix [out, in], stored column by column; another tensor, unless it is not a float32 matrix on a CPU."""
    if weight.device.type != "cpu" or weight.dtype != torch.float32 or weight.ndim != 2:
        return weight
    return weight.detach().t().contiguous().t()


def lay_out_linears(module: nn.Module) -> None:
    """Store the weight of every linear layer by columns, for serving.

    A weight that is an embedding's too gets a copy of its own: embeddings are read row by row.
    """
    embeddings = {id(part.weight) for part in module.modules() if isinstance(part, nn.Embedding)}
    for part in module.modules():
        if isinstance(part, nn.Linear):
            stored = by_columns(part.weight)
            if id(part.weight) in embeddings:
                part.weight = nn.Parameter(stored, requires_grad=False)
            else:
                part.weight.data = stored
