"""Arrays on the wire: numpy <-> the Tensor message, as typed raw bytes. Knows nothing of what the numbers mean.

A sender can put anything into the three fields of a Tensor, so each is checked against the others before numpy sees it.
bfloat16, which numpy lacks, is carried by its bits in a uint16 array.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dspark.errors import InvalidMessage
from dspark.tree import FloatArray, IntArray
from dspark.wire.pb.tensor_pb2 import Tensor

INT32 = Tensor.DTYPE_INT32
FLOAT32 = Tensor.DTYPE_FLOAT32
BFLOAT16 = Tensor.DTYPE_BFLOAT16
FLOAT16 = Tensor.DTYPE_FLOAT16

MAX_TENSOR_BYTES = 32 * 1024 * 1024
"""No legal tensor is larger than the message that carries it."""

_NUMPY: dict[Tensor.Dtype, np.dtype[Any]] = {
    INT32: np.dtype("<i4"),
    FLOAT32: np.dtype("<f4"),
    BFLOAT16: np.dtype("<u2"),
    FLOAT16: np.dtype("<f2"),
}
_WIRE = {dtype: code for code, dtype in _NUMPY.items()}
_BFLOAT16_EXPONENT = np.uint16(0x7F80)  # all ones: infinity or NaN


def to_pb(array: NDArray[np.generic]) -> Tensor:
    """Any shape of int32, float32, float16, or uint16 (the bits of bfloat16)."""
    little_endian = array.dtype.newbyteorder("<")
    if little_endian not in _WIRE:
        raise InvalidMessage(f"an array of {array.dtype} cannot be sent")
    return Tensor(dtype=_WIRE[little_endian], shape=array.shape, data=array.astype(little_endian, copy=False).tobytes())


def from_pb(message: Tensor, field: str, dtype: Tensor.Dtype, ndim: int) -> NDArray[np.generic]:
    """The array of a Tensor that must have the given type and number of dimensions; finite where it is floating.

    A read-only view of the message's bytes. Raises InvalidMessage with `field`.
    """
    shape, data = tuple(message.shape), message.data
    if message.dtype != dtype:
        raise InvalidMessage(f"{field} must be of {Tensor.Dtype.Name(dtype)}", field)
    if len(shape) != ndim or min(shape, default=0) < 0:
        raise InvalidMessage(f"{field} must have {ndim} dimensions, none of them negative", field)
    kind = _NUMPY[dtype]
    # A zero may stand beside a giant: numpy multiplies without it when it looks for overflow, and so does this.
    if math.prod(max(size, 1) for size in shape) * kind.itemsize > MAX_TENSOR_BYTES:
        raise InvalidMessage(f"{field} claims a shape over {MAX_TENSOR_BYTES} bytes", field)
    if math.prod(shape) * kind.itemsize != len(data):
        raise InvalidMessage(f"{field} has {len(data)} bytes, which do not fit its shape", field)
    array: NDArray[np.generic] = np.frombuffer(data, kind).reshape(shape)
    if not _finite(array, dtype):
        raise InvalidMessage(f"{field} must be finite", field)
    return array


def ints_to_pb(values: Sequence[int] | IntArray) -> Tensor:
    """[k] int32."""
    return Tensor(dtype=INT32, shape=(len(values),), data=np.asarray(values, "<i4").tobytes())


def floats_to_pb(values: FloatArray) -> Tensor:
    """[k] float32."""
    return Tensor(dtype=FLOAT32, shape=(len(values),), data=np.asarray(values, "<f4").tobytes())


def ints_from_pb(message: Tensor, field: str) -> IntArray:
    """[k] int32, read-only. Raises InvalidMessage with `field`."""
    if _is_vector(message, INT32):
        return np.frombuffer(message.data, _NUMPY[INT32])
    return from_pb(message, field, INT32, 1).astype(np.int32, copy=False)


def floats_from_pb(message: Tensor, field: str) -> FloatArray:
    """[k] float32, read-only and finite. Raises InvalidMessage with `field`."""
    if _is_vector(message, FLOAT32):
        array = np.frombuffer(message.data, _NUMPY[FLOAT32])
        if np.isfinite(array).all():
            return array
    return from_pb(message, field, FLOAT32, 1).astype(np.float32, copy=False)


def _is_vector(message: Tensor, dtype: Tensor.Dtype) -> bool:
    """The short way for the message that fits, one of many in each round; whatever it refuses goes to `from_pb` to be named."""
    shape = message.shape
    return message.dtype == dtype and len(shape) == 1 and shape[0] * 4 == len(message.data)


def _finite(array: NDArray[np.generic], dtype: Tensor.Dtype) -> bool:
    if dtype == INT32:
        return True
    if dtype == BFLOAT16:
        return not bool(np.any((array.view("<u2") & _BFLOAT16_EXPONENT) == _BFLOAT16_EXPONENT))
    return bool(np.isfinite(array.view(_NUMPY[dtype])).all())
