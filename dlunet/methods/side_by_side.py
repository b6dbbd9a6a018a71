"""Networks that share no gradient, each on its own cores: on a CPU, small patches do not fill several cores."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any, TypeVar

import torch

Result = TypeVar("Result")


def side_by_side(function: Callable[..., Result], *arguments: Sequence[Any], device: torch.device) -> list[Result]:
    """Call a function for each network at the same time where that is faster: on a CPU with a core for each.

    Args:
        function: What a network does; it must not touch another's parameters.
        arguments: As for :func:`map`, an entry a network.
        device: Where the networks are.

    Returns:
        The results in order, the same as those of calls in turn.
    """
    count, cores = len(arguments[0]), torch.get_num_threads()
    if device.type != "cpu" or not 1 < count <= cores:
        return list(map(function, *arguments))
    precision, is_mixed = torch.get_autocast_dtype("cpu"), torch.is_autocast_enabled("cpu")

    def with_callers_precision(*values: Any) -> Result:
        with torch.autocast("cpu", precision, is_mixed):
            return function(*values)

    return list(_threads(count, cores // count).map(with_callers_precision, *arguments))


@cache
def _threads(count: int, cores_each: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(count, "network", _take_cores, (cores_each,))


def _take_cores(count: int) -> None:
    torch.get_num_threads()  # a thread takes the process's number when it first asks: not after it has got its own
    torch.set_num_threads(count)
