"""Whether a CT's values look like Hounsfield units."""

from __future__ import annotations

import numpy as np

#: A CT in Hounsfield units has voxels below: air around the patient or in the bowel.
AIR_HU = -200
#: Fat, water and soft tissue lie between, and make up at least this part of the voxels.
SOFT_TISSUE_HU, LEAST_SOFT_TISSUE = (-200, 300), 0.005
#: Every so many-th voxel along each axis of a large CT is enough to see that.
SAMPLING, LARGE = 3, 10**6


def doubt_units(values: np.ndarray) -> str | None:
    """Why the voxels (z, y, x) of a CT are most likely not in Hounsfield units; None where they seem to be."""
    lowest = float(values.min())
    if lowest > AIR_HU:
        return f"its lowest value is {lowest:g}; a CT in HU shows air, about -1000; check how it was exported"
    step = SAMPLING if values.size > LARGE else 1
    sampled = values[::step, ::step, ::step]
    low, high = SOFT_TISSUE_HU
    share = float(((sampled >= low) & (sampled <= high)).mean())
    if share < LEAST_SOFT_TISSUE:
        return (
            f"{share:.1%} of its voxels lie between {low} and {high}; in HU that is where fat and soft tissue "
            "lie; check how it was exported"
        )
    return None
