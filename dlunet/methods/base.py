"""What a training method is: networks, a batch and a loss in, named losses out. It knows no Lightning."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol, TypedDict

import torch
from torch import Tensor, nn

#: ``(outputs of a network, target or targets a level) → scalar``
SegmentationLoss = Callable[[Tensor | Sequence[Tensor], Tensor | Sequence[Tensor]], Tensor]


class Batch(TypedDict, total=False):
    """One step's patches, (B, 1, z, y, x); sample k of the two unlabelled batches comes from different cases."""

    image: Tensor
    label: Tensor
    unlabelled_i: Tensor
    unlabelled_j: Tensor


class Method(Protocol):
    """A way to train. The first network is the one that predicts."""

    #: How many networks of the same kind are trained together.
    num_networks: int

    #: Whether any epoch uses unlabelled patches, so that a run must have unlabelled cases.
    needs_unlabelled: bool

    def uses_unlabelled(self, epoch: int) -> bool:
        """Whether an epoch's batches must hold unlabelled patches."""
        ...

    def losses(
        self,
        networks: Sequence[nn.Module],
        batch: Batch,
        loss: SegmentationLoss,
        epoch: int,
        generator: torch.Generator | None = None,
    ) -> list[dict[str, Tensor]]:
        """For each network the weighted terms of its loss by name; their sum is what it minimises.

        A network's terms depend on its own parameters alone.
        """
        ...
