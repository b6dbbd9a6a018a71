"""Resampling by matrices, compared with SciPy on the volume and with loops."""

from itertools import product

import numpy as np
import pytest
import torch
from scipy import ndimage

from dlunet.preparation import resample, resample_labels
from dlunet.preparation.resampling import separate_axis, target_shape

SHAPE = (9, 14, 11)
SHAPES = {"up": (13, 31, 25), "down": (5, 6, 7), "mixed": (20, 5, 11), "one voxel": (1, 14, 30)}


def scipy_zoom(volume, shape, order):
    factors = [m / n for n, m in zip(volume.shape, shape, strict=True)]
    return ndimage.zoom(volume, factors, order=order, mode="nearest", grid_mode=True)


@pytest.fixture
def volume():
    return np.random.default_rng(0).normal(size=(2, *SHAPE)) * np.array([1, 40]).reshape(2, 1, 1, 1)


@pytest.mark.parametrize("order", [1, 3])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_against_scipy(volume, shape, order):
    expected = np.stack([np.clip(scipy_zoom(c, shape, order), c.min(), c.max()) for c in volume])
    resampled = resample(volume, shape, order)
    assert isinstance(resampled, np.ndarray) and resampled.dtype == np.float32
    np.testing.assert_allclose(resampled, expected, atol=2e-6 * np.ptp(volume))
    of_tensor = resample(torch.from_numpy(volume), shape, order)
    assert isinstance(of_tensor, torch.Tensor)
    np.testing.assert_array_equal(of_tensor.numpy(), resampled)


def test_a_spline_does_not_leave_the_range_of_its_channel():
    step = np.zeros((2, 8, 8, 8))
    step[0, :, :, 4:], step[1, :, :, 4:] = 1, 50
    free = np.stack([scipy_zoom(channel, (8, 8, 29), 3) for channel in step])
    assert free[0].max() > 1.01  # SciPy's spline does
    resampled = resample(step, (8, 8, 29), 3)
    assert (resampled[0].min(), resampled[0].max(), resampled[1].min(), resampled[1].max()) == (0, 1, 0, 50)


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("order", [1, 3])
def test_an_axis_apart_takes_the_nearest_voxel(volume, axis, order):
    shape = (13, 9, 16)
    nearest = ((np.arange(shape[axis]) + 0.5) * SHAPE[axis] / shape[axis]).astype(int)
    in_plane = [SHAPE[k] if k == axis else shape[k] for k in range(3)]
    expected = np.stack([scipy_zoom(channel, in_plane, order) for channel in volume]).take(nearest, axis=axis + 1)
    across = tuple(k for k in (1, 2, 3) if k != axis + 1)  # each slice keeps its own range
    low, high = (f(across, keepdims=True).take(nearest, axis=axis + 1) for f in (volume.min, volume.max))
    resampled = resample(volume, shape, order, nearest_axis=axis)
    np.testing.assert_allclose(resampled, expected.clip(low, high), atol=2e-6 * np.ptp(volume))


def linear_1d(position, n):
    """Linear interpolation weights of an axis's voxels at a position; edge voxels are repeated beyond the border."""
    low = int(np.floor(position))
    weights = np.zeros(n)
    weights[np.clip(low, 0, n - 1)] += 1 - (position - low)
    weights[np.clip(low + 1, 0, n - 1)] += position - low
    return weights


