"""Distances between the surfaces of two masks.

The surface of a mask is the set of voxel corners whose eight voxels are neither all inside nor all outside, each with
the area of the surface around it (Nikolov et al., "Deep learning to achieve clinically applicable segmentation of head
and neck anatomy for radiotherapy"). The areas are those of the authors' ``surface-distance`` package, and the results
are the same but for rounding. The package computes two distance transforms of the whole bounding box; here each corner
looks for the other surface around itself, nearest places first, and where it is further away in a k-d tree.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from scipy.spatial import KDTree

with warnings.catch_warnings():
    # The package's own imports use names that SciPy has deprecated.
    warnings.simplefilter("ignore", DeprecationWarning)
    from surface_distance.lookup_tables import create_table_neighbour_code_to_surface_area

#: The code of a corner whose eight voxels are all inside.
INSIDE = 0xFF
#: How many places around a corner are looked at before the k-d tree, and their largest distance along an axis.
STEPS, REACH = 100, 4
#: Added to the limit of a search: far more than the rounding errors of distances in a k-d tree.
MARGIN_MM = 1e-6


class SurfaceDistances(NamedTuple):
    """How far the elements of each surface are from the other surface.

    Attributes:
        predicted: Distances in mm of the elements of the prediction's surface to the reference's; infinite where they
            are larger than the limit.
        predicted_areas: The areas in mm² of these elements.
        expected: Distances in mm of the elements of the reference's surface to the prediction's.
        expected_areas: The areas in mm² of these elements.
    """

    predicted: np.ndarray
    predicted_areas: np.ndarray
    expected: np.ndarray
    expected_areas: np.ndarray


def surface_distances(
    prediction: np.ndarray, reference: np.ndarray, spacing: Sequence[float], limit: float = math.inf
) -> SurfaceDistances:
    """The distance of each element of both surfaces to the other surface.

    Args:
        prediction: Mask (z, y, x), boolean, not empty.
        reference: Mask of the same shape, not empty.
        spacing: Voxel size (z, y, x) in mm.
        limit: Distances in mm above this one need not be known; a small limit is faster.
    """
    codes = _corner_codes(prediction), _corner_codes(reference)
    on_surface = tuple((code != 0) & (code != INSIDE) for code in codes)
    padded = tuple(np.pad(surface, REACH) for surface in on_surface)
    areas = _areas(tuple(map(float, spacing)))
    found = []
    for code, surface, own, other in zip(codes, on_surface, padded, padded[::-1], strict=True):
        found += [_distances(own, other, np.asarray(spacing, float), limit), areas[code[surface]]]
    return SurfaceDistances(*found)


def _distances(surface: np.ndarray, other: np.ndarray, spacing: np.ndarray, limit: float) -> np.ndarray:
    """The distance in mm of each corner of a surface to the other surface; both have a margin of ``REACH`` corners."""
    corners = np.flatnonzero(surface)
    distances = np.full(len(corners), math.inf)
    missing, there = np.arange(len(corners)), other.reshape(-1)
    for step, distance in zip(*_steps(spacing, limit), strict=True):
        found = there[corners + step @ other.strides]
        distances[missing[found]] = distance
        missing, corners = missing[~found], corners[~found]
    points = np.column_stack(np.unravel_index(corners, surface.shape))
    distances[missing] = _distances_to_nearest(points, other, spacing, limit)
    return distances


def _steps(spacing: np.ndarray, limit: float) -> tuple[np.ndarray, np.ndarray]:
    """The steps (N × 3) to the nearest corners around a corner, and their lengths in mm, the shortest first.

    No corner that is missing is nearer than one of them.
    """
    steps = np.mgrid[(slice(-REACH, REACH + 1),) * 3].reshape(3, -1).T
    lengths = np.linalg.norm(steps * spacing, axis=1)
    order = np.argsort(lengths, kind="stable")[:STEPS]
    near = order[lengths[order] <= min(limit, REACH * spacing.min())]
    return steps[near], lengths[near]


def _distances_to_nearest(points: np.ndarray, surface: np.ndarray, spacing: np.ndarray, limit: float) -> np.ndarray:
    """The distance in mm of each point (indices, N × 3) to the nearest corner of a surface."""
    if not len(points):
        return np.zeros(0)
    others = np.argwhere(surface)
    tree = KDTree(others * spacing, leafsize=32, balanced_tree=False, compact_nodes=False)
    # Only which corner is nearest: distances in the tree have rounding errors, those of whole steps are exact.
    nearest = tree.query(points * spacing, distance_upper_bound=limit + MARGIN_MM)[1]
    known = nearest < len(others)
    distances = np.full(len(points), math.inf)
    distances[known] = np.linalg.norm((points[known] - others[nearest[known]]) * spacing, axis=1)
    return distances


def _corner_codes(mask: np.ndarray) -> np.ndarray:
    """Which of the eight voxels around each voxel corner are inside, one bit each: the first voxel's is the highest."""
    voxels = np.pad(np.asarray(mask, bool), 1).view(np.uint8)
    pairs = voxels[:, :, :-1] << 1 | voxels[:, :, 1:]
    squares = pairs[:, :-1] << 2 | pairs[:, 1:]
    return np.asarray(squares[:-1] << 4 | squares[1:])


@lru_cache(maxsize=16)
def _areas(spacing: tuple[float, ...]) -> np.ndarray:
    """The area of the surface around a corner in mm², by its code."""
    return np.asarray(create_table_neighbour_code_to_surface_area(spacing))
