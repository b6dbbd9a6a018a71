"""What SimpleITK does not tell of MetaImage and NRRD files: damage in compressed voxels, and negative voxel sizes.

ITK fills in what it could not decompress without an error, and turns an axis round for a negative size.
"""

from __future__ import annotations

import re
import zlib
from pathlib import Path
from typing import BinaryIO

CHUNK_BYTES = 2**22

#: zlib's setting for a stream with zlib's or gzip's header, both of which end in a checksum.
EITHER_HEADER = zlib.MAX_WBITS | 32


def find_damage(path: Path) -> str | None:
    """Read a .mha or .nrrd file that SimpleITK took, and tell what is wrong with it, if anything."""
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
    return None if stream.eof else "cut-off voxels"
