"""From logits on the network's grid to labels on the CT's."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from dlunet.preparation.resampling import resample


@torch.inference_mode()
def labels_on_grid(logits: Tensor, shape: Sequence[int]) -> np.ndarray:
    """Resample logits linearly to a shape and take the largest, one class at a time.

    Args:
        logits: (C, z, y, x).
        shape: The CT's (z, y, x).

    Returns:
        Labels (z, y, x), uint8.
    """
    best = torch.full(tuple(shape), -torch.inf)
    labels = torch.zeros(tuple(shape), dtype=torch.uint8)
    for value, channel in enumerate(logits.float().cpu()):
        candidate = resample(channel[None], shape, order=1)[0]
        larger = candidate > best
        best[larger] = candidate[larger]
        labels[larger] = value
    return labels.numpy()
