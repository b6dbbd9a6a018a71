"""MetaImage and NRRD files, read by ITK, and what ITK does not tell of them.

ITK fills in what it could not decompress without an error, turns an axis round for a negative voxel size, and takes
axes that are not at right angles.
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

#: zlib's setting for a stream with zlib's or gzip's header, both of which end in a checksum.
EITHER_HEADER = zlib.MAX_WBITS | 32


# What ITK warns of on the way is either harmless, or ends in an error that names the file.
sitk.ProcessObject.SetGlobalWarningDisplay(False)


def read(path: Path) -> tuple[np.ndarray, Geometry]:
    """Read a .mha or .nrrd file.

    Returns:
        The voxels (z, y, x) of the file's axes, as stored, and the grid.

    Raises:
        NotReadable: The file is damaged or truncated, its axes are sheared, or it is no 3-D scalar volume.
    """
    try:
        image = sitk.ReadImage(str(path), imageIO=READERS[path.suffix.lower()])
    except RuntimeError as error:
        raise NotReadable(f"cannot be read as a volume ({last_line(error)})") from None
    values = image.GetNumberOfComponentsPerPixel()
    if values != 1:
        raise NotReadable(f"found {values} values per voxel; expected one")
    if image.GetDimension() != 3:
        shape = "×".join(str(n) for n in image.GetSize())
        raise NotReadable(f"found {image.GetDimension()} dimensions ({shape}); expected one 3-D scalar volume")
    damage = _find_damage(path)
    if damage:
        raise NotReadable(f"found {damage}")
    try:
        return np.asarray(_Pixels(image)), Geometry.of(image)
    except ValueError as error:
        raise NotReadable(f"found {error}") from None


def last_line(error: Exception) -> str:
    """What an error of ITK's says, without where in ITK it was raised."""
    return str(error).strip().splitlines()[-1].strip()


class _Pixels:
    """An image's memory, for NumPy to look at: an array of it keeps the image alive."""

    def __init__(self, image: sitk.Image) -> None:
        self.image = image
        self.__array_interface__ = sitk.GetArrayViewFromImage(image).__array_interface__


def _find_damage(path: Path) -> str | None:
    """What is wrong with a file that ITK took, if anything."""
    with path.open("rb") as file:
        fields = _read_header(file)
        sizes = fields.get("elementspacing", "").split()
        if any(mm.startswith("-") for mm in sizes):  # SimpleITK itself refuses 0
            return f"voxels of {'×'.join(sizes)} mm"
        compressed = fields.get("compresseddata", "").lower() == "true" and fields.get("elementdatafile") == "LOCAL"
        if compressed or fields.get("encoding") in ("gz", "gzip"):
            return _stream_damage(file)
    return None


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


def _stream_damage(file: BinaryIO) -> str | None:
    stream = zlib.decompressobj(EITHER_HEADER)
    try:
        while not stream.eof and (chunk := file.read(CHUNK_BYTES)):
            stream.decompress(chunk)
    except zlib.error as error:
        return f"damaged voxels: {error}"
    return None if stream.eof else "truncated voxels"
