"""Runs networks without shared gradients in parallel on separate CPU cores, since small patches do not fill all."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any, TypeVar

import torch

Result = TypeVar("Result")


def side_by_side(function: Callable[..., Result], *arguments: Sequence[Any]) -> list[Result]:
    """Call a function for all networks on a CPU, in parallel if there is at least one core per network.

    Args:
        function: The function; it must not touch the parameters of another network.
        arguments: As for :func:`map`, one entry per network.

    Returns:
        The results in order, identical to those of sequential calls.
    """
    count, cores = len(arguments[0]), torch.get_num_threads()
    if not 1 < count <= cores:
        return list(map(function, *arguments))
    precision, is_mixed = torch.get_autocast_dtype("cpu"), torch.is_autocast_enabled("cpu")
    has_gradients = torch.is_grad_enabled()

    def as_caller(*values: Any) -> Result:  # PyTorch has these modes per thread
        with torch.autocast("cpu", precision, is_mixed), torch.set_grad_enabled(has_gradients):
            return function(*values)

    return list(_threads(count, cores // count).map(as_caller, *arguments))


@cache
def _threads(count: int, cores_each: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(count, "network", _take_cores, (cores_each,))


def _take_cores(count: int) -> None:
    torch.get_num_threads()  # the first query sets the process's count: it must not come after the thread's own
    torch.set_num_threads(count)
