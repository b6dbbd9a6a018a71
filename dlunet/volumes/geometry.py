"""Voxel grids in patient space: position, spacing and axis directions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
import SimpleITK as sitk

#: The orientation every case is converted to: x points to the patient's left, y to posterior, z to superior.
CANONICAL_ORIENTATION = "LPS"

#: Two grids are the same if no voxel position differs by more than this fraction of a voxel.
SAME_VOXELS = 1e-3
#: Two grids are equal up to rounding if no voxel position differs by more than this fraction of a voxel.
ROUNDING_VOXELS = 0.1
#: How much header rounding may change the voxel size, and shift an entire volume, in mm.
ROUNDING_SPACING_MM, ROUNDING_SHIFT_MM = 1e-4, 4e-3


@dataclass(frozen=True)
class Geometry:
    """A voxel grid in patient space, in the file's axis order x, y, z (used only inside this package).

    Attributes:
        size: Voxels along x, y, z.
        spacing: Voxel size along x, y, z in mm.
        origin: Centre of the first voxel in mm (LPS).
        direction: Row-major 3×3 matrix whose columns are the orthogonal axis directions (LPS).
    """

    size: tuple[int, ...]
    spacing: tuple[float, ...]
    origin: tuple[float, ...]
    direction: tuple[float, ...]

    @classmethod
    def of_affine(cls, size: Sequence[int], matrix: np.ndarray, origin: Sequence[float]) -> Geometry:
        """The grid whose voxel (x, y, z) is at ``matrix @ (x, y, z) + origin``, in mm (LPS).

        Axes that are slightly non-orthogonal due to header rounding are replaced by the nearest orthogonal ones; the
        centre of the volume stays fixed.

        Raises:
            ValueError: An axis is not finite or has no length, or a voxel would move by more than
                :data:`ROUNDING_VOXELS`.
        """
        spacing = np.linalg.norm(matrix, axis=0)
        if not (np.isfinite(matrix).all() and np.isfinite(origin).all() and (spacing > 0).all()):
            raise ValueError("axes that are not finite or have no length")
        left, _, right = np.linalg.svd(matrix / spacing)
        direction = left @ right
        shear = matrix - direction * spacing
        middle = (np.array(size) - 1) / 2
        moved = (_corners(size) - middle) @ shear.T
        if np.abs(moved @ direction / spacing).max() > ROUNDING_VOXELS:
            off = np.linalg.norm(moved, axis=1).max()
            raise ValueError(f"axes that are not at right angles (sheared: voxels lie up to {off:.3g} mm off)")
        return cls(
            tuple(int(n) for n in size),
            tuple(spacing.tolist()),
            tuple((origin + shear @ middle).tolist()),
            tuple(direction.ravel().tolist()),
        )

    def apply_to(self, image: sitk.Image) -> sitk.Image:
        """Set this geometry on an image of the same size and return it."""
        image.SetSpacing(self.spacing)
        image.SetOrigin(self.origin)
        image.SetDirection(self.direction)
        return image

    @property
    def canonical_spacing(self) -> tuple[float, float, float]:
        """Voxel size (z, y, x) in mm in canonical orientation."""
        x, y, z = self.canonical.spacing
        return z, y, x

    @property
    def canonical(self) -> Geometry:
        """The same voxels with axes permuted and flipped to the nearest canonical orientation."""
        order, flipped = self._turns()
        axes = [2 - axis for axis in reversed(order)]
        matrix, origin = self._matrix[:, axes], np.array(self.origin)
        size = [self.size[axis] for axis in axes]
        for axis in (2 - axis for axis in flipped):
            origin = origin + matrix[:, axis] * (size[axis] - 1)
            matrix[:, axis] *= -1
        return Geometry.of_affine(size, matrix, origin.tolist())

    def to_canonical(self, array: np.ndarray) -> np.ndarray:
        """A view of an array in file orientation, (z, y, x), in the nearest canonical orientation."""
        order, flipped = self._turns()
        return np.flip(array.transpose(order), flipped)

    def from_canonical(self, array: np.ndarray) -> np.ndarray:
        """The inverse of :meth:`to_canonical`."""
        order, flipped = self._turns()
        return np.flip(array, flipped).transpose(np.argsort(order))

    def _turns(self) -> tuple[list[int], tuple[int, ...]]:
        """The array axes that become canonical z, y and x, and which of those are then flipped."""
        orient = sitk.DICOMOrientImageFilter()
        orient.SetDesiredCoordinateOrientation(CANONICAL_ORIENTATION)
        orient.Execute(self.apply_to(sitk.Image([1, 1, 1], sitk.sitkUInt8)))
        order = [2 - axis for axis in reversed(orient.GetPermuteOrder())]
        return order, tuple(2 - axis for axis, flipped in enumerate(orient.GetFlipAxes()) if flipped)

    def same_grid(self, other: Geometry) -> bool:
        """Whether both grids have the same voxels, regardless of the stored axis order.

        In canonical orientation, their sizes must be equal and their corners agree within :data:`SAME_VOXELS`.
        """
        ours, theirs = self.canonical, other.canonical
        return ours.size == theirs.size and ours.voxels_apart(theirs) <= SAME_VOXELS

    def fits(self, other: Geometry) -> bool:
        """Whether labels on this grid match a CT on the other grid, up to header rounding.

        Software rounds origins and directions differently. If only rounding differs, the closest pair of corners
        coincides, and the furthest pair is at most :data:`ROUNDING_VOXELS` apart. A shift of the entire volume by
        0.005 mm is not rounding.
        """
        ours, theirs = self.canonical, other.canonical
        if ours.size != theirs.size or not np.allclose(ours.spacing, theirs.spacing, rtol=0, atol=ROUNDING_SPACING_MM):
            return False
        nearest = np.linalg.norm(ours._corner_points - theirs._corner_points, axis=1).min()
        return self.same_grid(other) or (
            bool(nearest <= ROUNDING_SHIFT_MM) and ours.voxels_apart(theirs) <= ROUNDING_VOXELS
        )

    def voxels_apart(self, other: Geometry) -> float:
        """Largest displacement of a voxel between two grids of the same size, along any axis, in voxels."""
        apart = self._corner_points - other._corner_points
        return float(np.abs(apart @ np.array(self.direction).reshape(3, 3) / self.spacing).max())

    def differences(self, other: Geometry, its: str = "expected") -> str:
        """The values in which two grids differ: ``size 512×512×129 (expected 512×512×130)``, …, this grid's first.

        Grids with different stored axis orders are compared in canonical orientation.

        Args:
            other: The other grid.
            its: Label of the other grid's values.
        """
        ours, theirs = self, other
        if self.orientation != other.orientation:
            ours, theirs = self.canonical, other.canonical
        parts = [
            ("size", ours.size, theirs.size, "×"),
            ("spacing in mm", ours.spacing, theirs.spacing, "×"),
            ("origin in mm", ours.origin, theirs.origin, ", "),
            ("directions", ours.direction, theirs.direction, ", "),
        ]
        return "; ".join(f"{name} {found} ({its} {others})" for name, found, others in _different_parts(parts))

    @property
    def _matrix(self) -> np.ndarray:
        return np.array(self.direction).reshape(3, 3) * self.spacing

    @property
    def _corner_points(self) -> np.ndarray:
        return _corners(self.size) @ self._matrix.T + self.origin

    @property
    def orientation(self) -> str:
        """Three letters for the directions in which x, y and z increase, such as ``LPS``."""
        return sitk.DICOMOrientImageFilter.GetOrientationFromDirectionCosines(self.direction)


def _corners(size: Sequence[int]) -> np.ndarray:
    """Indices (8, 3) of the corner voxels, as x, y, z."""
    return np.array(list(product(*((0, n - 1) for n in size))))


def _different_parts(
    parts: Sequence[tuple[str, Sequence[float], Sequence[float], str]],
) -> Iterator[tuple[str, str, str]]:
    """Name and both values of each part that differs, with enough digits to show the difference."""
    for name, ours, theirs, separator in parts:
        for digits in range(4, 8):
            one, other = (separator.join(f"{value:.{digits}g}" for value in part) for part in (ours, theirs))
            if one != other and not np.allclose(ours, theirs, rtol=10.0**-digits, atol=10.0**-digits):
                yield name, one, other
                break
