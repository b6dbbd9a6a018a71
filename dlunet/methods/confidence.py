"""Pseudo-labels restricted to voxels where the network is confident."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dlunet.distributed import mean
from dlunet.losses import DeepSupervisionLoss
from dlunet.methods.cutmix import cut_mix
from dlunet.methods.outputs import probabilities


@dataclass(frozen=True)
class SurePseudoLabels:
    """The most probable class of each voxel, and whether its probability reaches a threshold τ.

    Attributes:
        labels: (B, z, y, x).
        sure: 1 or 0, same shape.
    """

    labels: Tensor
    sure: Tensor

    @classmethod
    @torch.no_grad()
    def of(cls, outputs: Tensor | Sequence[Tensor], threshold: float) -> SurePseudoLabels:
        """The pseudo-labels of a network's outputs."""
        confidence, labels = probabilities(outputs).max(1)
        return cls(labels, (confidence >= threshold).to(confidence.dtype))

    def mixed(self, inside: SurePseudoLabels, masks: Tensor) -> SurePseudoLabels:
        """Those of patches that were mixed with others by :func:`cut_mix`; ``inside`` are those of the others."""
        return SurePseudoLabels(cut_mix(self.labels, inside.labels, masks), cut_mix(self.sure, inside.sure, masks))

    def teach(self, outputs: Tensor | Sequence[Tensor], loss: DeepSupervisionLoss) -> Tensor:
        """The mean of 1(sure)·loss over all voxels: the loss, a mean over the sure voxels, times their fraction."""
        return mean(self.sure.mean()) * loss(outputs, self.labels, weight=self.sure)
