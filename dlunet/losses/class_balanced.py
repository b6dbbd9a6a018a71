"""Losses that do not starve classes of a few voxels.

Shapes and arguments are those of :class:`VoxelLoss`. Use them for true labels: they believe every false voxel of a
rare class in a pseudo-label.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from dlunet.distributed import gathered
from dlunet.losses.base import EPSILON, LossOfSums, LossSum, VoxelLoss, mean_over_classes, without_ignored
from dlunet.losses.compiled import cross_entropies
from dlunet.losses.sums import ClassSums, Terms, check_same_size


class _OverlapLoss(LossOfSums):
    """A formula of Σp·y, Σp^n and Σy of each class, over batch and voxels.

    Attributes:
        exponent: n, 1 or 2.
    """

    exponent = 1

    @property
    def terms(self) -> Terms:
        """Those sums."""
        return Terms("product", "linear" if self.exponent == 1 else "squared")

    def from_sums(self, sums: ClassSums, class_weight: Tensor | None) -> Tensor:
        """The formula."""
        return self.of(sums.overlap.sum(0), sums.size.sum(0), sums.truth.sum(0), class_weight)

    def of(self, overlap: Tensor, size: Tensor, truth: Tensor, class_weight: Tensor | None) -> Tensor:
        """The loss from the sums, (C,) each, background included."""
        raise NotImplementedError


class TverskyLoss(_OverlapLoss):
    """1 − TP / (TP + α·FP + β·FN) for each foreground class, then the mean (Salehi et al. 2017, arXiv 1706.05721).

    TP = Σp·y, FP = Σp·(1 − y), FN = Σ(1 − p)·y, over batch and voxels. Equal weights of ½ give the soft Dice loss; a
    larger β finds more of a small organ.

    Args:
        false_positives: α.
        false_negatives: β.

    Raises:
        ValueError: A weight is negative.
    """

    def __init__(self, false_positives: float = 0.3, false_negatives: float = 0.7) -> None:
        super().__init__()
        for name, value in (("false_positives", false_positives), ("false_negatives", false_negatives)):
            if not value >= 0:
                raise ValueError(f"{name} must be 0 or more, not {value}")
        self.false_positives = false_positives
        self.false_negatives = false_negatives

    def of(self, overlap: Tensor, size: Tensor, truth: Tensor, class_weight: Tensor | None) -> Tensor:
        """The mean over classes."""
        both = self.false_positives * (size - overlap) + self.false_negatives * (truth - overlap)
        index = (overlap + EPSILON) / (overlap + both + EPSILON)
        return mean_over_classes(1 - index[1:], class_weight)


class GeneralisedDiceLoss(_OverlapLoss):
    """1 − 2·Σ w·TP / Σ w·(Σp + Σy) with w = 1/(Σy)² for each class (Sudre et al. 2017, arXiv 1707.03237).

    The sums run over batch and voxels, all classes included; a class that is absent has the largest weight of those
    present.
    """

    def of(self, overlap: Tensor, size: Tensor, truth: Tensor, class_weight: Tensor | None) -> Tensor:
        """The ratio of the weighted sums over classes."""
        factor = truth.clamp_min(EPSILON) ** -2
        factor = factor.where(truth > 0, factor.where(truth > 0, 0).max())
        if class_weight is not None:
            factor = factor * class_weight
        # Scaled by the largest weight, so that ε is small beside both sums.
        factor = factor / factor.max().clamp_min(EPSILON**2)
        return 1 - (2 * (factor * overlap).sum() + EPSILON) / ((factor * (size + truth)).sum() + EPSILON)


class _LossOfVoxels(VoxelLoss):
    """A loss that is a formula of the cross entropies of the batch's voxels."""

    def compare(
        self, logits: Tensor, target: Tensor, weight: Tensor | None, ignore: int | None, class_weight: Tensor | None
    ) -> Tensor:
        """The formula of the voxels of all processes."""
        target, weight = without_ignored(target, weight, ignore)
        counts = None if weight is None else gathered(weight)
        lost = gathered(_cross_entropies(logits, target))
        return self.of_voxels(lost, gathered(target).long(), counts, class_weight, logits.shape[1])

    def of_voxels(
        self, lost: Tensor, target: Tensor, weight: Tensor | None, class_weight: Tensor | None, num_classes: int
    ) -> Tensor:
        """The loss of the voxels' cross entropies, labels and weights, (B, z, y, x) each."""
        raise NotImplementedError


