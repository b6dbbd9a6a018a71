"""A CT as a folder of DICOM slices.

Every slice is read on its own: its rescale slope and intercept are its own, and so are its position and orientation,
of which SimpleITK's reader of series uses those of the first slice alone. A series whose slices do not form an upright
stack of even distances is refused, since no volume with a voxel size describes it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from dlunet.errors import UserError

#: Distances between slices may differ by this part of a slice: positions are rounded in headers.
DISTANCE_TOLERANCE = 0.01
#: Slices may be shifted against each other by this part of a voxel; a tilted gantry shifts them by many.
SHIFT_TOLERANCE = 0.1

MODALITY, THICKNESS = "0008|0060", "0018|0050"


@dataclass(frozen=True)
class _Slice:
    """One slice: its pixels (y, x) in HU, and where it lies, x, y, z in mm (LPS)."""

    path: Path
    pixels: np.ndarray
    spacing: tuple[float, float]
    origin: np.ndarray
    direction: np.ndarray
    thickness: float | None

    @property
    def height(self) -> float:
        """Where the slice lies along its normal, in mm."""
        return float(self.direction[:, 2] @ self.origin)


def is_series(folder: Path) -> bool:
    """Whether a folder holds DICOM files."""
    return folder.is_dir() and any(is_slice(path) for path in folder.iterdir() if not path.name.startswith("."))


def read_series(folder: Path) -> sitk.Image:
    """Read a CT series.

    Raises:
        UserError: The folder holds no series or several, a slice cannot be read or is not CT, or the slices do not form
            an upright stack of even distances.
    """
    slices = sorted((_read_slice(path) for path in _files(folder)), key=lambda each: each.height)
    _check_alike(slices)
    distance = _distance(folder, slices)
    first = slices[0]
    image = sitk.GetImageFromArray(np.stack([each.pixels for each in slices]))
    image.SetSpacing((*first.spacing, distance))
    image.SetOrigin(first.origin.tolist())
    image.SetDirection(first.direction.ravel().tolist())
    return image


def _is_dicom(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(132)[128:] == b"DICM"


def _files(folder: Path) -> list[Path]:
    """The slices of the one series in a folder, all of which must be readable."""
    reader = sitk.ImageSeriesReader
    series = {one: reader.GetGDCMSeriesFileNames(str(folder), one) for one in reader.GetGDCMSeriesIDs(str(folder))}
    if len(series) > 1:
        listed = ", ".join(f"{one} ({len(names)} slices)" for one, names in series.items())
        raise UserError(f"{folder}: holds {len(series)} series: {listed}; expected one; give each a folder of its own")
    found = {Path(name) for names in series.values() for name in names}
    # GDCM passes over what it cannot read. At the end of a stack nobody would miss it.
    damaged = [path for path in sorted(folder.iterdir()) if path not in found and is_slice(path)]
    if damaged:
        raise UserError(f"{damaged[0]}: cannot be read as DICOM; expected a whole slice; copy it again, or take it out")
    if not found:
        raise UserError(f"{folder}: holds no DICOM series; expected a volume file, or a folder of the slices of one CT")
    return sorted(found)


def is_slice(path: Path) -> bool:
    """Whether a file is one of DICOM, by its first bytes."""
    return path.is_file() and path.name != "DICOMDIR" and _is_dicom(path)


def _read_slice(path: Path) -> _Slice:
    try:
        image = sitk.ReadImage(str(path), imageIO="GDCMImageIO")
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1].strip()
        raise UserError(f"{path}: cannot be read as DICOM ({reason}); expected a whole slice; copy it again") from None
    modality = image.GetMetaData(MODALITY).strip() if image.HasMetaDataKey(MODALITY) else "CT"
    if modality != "CT":
        raise UserError(f"{path}: found modality {modality}; expected CT, in Hounsfield units; leave the series out")
    if image.GetDimension() != 3 or image.GetSize()[2] != 1 or image.GetNumberOfComponentsPerPixel() != 1:
        raise UserError(
            f"{path}: found {'×'.join(map(str, image.GetSize()))} pixels with {image.GetNumberOfComponentsPerPixel()} "
            "values each; expected one slice a file, one value a pixel; convert the series to NIfTI"
        )
    x, y, _ = image.GetSpacing()
    return _Slice(
        path,
        sitk.GetArrayFromImage(image)[0].astype(np.float32),
        (x, y),
        np.array(image.GetOrigin()),
        np.array(image.GetDirection()).reshape(3, 3),
        _thickness(image),
    )


def _thickness(image: sitk.Image) -> float | None:
    try:
        return float(image.GetMetaData(THICKNESS))
    except (RuntimeError, ValueError):
        return None


def _check_alike(slices: list[_Slice]) -> None:
    first = slices[0]
    for other in slices[1:]:
        if other.pixels.shape != first.pixels.shape or not np.allclose(other.spacing, first.spacing, rtol=1e-4):
            raise UserError(
                f"{other.path}: found {_size(other)}; expected {_size(first)}, as in {first.path.name}; one of them "
                "belongs to another series; take it out"
            )
        if not np.allclose(other.direction, first.direction, atol=1e-4):
            raise UserError(
                f"{other.path}: is turned against {first.path.name}; expected parallel slices; take out localizers and "
                "reformatted slices"
            )


def _distance(folder: Path, slices: list[_Slice]) -> float:
    """The distance between slices in mm, after checking that they are stacked evenly and upright."""
    first = slices[0]
    if len(slices) == 1:
        if not first.thickness:
            raise UserError(f"{folder}: found one slice of unknown thickness; expected more, or a slice thickness")
        return first.thickness
    steps = np.diff([each.height for each in slices])
    step = float(np.median(steps))
    uneven = np.flatnonzero(np.abs(steps - step) > DISTANCE_TOLERANCE * step)
    if len(uneven) or step <= 0:
        at = int(uneven[0]) if len(uneven) else 0
        raise UserError(
            f"{folder}: found {steps[at]:.4g} mm between {slices[at].path.name} and {slices[at + 1].path.name}; "
            f"expected {step:.4g} mm, as between the others; slices are missing or there twice; export the series again"
        )
    along = first.direction[:, 2]
    offsets = np.array([each.origin - first.origin for each in slices])
    shift = float(np.linalg.norm(offsets - np.outer(offsets @ along, along), axis=1).max())
    if shift > SHIFT_TOLERANCE * min(first.spacing):
        tilt = np.degrees(np.arctan2(shift, slices[-1].height - first.height))
        raise UserError(
            f"{folder}: its slices are shifted against each other by up to {shift:.4g} mm, as with a gantry tilted by "
            f"{tilt:.3g}°; expected a stack at right angles to its slices; resample the series to one, then give that"
        )
    return step


def _size(one: _Slice) -> str:
    (rows, columns), (x, y) = one.pixels.shape, one.spacing
    return f"{columns}×{rows} pixels of {x:.4g}×{y:.4g} mm"
