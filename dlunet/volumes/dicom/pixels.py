"""Read DICOM pixels in HU: directly or, if compressed, decoded by GDCM (through SimpleITK)."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pydicom
import pydicom.uid
import SimpleITK as sitk

from dlunet.errors import UserError
from dlunet.volumes.dicom.frames import Frame
from dlunet.volumes.dicom.headers import DEFLATED, Header, Layout, unreadable
from dlunet.volumes.itk import last_line
from dlunet.volumes.messages import times

#: Compressed pixels are stored in items: the tag of an item, and the tag after the last one; a length follows each.
ITEM, END_OF_ITEMS = b"\xfe\xff\x00\xe0", b"\xfe\xff\xdd\xe0"

#: The last bytes of an image in any JPEG format; one zero byte may follow.
END_OF_JPEG = b"\xff\xd9"


def read_pixels(frames: list[Frame], headers: Mapping[Path, Header]) -> np.ndarray:
    """The voxels (z, y, x) in HU, slices in the given order; a multi-frame file is decoded once.

    Raises:
        UserError: A file is damaged.
    """
    voxels = np.empty((len(frames), *frames[0].shape), np.float32)
    by_file: dict[Path, list[int]] = {}
    for z, frame in enumerate(frames):
        by_file.setdefault(frame.path, []).append(z)
    for path, places in by_file.items():
        pixels = _stored_values(path, headers[path])
        for z in places:
            slope, intercept = frames[z].rescale
            voxels[z] = pixels[frames[z].number] * slope + intercept
    return voxels


def _stored_values(path: Path, header: Header) -> np.ndarray:
    """The frames (n, y, x) of a file, in file order, before rescaling."""
    layout = header.layout
    assert layout is not None
    if layout.allocated not in (8, 16, 32) or not 0 < layout.stored <= layout.highest + 1 <= layout.allocated:
        raise UserError(
            f"{path}: found {layout.stored} of {layout.allocated} bits per pixel, up to bit {layout.highest}; expected "
            "whole bytes; export it again"
        )
    read: Callable[[Path, Header, Layout], np.ndarray] = _read
    if header.is_compressed:
        read = _inflate if header.syntax == DEFLATED else _decode
    return read(path, header, layout).reshape(layout.frames, layout.rows, layout.columns)


def _read(path: Path, header: Header, layout: Layout) -> np.ndarray:
    order = ">" if header.big_endian else "<"
    raw = np.fromfile(path, _dtype(layout, order), layout.values, offset=header.offset)
    return _without_other_bits(raw, layout)


def _inflate(path: Path, header: Header, layout: Layout) -> np.ndarray:
    """The pixels of a file whose complete data set is compressed."""
    try:
        content = pydicom.dcmread(path).PixelData
        raw = np.frombuffer(content, _dtype(layout, "<"), layout.values)
    except Exception as error:  # a damaged file can fail in any way
        raise unreadable(path, error) from None
    return _without_other_bits(raw, layout)


def _dtype(layout: Layout, order: str) -> np.dtype:
    return np.dtype(f"{order}{'iu'[not layout.signed]}{layout.allocated // 8}")


def _without_other_bits(raw: np.ndarray, layout: Layout) -> np.ndarray:
    """Values without their unused bits, which may contain other data."""
    if layout.stored == layout.allocated:
        return raw
    return (raw << (layout.allocated - 1 - layout.highest)) >> (layout.allocated - layout.stored)


def _decode(path: Path, header: Header, layout: Layout) -> np.ndarray:
    """The pixels of a file whose frames are compressed one by one.

    GDCM gets only the pixels, in a temporary file: otherwise it would apply the first frame's rescale to all frames,
    invert MONOCHROME1, and reject an unknown SOP class or an unknown element after the pixels.
    """
    items = _read_items(path, header, layout)
    try:
        with tempfile.NamedTemporaryFile(prefix="dlunet-", suffix=".dcm") as bare:
            _bare_dataset(header, layout, items).save_as(bare, enforce_file_format=True)
            bare.flush()
            image = sitk.ReadImage(bare.name, imageIO="GDCMImageIO")
    except OSError as error:
        raise UserError(
            f"{path}: cannot be unpacked, because no temporary file can be written ({error.strerror}); expected space "
            "for a slice; free some, or set TMPDIR to another folder"
        ) from None
    except ValueError as error:  # unknown transfer syntax
        raise unreadable(path, error) from None
    except RuntimeError as error:
        raise UserError(
            f"{path}: its pixels cannot be unpacked from {header.syntax.name} ({last_line(error)}); expected a "
            "complete slice; copy it again, or convert the series to an uncompressed one"
        ) from None
    found, expected = image.GetSize(), (layout.columns, layout.rows, layout.frames)
    if (*found, 1)[:3] != expected or image.GetNumberOfComponentsPerPixel() != 1:
        raise UserError(
            f"{path}: found {times(found)} pixels; expected {times(expected)}, as its header says; copy it again"
        )
    return sitk.GetArrayFromImage(image)


def _read_items(path: Path, header: Header, layout: Layout) -> bytes:
    """The items of compressed pixels, which must end within the file.

    GDCM allocates memory for whatever a damaged length says, and fills in the missing part of an image.
    """
    damage = UserError(f"{path}: cannot be read as DICOM (its pixels are truncated or damaged); copy it again")
    size = path.stat().st_size
    with path.open("rb") as file:
        file.seek(header.offset)
        lengths = []
        while (start := file.read(8))[:4] == ITEM:
            lengths.append(int.from_bytes(start[4:], "little"))
            file.seek(lengths[-1], 1)
        end = header.offset + sum(8 + length for length in lengths)
        # The first item is the offset table. Some writers omit the end marker.
        if end > size or len(lengths) <= layout.frames or (start and start[:4] != END_OF_ITEMS):
            raise damage
        file.seek(header.offset)
        items = file.read(end - header.offset)
    if not start and not items[-3:].rstrip(b"\0").endswith(END_OF_JPEG):
        raise damage
    return items


def _bare_dataset(header: Header, layout: Layout, items: bytes) -> pydicom.Dataset:
    """A minimal DICOM file with nothing but the stored pixels."""
    bare = pydicom.Dataset()
    bare.file_meta = pydicom.dataset.FileMetaDataset()
    bare.file_meta.TransferSyntaxUID = header.syntax
    bare.SOPClassUID = pydicom.uid.MultiFrameGrayscaleWordSecondaryCaptureImageStorage
    bare.SOPInstanceUID = "1.2.3"
    bare.Modality, bare.PhotometricInterpretation, bare.SamplesPerPixel = "OT", "MONOCHROME2", 1
    bare.Rows, bare.Columns, bare.NumberOfFrames = layout.rows, layout.columns, layout.frames
    bare.BitsAllocated, bare.BitsStored, bare.HighBit = layout.allocated, layout.stored, layout.highest
    bare.PixelRepresentation = int(layout.signed)
    bare.PixelData = items
    bare["PixelData"].is_undefined_length = True
    return bare