@pytest.mark.parametrize("nearest_axis", [None, 0])
@pytest.mark.parametrize("shape", [(8, 10, 12), (2, 4, 10), (6, 9, 3)])
def test_labels_by_loop(shape, nearest_axis):
    """The class with the largest weight; on a tie, that of the nearest voxel if it is among them, else the lowest."""
    labels = np.random.default_rng(3).choice([0, 2, 3, 7], size=(4, 5, 6)).astype(np.uint8)
    expected, ties = np.zeros(shape, np.uint8), 0
    for target in np.ndindex(*shape):
        weights, nearest = [], []
        for axis, (i, n, m) in enumerate(zip(target, labels.shape, shape, strict=True)):
            position = (i + 0.5) * n / m - 0.5
            nearest.append(min(int(position + 0.5), n - 1))
            weights.append(np.eye(n)[nearest[-1]] if axis == nearest_axis else linear_1d(position, n))
        parts = {value: np.einsum("zyx,z,y,x", labels == value, *weights) for value in (0, 2, 3, 7)}
        first = [value for value, part in parts.items() if part > max(parts.values()) - 1e-9]
        expected[target] = labels[tuple(nearest)] if labels[tuple(nearest)] in first else first[0]
        ties += len(first) > 1
    assert len(np.unique(expected)) == 4
    assert ties or shape != (2, 4, 10)
    np.testing.assert_array_equal(resample_labels(labels, shape, nearest_axis), expected)


@pytest.mark.parametrize("shape", [(2, 2, 3), (2, 14, 3), (9, 2, 11), (20, 2, 3)])
def test_a_single_voxel_stays_or_vanishes(shape):
    """Also where none of the new voxels lies within reach of it, along some axes or all."""
    kept = 0
    for place in np.ndindex(*SHAPE):
        labels = np.zeros(SHAPE, np.uint8)
        labels[place] = 5
        share = scipy_zoom((labels == 5).astype(float), shape, 1)
        resampled = resample_labels(labels, shape)
        is_tie = np.abs(share - 0.5) < 1e-6
        np.testing.assert_array_equal((resampled == 5)[~is_tie], (share > 0.5)[~is_tie])
        kept += resampled.any()
    assert kept < np.prod(SHAPE)


def test_the_same_shape_changes_nothing(volume):
    np.testing.assert_array_equal(resample(volume, SHAPE, 3), volume.astype(np.float32))
    labels = np.random.default_rng(0).integers(0, 14, SHAPE).astype(np.uint8)
    np.testing.assert_array_equal(resample_labels(labels, SHAPE), labels)


@pytest.mark.parametrize(
    ("shape", "spacing", "expected"),
    [
        ((129, 512, 512), (2.5, 0.76, 0.76), (129, 259, 259)),  # 259.4
        ((100, 100, 100), (5.0, 0.79, 1.5), (200, 53, 100)),  # 52.7
        ((1, 3, 3), (1.0, 0.2, 0.2), (1, 1, 1)),  # at least one voxel
    ],
)
def test_target_shape(shape, spacing, expected):
    assert target_shape(shape, spacing, (2.5, 1.5, 1.5)) == expected


@pytest.mark.parametrize(
    ("spacing", "target", "axis"),
    [
        ((5.0, 0.7, 0.7), (2.5, 1.5, 1.5), 0),
        ((0.7, 0.7, 5.0), (2.5, 1.5, 1.5), 2),
        ((3.0, 1.0, 1.0), (2.5, 1.5, 1.5), None),  # a ratio of exactly 3 is not above 3
        ((1.0, 1.0, 1.0), (1.0, 4.0, 1.0), 1),  # only the target is anisotropic
        ((5.0, 1.0, 1.0), (1.0, 1.0, 5.0), 0),  # the volume takes precedence over the target
        ((5.0, 5.0, 1.0), (1.0, 1.0, 1.0), None),  # two axes are equally coarse
    ],
)
def test_the_axis_that_nnunet_resamples_apart(spacing, target, axis):
    assert separate_axis(spacing, target) == axis


def test_mirrored_volumes_are_resampled_to_mirrored_ones(volume):
    for axes in product([False, True], repeat=3):
        flips = [axis + 1 for axis, flip in enumerate(axes) if flip]
        mirrored = resample(np.flip(volume, flips).copy(), (5, 20, 11), 3)
        np.testing.assert_allclose(np.flip(mirrored, flips), resample(volume, (5, 20, 11), 3), atol=1e-4)
