"""Labels on the CT's grid: the largest class after resampling every channel of the logits."""

import numpy as np
import pytest
import torch
from scipy import ndimage

from dlunet.inference import labels_on_grid


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("shape", [(17, 31, 23), (5, 20, 9), (8, 12, 10), (4, 5, 6), (1, 1, 1), (1, 30, 5)], ids=str)
@pytest.mark.parametrize("slab", [1, 3, 8])
@pytest.mark.parametrize("smooth", [False, True])
def test_against_resampling_everything_first(shape, dtype, slab, smooth):
    logits = torch.randn(5, 8, 12, 10, generator=torch.Generator().manual_seed(0))
    if smooth:  # structures larger than a voxel, inside which nothing is interpolated
        logits = torch.nn.functional.avg_pool3d(logits, 5, stride=1, padding=2)
    logits = logits.to(dtype)
    factors = [m / n for n, m in zip((8, 12, 10), shape, strict=True)]
    channels = [ndimage.zoom(c, factors, order=1, mode="nearest", grid_mode=True) for c in logits.double().numpy()]
    best, second = np.sort(channels, axis=0)[:-3:-1]
    labels = labels_on_grid(logits.split(slab, dim=1), logits.shape[1:], shape)
    assert labels.shape == shape and labels.dtype == np.uint8
    sure = best - second > 1e-5
    assert sure.mean() > 0.99
    np.testing.assert_array_equal(labels[sure], np.argmax(channels, axis=0)[sure])


def test_among_equals_the_lowest_class_wins():
    logits = torch.zeros(4, 2, 2, 2)
    logits[2:] = 1
    assert (labels_on_grid([logits], (2, 2, 2), (3, 4, 5)) == 2).all()
