"""MetaImage and NRRD files, read by ITK, and what ITK does not tell of them.

ITK fills in what it could not decompress without an error, takes voxels for 1 mm wide whose size is not stated or is in
another unit, turns an axis round for a negative size, and takes axes that are not at right angles.
"""

from __future__ import annotations

import re
import zlib
from pathlib import Path
from typing import BinaryIO

import numpy as np
import SimpleITK as sitk

from dlunet.errors import NotReadable
from dlunet.volumes.geometry import Geometry

#: File endings, and what ITK calls their readers.
READERS = {".mha": "MetaImageIO", ".nrrd": "NrrdImageIO"}

CHUNK_BYTES = 2**22

#: Where headers state the unit of voxel sizes, and what may stand there: ITK takes numbers as they are.
UNIT_FIELDS = ("distanceunits", "space units", "units")
MILLIMETRES = {"mm", "millimeter", "millimeters", "millimetre", "millimetres", "?", "none"}

#: Why a file is taken with a warning: left and right may be the other way round.
NO_ORIENTATION = (
    "its header states no orientation; its axes are taken to run to the left, to posterior and to superior, as ITK "
    "takes them"
)

#: zlib's setting for a stream with zlib's or gzip's header, both of which end in a checksum.
EITHER_HEADER = zlib.MAX_WBITS | 32


# What ITK warns of on the way is either harmless, or ends in an error that names the file.
sitk.ProcessObject.SetGlobalWarningDisplay(False)


def read(path: Path) -> tuple[np.ndarray, Geometry, tuple[str, ...]]:
    """Read a .mha or .nrrd file.

    Returns:
        The voxels (z, y, x) of the file's axes, as stored; the grid; and what to warn of.

    Raises:
        NotReadable: The file is damaged or truncated, its axes are sheared, or it is no 3-D scalar volume.
    """
    try:
        image = sitk.ReadImage(str(path), imageIO=READERS[path.suffix.lower()])
    except RuntimeError as error:
        raise NotReadable(f"cannot be read as a volume, maybe since it is truncated ({last_line(error)})") from None
    values = image.GetNumberOfComponentsPerPixel()
    if values != 1:
        raise NotReadable(f"found {values} values per voxel; expected one")
    if image.GetDimension() != 3:
        shape = "×".join(str(n) for n in image.GetSize())
        raise NotReadable(f"found {image.GetDimension()} dimensions ({shape}); expected one 3-D scalar volume")
    with path.open("rb") as file:
        fields = _read_header(file)
        damage = _contradiction(fields) or _missing_voxels(file, fields, image)
    if damage:
        raise NotReadable(f"found {damage}")
    try:
        grid = Geometry.of(image)
    except ValueError as error:
        raise NotReadable(f"found {error}") from None
    return np.asarray(_Pixels(image)), grid, () if _states_orientation(fields) else (NO_ORIENTATION,)


def last_line(error: Exception) -> str:
    """What an error of ITK's says, without where in ITK it was raised."""
    return str(error).strip().splitlines()[-1].strip()


class _Pixels:
    """An image's memory, for NumPy to look at: an array of it keeps the image alive."""

    def __init__(self, image: sitk.Image) -> None:
        self.image = image
        self.__array_interface__ = sitk.GetArrayViewFromImage(image).__array_interface__


def _contradiction(fields: dict[str, str]) -> str | None:
    """What ITK passes over in a header, if anything."""
    sizes = fields.get("elementspacing") or fields.get("elementsize") or fields.get("spacings", "")
    if not sizes and "space directions" not in fields:
        return "no voxel size in its header"
    if any(mm.startswith("-") for mm in sizes.split()):  # ITK itself refuses 0
        return f"voxels of {'×'.join(sizes.split())} mm"
    stated = re.findall(r"[^\s\"]+", " ".join(fields.get(name, "") for name in UNIT_FIELDS).lower())
    others = sorted(set(stated) - MILLIMETRES)
    return f"voxel sizes in {', '.join(others)}, which are read as mm" if others else None


def _states_orientation(fields: dict[str, str]) -> bool:
    return any(name in fields for name in ("transformmatrix", "rotation", "orientation", "space"))


def _missing_voxels(file: BinaryIO, fields: dict[str, str], image: sitk.Image) -> str | None:
    """What is wrong with compressed voxels, if anything; the file is open where they begin."""
    compressed = fields.get("compresseddata", "").lower() == "true" and fields.get("elementdatafile") == "LOCAL"
    if not compressed and fields.get("encoding") not in ("gz", "gzip"):
        return None  # ITK tells
    stream, found = zlib.decompressobj(EITHER_HEADER), 0
    try:
        while not stream.eof and (chunk := file.read(CHUNK_BYTES)):
            found += len(stream.decompress(chunk))
    except zlib.error as error:
        return f"damaged voxels: {error}"
    expected = image.GetNumberOfPixels() * image.GetSizeOfPixelComponent()
    whole = stream.eof and found >= expected
    return None if whole else f"truncated voxels: {found} of {expected} bytes"


def _read_header(file: BinaryIO) -> dict[str, str]:
    """The fields, names in lower case; the file is left where the voxels begin.

    A MetaImage header ends with its field ElementDataFile, an NRRD header with an empty line.
    """
    fields: dict[str, str] = {}
    while line := file.readline().decode("latin-1").strip():
        name, *value = re.split(r"\s*[:=]+\s*", line, maxsplit=1)
        fields[name.lower()] = "".join(value)
        if "elementdatafile" in fields:
            break
    return fields
