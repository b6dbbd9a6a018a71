"""MetaImage and NRRD files: ITK reads headers and plain voxels; compressed voxels are decompressed here.

ITK silently fills in voxels that it cannot decompress, assumes 1 mm for a missing voxel size, ignores the unit, flips
an axis for a negative size, and accepts axes that are not at right angles.
"""

from __future__ import annotations

import io
import math
import re
from pathlib import Path
from typing import BinaryIO, Literal

import numpy as np
import SimpleITK as sitk

from dlunet.errors import NotReadable
from dlunet.volumes import gunzip
from dlunet.volumes.geometry import Geometry
from dlunet.volumes.messages import COPY_AGAIN, EXPORT_AGAIN, not_one_volume, not_scalar, wrong_unit, wrong_voxel_size

#: ITK's reader for each file ending.
READERS = {".mha": "MetaImageIO", ".nrrd": "NrrdImageIO"}

#: Header fields with the unit of voxel sizes, and the values accepted there: ITK ignores the unit.
UNIT_FIELDS = ("distanceunits", "space units", "units")
MILLIMETRES = {"mm", "millimeter", "millimeters", "millimetre", "millimetres", "?", "none"}

#: What states the orientation: any of these fields of a MetaImage, and any of these values of the field ``space`` of
#: an NRRD. ITK treats other spaces, such as ``scanner-xyz``, as LPS.
ORIENTATION_FIELDS = ("transformmatrix", "rotation", "orientation")
SPACES = ("right-anterior-superior", "ras", "left-anterior-superior", "las", "left-posterior-superior", "lps")

#: Warning for a file without an orientation: left and right may be swapped.
NO_ORIENTATION = (
    "its header states no orientation; its axes are assumed to point left, posterior and superior, as in ITK"
)

#: Maximum length of a file name in a message: in a damaged header it may be anything.
LONGEST_NAME = 80

#: NumPy's voxel type for each of ITK's.
DTYPES = {
    sitk.sitkUInt8: "u1", sitk.sitkInt8: "i1", sitk.sitkUInt16: "u2", sitk.sitkInt16: "i2", sitk.sitkUInt32: "u4",
    sitk.sitkInt32: "i4", sitk.sitkUInt64: "u8", sitk.sitkInt64: "i8", sitk.sitkFloat32: "f4", sitk.sitkFloat64: "f8",
}  # fmt: skip


# ITK's warnings are either harmless or followed by an error that names the file.
sitk.ProcessObject.SetGlobalWarningDisplay(False)


def read(path: Path) -> tuple[np.ndarray, Geometry, tuple[str, ...]]:
    """Read a .mha or .nrrd file.

    Returns:
        The voxels (z, y, x) in file orientation, as stored; the grid; and warnings.

    Raises:
        NotReadable: The file is damaged or truncated, its axes are sheared, its voxels are in another file, or it is
            not a 3-D scalar volume.
        OSError: The file cannot be opened.
    """
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    reader.SetImageIO(READERS[path.suffix.lower()])
    try:
        reader.ReadImageInformation()
    except RuntimeError as error:
        raise _unreadable(error) from None
    with path.open("rb") as file:
        fields = _read_header(file)
        _check_voxels_are_inside(fields)
        _check_scalar_3d(reader)
        _check_sizes_are_mm(fields)
        grid = _grid(reader)
        if _is_compressed(fields):
            size = path.stat().st_size
            values = _unpack(file, size, fields, DTYPES[reader.GetPixelID()], math.prod(grid.size))
        else:
            values = _read_plain(reader)
    warnings = () if _states_orientation(fields) else (NO_ORIENTATION,)
    return values.reshape(grid.size[::-1]), grid, warnings


def last_line(error: Exception) -> str:
    """The message of an ITK error without its location in ITK."""
    return str(error).strip().splitlines()[-1].strip()


def _unreadable(error: RuntimeError) -> NotReadable:
    return NotReadable(
        f"cannot be read as a volume, perhaps because it is truncated ({last_line(error)}); {COPY_AGAIN}"
    )


def _read_header(file: BinaryIO) -> dict[str, str]:
    """The header fields, names in lower case; the file is left at the start of the voxels.

    A MetaImage header ends with the field ElementDataFile, an NRRD header with an empty line. In an NRRD, ``:=`` sets
    a free key/value pair, which is ignored.
    """
    fields: dict[str, str] = {}
    while line := file.readline().decode("latin-1").strip():
        name, sign, value = re.split(r"\s*(:=|[:=])\s*", f"{line}=", maxsplit=1)
        if sign != ":=":
            fields[name.lower()] = value.removesuffix("=")
        if "elementdatafile" in fields:
            break
    return fields


def _check_voxels_are_inside(fields: dict[str, str]) -> None:
    """Check that the voxels are in this file: whether a case is up to date depends on the files that it lists."""
    beside = fields.get("data file") or fields.get("datafile") or fields.get("elementdatafile", "LOCAL")
    if beside.upper() != "LOCAL":
        raise NotReadable(
            f"found voxels in {beside[:LONGEST_NAME]!r}; expected header and voxels in one file; convert it, such as "
            "with SimpleITK's ReadImage and WriteImage, to .nii.gz"
        )


