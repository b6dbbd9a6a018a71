"""From logits on the network's grid to labels on the CT's, slice by slice.

Linear interpolation mixes the logits around a voxel. Where one class is the largest at all eight of them, it is the
largest of every mixture: only where organs meet is there anything to interpolate.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from dlunet.preparation.resampling import resampling_matrix

#: How many voxels are interpolated at once: few enough for their logits to stay in a processor's cache.
TOGETHER = 2**13


@torch.inference_mode()
def labels_on_grid(slabs: Iterable[Tensor], grid: Sequence[int], shape: Sequence[int]) -> np.ndarray:
    """Resample logits linearly to a shape and take the largest, as they arrive.

    Args:
        slabs: Logits (C, n, y, x) of consecutive slices; see :func:`dlunet.inference.stream_logits`.
        grid: (z, y, x) of all slabs together.
        shape: The CT's (z, y, x).

    Returns:
        Labels (z, y, x), uint8; among equals the lowest.
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
    """Between which voxels of an axis each new voxel lies.

    Attributes:
        lower: For each new voxel the first of the two.
        upper: The second.
        weight: The part that the second has in the new voxel, float32.
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
    """Every slice, and the last one once more: there is nothing beyond it to mix with."""
    last: _Slice | None = None
    for slab in slabs:
        for logits in slab.float().cpu().unbind(1):
            last = _Slice(logits.clone(), _largest(logits))
            yield last
    if last:
        yield last


def _agreeing_cells(below: np.ndarray, above: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For each voxel (y, x) whether it and its next ones along y, x and z have the same label, and which."""
    lowest = _over_cells(np.minimum, np.minimum(below, above))
    highest = _over_cells(np.maximum, np.maximum(below, above))
    return lowest == highest, lowest


def _over_cells(combine: np.ufunc, plane: np.ndarray) -> np.ndarray:
    plane = np.pad(plane, (0, 1), mode="edge")
    along_y = combine(plane[:-1], plane[1:])
    return np.asarray(combine(along_y[:, :-1], along_y[:, 1:]))


def _mixed(logits: Tensor, along_y: _Interpolation, along_x: _Interpolation) -> Tensor:
    """Interpolate (C, y, x) at n places; (C, n)."""
    flat, width = logits.flatten(1), logits.shape[2]

    def in_row(rows: np.ndarray) -> Tensor:
        left, right = (torch.from_numpy(rows * width + x) for x in (along_x.lower, along_x.upper))
        return torch.lerp(flat[:, left], flat[:, right], along_x.weight)

    return torch.lerp(in_row(along_y.lower), in_row(along_y.upper), along_y.weight)


def _largest(logits: Tensor) -> np.ndarray:
    """The class with the largest value of (C, …); a running maximum is far faster than ``argmax(0)``."""
    best = logits[0].clone()
    labels = torch.zeros_like(best, dtype=torch.uint8)
    for value, channel in enumerate(logits[1:], start=1):
        labels.masked_fill_(channel > best, value)
        torch.maximum(best, channel, out=best)
    return labels.numpy()
