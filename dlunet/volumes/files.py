"""Read and write CTs and label maps; arrays are (z, y, x) in canonical orientation."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from dlunet.errors import NotReadable, UserError, WriteError, cannot_be_opened, few
from dlunet.files import check_name, whole
from dlunet.volumes import dicom, itk, nifti
from dlunet.volumes.dicom import is_dicom, is_series
from dlunet.volumes.geometry import Geometry
from dlunet.volumes.hounsfield import warning_of_units
from dlunet.volumes.messages import times
from dlunet.volumes.names import OTHER_SUFFIXES, SUFFIXES

#: Values of a scaled label map may differ from whole numbers by this much.
LABEL_ROUNDING = 0.01

#: Limits of a CT's longest edge in mm: from a small phantom to more than a complete patient.
WIDTH_LIMITS = (1.0, 3000.0)


@dataclass(frozen=True)
class Volume:
    """A CT or label map in canonical orientation.

    Attributes:
        array: Voxels, (z, y, x): z points to superior, y to posterior, x to the patient's left.
        spacing: Voxel size (z, y, x) in mm.
        stored: The grid of the source file, so that a result can be written back on it.
        warnings: What looks wrong: a header without an orientation, values that are hardly HU.
    """

    array: np.ndarray
    spacing: tuple[float, float, float]
    stored: Geometry
    warnings: tuple[str, ...] = ()


def check_grid(path: Path, label_map: Volume, other_path: Path, other: Volume, what_to_do: str) -> None:
    """Check that a label map lies on the grid of another volume, up to header rounding.

    Raises:
        UserError: It does not; the message names both files and ends with ``what_to_do``.
    """
    if not label_map.stored.fits(other.stored):
        raise UserError(
            f"{path}: geometry (size, spacing, orientation) differs from {other_path}: found "
            f"{label_map.stored.differences(other.stored)}; {what_to_do}"
        )


def count_labels(labels: np.ndarray, number: int) -> np.ndarray:
    """How often 0, …, ``number`` − 1 occur in a label map (z, y, x).

    It is counted slice by slice: NumPy's bincount takes eight bytes per voxel.
    """
    return np.sum([np.bincount(axial.ravel(), minlength=number) for axial in labels], axis=0)


def list_volumes(folder: Path) -> list[Path]:
    """The volumes in a folder, sorted by name: files, and folders of DICOM slices.

    Hidden files, such as partially written ones, are skipped.

    Raises:
        UserError: The folder is missing.
    """
    return [path for path in _entries(folder) if _is_volume(path)]


def loose_slices(folder: Path) -> list[Path]:
    """The DICOM files directly in a folder of volumes, where each series should have a folder.

    Raises:
        UserError: The folder is missing.
    """
    return [path for path in _entries(folder) if not path.name.lower().endswith(SUFFIXES) and _is_slice(path)]


def unreadable_volumes(folder: Path) -> dict[Path, str]:
    """A message for each entry of a folder that looks like a volume but is not read as one.

    Unrelated files, such as texts and tables, are ignored; loose DICOM files share one message.

    Raises:
        UserError: The folder is missing.
    """
    slices = dict.fromkeys(loose_slices(folder))
    others = [path for path in _entries(folder) if path not in slices and not _is_volume(path)]
    messages = {path: _why_unreadable(path) for path in others}
    if slices:
        first = next(iter(slices))
        messages[first] = f"{first}: is one of {len(slices)} DICOM files here; expected a folder for each series"
    return {path: message for path, message in messages.items() if message}


def is_meant_as_volume(path: Path) -> bool:
    """Whether an entry that is not read as a volume is meant as one, by its name, and not a folder of other files."""
    return not _is_slice(path) and (not path.is_dir() or dicom.is_meant_as_series(path))


def read_ct(path: Path | str, keep_integers: bool = False) -> Volume:
    """Read a CT in Hounsfield units from a file or a folder of DICOM slices.

    Args:
        path: The file or folder.
        keep_integers: Keep integer voxels of at most 16 bits: a read-only view of what was read, in half the memory or
            less. Other voxels, and by default all, are converted to float32.

    Raises:
        UserError: The file is missing, unreadable, not a 3-D scalar volume, or contains values that are not finite.
    """
    values, stored, warnings = _read_canonical(Path(path))
    warning = warning_of_units(values)
    warnings += (warning,) if warning else ()
    if not (keep_integers and values.dtype.kind in "iu" and values.dtype.itemsize <= 2):
        values = values.astype(np.float32, order="C", copy=False)
    return Volume(values, stored.canonical_spacing, stored, warnings)


def read_labels(path: Path | str, num_classes: int | None = None) -> Volume:
    """Read a label map as uint8.

    Args:
        path: The file.
        num_classes: If given, values must be in 0 … num_classes − 1.

    Raises:
        UserError: See :func:`read_ct`; or a value is fractional, negative or too large.
    """
    values, stored, warnings = _read_canonical(Path(path))
    highest = 255 if num_classes is None else num_classes - 1
    whole = np.rint(values) if values.dtype.kind == "f" else values
    labels = whole.astype(np.uint8, order="C")
    wrong = (whole != labels) | (labels > highest)
    if values.dtype.kind == "f":
        wrong |= np.abs(values - whole) > LABEL_ROUNDING
    if wrong.any():
        found, is_whole = values[wrong], bool((np.abs(values - whole) <= LABEL_ROUNDING).all())
        advice = "use the original label map, or resample it with nearest-neighbour interpolation"
        if is_whole:
            advice = "name all classes (data.names, dataset.json), or renumber the labels without gaps"
        named = few([f"{value:g}" for value in np.unique(found)]) if is_whole else f"{found.flat[0]:g}"
        raise UserError(f"{path}: found the label value {named}; expected whole numbers from 0 to {highest}; {advice}")
    return Volume(labels, stored.canonical_spacing, stored, warnings)


def write_labels(labels: np.ndarray, path: Path, stored: Geometry) -> None:
    """Write canonical labels (z, y, x) as uint8 on the grid of their CT's source file.

    Raises:
        UserError: See :func:`write_image`.
    """
    image = sitk.GetImageFromArray(stored.from_canonical(labels).astype(np.uint8, copy=False))
    write_image(stored.apply_to(image), path)


def write_image(image: sitk.Image, path: Path) -> None:
    """Write a ``.nii.gz`` atomically.

    Raises:
        WriteError: The folder cannot be written.
        UserError: The file name cannot be used.
    """
    check_name(path)
    with whole(path, ".nii.gz") as temporary:  # ITK chooses the format by the ending
        try:
            sitk.WriteImage(image, str(temporary), useCompression=True, compressionLevel=1)
        except RuntimeError as error:
            raise WriteError.of(path, itk.last_line(error)) from None


def _entries(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; expected a folder of volumes ({', '.join(SUFFIXES)}, DICOM)")
    return sorted(path for path in folder.iterdir() if not path.name.startswith("."))


def _is_slice(path: Path) -> bool:
    try:
        return is_dicom(path)
    except OSError:  # not recognisable as a CT
        return False


def _is_volume(path: Path) -> bool:
    """Whether a path is read as a volume. An inaccessible one is, so that reading it reports the error."""
    try:
        if path.is_dir():
            return is_series(path)
        return path.is_file() and path.name.lower().endswith(SUFFIXES) and _why_odd_name(path) is None
    except OSError:
        return True


def _why_odd_name(path: Path) -> str | None:
    try:
        check_name(path)
    except UserError as error:
        return str(error)
    return None


def _why_unreadable(path: Path) -> str | None:
    odd_name = _why_odd_name(path)
    if odd_name:
        return odd_name
    if path.is_dir():
        return (
            f"{path}: is a folder without DICOM slices; expected the slices of one CT directly in it; move the "
            "files up, or remove the folder"
        )
    is_link_to_folder = path.is_symlink() and not path.exists() and not path.suffix
    if path.name.lower().endswith(SUFFIXES) or is_link_to_folder:
        return f"{path}: is not a regular file (a broken link or a pipe); expected a volume; copy the file itself"
    if path.name.lower().endswith(OTHER_SUFFIXES):
        return (
            f"{path}: is not a supported format; expected {', '.join(SUFFIXES)}, or a folder of DICOM slices; convert "
            "it"
        )
    return None


def _read_canonical(path: Path) -> tuple[np.ndarray, Geometry, tuple[str, ...]]:
    """The voxels as stored, in canonical orientation; the file's grid; and warnings."""
    check_name(path)
    try:
        if not path.exists():
            raise UserError(
                f"{path}: no such file; expected a volume ({', '.join(SUFFIXES)}, or a folder of DICOM slices)"
            )
        if not path.is_file() and not path.is_dir():
            raise UserError(f"{path}: is not a file; expected a volume ({', '.join(SUFFIXES)}); give the file itself")
        values, stored, warnings = _read_stored(path)
    except OSError as error:
        raise cannot_be_opened(path, error) from None
    except NotReadable as error:
        raise UserError(f"{path}: {error}") from None
    _check_width(path, stored)
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        count = int((~np.isfinite(values)).sum())
        raise UserError(f"{path}: {count} voxels are NaN or infinite; expected finite values; repair the file")
    return stored.to_canonical(values), stored, warnings


def _read_stored(path: Path) -> tuple[np.ndarray, Geometry, tuple[str, ...]]:
    if path.is_dir() or is_dicom(path):
        return dicom.read(path)
    name = path.name.lower()
    if name.endswith((".nii", ".nii.gz")):
        return nifti.read(path)
    if not name.endswith(tuple(itk.READERS)):
        raise UserError(f"{path}: is not a supported format; expected {', '.join(SUFFIXES)}, or DICOM; convert it")
    return itk.read(path)


def _check_width(path: Path, grid: Geometry) -> None:
    width = max(n * mm for n, mm in zip(grid.size, grid.spacing, strict=True))
    least, most = WIDTH_LIMITS
    if not least <= width <= most:
        raise UserError(
            f"{path}: is {width:.3g} mm wide: found voxels of {times(grid.spacing)} mm; "
            f"expected a volume of {least:g} to {most:g} mm; correct the voxel size; the unit is mm"
        )
