"""Signed distances to the solids that organs are built from: tubes and blobs, joined, cut and clipped.

Every function works on one region of a :class:`~dlunet.phantom.canvas.Canvas`, so that small organs are cheap.
Distances are in millimetres of template space and negative inside. Points and radii are (x, y, z): x points to the
patient's left, y to posterior, z to superior.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from dlunet.phantom.canvas import Canvas, Region

#: Distance assigned to voxels too far from a tube to matter, in mm.
FAR = 30.0

#: Distances are exact up to this far from a thick tube, in mm: more than any wobble, fat plane or partial volume needs.
REACH = 12.0

#: Up to this many voxels times pieces, a tube is computed in one pass; above, each piece only in its neighbourhood.
_AT_ONCE = 30_000


def tube(
    canvas: Canvas,
    where: Region,
    points: np.ndarray,
    radii: Sequence[float] | np.ndarray,
    squash: tuple[float, float, float] = (1.0, 1.0, 1.0),
) -> np.ndarray:
    """Distance to a tube of varying radius along a smooth curve.

    Args:
        canvas: Provides the coordinates.
        where: The voxels to evaluate.
        points: Control points (n, 3) of the centre line, in mm.
        radii: The radius at each control point, in mm.
        squash: Factors along x, y, z by which the section is stretched: (1, 1, 4) makes a sheet that is tall in z.

    Returns:
        Distances on ``where``; :data:`FAR` where the tube is further away than :data:`REACH` (less for a thin one).
    """
    distance = np.full(canvas.x[where].shape, FAR, np.float32)
    if distance.size == 0:
        return distance
    points, radii = _resample(np.asarray(points, float), np.asarray(radii, float))
    stretch = np.asarray(squash, float)
    starts, ends = points[:-1], points[1:]
    if distance.size * len(starts) <= _AT_ONCE:
        pieces = _capsules(canvas, where, starts, ends, radii[:-1], radii[1:], stretch)
        return np.minimum(pieces.min(axis=0), np.float32(FAR))
    wide = np.maximum(radii[:-1], radii[1:])[:, None]
    reach = (wide + np.minimum(REACH, 5 + wide)) * np.maximum(stretch, 1.0)
    near = canvas.regions(np.minimum(starts, ends) - reach, np.maximum(starts, ends) + reach, where)
    for k in range(len(starts)):
        one = slice(k, k + 1)
        inner, outer = _overlap(near[k], where)
        piece = _capsules(canvas, outer, starts[one], ends[one], radii[one], radii[k + 1 : k + 2], stretch)[0]
        np.minimum(distance[inner], piece, out=distance[inner])
    return distance


def blob(
    canvas: Canvas,
    where: Region,
    center: Sequence[float] | np.ndarray,
    radii: Sequence[float] | np.ndarray,
    rotation: np.ndarray | None = None,
) -> np.ndarray:
    """Distance (approximate far from the surface) to an ellipsoid with semi-axes ``radii``; its axes are the columns of
    ``rotation``."""
    offsets = [axis[where] - np.float32(c) for axis, c in zip((canvas.x, canvas.y, canvas.z), center, strict=True)]
    if rotation is not None:
        turn = np.asarray(rotation, np.float32)
        offsets = [turn[0, i] * offsets[0] + turn[1, i] * offsets[1] + turn[2, i] * offsets[2] for i in range(3)]
    scaled = [offset / np.float32(radius) for offset, radius in zip(offsets, radii, strict=True)]
    length = np.sqrt(scaled[0] ** 2 + scaled[1] ** 2 + scaled[2] ** 2)
    slope = np.sqrt(sum((s / np.float32(r)) ** 2 for s, r in zip(scaled, radii, strict=True)))
    return length * (length - 1) / np.maximum(slope, np.float32(1e-3))


def join(first: np.ndarray, second: np.ndarray, blend: float) -> np.ndarray:
    """Union of two solids whose seam is rounded over ``blend`` mm."""
    weight = np.clip(0.5 + (second - first) * np.float32(0.5 / blend), 0, 1)
    return second + (first - second) * weight - np.float32(blend) * weight * (1 - weight)


def cut(solid: np.ndarray, tool: np.ndarray, blend: float) -> np.ndarray:
    """``solid`` without ``tool``, the new edge rounded over ``blend`` mm."""
    return -join(-solid, tool, blend)


def clip(solid: np.ndarray, inside: np.ndarray, blend: float) -> np.ndarray:
    """The part of ``solid`` that lies in ``inside``, the new edge rounded over ``blend`` mm."""
    return -join(-solid, -inside, blend)


def turned(x: float = 0.0, y: float = 0.0, z: float = 0.0) -> np.ndarray:
    """Rotation matrix (3, 3) for angles in degrees about the x, then y, then z axis."""
    a, b, c = np.deg2rad([x, y, z])
    about_x = np.array([[1, 0, 0], [0, np.cos(a), -np.sin(a)], [0, np.sin(a), np.cos(a)]])
    about_y = np.array([[np.cos(b), 0, np.sin(b)], [0, 1, 0], [-np.sin(b), 0, np.cos(b)]])
    about_z = np.array([[np.cos(c), -np.sin(c), 0], [np.sin(c), np.cos(c), 0], [0, 0, 1]])
    return about_z @ about_y @ about_x


def _resample(points: np.ndarray, radii: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A smooth curve through the points, in pieces short enough that its bends look round."""
    travelled = np.concatenate([[0.0], np.cumsum(np.linalg.norm(np.diff(points, axis=0), axis=1))])
    pieces = max(2, int(np.ceil(travelled[-1] / max(9.0, 1.1 * float(radii.mean())))))
    at = np.linspace(0, travelled[-1], pieces + 1)
    return _catmull_rom(points, travelled, at), np.interp(at, travelled, radii)


