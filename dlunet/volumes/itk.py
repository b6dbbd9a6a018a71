"""MetaImage and NRRD files: ITK reads their headers and plain voxels; compressed ones are unpacked here.

ITK fills in what it could not unpack without an error, takes voxels for 1 mm wide whose size is not stated or is in
another unit, turns an axis round for a negative size, and takes axes that are not at right angles.
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

#: File endings, and what ITK calls their readers.
READERS = {".mha": "MetaImageIO", ".nrrd": "NrrdImageIO"}

#: Where headers state the unit of voxel sizes, and what may stand there: ITK takes numbers as they are.
UNIT_FIELDS = ("distanceunits", "space units", "units")
MILLIMETRES = {"mm", "millimeter", "millimeters", "millimetre", "millimetres", "?", "none"}

#: What says how the axes run: any of these fields of a MetaImage, and the field ``space`` of an NRRD if it is one of
#: these. ITK takes a patient for LPS in other spaces, such as ``scanner-xyz``.
ORIENTATION_FIELDS = ("transformmatrix", "rotation", "orientation")
SPACES = ("right-anterior-superior", "ras", "left-anterior-superior", "las", "left-posterior-superior", "lps")

#: Why a file is taken with a warning: left and right may be the other way round.
NO_ORIENTATION = (
    "its header states no orientation; its axes are assumed to point left, posterior and superior, as in ITK"
)

#: Letters of a file's name that a message shows at most: of a damaged header it may be anything.
LONGEST_NAME = 80

#: What ITK calls types of voxels, and NumPy.
DTYPES = {
    sitk.sitkUInt8: "u1", sitk.sitkInt8: "i1", sitk.sitkUInt16: "u2", sitk.sitkInt16: "i2", sitk.sitkUInt32: "u4",
    sitk.sitkInt32: "i4", sitk.sitkUInt64: "u8", sitk.sitkInt64: "i8", sitk.sitkFloat32: "f4", sitk.sitkFloat64: "f8",
}  # fmt: skip


# What ITK warns of on the way is either harmless, or ends in an error that names the file.
sitk.ProcessObject.SetGlobalWarningDisplay(False)


def read(path: Path) -> tuple[np.ndarray, Geometry, tuple[str, ...]]:
    """Read a .mha or .nrrd file; its voxels may be in a file beside it.

    Returns:
        The voxels (z, y, x) of the file's axes, as stored; the grid; and what to warn of.

    Raises:
        NotReadable: The file is damaged or truncated, its axes are sheared, or it is no 3-D scalar volume.
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
        _check_scalar_3d(reader)
        _check_sizes_are_mm(fields)
        grid = _grid(reader)
        if _is_compressed(fields):
            values = _unpack(path, file, fields, DTYPES[reader.GetPixelID()], math.prod(grid.size))
        else:
            values = _read_plain(reader)
    warnings = () if _states_orientation(fields) else (NO_ORIENTATION,)
    return values.reshape(grid.size[::-1]), grid, warnings


def last_line(error: Exception) -> str:
    """What an error of ITK's says, without where in ITK it was raised."""
    return str(error).strip().splitlines()[-1].strip()


def _unreadable(error: RuntimeError) -> NotReadable:
    return NotReadable(
        f"cannot be read as a volume, perhaps because it is truncated ({last_line(error)}); {COPY_AGAIN}"
    )


def _read_header(file: BinaryIO) -> dict[str, str]:
    """The fields, names in lower case; the file is left where the voxels begin, if they are in it.

    A MetaImage header ends with its field ElementDataFile, an NRRD header with an empty line. In an NRRD, ``:=`` sets
    a note that means nothing.
    """
    fields: dict[str, str] = {}
    while line := file.readline().decode("latin-1").strip():
        name, sign, value = re.split(r"\s*(:=|[:=])\s*", f"{line}=", maxsplit=1)
        if sign != ":=":
            fields[name.lower()] = value.removesuffix("=")
        if "elementdatafile" in fields:
            break
    return fields


def _check_sizes_are_mm(fields: dict[str, str]) -> None:
    """Check voxel sizes, of which ITK makes up what is missing, and their unit."""
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
    """Check that there is one volume of one value per voxel; axes of one voxel beyond the third do not matter."""
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
    """An image's memory, for NumPy to look at: an array of it keeps the image alive."""

    def __init__(self, image: sitk.Image) -> None:
        self.image = image
        self.__array_interface__ = sitk.GetArrayViewFromImage(image).__array_interface__


def _is_compressed(fields: dict[str, str]) -> bool:
    # ITK takes a MetaImage for compressed whose field begins like this.
    return fields.get("compresseddata", "").lower().startswith(("t", "1")) or _encoding(fields) in ("gz", "gzip")


def _encoding(fields: dict[str, str]) -> str:
    return fields.get("encoding", "").lower()


def _states_orientation(fields: dict[str, str]) -> bool:
    space = fields.get("space", "").lower().removesuffix("-time").removesuffix("t")
    return space in SPACES or any(name in fields for name in ORIENTATION_FIELDS)


def _unpack(path: Path, header: BinaryIO, fields: dict[str, str], dtype: str, count: int) -> np.ndarray:
    """Compressed voxels; the header's file is open where they begin, if they are in it."""
    beside = fields.get("data file") or fields.get("datafile") or fields.get("elementdatafile", "LOCAL")
    if beside.upper() == "LOCAL":
        return _unpack_file(header, path.stat().st_size, fields, dtype, count)
    other = path.with_name(beside) if "/" not in beside else path.parent / beside
    if not other.is_file():
        raise NotReadable(f"found voxels in {beside[:LONGEST_NAME]!r}; expected one file; copy it beside the header")
    with other.open("rb") as file:
        return _unpack_file(file, other.stat().st_size, fields, dtype, count)


def _unpack_file(file: BinaryIO, most: int, fields: dict[str, str], dtype: str, count: int) -> np.ndarray:
    skipped = _whole_number(fields, "byte skip", "byteskip")
    expected = count * np.dtype(dtype).itemsize
    if expected > most * gunzip.MOST_BYTES_PER_BYTE:
        raise NotReadable(f"found truncated voxels: less than {expected} bytes; {COPY_AGAIN}")
    for _ in range(_whole_number(fields, "line skip", "lineskip")):  # which come before the stream; bytes lie in it
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
