"""The canvas a phantom is painted on: template coordinates, HU and label of every voxel."""

from __future__ import annotations

import numpy as np

#: Index slices (z, y, x) of a box of voxels.
Region = tuple[slice, slice, slice]

#: The box of a solid is found from the centre voxels of blocks of this size (z, y, x).
_BLOCK = (3, 5, 5)


class Canvas:
    """Painted from back to front: each solid covers what was there and blends with it in its border voxels.

    Attributes:
        x, y, z: Template coordinates of every voxel (z, y, x) in mm, float32.
        hu: The CT so far, float32.
        labels: The label map so far, uint8.
        movable: Whether a voxel belongs to a viscus, which yields to fat around a neighbour; walls and bones do not.
        blur: Width of the blended border in mm: about one voxel.
    """

    def __init__(self, x: np.ndarray, y: np.ndarray, z: np.ndarray, blur: float, background: float) -> None:
        self.x, self.y, self.z = x, y, z
        self.blur = blur
        self.hu = np.full(x.shape, background, np.float32)
        self.labels = np.zeros(x.shape, np.uint8)
        self.movable = np.zeros(x.shape, bool)
        middles = [np.minimum(np.arange(b // 2, n + b // 2, b), n - 1) for n, b in zip(x.shape, _BLOCK, strict=True)]
        self._middles = tuple(axis[np.ix_(*middles)] for axis in (x, y, z))
        # The coordinates of a block's voxels differ by at most this from those of its centre voxel.
        self._slack = [0.55 * _largest_step(axis) for axis in self._middles]

    @property
    def everywhere(self) -> Region:
        """All voxels."""
        depth, height, width = self.x.shape
        return slice(0, depth), slice(0, height), slice(0, width)

    def region(self, low: np.ndarray, high: np.ndarray) -> Region:
        """A box that contains every voxel with template coordinates between two corners (x, y, z) in mm.

        It is empty if there is no such voxel in the field of view.
        """
        return self.regions(np.asarray(low)[None], np.asarray(high)[None], self.everywhere)[0]

    def regions(self, lows: np.ndarray, highs: np.ndarray, within: Region) -> list[Region]:
        """Like :meth:`region` for k pairs of corners (k, 3) at once, restricted to the box ``within``."""
        crop = tuple(slice(s.start // block, -(-s.stop // block)) for s, block in zip(within, _BLOCK, strict=True))
        found: np.ndarray = np.ones((len(lows), *self._middles[0][crop].shape), bool)
        for axis, starts, ends, slack in zip(self._middles, lows.T, highs.T, self._slack, strict=True):
            part = axis[crop][None]
            found &= part >= (starts - slack).astype(np.float32)[:, None, None, None]
            found &= part <= (ends + slack).astype(np.float32)[:, None, None, None]
        in_plane = np.asarray(found.any(axis=1))
        hits = [np.asarray(part) for part in (found.any(axis=(2, 3)), in_plane.any(axis=2), in_plane.any(axis=1))]
        spans = [
            _spans(hit, c.start, block, n) for hit, c, block, n in zip(hits, crop, _BLOCK, self.x.shape, strict=True)
        ]
        return list(zip(*spans, strict=True))

    def around(self, points: np.ndarray, reach: float | np.ndarray) -> Region:
        """The box of voxels within ``reach`` mm of the points (n, 3)."""
        points = np.atleast_2d(np.asarray(points, float))
        return self.region(points.min(axis=0) - reach, points.max(axis=0) + reach)

    def cover(self, distance: np.ndarray, width: float | None = None) -> np.ndarray:
        """The fraction of each voxel that a solid fills, 0 … 1, from the signed distance to it in mm."""
        return np.clip(0.5 - distance * np.float32(1 / (width or self.blur)), 0, 1)

    def paint(
        self,
        where: Region,
        distance: np.ndarray,
        hu: float | np.ndarray,
        label: int | None = None,
        within: np.ndarray | None = None,
        movable: bool = False,
    ) -> None:
        """Paint a solid over what is there.

        Args:
            where: The voxels that ``distance`` covers.
            distance: Signed distance to the solid in mm.
            hu: Its HU, one value or one per voxel of ``where``.
            label: The label of its voxels; ``None`` keeps the existing ones.
            within: Factor 0 … 1 per voxel (or a mask) that limits the solid.
            movable: Marks the solid as a viscus.
        """
        share = self.cover(distance)
        if within is not None:
            share = share * within
        below = self.hu[where]
        below += share * (np.asarray(hu, np.float32) - below)
        if label is not None or movable:
            solid = share > 0.5
            if label is not None:
                self.labels[where][solid] = label
            self.movable[where][solid] = movable

    def clear_around(self, where: Region, distance: np.ndarray, gap: float, hu: float | np.ndarray) -> None:
        """Paint a layer of fat, ``gap`` mm wide, between a solid and the viscera that touch it."""
        self.paint(where, distance - np.float32(gap), hu, label=0, within=self.movable[where])


def _largest_step(axis: np.ndarray) -> float:
    """Largest change of a coordinate to the next block, summed over the three axes."""
    steps = [float(np.abs(np.diff(axis, axis=i)).max()) for i in range(3) if axis.shape[i] > 1]
    return sum(steps)


def _spans(hit: np.ndarray, first: int, block: int, end: int) -> list[slice]:
    """For each row of ``hit`` (k, blocks), the voxels from its first to its last block; an empty slice for no block."""
    some = np.asarray(hit.any(axis=1))
    starts = hit.argmax(axis=1)
    stops = hit.shape[1] - hit[:, ::-1].argmax(axis=1)
    return [
        slice(int(first + start) * block, min(int(first + stop) * block, end)) if seen else slice(0, 0)
        for start, stop, seen in zip(starts, stops, some, strict=True)
    ]
