"""Resamples logits on the network's grid to labels on the CT's grid, slice by slice.

Linear interpolation is a convex combination of the logits at eight neighbours. If one class is the largest at all of
them, it is the largest of every combination: interpolation is needed only where classes meet.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from dlunet.preparation.resampling import resampling_matrix

#: Number of voxels interpolated at once: small enough for their logits to stay in the CPU cache.
TOGETHER = 2**13


@torch.inference_mode()
def labels_on_grid(slabs: Iterable[Tensor], grid: Sequence[int], shape: Sequence[int]) -> np.ndarray:
    """Resample logits linearly to a shape as they arrive, and take the class of the largest.

    Args:
        slabs: Logits (C, n, y, x) of consecutive slices; see :func:`dlunet.inference.stream_logits`.
        grid: (z, y, x) of all slabs combined.
        shape: The CT's (z, y, x).

    Returns:
        Labels (z, y, x), uint8; ties go to the lowest label.
    """
    along_z, along_y, along_x = (_Interpolation.between(old, new) for old, new in zip(grid, shape, strict=True))
    labels = np.empty(tuple(shape), np.uint8)
    for lower, (below, above) in enumerate(pairwise(_slices(slabs))):
        between = np.flatnonzero(along_z.lower == lower)
        if not len(between):
            continue
        sure, certain = _agreeing_cells(below.labels, above.labels)
        cell = np.ix_(along_y.lower, along_x.lower)
        labels[between] = certain[cell]
        rows, columns = np.nonzero(~sure[cell])
        slices = [torch.lerp(below.logits, above.logits, along_z.weight[z].item()) for z in between]
        for begin in range(0, len(rows), TOGETHER):
            y, x = rows[begin : begin + TOGETHER], columns[begin : begin + TOGETHER]
            at_y, at_x = along_y.at(y), along_x.at(x)
            for z, logits in zip(between, slices, strict=True):
                labels[z, y, x] = _largest(_mixed(logits, at_y, at_x))
    return labels


@dataclass(frozen=True)
class _Interpolation:
    """The two old voxels between which each new voxel of an axis lies.

    Attributes:
        lower: The index of the first one, per new voxel.
        upper: The index of the second one.
        weight: The weight of the second one, float32.
    """

    lower: np.ndarray
    upper: np.ndarray
    weight: Tensor

    @classmethod
    def between(cls, old: int, new: int) -> _Interpolation:
        matrix = resampling_matrix(old, new, order=1)
        lower = (matrix != 0).int().argmax(1)
        weight = 1 - matrix.gather(1, lower[:, None])[:, 0]
        return cls(lower.numpy(), np.minimum(lower.numpy() + 1, old - 1), weight.float())

    def at(self, voxels: np.ndarray) -> _Interpolation:
        return _Interpolation(self.lower[voxels], self.upper[voxels], self.weight[voxels])


@dataclass(frozen=True)
class _Slice:
    logits: Tensor  # (C, y, x)
    labels: np.ndarray  # (y, x)


def _slices(slabs: Iterable[Tensor]) -> Iterator[_Slice]:
    """Every slice, and the last one twice: it has no neighbour beyond."""
    last: _Slice | None = None
    for slab in slabs:
        for logits in slab.float().cpu().unbind(1):
            last = _Slice(logits.clone(), _largest(logits))
            yield last
    if last:
        yield last


def _agreeing_cells(below: np.ndarray, above: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For each voxel (y, x), whether it and its next neighbours along y, x and z share one label, and that label."""
    lowest = _over_cells(np.minimum, np.minimum(below, above))
    highest = _over_cells(np.maximum, np.maximum(below, above))
    return lowest == highest, lowest


def _over_cells(combine: np.ufunc, plane: np.ndarray) -> np.ndarray:
    plane = np.pad(plane, (0, 1), mode="edge")
    along_y = combine(plane[:-1], plane[1:])
    return np.asarray(combine(along_y[:, :-1], along_y[:, 1:]))


def _mixed(logits: Tensor, along_y: _Interpolation, along_x: _Interpolation) -> Tensor:
    """Interpolate (C, y, x) at n positions; (C, n)."""
    flat, width = logits.flatten(1), logits.shape[2]

    def in_row(rows: np.ndarray) -> Tensor:
        left, right = (torch.from_numpy(rows * width + x) for x in (along_x.lower, along_x.upper))
        return torch.lerp(flat[:, left], flat[:, right], along_x.weight)

    return torch.lerp(in_row(along_y.lower), in_row(along_y.upper), along_y.weight)


def _largest(logits: Tensor) -> np.ndarray:
    """The class of the largest value of (C, …); a running maximum is far faster than ``argmax(0)``."""
    best = logits[0].clone()
    labels = torch.zeros_like(best, dtype=torch.uint8)
    for value, channel in enumerate(logits[1:], start=1):
        labels.masked_fill_(channel > best, value)
        torch.maximum(best, channel, out=best)
    return labels.numpy()
