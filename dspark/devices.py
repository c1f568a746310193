"""Small numbers on their way to a device, and waiting for it.

A copy from ordinary memory to a GPU first waits for all that the GPU was told before, so that a program that sends one number after the
other never runs ahead of it. From pinned memory it does not wait. On a CPU nothing here does anything of its own.
"""

from collections.abc import Sequence
from typing import Any

import torch
from numpy.typing import NDArray

Numbers = Sequence[bool] | Sequence[int] | Sequence[float] | Sequence[Sequence[int]] | Sequence[Sequence[bool]]


def on_device(values: Numbers | NDArray[Any], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """The numbers as a tensor there; the caller goes on before they have arrived."""
    tensor = torch.as_tensor(values, dtype=dtype)
    if device.type != "cuda" or tensor.numel() == 0:
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


def accelerator_name(device: torch.device) -> str:
    """As its maker calls it; empty for a device that has no name to be asked for."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else ""


def finish(device: torch.device) -> None:
    """Wait until the device has done all it was told: a time measured before that is the time of telling it."""
    if device.type == "cuda":
        torch.cuda.current_stream(device).synchronize()
