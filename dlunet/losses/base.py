"""The common arguments of all losses, and the sums and means that they share.

Each loss compares logits (B, C, z, y, x) with integer targets (B, z, y, x) and returns a scalar. Each also accepts
class weights, (C,): a mean over classes multiplies the value of each class by its weight, a mean over voxels weights
each voxel by its true class. Each further accepts non-negative voxel weights, (B, z, y, x), and an ignored label, whose
voxels get weight 0. Sums over voxels are weighted; a mean over voxels is Σ w·loss / Σ w, and 0 if all weights are 0.

On a CPU, compiled code sums over the voxels where it can, see :mod:`dlunet.losses.compiled`; elsewhere PyTorch does,
operation by operation. The batch is that of all processes of a distributed training (:mod:`dlunet.distributed`).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from dlunet.distributed import gathered, process_count
from dlunet.losses import compiled
from dlunet.losses.sums import ClassSums, Terms, sums_by_torch

EPSILON = 1e-5


class VoxelLoss(nn.Module):
    """Base class with the common arguments of all losses of this package."""

    def forward(
        self,
        logits: Tensor,
        target: Tensor,
        weight: Tensor | None = None,
        ignore: int | None = None,
        class_weight: Tensor | None = None,
    ) -> Tensor:
        """The loss, a scalar.

        Args:
            logits: (B, C, z, y, x).
            target: Labels (B, z, y, x).
            weight: Voxel weights, shaped like ``target``.
            ignore: A label whose voxels are ignored.
            class_weight: Class weights, (C,).

        Raises:
            ValueError: The shapes do not match.
        """
        if weight is not None and weight.shape != target.shape:
            raise ValueError(f"weight is {tuple(weight.shape)}, expected {tuple(target.shape)} as the target")
        return self.compare(at_least_float32(logits), target, weight, ignore, class_weight)

    def compare(
        self, logits: Tensor, target: Tensor, weight: Tensor | None, ignore: int | None, class_weight: Tensor | None
    ) -> Tensor:
        """The loss, of logits that are not in half precision."""
        raise NotImplementedError


class LossOfSums(VoxelLoss):
    """A loss that is a formula of sums over voxels."""

    @property
    def terms(self) -> Terms:
        """What is summed."""
        raise NotImplementedError

    def from_sums(self, sums: ClassSums, class_weight: Tensor | None) -> Tensor:
        """The loss from the sums of its :attr:`terms`."""
        raise NotImplementedError

    def compare(
        self, logits: Tensor, target: Tensor, weight: Tensor | None, ignore: int | None, class_weight: Tensor | None
    ) -> Tensor:
        """The formula of the sums of all processes."""
        sums = compiled.class_sums(logits, target, weight, ignore, self.terms)
        if sums is None:
            sums = sums_by_torch(logits, *without_ignored(target, weight, ignore), self.terms)
        if process_count() > 1:
            sums = ClassSums(*gathered(torch.stack(sums, 1)).unbind(1))
        return self.from_sums(sums, class_weight).to(logits.dtype)


def without_ignored(target: Tensor, weight: Tensor | None, ignore: int | None) -> tuple[Tensor, Tensor | None]:
    """Targets and weights with ignored voxels set to background of weight 0."""
    if ignore is None:
        return target, weight
    ignored = target == ignore
    kept = torch.ones_like(target, dtype=torch.float32) if weight is None else weight
    return target.masked_fill(ignored, 0), kept.masked_fill(ignored, 0)


def mean_over_classes(values: Tensor, class_weight: Tensor | None) -> Tensor:
    """The class-weighted mean of values (…, C), or (…, C − 1) without background."""
    return values.mean() if class_weight is None else (values * class_weight[-values.shape[-1] :]).mean()


def missed_dice(overlap: Tensor, size: Tensor, class_weight: Tensor | None) -> Tensor:
    """1 − Dice from sums (C − 1,), averaged over classes."""
    dice = (2 * overlap + EPSILON) / (size + EPSILON)
    return 1 - dice.mean() if class_weight is None else mean_over_classes(1 - dice, class_weight)


def mean_over_voxels(sums: ClassSums, class_weight: Tensor | None) -> Tensor:
    """The weighted mean over voxels of the missed term, each voxel weighted by its true class."""
    missed, truth = sums.missed.sum(0), sums.truth.sum(0)
    if class_weight is not None:
        missed, truth = missed * class_weight, truth * class_weight
    return missed.sum() / truth.sum().clamp_min(EPSILON)


def at_least_float32(logits: Tensor) -> Tensor:
    """Logits converted to float32 if in half precision, which cannot be summed over a patch."""
    return logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits


class LossSum(nn.Module):
    """The sum of several losses.

    Args:
        losses: The losses, by any names.
    """

    def __init__(self, **losses: nn.Module) -> None:
        super().__init__()
        self.losses = nn.ModuleDict(losses)

    def forward(self, logits: Tensor, target: Tensor, *further: Any, **named: Any) -> Tensor:
        """The sum; arguments as for :class:`VoxelLoss`."""
        values = [loss(logits, target, *further, **named) for loss in self.losses.values()]
        return sum(values[1:], start=values[0])
