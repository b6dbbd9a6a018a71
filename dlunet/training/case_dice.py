"""The DSC of each class during a training: the mean over the validation cases that contain it."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.functional.classification import multiclass_confusion_matrix


class CaseDice(Metric):
    """The mean DSC of each class but background over the cases whose label map contains it; NaN if none does.

    It counts voxels. (torchmetrics' ``DiceScore`` makes one-hot copies of a whole CT, and its versions differ in how
    they count absent classes.)

    Args:
        num_classes: The number of classes, background included.
    """

    higher_is_better = True
    full_state_update = False
    sums: Tensor
    cases: Tensor

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.num_classes = num_classes
        for name in ("sums", "cases"):
            self.add_state(name, torch.zeros(num_classes - 1), dist_reduce_fx="sum")

    def update(self, prediction: Tensor, label: Tensor) -> None:
        """Add a case, by its predicted and its true classes (z, y, x)."""
        counts = multiclass_confusion_matrix(
            prediction.flatten(), label.flatten(), self.num_classes, validate_args=False
        )
        true, found, both = counts.sum(1)[1:], counts.sum(0)[1:], counts.diagonal()[1:]
        self.sums += 2 * both / (true + found).clamp_min(1) * (true > 0)
        self.cases += true > 0

    def compute(self) -> Tensor:
        """The mean DSC of each class (num_classes − 1)."""
        return self.sums / self.cases.where(self.cases > 0, math.nan)
