"""Memory of a sequence of operations: tensors share one block where their lifetimes allow, and blocks are reused."""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

#: Offsets are multiples of this many floats, a cache line.
LINE = 16


@dataclass
class Lifetime:
    """A tensor, and the operations between which its values must be kept.

    Attributes:
        size: In floats.
        first: The operation that writes it.
        last: The last operation that reads it.
        offset: In floats, from the start of the block; set by :func:`place`.
    """

    size: int
    first: int
    last: int
    offset: int = 0


def place(tensors: Sequence[Lifetime]) -> int:
    """Choose offsets such that tensors alive at the same time do not overlap; the largest are placed first.

    Returns:
        The size of the block in floats.
    """
    placed: list[Lifetime] = []
    for tensor in sorted(tensors, key=lambda each: -each.size):
        neighbours = [other for other in placed if other.first <= tensor.last and tensor.first <= other.last]
        tensor.offset = 0
        for other in sorted(neighbours, key=lambda each: each.offset):
            if tensor.offset + tensor.size <= other.offset:
                break
            tensor.offset = max(tensor.offset, -(-(other.offset + other.size) // LINE) * LINE)
        placed.append(tensor)
    return max((tensor.offset + tensor.size for tensor in placed), default=0)


class Blocks:
    """Blocks of memory that are kept for the next request: the pages of a new one are slower than the computation."""

    def __init__(self) -> None:
        self._free: list[Tensor] = []
        self._lock = threading.Lock()

    def take(self, size: int) -> Tensor:
        """A block of at least this many floats."""
        with self._lock:
            by_size = sorted(self._free, key=len)
            fitting = next((block for block in by_size if len(block) >= size), None)
            taken = fitting if fitting is not None else by_size[-1] if by_size else None
            if taken is not None:
                self._free.pop(next(place for place, block in enumerate(self._free) if block is taken))
        # One that is too small is dropped: its memory makes room for the new one.
        return torch.empty(size) if fitting is None else fitting

    def give_back(self, block: Tensor) -> None:
        """Keep a block for the next request.

        It waits for no lock: the garbage collector may call it in the middle of :meth:`take`.
        """
        self._free.append(block)


#: The blocks of this process.
BLOCKS = Blocks()

# Parameters of mallopt, and their values in bytes; GNU's C library accepts no larger threshold for mapping.
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
_NEVER_TRIMMED, _LARGEST_NOT_MAPPED = 2**31 - 1, 32 << 20


def keep_freed_memory() -> None:
    """Let this process keep what it frees for its next tensors, instead of getting new pages of zeros each time.

    It applies to PyTorch's tensors of up to 32 MiB. Only GNU's C library can be told so.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if os.name == "posix" else None
    if mallopt is not None:
        mallopt(_MMAP_THRESHOLD, _LARGEST_NOT_MAPPED)
        mallopt(_TRIM_THRESHOLD, _NEVER_TRIMMED)
