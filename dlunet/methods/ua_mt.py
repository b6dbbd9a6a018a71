"""Uncertainty-aware Mean Teacher (Yu et al. 2019, arXiv 1907.07034)."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from dlunet.distributed import gathered
from dlunet.methods.base import Step
from dlunet.methods.mean_teacher import MeanTeacher
from dlunet.methods.outputs import entropy, probabilities
from dlunet.methods.ramps import sigmoid_ramp


class UncertaintyAwareMeanTeacher(MeanTeacher):
    """A Mean Teacher with the consistency restricted to voxels where the teacher is certain.

    The teacher predicts the weak view ``passes`` times with noise (and dropout, if the network has any). Its
    uncertainty is the entropy of the mean prediction, u = −Σ μ·log μ (eq. 2). The consistency is the squared difference
    summed over the voxels with u < H, divided by their number (eq. 3). H rises from 3/4 of the maximum entropy to the
    maximum, over the same ramp as the weight.

    Args:
        passes: T, the number of forward passes of the teacher.
        noise: Standard deviation of the noise on the prepared intensities, clipped at two standard deviations.
        settings: See :class:`MeanTeacher`.
    """

    def __init__(self, passes: int = 8, noise: float = 0.1, **settings: Any) -> None:
        super().__init__(**settings)
        self.passes = passes
        self.noise = noise

    def consistency(self, step: Step, student: Tensor, teacher: Tensor) -> Tensor:
        """Equation 3: the mean squared difference over the voxels where the teacher is certain."""
        weak = step.batch["unlabelled"]["weak"]
        mean = self._mean_prediction(step, weak)
        uncertainty = entropy(mean)
        threshold = (0.75 + 0.25 * sigmoid_ramp(step.progress.fraction, self.ramp)) * math.log(mean.shape[1])
        certain = (uncertainty < threshold).to(student.dtype)
        by_voxel = (student - teacher).square().mean(1)
        # Of all processes, like the means of the losses.
        return gathered((by_voxel * certain).sum()[None]).sum() / gathered(certain.sum()[None]).sum().clamp_min(1)

    @torch.no_grad()
    def _mean_prediction(self, step: Step, weak: Tensor) -> Tensor:
        def draw(batch: int) -> Tensor:
            return torch.randn((batch, *weak.shape[1:]), generator=step.generator)

        total = torch.zeros(())
        for _ in range(self.passes):
            noise = step.draw(draw, len(weak)).to(weak) * self.noise
            seen = weak + noise.clamp(-2 * self.noise, 2 * self.noise)
            total = total.to(weak.device) + probabilities(step.networks["teacher"](seen))
        return total / self.passes
