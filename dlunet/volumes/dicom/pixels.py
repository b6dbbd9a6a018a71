"""The pixels of DICOM files in HU: read as they are, or, where they are compressed, unpacked by GDCM, in SimpleITK."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pydicom
import pydicom.uid
import SimpleITK as sitk

from dlunet.errors import UserError
from dlunet.volumes.dicom.frames import Frame
from dlunet.volumes.dicom.headers import DEFLATED, Header, unreadable

#: Compressed pixels lie in items: how each begins, and what follows the last one; the bytes of their length come next.
ITEM, END_OF_ITEMS = b"\xfe\xff\x00\xe0", b"\xfe\xff\xdd\xe0"

#: Elements whose length takes four bytes, after two that are empty.
LONG = (b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV")


def read_pixels(frames: list[Frame], headers: Mapping[Path, Header]) -> np.ndarray:
    """The voxels (z, y, x) in HU of slices in their order; a file of many frames is unpacked once.

    Raises:
        UserError: A file is damaged.
    """
    voxels = np.empty((len(frames), *frames[0].shape), np.float32)
    by_file: dict[Path, list[int]] = {}
    for z, frame in enumerate(frames):
        by_file.setdefault(frame.path, []).append(z)
    for path, places in by_file.items():
        own = [frames[z] for z in places]
        read = _unpack if headers[path].is_compressed else _read
        pixels = read(path, headers[path], own)
        for z, frame in zip(places, own, strict=True):
            voxels[z] = pixels[frame.number]
    return voxels


def _read(path: Path, header: Header, frames: list[Frame]) -> np.ndarray:
    """The frames (n, y, x) of a file whose pixels are not compressed, in the file's order."""
    layout = header.layout
    assert layout is not None
    allocated, stored, highest = layout.allocated, layout.stored, layout.highest
    if allocated not in (8, 16, 32) or not 0 < stored <= highest + 1 <= allocated:
        raise UserError(
            f"{path}: found {stored} of {allocated} bits per pixel, up to bit {highest}; expected whole bytes; export "
            "it again"
        )
    order = ">" if header.syntax == pydicom.uid.ExplicitVRBigEndian else "<"
    shape = (len(frames), *frames[0].shape)
    raw = np.fromfile(
        path, f"{order}{'iu'[not layout.signed]}{allocated // 8}", int(np.prod(shape)), offset=header.offset
    )
    if stored < allocated:  # other things may be kept in the other bits
        raw = (raw << (allocated - 1 - highest)) >> (allocated - stored)
    return _rescaled(raw.reshape(shape), frames)


def _rescaled(stored: np.ndarray, frames: list[Frame]) -> np.ndarray:
    pixels = np.empty(stored.shape, np.float32)
    for frame in frames:
        slope, intercept = frame.rescale
        pixels[frame.number] = stored[frame.number] * slope + intercept
    return pixels


def _unpack(path: Path, header: Header, frames: list[Frame]) -> np.ndarray:
    """The frames (n, y, x) of a file whose pixels are compressed, in the file's order."""
    if header.syntax != DEFLATED:
        _check_items(path, header.offset)
    if frames[0].inverted or len({frame.rescale for frame in frames}) > 1:  # GDCM takes the first rescale for all
        try:
            return _rescaled(pydicom.dcmread(path).pixel_array.reshape(-1, *frames[0].shape), frames)
        except Exception as error:  # a compression that pydicom does not know, or a damaged file
            raise unreadable(path, error) from None
    try:
        image = sitk.ReadImage(str(path), imageIO="GDCMImageIO")
    except RuntimeError as error:
        raise unreadable(path, error) from None
    size, expected = ("×".join(map(str, n)) for n in (image.GetSize(), (*frames[0].shape[::-1], len(frames))))
    if size != expected or image.GetNumberOfComponentsPerPixel() != 1:
        raise UserError(f"{path}: found {size} pixels; expected {expected}, as its header says; copy it again")
    return sitk.GetArrayViewFromImage(image).astype(np.float32)


def _check_items(path: Path, offset: int) -> None:
    """Check that the items of compressed pixels, and what follows them, end within the file.

    GDCM makes memory ready for whatever a damaged length says, which takes long.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        file.seek(offset)
        while (start := file.read(8))[:4] == ITEM:
            file.seek(int.from_bytes(start[4:], "little"), 1)
        whole = start[:4] == END_OF_ITEMS
        while whole and file.tell() < size:
            start = file.read(8)
            length = file.read(4) if start[4:6] in LONG else start[6:]
            file.seek(int.from_bytes(length, "little"), 1)
        if not whole or file.tell() > size:
            raise UserError(f"{path}: cannot be read as DICOM (its pixels are truncated or damaged); copy it again")
