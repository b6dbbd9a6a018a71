"""What SimpleITK does not tell of a NIfTI file: whether it is whole, and whether its values and voxel sizes make sense.

ITK reads a truncated or corrupt NIfTI file without an error, filling in what it could not read, and turns NaN into 0.
"""

from __future__ import annotations

import math
import struct
from pathlib import Path
from typing import BinaryIO, cast

import numpy as np
import SimpleITK as sitk
from isal import igzip
from isal.igzip_lib import IsalError

#: NIfTI's codes of the types that can hold NaN.
FLOAT_TYPES = {"16": "f4", "64": "f8"}

CHUNK_BYTES = 2**22


def find_damage(path: Path, image: sitk.Image) -> str | None:
    """Read the bytes of a NIfTI file that SimpleITK took, and tell what is wrong with them, if anything."""
    expected = image.GetNumberOfPixels() * int(image.GetMetaData("bitpix")) // 8
    try:
        with _open(path) as file:
            header = file.read(int(float(image.GetMetaData("vox_offset"))))
            sizes = _voxel_sizes(header)
            if not all(mm > 0 and math.isfinite(mm) for mm in sizes):
                # SimpleITK takes 1 mm for 0, and turns the axis round for a negative size.
                return f"voxels of {'×'.join(f'{mm:g}' for mm in sizes)} mm"
            found, not_finite = _scan(file, FLOAT_TYPES.get(image.GetMetaData("datatype")), _byte_order(header))
    except (EOFError, OSError, IsalError) as error:  # type: ignore[misc]  # its stubs declare an instance
        return f"damaged or cut off: {error}"
    if found < expected:
        return f"cut off: {found} of {expected} bytes of voxels"
    return f"{not_finite} voxels are NaN or infinite" if not_finite else None


def _open(path: Path) -> BinaryIO:
    with path.open("rb") as file:
        compressed = file.read(2) == b"\x1f\x8b"
    return cast(BinaryIO, igzip.open(path)) if compressed else path.open("rb")


def _byte_order(header: bytes) -> str:
    return "<" if int.from_bytes(header[:4], "little") in (348, 540) else ">"


def _voxel_sizes(header: bytes) -> tuple[float, ...]:
    """The field pixdim, x, y, z: doubles in NIfTI-2, whose header has 540 bytes, floats in NIfTI-1."""
    order = _byte_order(header)
    (size,) = struct.unpack_from(f"{order}i", header)
    return (
        struct.unpack_from(f"{order}3d", header, 112) if size == 540 else struct.unpack_from(f"{order}3f", header, 80)
    )


def _scan(file: BinaryIO, float_type: str | None, byte_order: str) -> tuple[int, int]:
    """The bytes of voxels, up to the file's end (where gzip keeps its checksum), and how many are not finite."""
    found = not_finite = 0
    while chunk := file.read(CHUNK_BYTES):
        found += len(chunk)
        if float_type:
            values = np.frombuffer(chunk[: len(chunk) // 8 * 8], byte_order + float_type)
            not_finite += int((~np.isfinite(values)).sum())
    return found, not_finite