def _catmull_rom(points: np.ndarray, travelled: np.ndarray, at: np.ndarray) -> np.ndarray:
    """Cubic Hermite curve with central-difference tangents: passes through every point with little overshoot."""
    if len(points) == 2:
        return points[0] + (points[1] - points[0]) * (at / travelled[-1])[:, None]
    tangents = np.gradient(points, travelled, axis=0)
    piece = np.clip(np.searchsorted(travelled, at, side="right") - 1, 0, len(points) - 2)
    length = (travelled[piece + 1] - travelled[piece])[:, None]
    t = ((at - travelled[piece])[:, None]) / length
    return (
        (2 * t**3 - 3 * t**2 + 1) * points[piece]
        + (t**3 - 2 * t**2 + t) * length * tangents[piece]
        + (3 * t**2 - 2 * t**3) * points[piece + 1]
        + (t**3 - t**2) * length * tangents[piece + 1]
    )


def _capsules(
    canvas: Canvas,
    where: Region,
    starts: np.ndarray,
    ends: np.ndarray,
    start_radii: np.ndarray,
    end_radii: np.ndarray,
    stretch: np.ndarray,
) -> np.ndarray:
    """Distances (k, z, y, x) to k straight pieces with round ends, whose radius changes linearly along them."""
    starts, along = (starts / stretch).astype(np.float32), ((ends - starts) / stretch).astype(np.float32)

    def each(values: np.ndarray) -> np.ndarray:
        return np.asarray(values, np.float32).reshape(-1, 1, 1, 1)

    axes = (canvas.x, canvas.y, canvas.z)
    offsets = [axis[where] / np.float32(f) - each(s) for axis, f, s in zip(axes, stretch, starts.T, strict=True)]
    share = each(along[:, 0]) * offsets[0]
    share += each(along[:, 1]) * offsets[1]
    share += each(along[:, 2]) * offsets[2]
    share /= each(np.maximum((along**2).sum(axis=1), 1e-6))
    np.clip(share, 0, 1, out=share)
    squared = np.zeros_like(share)
    for offset, step in zip(offsets, along.T, strict=True):
        offset -= share * each(step)
        squared += offset * offset
    return np.sqrt(squared) - (each(start_radii) + share * each(end_radii - start_radii))


def _overlap(near: Region, where: Region) -> tuple[Region, Region]:
    """The voxels common to both regions: relative to the start of ``where``, and relative to the canvas."""
    outer = tuple(
        slice(max(n.start, w.start), max(n.start, w.start, min(n.stop, w.stop)))
        for n, w in zip(near, where, strict=True)
    )
    inner = tuple(slice(o.start - w.start, o.stop - w.start) for o, w in zip(outer, where, strict=True))
    return (inner[0], inner[1], inner[2]), (outer[0], outer[1], outer[2])
