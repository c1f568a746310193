"""Numbers on their way to a device. What only a GPU can show is in tests/gpu."""

import numpy as np
import pytest
import torch

from dspark.devices import on_device

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("values", "dtype"),
    [
        ([3, -1, 2**62], torch.int64),
        ([[1, 2], [3, 4]], torch.int64),
        ([0.5, 1e-6], torch.float32),
        ([[True], [False]], torch.bool),
        ([], torch.int64),
    ],
    ids=str,
)
def test_lists_become_the_tensors_they_always_became(values: list[object], dtype: torch.dtype) -> None:
    assert torch.equal(on_device(values, dtype, CPU), torch.tensor(values, dtype=dtype))  # type: ignore[arg-type]


def test_arrays_keep_shape_and_values() -> None:
    array = np.arange(6).reshape(2, 3)
    assert on_device(array, torch.int64, CPU).tolist() == array.tolist()
    assert on_device(array > 2, torch.bool, CPU).tolist() == (array > 2).tolist()
