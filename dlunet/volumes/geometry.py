"""Where a voxel array sits in the patient, and how its axes run."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import SimpleITK as sitk

#: The axis order every case is brought to: x grows to the patient's left, y to posterior, z to superior.
CANONICAL_ORIENTATION = "LPS"


@dataclass(frozen=True)
class Geometry:
    """A voxel grid in patient space, in the file's own order x, y, z (only this package knows that order).

    Attributes:
        size: Voxels along x, y, z.
        spacing: Voxel size along x, y, z in mm.
        origin: Centre of the first voxel in mm (LPS).
        direction: Row-major 3×3 matrix whose columns are the axes' directions (LPS).
    """

    size: tuple[int, ...]
    spacing: tuple[float, ...]
    origin: tuple[float, ...]
    direction: tuple[float, ...]

    @classmethod
    def of(cls, image: sitk.Image) -> Geometry:
        """The geometry of a SimpleITK image."""
        return cls(image.GetSize(), image.GetSpacing(), image.GetOrigin(), image.GetDirection())

    def apply_to(self, image: sitk.Image) -> sitk.Image:
        """Set this geometry on an image of the same size and return it."""
        image.SetSpacing(self.spacing)
        image.SetOrigin(self.origin)
        image.SetDirection(self.direction)
        return image

    @property
    def canonical_spacing(self) -> tuple[float, float, float]:
        """Voxel size (z, y, x) in mm, once in canonical orientation."""
        order, _ = self._turns()
        z, y, x = (self.spacing[2 - axis] for axis in order)
        return z, y, x

    def to_canonical(self, array: np.ndarray) -> np.ndarray:
        """A view of an array of the file's axes, (z, y, x), in the nearest canonical orientation."""
        order, flipped = self._turns()
        return np.flip(array.transpose(order), flipped)

    def from_canonical(self, array: np.ndarray) -> np.ndarray:
        """The inverse of :meth:`to_canonical`."""
        order, flipped = self._turns()
        return np.flip(array, flipped).transpose(np.argsort(order))

    def _turns(self) -> tuple[list[int], tuple[int, ...]]:
        """Which array axis becomes the canonical z, y and x, and which of those are flipped then."""
        orient = sitk.DICOMOrientImageFilter()
        orient.SetDesiredCoordinateOrientation(CANONICAL_ORIENTATION)
        orient.Execute(self.apply_to(sitk.Image([1, 1, 1], sitk.sitkUInt8)))
        order = [2 - axis for axis in reversed(orient.GetPermuteOrder())]
        return order, tuple(2 - axis for axis, flipped in enumerate(orient.GetFlipAxes()) if flipped)

    def same_grid(self, other: Geometry, tolerance: float = 1e-3) -> bool:
        """Whether both describe the same voxels: equal sizes, and corners that agree within ``tolerance`` voxels."""
        if self.size != other.size:
            return False
        corners = np.abs(self._corners() - other._corners()).max()
        return bool(corners <= tolerance * min(self.spacing))

    def _corners(self) -> np.ndarray:
        matrix = np.array(self.direction).reshape(3, 3) * np.array(self.spacing)
        last = np.array(self.size) - 1
        index = np.array([[x, y, z] for x in (0, last[0]) for y in (0, last[1]) for z in (0, last[2])])
        return index @ matrix.T + np.array(self.origin)

    @property
    def orientation(self) -> str:
        """Three letters for the directions in which x, y and z grow, such as ``LPS``."""
        return sitk.DICOMOrientImageFilter.GetOrientationFromDirectionCosines(self.direction)
