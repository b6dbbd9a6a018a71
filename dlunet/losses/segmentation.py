"""The losses of the paper, noise-robust Dice and Taylor cross entropy, and nnU-Net's.

Shapes and arguments are those of :class:`dlunet.losses.base.VoxelLoss`.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from torch import Tensor

from dlunet.losses.base import EPSILON, LossOfSums, mean_over_classes, mean_over_voxels, missed_dice
from dlunet.losses.sums import ClassSums, Terms


class NoiseRobustDiceLoss(LossOfSums):
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
    def terms(self) -> Terms:
        """Those of the ratio."""
        return Terms("difference", self.denominator, gamma=self.gamma)

    def from_sums(self, sums: ClassSums, class_weight: Tensor | None) -> Tensor:
        """The mean over classes of the noise-robust ratio."""
        first = 0 if self.include_background else 1
        difference, size = sums.overlap[:, first:], (sums.size + sums.truth)[:, first:]
        if self.batch_dice:
            difference, size = difference.sum(0), size.sum(0)
        return mean_over_classes(difference / (size + EPSILON), class_weight)


class TaylorCrossEntropyLoss(LossOfSums):
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

    def from_sums(self, sums: ClassSums, class_weight: Tensor | None) -> Tensor:
        """The mean over voxels (and, as published, classes)."""
        mean = mean_over_voxels(sums, class_weight)
        return mean if self.variant == "paper" else mean / (2 * sums.missed.shape[1])


class RobustSegmentationLoss(LossOfSums):
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
    def terms(self) -> Terms:
        """Those of both, in one pass."""
        return replace(self.nrd.terms, missed=self.tce.terms.missed)

    def from_sums(self, sums: ClassSums, class_weight: Tensor | None) -> Tensor:
        """The sum of both."""
        return self.nrd.from_sums(sums, class_weight) + self.tce.from_sums(sums, class_weight)


class DiceCrossEntropyLoss(LossOfSums):
    """nnU-Net's loss: soft Dice over the foreground, summed over batch and voxels, plus cross entropy.

    The Dice term is 1 − Dice, so that a perfect prediction gives 0; nnU-Net omits the 1.
    """

    @property
    def terms(self) -> Terms:
        """Those of both, in one pass."""
        return Terms("product", "linear", "cross entropy")

    def from_sums(self, sums: ClassSums, class_weight: Tensor | None) -> Tensor:
        """The sum of both."""
        overlap, size = sums.overlap[:, 1:].sum(0), (sums.size + sums.truth)[:, 1:].sum(0)
        return missed_dice(overlap, size, class_weight) + mean_over_voxels(sums, class_weight)
