"""Read CTs from DICOM: a folder of slices, or one multi-frame file (enhanced CT).

A series whose slices do not form an orthogonal, evenly spaced stack is rejected, since no regular voxel grid describes
it. So is a folder with a file among the slices that is not one: a slice lost at the end of a stack leaves no gap that
would reveal it.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from dlunet.errors import UserError
from dlunet.volumes.dicom.folder import is_meant_as_series, is_series, read_headers, volumes_beside
from dlunet.volumes.dicom.frames import Frame, frames_of
from dlunet.volumes.dicom.headers import is_dicom, read_header
from dlunet.volumes.dicom.pixels import read_pixels
from dlunet.volumes.dicom.stack import check_alike, distance_of
from dlunet.volumes.geometry import Geometry

__all__ = ["is_dicom", "is_meant_as_series", "is_series", "read"]


def read(path: Path) -> tuple[np.ndarray, Geometry, tuple[str, ...]]:
    """Read a CT from a folder with the slices of one series, or from one file.

    Returns:
        The voxels (z, y, x) in HU, float32; the grid; and warnings.

    Raises:
        UserError: The folder contains no series or several, a file cannot be read or is not CT, or the slices do not
            form an orthogonal, evenly spaced stack.
    """
    headers = read_headers(path) if path.is_dir() else {path: read_header(path)}
    frames = [frame for at, header in headers.items() for frame in frames_of(at, header)]
    frames.sort(key=lambda frame: frame.height)
    check_alike(frames)
    distance = distance_of(path, frames)
    first = frames[0]
    try:
        matrix = first.direction * (*first.spacing, distance)
        grid = Geometry.of_affine((first.shape[1], first.shape[0], len(frames)), matrix, first.position.tolist())
    except ValueError as error:
        raise UserError(f"{path}: found {error}; expected rows and columns at right angles; export it again") from None
    return read_pixels(frames, headers), grid, tuple(_warnings(path, frames))


def _warnings(path: Path, frames: list[Frame]) -> Iterator[str]:
    # Dual-energy scanners also store maps of other quantities than HU as CTs.
    for unit in sorted({frame.unit for frame in frames} - {"HU"}):
        yield f"its header states values in {unit}, not in HU"
    beside = volumes_beside(path) if path.is_dir() else []
    if beside:
        yield f"{beside[0].name} lies beside the slices and is ignored; put volumes and series into separate folders"
