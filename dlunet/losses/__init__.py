"""Losses: noise-robust Dice, Taylor cross entropy, Dice + cross entropy, and deep supervision."""

from dlunet.losses.compiled import largest_class
from dlunet.losses.segmentation import (
    DiceCrossEntropyLoss,
    NoiseRobustDiceLoss,
    RobustSegmentationLoss,
    TaylorCrossEntropyLoss,
    at_least_float32,
)
from dlunet.losses.supervision import DeepSupervisionLoss, LossSchedule, downsample, level_weights

__all__ = [
    "DeepSupervisionLoss",
    "DiceCrossEntropyLoss",
    "LossSchedule",
    "NoiseRobustDiceLoss",
    "RobustSegmentationLoss",
    "TaylorCrossEntropyLoss",
    "at_least_float32",
    "downsample",
    "largest_class",
    "level_weights",
]
