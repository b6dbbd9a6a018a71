"""Training on labelled patches alone."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from dlunet.methods.base import Batch, SegmentationLoss


class Supervised:
    """One network, labelled patches."""

    num_networks = 1
    needs_unlabelled = False

    def uses_unlabelled(self, epoch: int) -> bool:
        """Never."""
        return False

    def losses(
        self,
        networks: Sequence[nn.Module],
        batch: Batch,
        loss: SegmentationLoss,
        epoch: int,
        generator: torch.Generator | None = None,
    ) -> list[dict[str, Tensor]]:
        """The loss on the labelled patch."""
        (network,) = networks
        return [{"labelled_a": loss(network(batch["image"]), batch["label"])}]
