"""The common arguments of all losses, and the sums and means that they share.

Each loss compares logits (B, C, z, y, x) with integer targets (B, z, y, x) and returns a scalar. Each also accepts
class weights, (C,): a mean over classes multiplies the value of each class by its weight, a mean over voxels weights
each voxel by its true class. Each further accepts non-negative voxel weights, (B, z, y, x), and an ignored label, whose
voxels get weight 0. Sums over voxels are weighted; a mean over voxels is Σ w·loss / Σ w, and 0 if all weights are 0.

On a CPU, compiled code sums over the voxels where it can, see :mod:`dlunet.losses.compiled`; a loss is then a formula
of these sums. Elsewhere a loss is computed by PyTorch, operation by operation.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from dlunet.losses.compiled import ClassSums, Terms, class_sums

EPSILON = 1e-5


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
        target, weight = without_ignored(target, weight, ignore)
        return self.compare(logits, target, weight, class_weight)

    def compare(self, logits: Tensor, target: Tensor, weight: Tensor | None, class_weight: Tensor | None) -> Tensor:
        """The loss of a target without ignored voxels; logits in half precision have been converted to float32."""
        raise NotImplementedError

    def from_sums(self, sums: ClassSums, class_weight: Tensor | None) -> Tensor:
        """The loss from the sums of its :attr:`terms`."""
        raise NotImplementedError


def without_ignored(target: Tensor, weight: Tensor | None, ignore: int | None) -> tuple[Tensor, Tensor | None]:
    """Targets and weights with ignored voxels set to background of weight 0."""
    if ignore is None:
        return target, weight
    ignored = target == ignore
    kept = torch.ones_like(target, dtype=torch.float32) if weight is None else weight
    return target.masked_fill(ignored, 0), kept.masked_fill(ignored, 0)


def by_true_class(target: Tensor, weight: Tensor | None, class_weight: Tensor | None) -> Tensor | None:
    """The voxel weights, each times the weight of its true class."""
    if class_weight is None:
        return weight
    of_voxels = class_weight[target.long()]
    return of_voxels if weight is None else weight * of_voxels


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


def weighted(values: Tensor, weight: Tensor | None) -> Tensor:
    """Values (B, C, z, y, x) times the weights of their voxels."""
    return values if weight is None else values * weight[:, None]


def mean_of_voxels(values: Tensor, weight: Tensor | None) -> Tensor:
    """The mean of values (B, C, z, y, x) over classes and their weighted mean over voxels."""
    if weight is None:
        return values.mean()
    return weighted(values, weight).sum() / (weight.sum() * values.shape[1]).clamp_min(EPSILON)


def probabilities_and_one_hot(logits: Tensor, target: Tensor, include_background: bool) -> tuple[Tensor, Tensor]:
    """Softmax and one-hot target, (B, C, z, y, x)."""
    check_same_size(logits, target)
    p = torch.softmax(logits, dim=1)
    y = torch.zeros_like(p).scatter_(1, target.long()[:, None], 1)
    return (p, y) if include_background else (p[:, 1:], y[:, 1:])


def check_same_size(logits: Tensor, target: Tensor) -> None:
    """Check the target's size: scatter and gather silently accept a target smaller than the logits."""
    if target.shape != (expected := logits.shape[:1] + logits.shape[2:]):
        raise ValueError(f"target is {tuple(target.shape)}, expected {tuple(expected)} as the logits")


def summed_axes(p: Tensor, batch_dice: bool) -> list[int]:
    """The axes over which Dice sums."""
    spatial = list(range(2, p.ndim))
    return [0, *spatial] if batch_dice else spatial


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
