"""Sums over voxels, of which most losses are formulas."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Terms:
    """What a loss sums over voxels; p: softmax, y: one-hot target, q: p of the true class, w: voxel weights.

    Attributes:
        overlap: ``"difference"`` for Σ w·|p − y|^γ, ``"product"`` for Σ w·p·y; None: not needed.
        size: ``"linear"`` for Σ w·p, ``"squared"`` for Σ w·p²; None: not needed.
        missed: The term t of Σ w·t, summed over the voxels of each true class: ``"taylor"`` for (1 − q) + (1 − q)²/2,
            ``"taylor over classes"`` for Σ |p − y| + (p − y)² over the classes, ``"cross entropy"`` for −log q; None:
            not needed.
        gamma: γ.
    """

    overlap: str | None = None
    size: str | None = None
    missed: str | None = None
    gamma: float = 1.5


class ClassSums(NamedTuple):
    """Sums over the voxels of each sample, by class: (B, C), see :class:`Terms`; ``truth`` is Σ w·y.

    Sums that are not needed are any numbers.
    """

    overlap: Tensor
    size: Tensor
    truth: Tensor
    missed: Tensor


def sums_by_torch(logits: Tensor, target: Tensor, weight: Tensor | None, terms: Terms) -> ClassSums:
    """The sums, operation by operation.

    Args:
        logits: (B, C, …).
        target: Labels (B, …).
        weight: Voxel weights (B, …).
        terms: What is summed.
    """
    y = one_hot(logits, target)

    def total(values: Tensor) -> Tensor:
        return weighted(values, weight).flatten(2).sum(2)

    def total_by_class(values: Tensor) -> Tensor:
        # A product of matrices does not write values · y, and is not for half precision.
        with torch.autocast(logits.device.type, enabled=False):
            return torch.bmm(y.flatten(2), weighted(values, weight).flatten(2).transpose(1, 2))[..., 0]

    truth = total(y)
    overlap = size = missed = torch.zeros_like(truth)
    if terms.overlap or terms.size or terms.missed == "taylor over classes":
        p = torch.softmax(logits, dim=1)
        if terms.overlap:
            overlap = total((p - y).abs().pow(terms.gamma) if terms.overlap == "difference" else p * y)
        if terms.size:
            size = total(p if terms.size == "linear" else p.square())
        if terms.missed == "taylor over classes":
            difference = p - y
            missed = total_by_class((difference.abs() + difference.square()).sum(1, keepdim=True))
    if terms.missed in ("taylor", "cross entropy"):
        log_q = F.log_softmax(logits, dim=1).gather(1, target.long()[:, None])
        miss = 1 - log_q.exp()
        missed = total_by_class(miss + miss.square() / 2 if terms.missed == "taylor" else -log_q)
    return ClassSums(overlap, size, truth, missed)


def one_hot(logits: Tensor, target: Tensor) -> Tensor:
    """The one-hot target, as the logits (B, C, …)."""
    check_same_size(logits, target)
    return torch.zeros_like(logits).scatter_(1, target.long()[:, None], 1)


def check_same_size(logits: Tensor, target: Tensor) -> None:
    """Check the target's size: scatter and gather silently accept a target smaller than the logits."""
    if target.shape != (expected := logits.shape[:1] + logits.shape[2:]):
        raise ValueError(f"target is {tuple(target.shape)}, expected {tuple(expected)} as the logits")


def weighted(values: Tensor, weight: Tensor | None) -> Tensor:
    """Values (B, C, …) times the weights (B, …) of their voxels."""
    return values if weight is None else values * weight[:, None]
