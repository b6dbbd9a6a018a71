"""NIfTI files: nibabel interprets the header, ISA-L decompresses the voxels.

ITK's reader is not used: it fills in the missing part of a truncated file, turns NaN into 0, applies an intercept
without a slope, places a CT by the qform where nibabel uses the sform, and does not support NIfTI-2.
"""

from __future__ import annotations

import dataclasses
import io
import logging
import math
from pathlib import Path
from typing import BinaryIO

import nibabel as nib
import numpy as np
from nibabel.spatialimages import HeaderDataError

from dlunet.errors import NotReadable
from dlunet.volumes import gunzip
from dlunet.volumes.geometry import ROUNDING_VOXELS, Geometry
from dlunet.volumes.messages import (
    COPY_AGAIN,
    EXPORT_AGAIN,
    not_one_volume,
    not_scalar,
    times,
    wrong_unit,
    wrong_voxel_size,
)

#: Voxels scaled at a time.
CHUNK = 2**22

#: The header's first field, its own size, determines the version.
HEADERS = {348: nib.Nifti1Header, 540: nib.Nifti2Header}

#: From nibabel's axes, which point to right, anterior and superior, to LPS.
RAS_TO_LPS = np.diag([-1.0, -1.0, 1.0])

#: Voxel sizes are in mm if the header says so or states no unit.
UNITS = {"mm", "unknown"}

#: A quaternion is stored in float32. Rounding may rotate the axes by up to the first value, in radians, where its
#: first component, which is not stored, is below the second value.
QUATERNION_ROUNDING, SMALL_QUATERNION = 2e-3, 1e-3

#: Warning for a file without an orientation: left and right may be swapped.
NO_ORIENTATION = (
    "its header states no orientation (qform and sform code 0); its axes are taken to run to the left, to anterior and "
    "to superior, as nibabel takes them"
)

_SILENT = logging.getLogger(f"{__name__}.nibabel")
_SILENT.disabled = True  # what nibabel logs about a header is either harmless or raised


def read(path: Path) -> tuple[np.ndarray, Geometry, tuple[str, ...]]:
    """Read a single-file NIfTI-1 or NIfTI-2, compressed or not.

    Bytes after the voxels are ignored, both inside and after the gzip stream.

    Returns:
        The voxels (z, y, x) in file orientation: as stored, or float32 if the header scales them; the grid; and
        warnings.

    Raises:
        NotReadable: The file is damaged or truncated, its header contradicts itself, or it is not a 3-D scalar volume.
        OSError: The file cannot be opened.
    """
    with path.open("rb") as file:
        compressed = file.read(len(gunzip.MAGIC)) == gunzip.MAGIC
        file.seek(0)
        try:
            source = io.BufferedReader(gunzip.Gunzip(file)) if compressed else file
            header = _read_header(source)
            shape, dtype = _shape(header), _dtype(header)
            grid, warnings = _grid(header, shape)
            offset, count = _data_offset(header), math.prod(shape)
            if offset + count * dtype.itemsize > path.stat().st_size * (
                gunzip.MOST_BYTES_PER_BYTE if compressed else 1
            ):
                raise NotReadable(
                    f"found a truncated file: less than {count * dtype.itemsize} bytes of voxels; {COPY_AGAIN}"
                )
            source.read(offset - header.sizeof_hdr)
            values = _read_voxels(source, count, dtype)
            if compressed:
                gunzip.read_to_the_end(source)
        except gunzip.DAMAGE as error:
            raise NotReadable(f"found a damaged or truncated file ({error}); {COPY_AGAIN}") from None
        slope, inter = _scaling(header)
    return _scaled(values, slope, inter).reshape(shape[::-1]), grid, warnings


def _read_header(file: BinaryIO) -> nib.Nifti1Header:
    start = file.read(4)
    kinds = {size: order for order in ("little", "big") for size in [int.from_bytes(start, order)]}
    size = next((size for size in kinds if size in HEADERS), None)
    block = start + file.read((size or 4) - 4)
    if size is None or len(block) < size:
        raise NotReadable(f"cannot be read as a volume (no NIfTI header); {COPY_AGAIN}")
    header = HEADERS[size](block, "<" if kinds[size] == "little" else ">", check=False)
    _check_sizes(header)
    try:
        header.check_fix(_SILENT)
        unit = header.get_xyzt_units()[0]
    except (HeaderDataError, KeyError) as error:
        raise NotReadable(f"found a damaged header ({error}); {COPY_AGAIN}") from None
    if unit not in UNITS:
        raise wrong_unit(unit)
    return header


def _check_sizes(header: nib.Nifti1Header) -> None:
    """Check the raw voxel sizes: nibabel drops their sign and reads 0 as 1."""
    sizes = [float(mm) for mm in header["pixdim"][1:4]]
    if not all(mm > 0 and math.isfinite(mm) for mm in sizes):
        raise wrong_voxel_size(sizes)


