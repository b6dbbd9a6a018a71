"""Losses between logits (B, C, z, y, x) and integer targets (B, z, y, x); each returns a scalar.

Each also accepts class weights, (C,): a mean over classes multiplies the value of each class by its weight, a mean over
voxels weights each voxel by its true class. Each further accepts non-negative voxel weights, (B, z, y, x), and an
ignored label, whose voxels get weight 0. Sums over voxels are weighted; a mean over voxels is Σ w·loss / Σ w, and 0 if
all weights are 0.

NRD and TCE are DLUNet's noise-robust pair (eq. 7 and 8); Dice + cross entropy is nnU-Net's.

On a CPU, compiled code sums over the voxels where it can, see :mod:`dlunet.losses.compiled`; a loss is then a formula
of these sums. Elsewhere a loss is computed by PyTorch, operation by operation.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dlunet.losses.compiled import ClassSums, Terms, class_sums


class VoxelLoss(nn.Module):
    """Base class with the common arguments of all losses of this module.

    Subclasses implement :meth:`compare`; :attr:`terms` and :meth:`from_sums`, if also implemented, take precedence
    where compiled code runs.
    """

    @property
    def terms(self) -> Terms | None:
        """The sums over voxels that the loss is a formula of; None: only :meth:`compare` computes it."""
        return None

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
        logits = at_least_float32(logits)
        if self.terms is not None and (sums := class_sums(logits, target, weight, ignore, self.terms)) is not None:
            return self.from_sums(sums, class_weight).to(logits.dtype)
        target, weight = _without_ignored(target, weight, ignore)
        return self.compare(logits, target, weight, class_weight)

    def compare(self, logits: Tensor, target: Tensor, weight: Tensor | None, class_weight: Tensor | None) -> Tensor:
        """The loss of a target without ignored voxels; logits in half precision have been converted to float32."""
        raise NotImplementedError

    def from_sums(self, sums: ClassSums, class_weight: Tensor | None) -> Tensor:
        """The loss from the sums of its :attr:`terms`."""
        raise NotImplementedError


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
        p, y = _probabilities_and_one_hot(logits, target, self.include_background)
        axes = _summed_axes(p, self.batch_dice)

        def total(values: Tensor) -> Tensor:
            return _weighted(values, weight).sum(axes)

        difference = total((p - y).abs().pow(self.gamma))
        size = total(p.square()) + total(y.square()) if self.denominator == "squared" else total(p + y)
        return _mean_over_classes(difference / (size + _EPSILON), class_weight)

    def from_sums(self, sums: ClassSums, class_weight: Tensor | None) -> Tensor:
        """The mean over classes of the noise-robust ratio."""
        first = 0 if self.include_background else 1
        difference, size = sums.overlap[:, first:], (sums.size + sums.truth)[:, first:]
        if self.batch_dice:
            difference, size = difference.sum(0), size.sum(0)
        return _mean_over_classes(difference / (size + _EPSILON), class_weight)


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
        weight = _by_true_class(target, weight, class_weight)
        if self.variant == "published":
            p, y = _probabilities_and_one_hot(logits, target, include_background=True)
            difference = p - y
            return _mean(difference.abs() + difference.square(), weight) / 2
        _check_same_size(logits, target)
        # The loss needs one probability per voxel: log-softmax and gather avoid a one-hot volume.
        log_q = F.log_softmax(logits, dim=1).gather(1, target.long()[:, None])
        miss = 1 - log_q.exp()
        return _mean(miss + miss.square() / 2, weight)

    def from_sums(self, sums: ClassSums, class_weight: Tensor | None) -> Tensor:
        """The mean over voxels (and, as published, classes)."""
        mean = _mean_over_voxels(sums, class_weight)
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
        p, y = _probabilities_and_one_hot(logits, target, include_background=False)
        axes = _summed_axes(p, batch_dice=True)
        overlap, size = _weighted(p * y, weight).sum(axes), _weighted(p + y, weight).sum(axes)
        missed = _missed_dice(overlap, size, class_weight)
        weight = _by_true_class(target, weight, class_weight)
        if weight is None:
            return missed + F.cross_entropy(logits, target.long())
        by_voxel = F.cross_entropy(logits, target.long(), reduction="none")
        return missed + _mean(by_voxel[:, None], weight)

    def from_sums(self, sums: ClassSums, class_weight: Tensor | None) -> Tensor:
        """The sum of both."""
        overlap, size = sums.overlap[:, 1:].sum(0), (sums.size + sums.truth)[:, 1:].sum(0)
        return _missed_dice(overlap, size, class_weight) + _mean_over_voxels(sums, class_weight)


_EPSILON = 1e-5


def _without_ignored(target: Tensor, weight: Tensor | None, ignore: int | None) -> tuple[Tensor, Tensor | None]:
    """Targets and weights with ignored voxels set to background of weight 0."""
    if ignore is None:
        return target, weight
    ignored = target == ignore
    kept = torch.ones_like(target, dtype=torch.float32) if weight is None else weight
    return target.masked_fill(ignored, 0), kept.masked_fill(ignored, 0)


def _by_true_class(target: Tensor, weight: Tensor | None, class_weight: Tensor | None) -> Tensor | None:
    """The voxel weights, each times the weight of its true class."""
    if class_weight is None:
        return weight
    of_voxels = class_weight[target.long()]
    return of_voxels if weight is None else weight * of_voxels


def _mean_over_classes(values: Tensor, class_weight: Tensor | None) -> Tensor:
    """The class-weighted mean of values (…, C), or (…, C − 1) without background."""
    return values.mean() if class_weight is None else (values * class_weight[-values.shape[-1] :]).mean()


def _missed_dice(overlap: Tensor, size: Tensor, class_weight: Tensor | None) -> Tensor:
    """1 − Dice from sums (C − 1,), averaged over classes."""
    dice = (2 * overlap + _EPSILON) / (size + _EPSILON)
    return 1 - dice.mean() if class_weight is None else _mean_over_classes(1 - dice, class_weight)


def _mean_over_voxels(sums: ClassSums, class_weight: Tensor | None) -> Tensor:
    """The weighted mean over voxels of the missed term, each voxel weighted by its true class."""
    missed, truth = sums.missed.sum(0), sums.truth.sum(0)
    if class_weight is not None:
        missed, truth = missed * class_weight, truth * class_weight
    return missed.sum() / truth.sum().clamp_min(_EPSILON)


def _weighted(values: Tensor, weight: Tensor | None) -> Tensor:
    """Values (B, C, z, y, x) times the weights of their voxels."""
    return values if weight is None else values * weight[:, None]


def _mean(values: Tensor, weight: Tensor | None) -> Tensor:
    """The mean of values (B, C, z, y, x) over classes and their weighted mean over voxels."""
    if weight is None:
        return values.mean()
    return _weighted(values, weight).sum() / (weight.sum() * values.shape[1]).clamp_min(_EPSILON)


def _probabilities_and_one_hot(logits: Tensor, target: Tensor, include_background: bool) -> tuple[Tensor, Tensor]:
    """Softmax and one-hot target, (B, C, z, y, x)."""
    _check_same_size(logits, target)
    p = torch.softmax(logits, dim=1)
    y = torch.zeros_like(p).scatter_(1, target.long()[:, None], 1)
    return (p, y) if include_background else (p[:, 1:], y[:, 1:])


def _check_same_size(logits: Tensor, target: Tensor) -> None:
    """Check the target's size: scatter and gather silently accept a target smaller than the logits."""
    if target.shape != (expected := logits.shape[:1] + logits.shape[2:]):
        raise ValueError(f"target is {tuple(target.shape)}, expected {tuple(expected)} as the logits")


def _summed_axes(p: Tensor, batch_dice: bool) -> list[int]:
    spatial = list(range(2, p.ndim))
    return [0, *spatial] if batch_dice else spatial


def at_least_float32(logits: Tensor) -> Tensor:
    """Logits converted to float32 if in half precision, which cannot be summed over a patch."""
    return logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits
