"""NIfTI files: nibabel says what the header means, ISA-L unpacks the voxels.

ITK's own reader is not used: it fills in what it cannot read of a truncated file, turns NaN into 0, applies an
intercept without a slope, places a CT by the qform where nibabel takes the sform, and does not know NIfTI-2.
"""

from __future__ import annotations

import io
import logging
import math
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

import nibabel as nib
import numpy as np
from isal.igzip_lib import DECOMP_GZIP, IgzipDecompressor, IsalError
from nibabel.spatialimages import HeaderDataError

from dlunet.errors import NotReadable
from dlunet.volumes.geometry import ROUNDING_VOXELS, Geometry

#: The first bytes of a gzip stream.
GZIP_MAGIC = b"\x1f\x8b"

#: No gzip stream holds more than so many bytes for each of its own.
GZIP_FACTOR = 1032

CHUNK_BYTES = 2**22

#: The header's first field, which is its own size, tells the version.
HEADERS = {348: nib.Nifti1Header, 540: nib.Nifti2Header}

#: From nibabel's axes, which grow to right, anterior and superior, to ours.
RAS_TO_LPS = np.diag([-1.0, -1.0, 1.0])

#: Why a file is taken with a warning: left and right may be the other way round.
NO_ORIENTATION = (
    "its header states no orientation (qform and sform code 0); its axes are taken to run to the left, to anterior and "
    "to superior, as nibabel takes them"
)

_SILENT = logging.getLogger(f"{__name__}.nibabel")
_SILENT.disabled = True  # what nibabel logs of a header either does not matter, or is raised


def read(path: Path) -> tuple[np.ndarray, Geometry, tuple[str, ...]]:
    """Read a NIfTI-1 or NIfTI-2 file in one part, compressed or not.

    Bytes behind the voxels are passed over, within the gzip stream and behind it.

    Returns:
        The voxels (z, y, x) of the file's axes: as stored, or float32 where the header scales them; the grid; and what
        to warn of.

    Raises:
        NotReadable: The file is damaged or truncated, its header contradicts itself, or it is no 3-D scalar volume.
        OSError: The file cannot be opened.
    """
    with path.open("rb") as file:
        compressed = file.read(2) == GZIP_MAGIC
        file.seek(0)
        try:
            source = io.BufferedReader(_Gunzip(file)) if compressed else file
            header = _read_header(source)
            shape, dtype = _shape(header), _dtype(header)
            grid, warnings = _grid(header, shape)
            offset, count = _data_offset(header), math.prod(shape)
            if offset + count * dtype.itemsize > path.stat().st_size * (GZIP_FACTOR if compressed else 1):
                raise NotReadable(f"found a truncated file: less than {count * dtype.itemsize} bytes of voxels")
            source.read(offset - header.sizeof_hdr)
            values = _read_voxels(source, count, dtype)
            if compressed:
                _read_to_the_checksum(source)
        except (EOFError, IsalError) as error:  # type: ignore[misc]  # its stubs declare an instance
            raise NotReadable(f"found a damaged or truncated file ({error})") from None
        slope, inter = _scaling(header)
    return _scaled(values, slope, inter).reshape(shape[::-1]), grid, warnings


class _Gunzip(io.RawIOBase):
    """The contents of a gzip file, of all its members; what follows the last one is passed over."""

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self.member = IgzipDecompressor(flag=DECOMP_GZIP)
        self.ended = False

    def readable(self) -> bool:
        return True

    def readinto(self, buffer) -> int:  # type: ignore[no-untyped-def]
        while not self.ended:
            given = self.file.read(CHUNK_BYTES) if self.member.needs_input else b""
            if self.member.needs_input and not given:
                raise EOFError("the gzip stream has no end")
            data = self.member.decompress(given, len(buffer))
            if self.member.eof:
                self._begin_next_member()
            if data:
                buffer[: len(data)] = data
                return len(data)
        return 0

    def _begin_next_member(self) -> None:
        rest = self.member.unused_data
        rest += self.file.read(len(GZIP_MAGIC) - len(rest)) if len(rest) < len(GZIP_MAGIC) else b""
        self.ended = not rest.startswith(GZIP_MAGIC)
        self.file.seek(-len(rest), io.SEEK_CUR)
        self.member = IgzipDecompressor(flag=DECOMP_GZIP)


def _read_header(file: BinaryIO) -> nib.Nifti1Header:
    start = file.read(4)
    kinds = {size: order for order in ("little", "big") for size in [int.from_bytes(start, order)]}
    size = next((size for size in kinds if size in HEADERS), None)
    block = start + file.read((size or 4) - 4)
    if size is None or len(block) < size:
        raise NotReadable("cannot be read as a volume (no NIfTI header)")
    header = HEADERS[size](block, "<" if kinds[size] == "little" else ">", check=False)
    sizes = [float(mm) for mm in header["pixdim"][1:4]]
    if not all(mm > 0 and math.isfinite(mm) for mm in sizes):  # nibabel takes the size without its sign
        raise NotReadable(f"found voxels of {_times(sizes)} mm")
    try:
        header.check_fix(_SILENT)
    except HeaderDataError as error:
        raise NotReadable(f"found a damaged header ({error})") from None
    return header


def _shape(header: nib.Nifti1Header) -> tuple[int, ...]:
    """Voxels along x, y, z; axes of one voxel beyond these do not matter."""
    shape = tuple(int(n) for n in header.get_data_shape())
    values = math.prod(shape[4:]) * len(header.get_data_dtype().names or "1")
    while len(shape) > 3 and shape[-1] == 1:
        shape = shape[:-1]
    if values != 1:
        raise NotReadable(f"found {values} values per voxel; expected one")
    if len(shape) != 3:
        raise NotReadable(
            f"found {len(shape)} dimensions ({'×'.join(map(str, shape))}); expected one 3-D scalar volume"
        )
    if min(shape) < 1:
        raise NotReadable(f"found {'×'.join(map(str, shape))} voxels")
    return shape


def _dtype(header: nib.Nifti1Header) -> np.dtype:
    dtype = header.get_data_dtype()
    if dtype.kind not in "iuf":
        raise NotReadable(f"found voxels of type {dtype}; expected real numbers")
    return dtype


def _grid(header: nib.Nifti1Header, shape: tuple[int, ...]) -> tuple[Geometry, tuple[str, ...]]:
    """Where the voxels lie, as nibabel says, if the header says so once or twice the same."""
    try:
        forms = {"sform": header.get_sform(coded=True)[0], "qform": header.get_qform(coded=True)[0]}
        grids = {name: _of_affine(shape, affine) for name, affine in forms.items() if affine is not None}
        grid = grids.get("sform") or grids.get("qform") or _of_affine(shape, header.get_base_affine())
    except (HeaderDataError, ValueError) as error:
        raise NotReadable(f"found {error}") from None
    pixdim = tuple(float(mm) for mm in header["pixdim"][1:4])
    if any(grid.voxels_apart(other) > ROUNDING_VOXELS for other in grids.values()):
        differences = grids["sform"].differences(grids["qform"], "qform")
        raise NotReadable(f"found a header whose sform and qform differ: sform has {differences}")
    extent = np.abs(np.subtract(pixdim, grid.spacing)) * (np.array(shape) - 1)
    if (extent > ROUNDING_VOXELS * np.array(grid.spacing)).any():
        raise NotReadable(
            f"found a header whose sform has voxels of {_times(grid.spacing)} mm, its pixdim of {_times(pixdim)} mm"
        )
    return grid, () if grids else (NO_ORIENTATION,)


def _times(numbers: Sequence[float]) -> str:
    return "×".join(f"{number:g}" for number in numbers)


def _of_affine(shape: tuple[int, ...], affine: np.ndarray) -> Geometry:
    return Geometry.of_affine(shape, RAS_TO_LPS @ affine[:3, :3], RAS_TO_LPS @ affine[:3, 3])


def _data_offset(header: nib.Nifti1Header) -> int:
    if header["magic"].item() != header.single_magic:
        raise NotReadable("found a header without its voxels (a pair of .hdr and .img)")
    offset = int(header.get_data_offset())
    if offset < header.single_vox_offset:  # the standard takes it for 352, nibabel as it stands
        raise NotReadable(
            f"found vox_offset {offset}, where the header is; expected {header.single_vox_offset} or more"
        )
    return offset


def _read_voxels(file: BinaryIO, count: int, dtype: np.dtype) -> np.ndarray:
    """The voxels, in the machine's byte order."""
    values = np.empty(count, dtype)
    found = file.readinto(values.view(np.uint8))  # type: ignore[attr-defined]
    if found < values.nbytes:
        raise NotReadable(f"found a truncated file: {found} of {values.nbytes} bytes of voxels")
    return values if dtype.isnative else values.byteswap(inplace=True).view(dtype.newbyteorder("="))


def _read_to_the_checksum(file: BinaryIO) -> None:
    while file.read(CHUNK_BYTES):
        pass


def _scaling(header: nib.Nifti1Header) -> tuple[float, float]:
    try:
        slope, inter = header.get_slope_inter()
    except HeaderDataError as error:
        raise NotReadable(f"found a damaged header ({error})") from None
    return (1.0, 0.0) if slope is None else (slope, inter or 0.0)


def _scaled(values: np.ndarray, slope: float, inter: float) -> np.ndarray:
    """The values that the header means, computed in double precision as nibabel does, a part at a time."""
    if (slope, inter) == (1, 0):
        return values
    scaled = np.empty(len(values), np.float32)
    for start in range(0, len(values), CHUNK_BYTES):
        part = slice(start, start + CHUNK_BYTES)
        scaled[part] = values[part].astype(np.float64) * slope + inter
    return scaled
