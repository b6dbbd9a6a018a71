"""Resampling as nnU-Net does it, written as one matrix product an axis.

Spline interpolation onto a regular grid is linear and separable: along one axis, the resampled values are a fixed
matrix times the given ones. That matrix is the resampling of an identity matrix.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import TypeVar

import numpy as np
import torch
from scipy import ndimage

Array = TypeVar("Array", np.ndarray, torch.Tensor)

#: An axis is resampled on its own, without interpolation, where it is this many times coarser than the finest.
ANISOTROPY_THRESHOLD = 3.0


def target_shape(shape: Sequence[int], spacing: Sequence[float], target: Sequence[float]) -> tuple[int, int, int]:
    """The shape (z, y, x) of a volume of ``spacing`` mm after resampling to ``target`` mm."""
    z, y, x = (max(1, round(n * old / new)) for n, old, new in zip(shape, spacing, target, strict=True))
    return z, y, x


def separate_axis(spacing: Sequence[float], target: Sequence[float]) -> int | None:
    """The axis that nnU-Net resamples on its own, if the volume or the target is anisotropic."""
    for mm in (spacing, target):
        if max(mm) / min(mm) > ANISOTROPY_THRESHOLD:
            coarsest = [axis for axis in range(3) if mm[axis] == max(mm)]
            return coarsest[0] if len(coarsest) == 1 else None
    return None


def resample(volume: Array, shape: Sequence[int], order: int, nearest_axis: int | None = None) -> Array:
    """Resample a volume to a new shape; the corners of both grids coincide.

    Args:
        volume: (C, z, y, x), a NumPy array or a tensor.
        shape: The new (z, y, x).
        order: Order of the spline: 3 for images, 1 for logits.
        nearest_axis: An axis (0 to 2) along which the nearest voxel is taken instead.

    Returns:
        (C, *shape), float32, of the same kind as ``volume``; no value leaves the range of its channel.
    """
    values = torch.as_tensor(volume).float()
    orders = [0 if axis == nearest_axis else order for axis in range(3)]
    matrices = [resampling_matrix(n, m, o) for n, m, o in zip(values.shape[1:], shape, orders, strict=True)]
    resampled = apply_matrices(values, matrices)
    if order > 1:  # a spline overshoots at edges
        flat = values.flatten(1)
        low, high = (t[:, None, None, None] for t in (flat.amin(1), flat.amax(1)))
        resampled = resampled.clamp(low, high)
    return resampled.numpy() if isinstance(volume, np.ndarray) else resampled


def resample_labels(labels: np.ndarray, shape: Sequence[int], nearest_axis: int | None = None) -> np.ndarray:
    """Resample labels class by class: each mask linearly and, in ascending order of ids, taken where it is ≥ 0.5.

    Args:
        labels: (z, y, x), uint8.
        shape: The new (z, y, x).
        nearest_axis: An axis along which the nearest voxel is taken instead.

    Returns:
        (z, y, x), uint8, of the new shape.
    """
    if labels.shape == tuple(shape):
        return labels
    resampled = np.zeros(shape, np.uint8)
    for value in np.unique(labels):
        if value > 0:
            mask = (labels == value).astype(np.float32)[None]
            resampled[resample(mask, shape, 1, nearest_axis)[0] >= 0.5] = value
    return resampled


@lru_cache(maxsize=64)
def resampling_matrix(old: int, new: int, order: int) -> torch.Tensor:
    """The (new, old) matrix that resamples one axis."""
    if old == new:
        return torch.eye(old)
    matrix = ndimage.zoom(np.eye(old), (new / old, 1), order=order, mode="nearest", grid_mode=True)
    return torch.from_numpy(matrix.astype(np.float32))


def apply_matrices(volume: torch.Tensor, matrices: Sequence[torch.Tensor]) -> torch.Tensor:
    """Multiply the last three axes of ``volume`` (C, z, y, x) by a matrix each."""
    along_z, along_y, along_x = matrices
    volume = torch.matmul(volume, along_x.T)
    volume = torch.matmul(along_y, volume)
    channels, z, y, x = volume.shape
    return torch.matmul(along_z, volume.reshape(channels, z, y * x)).reshape(channels, -1, y, x)
