"""Resample volumes and labels as nnU-Net does, with one matrix product per axis.

Spline interpolation onto a regular grid is linear and separable: along one axis, the resampled values are a fixed
matrix times the original ones. That matrix is the resampled identity matrix.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import TypeVar

import numpy as np
import torch
from scipy import ndimage

Array = TypeVar("Array", np.ndarray, torch.Tensor)

#: An axis is resampled separately, without interpolation, if it is more than this many times coarser than the finest.
ANISOTROPY_THRESHOLD = 3.0

#: Fractions of a voxel that differ by less are equal: products of interpolation weights are not exact.
ROUNDING = 1e-6

#: Slices processed at a time.
SLAB = 16

#: Weights below this change no value in float32.
NEGLIGIBLE_WEIGHT = 1e-12


def target_shape(shape: Sequence[int], spacing: Sequence[float], target: Sequence[float]) -> tuple[int, int, int]:
    """The shape (z, y, x) of a volume of ``spacing`` mm after resampling to ``target`` mm."""
    z, y, x = (max(1, round(old / new * n)) for n, old, new in zip(shape, spacing, target, strict=True))
    return z, y, x


def separate_axis(spacing: Sequence[float], target: Sequence[float]) -> int | None:
    """The axis that nnU-Net resamples separately, if the volume or the target is anisotropic."""
    for mm in (spacing, target):
        if max(mm) / min(mm) > ANISOTROPY_THRESHOLD:
            coarsest = [axis for axis in range(3) if mm[axis] == max(mm)]
            return coarsest[0] if len(coarsest) == 1 else None
    return None


def resample(
    volume: Array,
    shape: Sequence[int],
    order: int,
    nearest_axis: int | None = None,
    before: Callable[[Array], torch.Tensor] | None = None,
) -> Array:
    """Resample a volume to a new shape; the corners of both grids coincide.

    Args:
        volume: (C, z, y, x), a NumPy array or a tensor.
        shape: The new (z, y, x).
        order: Order of the spline: 3 for images, 1 for logits.
        nearest_axis: An axis (0 to 2) that is resampled by nearest neighbour instead.
        before: Converts voxels to float32, a few slices at a time, so that a large CT is never copied.

    Returns:
        (C, *shape), float32, of the same type as ``volume``. Since splines overshoot at edges, values are clamped to
        the range of their channel or, with ``nearest_axis``, of the slice across it that they come from.
    """
    before = before or _as_float
    along_z, *in_plane = (
        resampling_matrix(n, n if axis == nearest_axis else m, order)
        for axis, (n, m) in enumerate(zip(volume.shape[1:], shape, strict=True))
    )
    across = [axis for axis in (1, 2, 3) if nearest_axis is None or axis != nearest_axis + 1]
    slices, lowest, highest = [], [], []
    for begin in range(0, volume.shape[1], SLAB):
        slab = before(volume[:, begin : begin + SLAB])
        slices.append(_along_last_axes(slab, in_plane))
        within = [axis for axis in across if axis > 1]
        lowest.append(slab.amin(within, keepdim=True))
        highest.append(slab.amax(within, keepdim=True))
    resampled = _along_z(torch.cat(slices, dim=1), along_z)
    if order > 1:
        limits = torch.cat(lowest, dim=1), torch.cat(highest, dim=1)
        if 1 in across:
            limits = limits[0].amin(1, keepdim=True), limits[1].amax(1, keepdim=True)
        resampled.clamp_(*limits)
    if nearest_axis is not None:
        taken = nearest_voxels(volume.shape[nearest_axis + 1], shape[nearest_axis])
        resampled = resampled.index_select(nearest_axis + 1, taken)
    return resampled.numpy() if isinstance(volume, np.ndarray) else resampled


def _as_float(voxels: np.ndarray | torch.Tensor) -> torch.Tensor:
    return (
        voxels.float() if isinstance(voxels, torch.Tensor) else torch.from_numpy(voxels.astype(np.float32, order="C"))
    )


def resample_labels(labels: np.ndarray, shape: Sequence[int], nearest_axis: int | None = None) -> np.ndarray:
    """Resample labels class by class: each mask linearly; every voxel gets the class with the largest fraction.

    At a tie, as halfway between two voxels, a voxel gets the nearest voxel's class if that is among them, else the
    lowest id. This is nnU-Net's rule since batchgenerators 0.25.5. Earlier versions thresholded every mask at 0.5, in
    ascending order of ids, which differs at such ties, and where three classes meet and none reaches 0.5.

    Args:
        labels: (z, y, x), uint8.
        shape: The new (z, y, x).
        nearest_axis: An axis that is resampled by nearest neighbour instead.

    Returns:
        (z, y, x), uint8, of the new shape.
    """
    if labels.shape == tuple(shape):
        return labels
    if nearest_axis is not None:
        labels = labels.take(nearest_voxels(labels.shape[nearest_axis], shape[nearest_axis]).numpy(), nearest_axis)
    matrices = [resampling_matrix(n, m, 1) for n, m in zip(labels.shape, shape, strict=True)]
    nearest = labels[np.ix_(*(nearest_voxels(n, m).numpy() for n, m in zip(labels.shape, shape, strict=True)))]
    background, most, of_nearest = np.ones(shape, np.float32), np.zeros(shape, np.float32), np.zeros(shape, np.float32)
    winner = np.zeros(shape, np.uint8)
    for value, box in enumerate(ndimage.find_objects(labels), start=1):
        if box is None:
            continue
        # A mask is 0 beyond the voxels that its bounding box contributes to.
        reached = tuple(_reached(matrix, side) for matrix, side in zip(matrices, box, strict=True))
        parts = [matrix[rows, side] for matrix, rows, side in zip(matrices, reached, box, strict=True)]
        part = apply_matrices(torch.from_numpy((labels[box] == value)[None]).float(), parts)[0].numpy()
        background[reached] -= part
        more = part > most[reached] + ROUNDING
        most[reached][more], winner[reached][more] = part[more], value
        here = nearest[reached] == value
        of_nearest[reached][here] = part[here]
    winner[background >= most - ROUNDING] = 0
    most = np.maximum(most, background)
    of_nearest = np.where(nearest == 0, background, of_nearest)
    return np.where(of_nearest >= most - ROUNDING, nearest, winner)


def nearest_voxels(old: int, new: int) -> torch.Tensor:
    """For each voxel of the resampled axis, the nearest one of the original axis."""
    positions = ndimage.zoom(np.arange(old, dtype=float), new / old, order=0, mode="nearest", grid_mode=True)
    return torch.from_numpy(positions.astype(np.int64))


def _reached(matrix: torch.Tensor, columns: slice) -> slice:
    """The range of rows of a matrix in which the given columns are not 0."""
    rows = torch.nonzero(matrix[:, columns].any(1))
    return slice(int(rows[0]), int(rows[-1]) + 1) if len(rows) else slice(0)


@lru_cache(maxsize=64)
def resampling_matrix(old: int, new: int, order: int) -> torch.Tensor:
    """The (new, old) matrix that resamples one axis, in float64."""
    if old == new:
        return torch.eye(old, dtype=torch.float64)
    matrix = ndimage.zoom(np.eye(old), (new / old, 1), order=order, mode="nearest", grid_mode=True)
    # A spline has infinite support; in float32 its last weights are denormal, which makes products 20 times slower.
    matrix[np.abs(matrix) < NEGLIGIBLE_WEIGHT] = 0
    return torch.from_numpy(matrix)


def apply_matrices(volume: torch.Tensor, matrices: Sequence[torch.Tensor]) -> torch.Tensor:
    """Multiply the last three axes of ``volume`` (C, z, y, x) by one matrix each, in the volume's precision."""
    return _along_z(_along_last_axes(volume, matrices[1:]), matrices[0])


def _along_last_axes(volume: torch.Tensor, matrices: Sequence[torch.Tensor]) -> torch.Tensor:
    along_y, along_x = (matrix.to(volume) for matrix in matrices)
    return torch.matmul(along_y, torch.matmul(volume, along_x.T))


def _along_z(volume: torch.Tensor, matrix: torch.Tensor) -> torch.Tensor:
    channels, z, y, x = volume.shape
    return torch.matmul(matrix.to(volume), volume.reshape(channels, z, y * x)).reshape(channels, len(matrix), y, x)