def _check_sizes_are_mm(fields: dict[str, str]) -> None:
    """Check voxel sizes, since ITK invents missing ones, and their unit."""
    sizes = (fields.get("elementspacing") or fields.get("elementsize") or fields.get("spacings", "")).split()
    if "space directions" not in fields and len(sizes) < 3:
        raise NotReadable(f"found no voxel size in its header; {EXPORT_AGAIN}")
    if not all(_is_size(mm) for mm in sizes[:3]):
        raise wrong_voxel_size(sizes)
    stated = re.findall(r"[^\s\"]+", " ".join(fields.get(name, "") for name in UNIT_FIELDS).lower())
    others = sorted(set(stated) - MILLIMETRES)
    if others:
        raise wrong_unit(", ".join(others))


def _is_size(text: str) -> bool:
    try:
        return 0 < float(text) < math.inf
    except ValueError:
        return False


def _check_scalar_3d(reader: sitk.ImageFileReader) -> None:
    """Check for a single volume with one value per voxel; further axes of length 1 are ignored."""
    values, size = reader.GetNumberOfComponents(), reader.GetSize()
    if values != 1 or reader.GetPixelID() not in DTYPES:
        raise not_scalar(max(values, 2))
    if len(size) < 3 or math.prod(size[3:]) != 1:
        raise not_one_volume(size)


def _grid(reader: sitk.ImageFileReader) -> Geometry:
    size = reader.GetSize()
    matrix = np.array(reader.GetDirection()).reshape(len(size), -1)[:3, :3] * reader.GetSpacing()[:3]
    try:
        return Geometry.of_affine(size[:3], matrix, reader.GetOrigin()[:3])
    except ValueError as error:
        raise NotReadable(f"found {error}; {EXPORT_AGAIN}") from None


def _read_plain(reader: sitk.ImageFileReader) -> np.ndarray:
    try:
        return np.asarray(_Pixels(reader.Execute()))
    except RuntimeError as error:
        raise _unreadable(error) from None


class _Pixels:
    """An image's memory as seen by NumPy; an array made from it keeps the image alive."""

    def __init__(self, image: sitk.Image) -> None:
        self.image = image
        self.__array_interface__ = sitk.GetArrayViewFromImage(image).__array_interface__


def _is_compressed(fields: dict[str, str]) -> bool:
    # ITK treats a MetaImage as compressed if its field begins like this.
    return fields.get("compresseddata", "").lower().startswith(("t", "1")) or _encoding(fields) in ("gz", "gzip")


def _encoding(fields: dict[str, str]) -> str:
    return fields.get("encoding", "").lower()


def _states_orientation(fields: dict[str, str]) -> bool:
    space = fields.get("space", "").lower().removesuffix("-time").removesuffix("t")
    return space in SPACES or any(name in fields for name in ORIENTATION_FIELDS)


def _unpack(file: BinaryIO, most: int, fields: dict[str, str], dtype: str, count: int) -> np.ndarray:
    """Decompress the voxels of a file of at most ``most`` bytes, which is positioned at their start."""
    skipped = _whole_number(fields, "byte skip", "byteskip")
    expected = count * np.dtype(dtype).itemsize
    if expected > most * gunzip.MOST_BYTES_PER_BYTE:
        raise NotReadable(f"found truncated voxels: less than {expected} bytes; {COPY_AGAIN}")
    for _ in range(_whole_number(fields, "line skip", "lineskip")):  # lines precede the stream; bytes are in it
        file.readline()
    values = np.empty(count, np.dtype(dtype).newbyteorder(_byte_order(fields)))
    source = io.BufferedReader(gunzip.Gunzip(file))
    try:
        source.read(skipped)
        found = source.readinto(values.view(np.uint8))  # type: ignore[arg-type]
        gunzip.read_to_the_end(source)
    except gunzip.DAMAGE as error:
        raise NotReadable(f"found damaged or truncated voxels ({error}); {COPY_AGAIN}") from None
    if found < expected:
        raise NotReadable(f"found truncated voxels: {found} of {expected} bytes; {COPY_AGAIN}")
    return values if values.dtype.isnative else values.byteswap(inplace=True).view(values.dtype.newbyteorder("="))


def _whole_number(fields: dict[str, str], *names: str) -> int:
    text = next((fields[name] for name in names if name in fields), "0")
    if not text.isdecimal():
        raise NotReadable(f"found {names[0]} {text}; expected 0 or more; export it again")
    return int(text)


def _byte_order(fields: dict[str, str]) -> Literal["<", ">"]:
    msb = fields.get("elementbyteordermsb") or fields.get("binarydatabyteordermsb") or ""
    return ">" if msb.lower().startswith(("t", "1")) or fields.get("endian", "").lower() == "big" else "<"
