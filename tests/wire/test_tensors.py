"""Arrays survive the way there and back; forged ones are named and refused."""

from typing import Any

import numpy as np
import pytest

from dspark.errors import InvalidMessage
from dspark.wire import tensors
from dspark.wire.pb.tensor_pb2 import Tensor


@pytest.mark.parametrize(
    ("array", "dtype"),
    [
        (np.array([[1, -2, 3], [4, 5, -(2**31)]], np.int32), tensors.INT32),
        (np.array([0.5, -1e30, 0.0], np.float32), tensors.FLOAT32),
        (np.array([[0.5, 6e4]], np.float16), tensors.FLOAT16),
        (np.array([[[0x3F80, 0x7F7F], [0xFF7F, 0x0000]]], np.uint16), tensors.BFLOAT16),
        (np.empty((0, 7), np.float32), tensors.FLOAT32),
        (np.array(5, np.int32), tensors.INT32),
    ],
)
def test_an_array_comes_back_as_it_was(array: Any, dtype: Any) -> None:
    message = Tensor.FromString(tensors.to_pb(array).SerializeToString())
    back = tensors.from_pb(message, "x", dtype, array.ndim)
    assert back.dtype == array.dtype
    assert back.shape == array.shape
    assert back.tobytes() == array.tobytes()


def test_a_transposed_or_big_endian_array_keeps_its_values() -> None:
    array = np.arange(6, dtype=np.int32).reshape(2, 3)
    for odd in (array.T, array[:, ::2], array.astype(">i4")):
        np.testing.assert_array_equal(tensors.from_pb(tensors.to_pb(odd), "x", tensors.INT32, 2), odd)


def test_vectors_have_a_short_way() -> None:
    np.testing.assert_array_equal(tensors.ints_from_pb(tensors.ints_to_pb((1, -1, 2**31 - 1)), "x"), [1, -1, 2**31 - 1])
    np.testing.assert_array_equal(tensors.floats_from_pb(tensors.floats_to_pb(np.float32([0.25, 1])), "x"), [0.25, 1])
    assert len(tensors.ints_from_pb(tensors.ints_to_pb(()), "x")) == 0


def test_an_array_of_another_type_is_not_sent() -> None:
    with pytest.raises(InvalidMessage, match="int64"):
        tensors.to_pb(np.zeros(3, np.int64))


FORGED = {
    "no dtype": Tensor(shape=[1], data=bytes(4)),
    "another dtype": Tensor(dtype=tensors.FLOAT32, shape=[1], data=bytes(4)),
    "a dtype that is none": Tensor(dtype=77, shape=[1], data=bytes(4)),  # type: ignore[arg-type]
    "no shape": Tensor(dtype=tensors.INT32, data=bytes(4)),
    "too many dimensions": Tensor(dtype=tensors.INT32, shape=[1, 1], data=bytes(4)),
    "a negative dimension": Tensor(dtype=tensors.INT32, shape=[-1], data=bytes(4)),
    "too few bytes": Tensor(dtype=tensors.INT32, shape=[2], data=bytes(4)),
    "too many bytes": Tensor(dtype=tensors.INT32, shape=[2], data=bytes(12)),
    "half a number": Tensor(dtype=tensors.INT32, shape=[1], data=bytes(6)),
    "a giant": Tensor(dtype=tensors.INT32, shape=[2**62], data=bytes(4)),
    "nothing at all": Tensor(),
}


@pytest.mark.parametrize("case", FORGED)
def test_a_forged_vector_is_refused_with_the_fields_name(case: str) -> None:
    with pytest.raises(InvalidMessage, match=r"tree\.parents") as caught:
        tensors.ints_from_pb(FORGED[case], "tree.parents")
    assert caught.value.field == "tree.parents"


@pytest.mark.parametrize("shape", [[2**32, 2**32], [2**62, 4, 0], [0, 2**62], [-1, -1], [-(2**63), 0], [2**31, 2**31, 2**31], [1], []])
def test_a_shape_whose_product_wraps_or_lies_is_refused(shape: list[int]) -> None:
    message = Tensor(dtype=tensors.FLOAT32, shape=shape, data=bytes(4) if shape == [1] else b"")
    with pytest.raises(InvalidMessage):
        tensors.from_pb(message, "x", tensors.FLOAT32, 2)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_numbers_that_are_none_are_refused(value: float) -> None:
    with pytest.raises(InvalidMessage, match="x must be finite"):
        tensors.floats_from_pb(tensors.floats_to_pb(np.float32([1, value])), "x")
    with pytest.raises(InvalidMessage, match="x must be finite"):
        tensors.from_pb(tensors.to_pb(np.array([value], np.float16)), "x", tensors.FLOAT16, 1)
    bits = (np.array([value], np.float32).view(np.uint32) >> 16).astype(np.uint16)
    with pytest.raises(InvalidMessage, match="x must be finite"):
        tensors.from_pb(tensors.to_pb(bits), "x", tensors.BFLOAT16, 1)
