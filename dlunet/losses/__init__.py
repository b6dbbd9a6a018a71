"""Losses: noise-robust, class-balanced, Dice + cross entropy, and deep supervision."""

from dlunet.losses.base import LossSum, at_least_float32
from dlunet.losses.class_balanced import (
    BalancedCrossEntropyLoss,
    FocalLoss,
    GeneralisedDiceLoss,
    GradientAwareCrossEntropyLoss,
    GradientAwareDiceLoss,
    GradientAwareLoss,
    TopKCrossEntropyLoss,
    TverskyLoss,
)
from dlunet.losses.compiled import largest_class
from dlunet.losses.segmentation import (
    DiceCrossEntropyLoss,
    NoiseRobustDiceLoss,
    RobustSegmentationLoss,
    TaylorCrossEntropyLoss,
)
from dlunet.losses.supervision import DeepSupervisionLoss, LossSchedule, downsample, level_weights, loss_at

__all__ = [
    "BalancedCrossEntropyLoss",
    "DeepSupervisionLoss",
    "DiceCrossEntropyLoss",
    "FocalLoss",
    "GeneralisedDiceLoss",
    "GradientAwareCrossEntropyLoss",
    "GradientAwareDiceLoss",
    "GradientAwareLoss",
    "LossSchedule",
    "LossSum",
    "NoiseRobustDiceLoss",
    "RobustSegmentationLoss",
    "TaylorCrossEntropyLoss",
    "TopKCrossEntropyLoss",
    "TverskyLoss",
    "at_least_float32",
    "downsample",
    "largest_class",
    "level_weights",
    "loss_at",
]
