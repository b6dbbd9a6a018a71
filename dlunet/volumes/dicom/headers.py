"""DICOM headers, read by pydicom, and the location of the pixels."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pydicom
import pydicom.config
import pydicom.uid
from pydicom.filereader import read_partial

from dlunet.errors import UserError

#: First bytes of a file without DICOM's preamble of 132 bytes: an element of group 2 or 8, little or big endian.
BARE_STARTS = (b"\x02\x00", b"\x08\x00", b"\x00\x08")

#: Tag of the pixels, and the length of an element that is stored in items: compressed pixels.
PIXELS, UNDEFINED_LENGTH = 0x7FE00010, 0xFFFFFFFF

#: Maximum length of a unique identifier.
LONGEST_UID = 64

#: Maximum length of a library's error in a message.
LONGEST_REASON = 200

#: The transfer syntax that compresses the complete data set, so that byte offsets in the file do not apply.
DEFLATED = pydicom.uid.DeflatedExplicitVRLittleEndian

# A value that violates the standard is either not needed here or leads to an error that names the file.
pydicom.config.settings.reading_validation_mode = pydicom.config.IGNORE


@dataclass(frozen=True)
class Layout:
    """How the pixels of an image are stored.

    Attributes:
        frames: Number of frames.
        rows: Rows per frame.
        columns: Columns per frame.
        samples: Values per pixel.
        allocated: Bits allocated per value.
        stored: Bits used, of those allocated.
        highest: Highest used bit.
        signed: Whether values are signed.
    """

    frames: int
    rows: int
    columns: int
    samples: int
    allocated: int
    stored: int
    highest: int
    signed: bool

    @property
    def values(self) -> int:
        """Total number of values."""
        return self.frames * self.rows * self.columns * self.samples

    @property
    def bytes(self) -> int:
        """Size of the uncompressed pixels in bytes."""
        return self.values * self.allocated // 8


@dataclass(frozen=True)
class Header:
    """The header of a file, and the location of its pixels.

    Attributes:
        values: The data elements.
        kind: Name of the SOP class; empty if not stated.
        series: UID of the series, its modality, and UIDs of the study and the frame of reference, which determine
            whether slices of several series belong together.
        layout: How the pixels are stored; None for an object without pixels.
        syntax: The transfer syntax.
        big_endian: Whether the byte order is big endian.
        offset: Start of the pixels in the file, in bytes.
        length: Length of the pixels in bytes; undefined if they are compressed.
    """

    values: pydicom.Dataset
    kind: str
    series: tuple[str, str, str, str]
    layout: Layout | None
    syntax: pydicom.uid.UID
    big_endian: bool
    offset: int
    length: int

    @property
    def is_image(self) -> bool:
        """Whether it is part of a volume. Structures, reports, presentation states, segmentations and doses are not."""
        return "Image Storage" in self.kind or not self.kind or (self.layout is not None and self.kind[0].isdecimal())

    @property
    def is_compressed(self) -> bool:
        """Whether its pixels must be decompressed."""
        return self.length == UNDEFINED_LENGTH or self.syntax == DEFLATED


class _Bounded(io.BufferedReader):
    """A file whose reads are limited to its size: a damaged length would otherwise allocate gigabytes."""

    def __init__(self, path: Path) -> None:
        super().__init__(io.FileIO(path))
        self.end = path.stat().st_size

    def read(self, size: int | None = -1, /) -> bytes:
        """See :class:`io.BufferedReader`."""
        left = max(0, self.end - self.tell())
        return super().read(left if size is None or size < 0 else min(size, left))


def is_dicom(path: Path) -> bool:
    """Whether a file is DICOM, by its first bytes."""
    if not path.is_file() or path.name.lower() == "dicomdir":
        return False
    with path.open("rb") as file:
        start = file.read(132)
    if start[128:] == b"DICM":
        return True
    return start[:2] in BARE_STARTS and _has_pixels_or_class(path)


def _has_pixels_or_class(path: Path) -> bool:
    """Whether a file that begins like DICOM without its preamble continues like DICOM."""
    try:
        with _Bounded(path) as file:
            header = pydicom.dcmread(file, force=True, specific_tags=["SOPClassUID", "Rows"], stop_before_pixels=True)
        return "SOPClassUID" in header or "Rows" in header
    except Exception:  # not DICOM
        return False


def read_header(path: Path) -> Header:
    """Read the header, and check that no pixels are missing.

    Raises:
        UserError: The header is damaged, or pixels are missing.
    """
    places: list[tuple[int, int]] = []

    def at_pixels(tag: Any, vr: str | None, length: int) -> bool:
        if tag != PIXELS:
            return False
        places.append((file.tell(), length))
        return True

    try:
        with _Bounded(path) as file:
            header = _header(read_partial(file, at_pixels, force=True), *(places[0] if places else (0, 0)))
    except Exception as error:  # a damaged header can fail in any way
        raise unreadable(path, error) from None
    if header.layout and not places:
        raise UserError(
            f"{path}: has no pixels (its transfer syntax is {header.syntax.name}); expected a complete slice; export "
            "it again"
        )
    if header.layout and not header.is_compressed:
        found = min(header.length, path.stat().st_size - header.offset)
        if found < header.layout.bytes:
            raise UserError(
                f"{path}: found {found} bytes of pixels; expected {header.layout.bytes}, as its header says; copy it "
                "again"
            )
    return header


def _header(values: pydicom.Dataset, offset: int, length: int) -> Header:
    kind = values.get("SOPClassUID")
    return Header(
        values,
        kind.name if isinstance(kind, pydicom.uid.UID) else "",
        (
            _shown(values, "SeriesInstanceUID"),
            _shown(values, "Modality").upper(),
            _shown(values, "StudyInstanceUID"),
            _shown(values, "FrameOfReferenceUID"),
        ),
        _layout(values) if {"Rows", "Columns", "BitsAllocated"} <= set(values.dir()) else None,
        # A file without a preamble states no transfer syntax and is not compressed.
        pydicom.uid.UID(values.file_meta.get("TransferSyntaxUID") or pydicom.uid.ImplicitVRLittleEndian),
        values.original_encoding[1] is False,
        offset,
        length,
    )


def _layout(values: pydicom.Dataset) -> Layout:
    allocated = int(values.BitsAllocated)
    stored = int(values.get("BitsStored") or allocated)
    return Layout(
        frames=int(values.get("NumberOfFrames") or 1),
        rows=int(values.Rows),
        columns=int(values.Columns),
        samples=int(values.get("SamplesPerPixel") or 1),
        allocated=allocated,
        stored=stored,
        # Some writers leave HighBit at 0; it is at least BitsStored - 1.
        highest=max(int(values.get("HighBit") or 0), stored - 1),
        signed=bool(values.get("PixelRepresentation")),
    )


def _shown(values: pydicom.Dataset, keyword: str) -> str:
    """A value made printable for a message: in a damaged file it may be anything."""
    text = str(values.get(keyword) or "").strip()
    return "".join(letter if letter.isprintable() else "?" for letter in text)[:LONGEST_UID]


def unreadable(path: Path, error: Exception) -> UserError:
    """The error for a file that begins like DICOM and cannot be read as DICOM."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    reason = "".join(letter if letter.isprintable() else "?" for letter in lines[-1].strip())[:LONGEST_REASON]
    return UserError(f"{path}: cannot be read as DICOM ({reason}); expected a complete slice; copy it again")