class FocalLoss(_LossOfVoxels):
    """The mean over voxels of (1 − q)^γ·(−log q), with q the probability of the true class (Lin et al. 2017, eq. 4).

    Args:
        gamma: γ; 0 is cross entropy.

    Raises:
        ValueError: γ is negative, or between 0 and 1: its gradient is infinite where q is 1.
    """

    def __init__(self, gamma: float = 2.0) -> None:
        super().__init__()
        if gamma != 0 and not gamma >= 1:
            raise ValueError(f"gamma must be 0, or 1 or more, not {gamma}")
        self.gamma = gamma

    def of_voxels(
        self, lost: Tensor, target: Tensor, weight: Tensor | None, class_weight: Tensor | None, num_classes: int
    ) -> Tensor:
        """The weighted mean."""
        # 1 − q from log q: its gradient is finite where q is 1.
        values = (-torch.expm1(-lost)).clamp_min(0) ** self.gamma * lost
        return _mean(values, target, weight, class_weight)


class TopKCrossEntropyLoss(_LossOfVoxels):
    """The mean cross entropy of the hardest voxels of the batch, as nnU-Net's top-k loss.

    Args:
        top: Their share of all voxels.
    """

    def __init__(self, top: float = 0.1) -> None:
        super().__init__()
        self.top = _checked_share(top)

    def of_voxels(
        self, lost: Tensor, target: Tensor, weight: Tensor | None, class_weight: Tensor | None, num_classes: int
    ) -> Tensor:
        """The weighted mean of the hardest voxels."""
        return _mean(*_hardest(lost, target, weight, self.top), class_weight)


class BalancedCrossEntropyLoss(LossOfSums):
    """Cross entropy, averaged over the voxels of each class and then over classes by n^(1 − β), n the class's voxels.

    Args:
        balance: β; 1: classes count alike; 0: voxels do, as in plain cross entropy.
    """

    def __init__(self, balance: float = 0.5) -> None:
        super().__init__()
        self.balance = balance

    @property
    def terms(self) -> Terms:
        """That of the mean over voxels."""
        return Terms(missed="cross entropy")

    def from_sums(self, sums: ClassSums, class_weight: Tensor | None) -> Tensor:
        """The mean over classes."""
        lost, truth = sums.missed.sum(0), sums.truth.sum(0)
        factor = truth.clamp_min(EPSILON) ** -self.balance
        factor = factor.where(truth > 0, 0)
        if class_weight is not None:
            factor = factor * class_weight
        return (factor * lost).sum() / (factor * truth).sum().clamp_min(EPSILON)


class GradientAwareDiceLoss(_OverlapLoss):
    """GADice: 1 − 2Σp·y / (Σp² + Σy²) for each class, then the mean over all classes (Qi et al., ECCV 2024).

    A class that is absent from the batch costs Σ sg(p)·p / N instead, with sg the stopped gradient and N the number of
    voxels: the less it is predicted, the less it is pushed down.
    """

    exponent = 2

    def of(self, overlap: Tensor, size: Tensor, truth: Tensor, class_weight: Tensor | None) -> Tensor:
        """The mean over classes."""
        is_present = truth > 0
        present = 1 - 2 * overlap / (size + truth).where(is_present, 1)
        # The value of Σ sg(p)·p is Σp², its gradient half of that.
        absent = (size + size.detach()) / (2 * truth.sum().clamp_min(EPSILON))
        return mean_over_classes(present.where(is_present, absent), class_weight)