def _shape(header: nib.Nifti1Header) -> tuple[int, ...]:
    """Voxels along x, y, z; further axes of length 1 are ignored."""
    shape = tuple(int(n) for n in header.get_data_shape())
    values = math.prod(shape[4:]) * len(header.get_data_dtype().names or "1")
    while len(shape) > 3 and shape[-1] == 1:
        shape = shape[:-1]
    if values != 1:
        raise not_scalar(values)
    if len(shape) != 3:
        raise not_one_volume(shape)
    if min(shape) < 1:
        raise NotReadable(f"found {times(shape)} voxels; {COPY_AGAIN}")
    return shape


def _dtype(header: nib.Nifti1Header) -> np.dtype:
    dtype = header.get_data_dtype()
    if dtype.kind not in "iuf":
        raise NotReadable(f"found voxels of type {dtype}; expected real numbers; export a CT or label map")
    return dtype


def _grid(header: nib.Nifti1Header, shape: tuple[int, ...]) -> tuple[Geometry, tuple[str, ...]]:
    """The grid as nibabel interprets it, and warnings; sform and qform must agree if both are set."""
    try:
        forms = {"sform": header.get_sform(coded=True)[0], "qform": header.get_qform(coded=True)[0]}
        grids = {name: _of_affine(shape, affine) for name, affine in forms.items() if affine is not None}
        grid = grids.get("sform") or grids.get("qform") or _of_affine(shape, header.get_base_affine())
    except (HeaderDataError, ValueError) as error:
        raise NotReadable(f"found {error}; {EXPORT_AGAIN}") from None
    if len(grids) == 2 and not _agree(grids["sform"], grids["qform"], header):
        differences = grids["sform"].differences(grids["qform"], "qform")
        raise NotReadable(f"found a header whose sform and qform differ: sform has {differences}; {EXPORT_AGAIN}")
    pixdim = tuple(float(mm) for mm in header["pixdim"][1:4])
    extent = np.abs(np.subtract(pixdim, grid.spacing)) * (np.array(shape) - 1)
    if (extent > ROUNDING_VOXELS * np.array(grid.spacing)).any():
        raise NotReadable(
            f"found a header whose sform has voxels of {times(grid.spacing)} mm, its pixdim of {times(pixdim)} mm; "
            f"{EXPORT_AGAIN}"
        )
    return grid, () if grids else (NO_ORIENTATION,)


def _agree(sform: Geometry, qform: Geometry, header: nib.Nifti1Header) -> bool:
    """Whether both forms place the voxels equally, up to rounding of the qform's quaternion."""
    if sform.voxels_apart(qform) <= ROUNDING_VOXELS:
        return True
    w = float(header.get_qform_quaternion()[0])
    ours, theirs = (np.array(grid.direction).reshape(3, 3) for grid in (sform, qform))
    turn = np.linalg.norm(ours - theirs, 2)  # for small rotations, the angle between them
    turned_back = dataclasses.replace(qform, direction=sform.direction)
    return bool(
        w < SMALL_QUATERNION and turn < QUATERNION_ROUNDING and sform.voxels_apart(turned_back) <= ROUNDING_VOXELS
    )


def _of_affine(shape: tuple[int, ...], affine: np.ndarray) -> Geometry:
    return Geometry.of_affine(shape, RAS_TO_LPS @ affine[:3, :3], RAS_TO_LPS @ affine[:3, 3])


def _data_offset(header: nib.Nifti1Header) -> int:
    if header["magic"].item() != header.single_magic:
        raise NotReadable(
            "found a header without its voxels (a pair of .hdr and .img); expected one file with both; convert the pair"
        )
    offset = int(header.get_data_offset())
    if offset < header.single_vox_offset:  # the standard reads it as 352, nibabel literally
        raise NotReadable(
            f"found vox_offset {offset}, where the header is; expected {header.single_vox_offset} or more; export it "
            "again"
        )
    return offset


def _read_voxels(file: BinaryIO, count: int, dtype: np.dtype) -> np.ndarray:
    """The voxels in native byte order."""
    values = np.empty(count, dtype)
    found = file.readinto(values.view(np.uint8))  # type: ignore[attr-defined]
    if found < values.nbytes:
        raise NotReadable(f"found a truncated file: {found} of {values.nbytes} bytes of voxels; {COPY_AGAIN}")
    return values if dtype.isnative else values.byteswap(inplace=True).view(dtype.newbyteorder("="))


def _scaling(header: nib.Nifti1Header) -> tuple[float, float]:
    try:
        slope, inter = header.get_slope_inter()
    except HeaderDataError as error:
        raise NotReadable(f"found a damaged header ({error}); {COPY_AGAIN}") from None
    return (1.0, 0.0) if slope is None else (slope, inter or 0.0)


def _scaled(values: np.ndarray, slope: float, inter: float) -> np.ndarray:
    """Apply slope and intercept, in double precision as nibabel does, chunk by chunk."""
    if (slope, inter) == (1, 0):
        return values
    scaled = np.empty(len(values), np.float32)
    for start in range(0, len(values), CHUNK):
        part = slice(start, start + CHUNK)
        scaled[part] = values[part].astype(np.float64) * slope + inter
    return scaled
