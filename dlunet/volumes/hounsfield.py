"""Whether a CT's values look like Hounsfield units."""

from __future__ import annotations

import numpy as np

#: A CT in Hounsfield units has voxels below this: air around the patient or in the bowel.
AIR_HU = -200
#: Range of fat, water and soft tissue, which make up at least this fraction of the voxels.
SOFT_TISSUE_HU, LEAST_SOFT_TISSUE = (-200, 300), 0.005
#: No metal exceeds this value, even in a CT with an extended scale.
HIGHEST_HU = 32767
#: Of the voxels above lung, at most this fraction is denser than soft tissue. Stored values with an offset of 1024
#: exceed it, while the padding around them looks like air.
LUNG_HU, MOST_DENSE = -500, 0.35
#: In a CT with more voxels than LARGE, every n-th voxel along each axis is enough for these checks.
SAMPLING, LARGE = 3, 10**6


def warning_of_units(values: np.ndarray) -> str | None:
    """Why the voxels (z, y, x) of a CT are probably not in Hounsfield units; None if they look like it."""
    reason = _reason(values)
    return f"{reason}; check how it was exported" if reason else None


def _reason(values: np.ndarray) -> str | None:
    lowest, highest = float(values.min()), float(values.max())
    if lowest > AIR_HU:
        return f"its lowest value is {lowest:g}; a CT in HU shows air, about -1000"
    if highest > HIGHEST_HU:
        return f"its highest value is {highest:g}; in HU, metal is at most about 30000"
    step = SAMPLING if values.size > LARGE else 1
    sampled = values[::step, ::step, ::step]
    low, high = SOFT_TISSUE_HU
    share = float(((sampled >= low) & (sampled <= high)).mean())
    if share < LEAST_SOFT_TISSUE:
        return f"{share:.1%} of its voxels lie between {low} and {high}, the range of fat and soft tissue in HU"
    dense = float((sampled > high).sum() / max(1, (sampled > LUNG_HU).sum()))
    if dense > MOST_DENSE:
        return (
            f"{dense:.0%} of all voxels outside air lie above {high}; in HU that is bone, and most of a patient lies "
            "below"
        )
    return None
