"""Deep supervision, and loss schedules over a training run."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn


class DeepSupervisionLoss(nn.Module):
    """A loss at every decoder level: weights 1, 1/2, 1/4, …, 0 for the coarsest, normalised to sum to 1.

    Args:
        loss: The loss of one level, ``(logits, target) → scalar``; it must also accept weights and an ignored label if
            these are used.
    """

    def __init__(self, loss: nn.Module) -> None:
        super().__init__()
        self.loss = loss

    def forward(
        self,
        logits: Tensor | Sequence[Tensor],
        target: Tensor | Sequence[Tensor],
        weight: Tensor | Sequence[Tensor] | None = None,
        ignore: int | None = None,
        class_weight: Tensor | None = None,
    ) -> Tensor:
        """The weighted sum of the losses of all levels.

        Args:
            logits: The logits (B, C, …) of each level, finest first, or the finest alone.
            target: One target (B, z, y, x), downsampled here by nearest neighbour, or one per level.
            weight: Voxel weights, as ``target``; None: all equal.
            ignore: A label whose voxels are ignored.
            class_weight: Class weights (C,), used at every level.
        """
        levels = [logits] if isinstance(logits, Tensor) else list(logits)
        factors = level_weights(len(levels))
        targets = _by_level(target, levels, factors)
        weights = [None] * len(levels) if weight is None else _by_level(weight, levels, factors)
        terms = []
        for factor, scores, labels, of_voxels in zip(factors, levels, targets, weights, strict=True):
            if factor > 0:
                asked = {"weight": of_voxels, "ignore": ignore, "class_weight": class_weight}
                given = {name: value for name, value in asked.items() if value is not None}
                terms.append(factor * self.loss(scores, labels, **given))
        return sum(terms[1:], start=terms[0])


def _by_level(
    volumes: Tensor | Sequence[Tensor], levels: Sequence[Tensor], factors: Sequence[float]
) -> Sequence[Tensor | None]:
    """One volume (B, z, y, x) for each level of logits; a single one is not downsampled to levels that do not count."""
    if not isinstance(volumes, Tensor):
        return volumes
    return [
        downsample(volumes, level.shape[2:]) if factor > 0 else None
        for level, factor in zip(levels, factors, strict=True)
    ]


class LossSchedule(nn.Module):
    """Two consecutive losses, as in the published code, which starts with Dice + CE.

    Args:
        first: The loss of the first epochs.
        then: The loss after them.
        epoch: The first epoch of ``then``, counted from 0.
    """

    def __init__(self, first: nn.Module, then: nn.Module, epoch: int) -> None:
        super().__init__()
        self.first = first
        self.then = then
        self.epoch = epoch

    def at(self, epoch: int) -> nn.Module:
        """The loss of an epoch."""
        return self.first if epoch < self.epoch else self.then


def loss_at(loss: nn.Module, epoch: int) -> nn.Module:
    """The loss of an epoch, whether or not there is a schedule."""
    return loss.at(epoch) if isinstance(loss, LossSchedule) else loss


def level_weights(levels: int) -> list[float]:
    """The weight of each level, finest first."""
    if levels == 1:
        return [1.0]
    raw = [0.5**level for level in range(levels - 1)] + [0.0]
    return [weight / sum(raw) for weight in raw]


def downsample(target: Tensor, size: Sequence[int]) -> Tensor:
    """Downsample labels or a mask (B, z, y, x) to a coarser size by nearest neighbour; a view if the size divides."""
    old = target.shape[1:]
    if all(n % m == 0 for n, m in zip(old, size, strict=True)):
        z, y, x = (n // m for n, m in zip(old, size, strict=True))
        return target[:, ::z, ::y, ::x]
    return F.interpolate(target[:, None].float(), tuple(size), mode="nearest")[:, 0].to(target.dtype)