class GradientAwareCrossEntropyLoss(_LossOfVoxels):
    """GACE: the cross entropies of the hardest voxels, balanced between their classes (Qi et al., ECCV 2024).

    Of the N voxels of the batch, the K = top·N with the largest cross entropy count. Their sum over the voxels of a
    class is divided by n^(1 − γ)·K^γ, with n the number of voxels of the class among the K, and summed over classes.

    Args:
        top: The share of voxels that count.
        gamma: γ; 0: each class contributes its mean; 1: all voxels count alike.
    """

    def __init__(self, top: float = 0.1, gamma: float = 0.5) -> None:
        super().__init__()
        self.top = _checked_share(top)
        self.gamma = gamma

    def of_voxels(
        self, lost: Tensor, target: Tensor, weight: Tensor | None, class_weight: Tensor | None, num_classes: int
    ) -> Tensor:
        """The balanced sum over classes."""
        lost, classes, counts = _hardest(lost, target, weight, self.top)
        sums, sizes = _by_class(counts * lost, counts, classes, num_classes)
        total = sizes.sum().clamp_min(EPSILON)
        by_class = sums / (sizes.clamp_min(EPSILON) ** (1 - self.gamma) * total**self.gamma)
        return by_class.sum() if class_weight is None else (by_class * class_weight).sum()


class GradientAwareLoss(LossSum):
    """GA: GADice + GACE, which finds organs of a few voxels (Qi et al., ECCV 2024).

    Args:
        top: See :class:`GradientAwareCrossEntropyLoss`.
        gamma: See :class:`GradientAwareCrossEntropyLoss`.
    """

    def __init__(self, top: float = 0.1, gamma: float = 0.5) -> None:
        super().__init__(dice=GradientAwareDiceLoss(), cross_entropy=GradientAwareCrossEntropyLoss(top, gamma))


def _cross_entropies(logits: Tensor, target: Tensor) -> Tensor:
    """The cross entropy of each voxel, (B, z, y, x)."""
    check_same_size(logits, target)
    found = cross_entropies(logits, target)
    return F.cross_entropy(logits, target.long(), reduction="none") if found is None else found


def _mean(lost: Tensor, target: Tensor, weight: Tensor | None, class_weight: Tensor | None) -> Tensor:
    """The mean over voxels, each with its weight times that of its true class."""
    if class_weight is not None:
        of_voxels = class_weight[target]
        weight = of_voxels if weight is None else weight * of_voxels
    return lost.mean() if weight is None else (weight * lost).sum() / weight.sum().clamp_min(EPSILON)


def _hardest(lost: Tensor, target: Tensor, weight: Tensor | None, top: float) -> tuple[Tensor, Tensor, Tensor]:
    """The voxels with the largest losses: their losses, classes and how often each counts (its weight), (K,) each."""
    lost, target = lost.flatten(), target.flatten()
    if weight is None:
        lost, where = lost.topk(max(1, round(top * len(lost))), sorted=False)
        return lost, target[where], torch.ones_like(lost)
    # A voxel of weight n counts as n voxels, of which only some may be among the hardest.
    lost, where = lost.sort(descending=True)
    counts = weight.flatten()[where].to(lost)
    rest = (top * counts.sum()).round().clamp_min(1) - (counts.cumsum(0) - counts)
    return lost, target[where], counts.minimum(rest.clamp_min(0))


def _by_class(lost: Tensor, counts: Tensor, classes: Tensor, num_classes: int) -> tuple[Tensor, Tensor]:
    """The sums of losses and of counts over the voxels of each class, (C,) each."""
    zeros = lost.new_zeros(num_classes)
    return zeros.index_add(0, classes, lost), zeros.index_add(0, classes, counts)


def _checked_share(top: float) -> float:
    if not 0 < top <= 1:
        raise ValueError(f"top must be greater than 0 and at most 1, not {top}")
    return top
