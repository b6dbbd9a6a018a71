"""The plan: spacing, patch size and intensities that cases are converted to. It is stored with the weights."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, astuple, dataclass
from typing import Any


@dataclass(frozen=True)
class Intensity:
    """Statistics of the foreground voxels of the labelled cases, in HU.

    Attributes:
        lower: Percentile 0.5, below which values are clipped.
        upper: Percentile 99.5, above which values are clipped.
        mean: Subtracted after clipping.
        std: Divisor after that.
    """

    lower: float
    upper: float
    mean: float
    std: float


@dataclass(frozen=True)
class Plan:
    """How cases are prepared and cropped.

    Attributes:
        spacing: Voxel size (z, y, x) in mm.
        patch_size: Voxels (z, y, x) of a network's input.
        intensity: Clipping and normalisation.
    """

    spacing: tuple[float, float, float]
    patch_size: tuple[int, int, int]
    intensity: Intensity

    def is_close(self, other: Plan) -> bool:
        """Whether another plan is the same, to 0.1 HU."""
        pairs = zip(astuple(self.intensity), astuple(other.intensity), strict=True)
        same_grid = (self.spacing, self.patch_size) == (other.spacing, other.patch_size)
        return same_grid and all(math.isclose(one, another, abs_tol=0.1) for one, another in pairs)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as stored in a checkpoint."""
        values = asdict(self)
        return {**values, "spacing": list(self.spacing), "patch_size": list(self.patch_size)}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Plan:
        """The inverse of :meth:`to_dict`."""
        return cls.of(values["spacing"], values["patch_size"], Intensity(**values["intensity"]))

    @classmethod
    def of(cls, spacing: Sequence[float], patch_size: Sequence[int], intensity: Intensity) -> Plan:
        """A plan from any sequences of three values."""
        (z, y, x), (pz, py, px) = map(float, spacing), map(int, patch_size)
        return cls((z, y, x), (pz, py, px), intensity)
