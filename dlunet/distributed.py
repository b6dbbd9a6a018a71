"""What the processes of a distributed training share; in a training of one process, each function changes nothing.

A step of several processes is that of one process with all of their patches, those of the first process first.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, distributed
from torch.autograd.function import once_differentiable


def process_count() -> int:
    """The number of processes."""
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1


def gathered(values: Tensor) -> Tensor:
    """The values (B, …) of all processes, concatenated along the batch, with gradients for those of this process.

    All processes must compute the same scalar from the result; the mean over processes of its gradients is then that
    of one process with the whole batch (:func:`average_in_place`).
    """
    return values if process_count() == 1 else _Gathered.apply(values)


def own_part(values: Tensor) -> Tensor:
    """The part of this process of values (B, …) for the patches of all processes, such as random numbers."""
    return values if process_count() == 1 else values.chunk(process_count())[distributed.get_rank()]


def mean(values: Tensor) -> Tensor:
    """The mean over all processes of tensors of one shape; it has no gradient."""
    return total(values) / process_count()


def total(values: Tensor) -> Tensor:
    """The sum over all processes of tensors of one shape; it has no gradient."""
    if process_count() > 1:
        values = values.detach().clone()
        distributed.all_reduce(values)
    return values


def highest(value: int, device: torch.device) -> int:
    """The highest of the values of all processes, which they exchange on a device."""
    if process_count() == 1:
        return value
    values = torch.tensor(value, device=device)
    distributed.all_reduce(values, distributed.ReduceOp.MAX)
    return int(values)


def average_in_place(tensors: Iterable[Tensor]) -> None:
    """Replace tensors by their means over all processes, in one reduction for each type and device."""
    if process_count() == 1:
        return
    groups: dict[tuple[torch.dtype, torch.device], list[Tensor]] = {}
    for tensor in tensors:
        groups.setdefault((tensor.dtype, tensor.device), []).append(tensor)
    for group in groups.values():
        flat = torch.cat([tensor.flatten() for tensor in group])
        distributed.all_reduce(flat)
        flat /= process_count()
        for tensor, part in zip(group, flat.split([tensor.numel() for tensor in group]), strict=True):
            tensor.copy_(part.view_as(tensor))


def copy_from_first(tensors: Iterable[Tensor]) -> None:
    """Replace tensors by those of the first process."""
    if process_count() > 1:
        for tensor in tensors:
            distributed.broadcast(tensor.detach(), 0)


def disconnect() -> None:
    """End the connection of this process with the others, when all have done their work."""
    if process_count() > 1:
        distributed.destroy_process_group()


class _Gathered(torch.autograd.Function):
    """The gradient of a process's part is the sum of what all processes ask for."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        values = values.contiguous()
        parts = [torch.empty_like(values) for _ in range(process_count())]
        distributed.all_gather(parts, values)
        return torch.cat(parts)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return own_part(total(gradients[0].contiguous()))
