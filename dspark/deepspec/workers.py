"""Who computes which part of a training step. One process needs none of this; several share each batch and add up their gradients.

The batch of a step does not depend on how many workers there are, so a run may be resumed by another number of them.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

import torch
from torch import distributed

Item = TypeVar("Item")


class Workers(Protocol):
    """This process among its peers."""

    @property
    def rank(self) -> int:
        """0 is the one that writes files and draws bars."""

    @property
    def size(self) -> int:
        """How many there are."""

    def share(self, items: Sequence[Item]) -> Sequence[Item]:
        """This worker's part; the parts of all workers are the whole."""

    def add_up(self, tensors: Iterable[torch.Tensor]) -> None:
        """Replace each tensor by its sum over all workers, in place."""

    def wait(self) -> None:
        """Until all workers are here."""


@dataclass(frozen=True, slots=True)
class OneWorker:
    """Implements Workers alone."""

    rank: int = 0
    size: int = 1

    def share(self, items: Sequence[Item]) -> Sequence[Item]:
        """See Workers."""
        return items

    def add_up(self, tensors: Iterable[torch.Tensor]) -> None:
        """See Workers."""

    def wait(self) -> None:
        """See Workers."""


class ProcessGroup:
    """Implements Workers on torch.distributed, whose group must be up."""

    def __init__(self) -> None:
        self._rank = distributed.get_rank()
        self._size = distributed.get_world_size()

    @property
    def rank(self) -> int:
        """See Workers."""
        return self._rank

    @property
    def size(self) -> int:
        """See Workers."""
        return self._size

    def share(self, items: Sequence[Item]) -> Sequence[Item]:
        """See Workers."""
        return items[self._rank :: self._size]

    def add_up(self, tensors: Iterable[torch.Tensor]) -> None:
        """See Workers."""
        for tensor in tensors:
            distributed.all_reduce(tensor)

    def wait(self) -> None:
        """See Workers."""
        distributed.barrier()
