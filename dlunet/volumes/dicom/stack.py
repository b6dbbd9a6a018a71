"""Check that slices form an orthogonal, evenly spaced stack."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import NoReturn

import numpy as np

from dlunet.errors import UserError
from dlunet.volumes.dicom.frames import Frame

#: Distances between slices may differ by this fraction, or by the rounding of the slice positions.
DISTANCE_TOLERANCE = 0.01
#: However little distances differ, no slice may be further off than this fraction of the distance.
DRIFT_TOLERANCE = 0.1
#: Slices may be shifted in-plane by this fraction of a voxel; a tilted gantry shifts them by many voxels.
SHIFT_TOLERANCE = 0.1
#: However coarsely positions are rounded, slices further off than this fraction of the distance are not evenly spaced.
ROUNDING_LIMIT = 0.3

#: If more distances than this differ, slices are not missing but spaced differently.
MOST_GAPS = 3

#: Maximum number of acquisitions listed in a message.
MOST_LISTED = 3


def check_alike(frames: list[Frame]) -> None:
    """Check that slices have the same shape and pixel size and are parallel.

    Raises:
        UserError: They differ, or are not parallel.
    """
    first = frames[0]
    for other in frames[1:]:
        if other.shape != first.shape or not np.allclose(other.spacing, first.spacing, rtol=1e-4):
            raise UserError(
                f"{other.path}: found {_size(other)}; expected {_size(first)}, as in {first.name}; one of them belongs "
                "to another series; remove it"
            )
        if not np.allclose(other.direction, first.direction, atol=1e-4):
            raise UserError(
                f"{other.path}: is not parallel to {first.name}; expected parallel slices; remove localizers and "
                "reformatted slices"
            )


def distance_of(path: Path, frames: list[Frame]) -> float:
    """The distance between slices in mm, after checking that their stack is even and orthogonal.

    Raises:
        UserError: It is not, or there is only one slice, of unknown thickness.
    """
    first, last = frames[0], frames[-1]
    if len(frames) == 1:
        if not first.thickness:
            raise UserError(f"{path}: found one slice of unknown thickness; expected several, or a slice thickness")
        return first.thickness
    heights = np.array([frame.height for frame in frames])
    distance = float(heights[-1] - heights[0]) / (len(frames) - 1)
    rounding, across = (_rounding(frame.decimals[k] for frame in frames) for k in (0, 1))
    if not _is_even(heights, distance, rounding):
        _fail_as_uneven(path, frames, np.diff(heights))
    along = first.direction[:, 2]
    offsets = np.array([frame.position - first.position for frame in frames])
    shift = float(np.linalg.norm(offsets - np.outer(offsets @ along, along), axis=1).max())
    if shift > SHIFT_TOLERANCE * min(first.spacing) + across:
        tilt = np.degrees(np.arctan2(shift, last.height - first.height))
        raise UserError(
            f"{path}: its slices are shifted against each other by up to {shift:.4g} mm, as with a gantry tilted by "
            f"{tilt:.3g}°; expected an orthogonal stack; resample the series to one and use that"
        )
    return distance


def _rounding(decimals: Iterable[int]) -> float:
    """Possible rounding of positions in mm. Positions in whole mm are assumed to be exact."""
    most = max(decimals)
    return 10.0**-most if most > 0 else 0.0


def _fail_as_uneven(path: Path, frames: list[Frame], steps: np.ndarray) -> NoReturn:
    """Raise an error that names slices at the same position or, without any, a deviating distance."""
    apart = steps[steps > DISTANCE_TOLERANCE * steps.max(initial=0)]
    shared = np.flatnonzero(steps <= DISTANCE_TOLERANCE * (np.median(apart) if len(apart) else 1))
    if len(shared):
        at, pairs = int(shared[0]), f"pair{'s' * (len(shared) > 1)}"
        acquisitions = sorted({frame.acquisition for frame in frames if frame.acquisition})
        named = f" (acquisitions {', '.join(acquisitions[:MOST_LISTED])})" if len(acquisitions) > 1 else ""
        raise UserError(
            f"{path}: found 0 mm between {frames[at].name} and {frames[at + 1].name}, as between {len(shared)} "
            f"{pairs} of its {len(frames)} slices{named}; expected one slice per position; slices are duplicated: "
            "remove copies, and put each acquisition into its own folder"
        )
    usual = float(np.median(steps))
    at = int(np.argmax(np.abs(steps - usual)))
    others = int((np.abs(steps - usual) > ROUNDING_LIMIT * usual).sum())
    if others > MOST_GAPS:
        raise UserError(
            f"{path}: found {others} of {len(steps)} distances between slices that are not {usual:.4g} mm, such as "
            f"{steps[at]:.4g} mm after {frames[at].name}; expected equal distances; put each region with "
            "another distance into its own folder, or export the series again"
        )
    raise UserError(
        f"{path}: found {steps[at]:.4g} mm between {frames[at].name} and {frames[at + 1].name}; expected "
        f"{usual:.4g} mm, as between the others; slices are missing or duplicated; export the series again"
    )


def _is_even(heights: np.ndarray, distance: float, rounding: float) -> bool:
    """Whether slices are evenly spaced, up to a small fraction of the distance or the rounding of their positions."""
    off = np.abs(heights - heights[0] - distance * np.arange(len(heights))).max()
    if (np.abs(np.diff(heights) - distance) <= DISTANCE_TOLERANCE * distance).all():
        return bool(distance > 0 and off <= max(DRIFT_TOLERANCE * distance, rounding))
    return bool(off <= min(rounding, ROUNDING_LIMIT * distance))


def _size(one: Frame) -> str:
    (rows, columns), (x, y) = one.shape, one.spacing
    return f"{columns}×{rows} pixels of {x:.4g}×{y:.4g} mm"
