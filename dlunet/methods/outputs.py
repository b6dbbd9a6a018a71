"""Converts network outputs to probabilities, entropy and pseudo-labels."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from dlunet.losses import at_least_float32, largest_class

#: The outputs of a network for several batches: each the finest logits, or one tensor per decoder level.
Outputs = list[Tensor] | list[list[Tensor]]


def in_one_pass(network: nn.Module, *patches: Tensor) -> Outputs:
    """The outputs of a network for several batches of patches, computed in one pass: as if called for each batch."""
    outputs = network(torch.cat(patches))
    sizes = [len(batch) for batch in patches]
    if isinstance(outputs, Tensor):
        return list(outputs.split(sizes))
    return [list(levels) for levels in zip(*(level.split(sizes) for level in outputs), strict=True)]


def probabilities(outputs: Tensor | Sequence[Tensor]) -> Tensor:
    """Softmax of the finest logits, (B, C, z, y, x); the network may return one level per decoder stage."""
    return at_least_float32(outputs if isinstance(outputs, Tensor) else outputs[0]).softmax(1)


def entropy(p: Tensor) -> Tensor:
    """−Σ p·log p over the classes of probabilities (B, C, z, y, x); the gradient is finite where p is 0."""
    return -torch.xlogy(p, p.clamp_min(torch.finfo(p.dtype).tiny)).sum(1)


def pseudo_labels(outputs: Tensor | Sequence[Tensor]) -> Tensor:
    """The most probable class (B, z, y, x) of the finest logits."""
    return largest_class(outputs if isinstance(outputs, Tensor) else outputs[0])
