"""The losses of the paper, noise-robust Dice and Taylor cross entropy, and nnU-Net's.

Shapes and arguments are those of :class:`VoxelLoss`.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import torch.nn.functional as F
from torch import Tensor

from dlunet.losses.base import (
    EPSILON,
    VoxelLoss,
    by_true_class,
    check_same_size,
    mean_of_voxels,
    mean_over_classes,
    mean_over_voxels,
    missed_dice,
    probabilities_and_one_hot,
    summed_axes,
    weighted,
)
from dlunet.losses.compiled import ClassSums, Terms


class NoiseRobustDiceLoss(VoxelLoss):
    """NRD: Σ|p − y|^γ / (Σp² + Σy² + ε) for each class, then the mean over classes (DLUNet, eq. 7).

    With the printed denominator, a class that is absent from the patch costs more the less of it is predicted. The
    published results were obtained with Σp + Σy + ε, which does not have this property; it is the default.

    Args:
        gamma: The exponent γ, between 1 (mean absolute error) and 2 (Dice).
        denominator: ``"linear"`` for Σp + Σy + ε, ``"squared"`` for the printed Σp² + Σy² + ε.
        batch_dice: Whether the sums run over the batch in addition to the voxels.
        include_background: Whether class 0 is included.
    """

    def __init__(
        self,
        gamma: float = 1.5,
        denominator: Literal["linear", "squared"] = "linear",
        batch_dice: bool = True,
        include_background: bool = False,
    ) -> None:
        super().__init__()
        if denominator not in ("linear", "squared"):
            raise ValueError(f"denominator must be 'linear' or 'squared', not {denominator!r}")
        self.gamma = gamma
        self.denominator = denominator
        self.batch_dice = batch_dice
        self.include_background = include_background

    @property
    def terms(self) -> Terms | None:
        """Those of the ratio; compiled code has the default exponent only."""
        return Terms("difference", self.denominator) if self.gamma == 1.5 else None

    def compare(self, logits: Tensor, target: Tensor, weight: Tensor | None, class_weight: Tensor | None) -> Tensor:
        """The mean over classes of the noise-robust ratio."""
        p, y = probabilities_and_one_hot(logits, target, self.include_background)
        axes = summed_axes(p, self.batch_dice)

        def total(values: Tensor) -> Tensor:
            return weighted(values, weight).sum(axes)

        difference = total((p - y).abs().pow(self.gamma))
        size = total(p.square()) + total(y.square()) if self.denominator == "squared" else total(p + y)
        return mean_over_classes(difference / (size + EPSILON), class_weight)

    def from_sums(self, sums: ClassSums, class_weight: Tensor | None) -> Tensor:
        """The mean over classes of the noise-robust ratio."""
        first = 0 if self.include_background else 1
        difference, size = sums.overlap[:, first:], (sums.size + sums.truth)[:, first:]
        if self.batch_dice:
            difference, size = difference.sum(0), size.sum(0)
        return mean_over_classes(difference / (size + EPSILON), class_weight)


class TaylorCrossEntropyLoss(VoxelLoss):
    """TCE: the first two terms of the Taylor series of cross entropy (DLUNet, eq. 8), averaged over voxels.

    Args:
        variant: ``"paper"`` for (1 − q) + (1 − q)²/2 with q the probability of the true class; ``"published"`` for the
            published code's mean of |p − y|/2 + (p − y)²/2 over classes and voxels.
    """

    def __init__(self, variant: Literal["paper", "published"] = "paper") -> None:
        super().__init__()
        if variant not in ("paper", "published"):
            raise ValueError(f"variant must be 'paper' or 'published', not {variant!r}")
        self.variant = variant

    @property
    def terms(self) -> Terms:
        """That of the mean over voxels."""
        return Terms(missed="taylor" if self.variant == "paper" else "taylor over classes")

    def compare(self, logits: Tensor, target: Tensor, weight: Tensor | None, class_weight: Tensor | None) -> Tensor:
        """The mean over voxels (and, as published, classes)."""
        weight = by_true_class(target, weight, class_weight)
        if self.variant == "published":
            p, y = probabilities_and_one_hot(logits, target, include_background=True)
            difference = p - y
            return mean_of_voxels(difference.abs() + difference.square(), weight) / 2
        check_same_size(logits, target)
        # The loss needs one probability per voxel: log-softmax and gather avoid a one-hot volume.
        log_q = F.log_softmax(logits, dim=1).gather(1, target.long()[:, None])
        miss = 1 - log_q.exp()
        return mean_of_voxels(miss + miss.square() / 2, weight)

    def from_sums(self, sums: ClassSums, class_weight: Tensor | None) -> Tensor:
        """The mean over voxels (and, as published, classes)."""
        mean = mean_over_voxels(sums, class_weight)
        return mean if self.variant == "paper" else mean / (2 * sums.missed.shape[1])


class RobustSegmentationLoss(VoxelLoss):
    """NRD + TCE, the loss of DLUNet."""

    def __init__(
        self,
        denominator: Literal["linear", "squared"] = "linear",
        tce_variant: Literal["paper", "published"] = "paper",
    ) -> None:
        super().__init__()
        self.nrd = NoiseRobustDiceLoss(denominator=denominator)
        self.tce = TaylorCrossEntropyLoss(variant=tce_variant)

    @property
    def terms(self) -> Terms | None:
        """Those of both, in one pass."""
        return None if self.nrd.terms is None else replace(self.nrd.terms, missed=self.tce.terms.missed)

    def compare(self, logits: Tensor, target: Tensor, weight: Tensor | None, class_weight: Tensor | None) -> Tensor:
        """The sum of both."""
        weights = (weight, class_weight)
        return self.nrd.compare(logits, target, *weights) + self.tce.compare(logits, target, *weights)

    def from_sums(self, sums: ClassSums, class_weight: Tensor | None) -> Tensor:
        """The sum of both."""
        return self.nrd.from_sums(sums, class_weight) + self.tce.from_sums(sums, class_weight)


class DiceCrossEntropyLoss(VoxelLoss):
    """nnU-Net's loss: soft Dice over the foreground, summed over batch and voxels, plus cross entropy.

    The Dice term is 1 − Dice, so that a perfect prediction gives 0; nnU-Net omits the 1.
    """

    @property
    def terms(self) -> Terms:
        """Those of both, in one pass."""
        return Terms("product", "linear", "cross entropy")

    def compare(self, logits: Tensor, target: Tensor, weight: Tensor | None, class_weight: Tensor | None) -> Tensor:
        """The sum of both."""
        p, y = probabilities_and_one_hot(logits, target, include_background=False)
        axes = summed_axes(p, batch_dice=True)
        overlap, size = weighted(p * y, weight).sum(axes), weighted(p + y, weight).sum(axes)
        missed = missed_dice(overlap, size, class_weight)
        weight = by_true_class(target, weight, class_weight)
        if weight is None:
            return missed + F.cross_entropy(logits, target.long())
        by_voxel = F.cross_entropy(logits, target.long(), reduction="none")
        return missed + mean_of_voxels(by_voxel[:, None], weight)

    def from_sums(self, sums: ClassSums, class_weight: Tensor | None) -> Tensor:
        """The sum of both."""
        overlap, size = sums.overlap[:, 1:].sum(0), (sums.size + sums.truth)[:, 1:].sum(0)
        return missed_dice(overlap, size, class_weight) + mean_over_voxels(sums, class_weight)
