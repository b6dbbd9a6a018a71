"""What stands in a DICOM file before its pixels, read by pydicom, and where these are."""

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

#: How a file without DICOM's preamble of 132 bytes begins: with an element of group 2 or 8, little or big endian.
BARE_STARTS = (b"\x02\x00", b"\x08\x00", b"\x00\x08")

#: Where the pixels are, and the length of an element that is stored in parts: compressed pixels.
PIXELS, UNDEFINED_LENGTH = 0x7FE00010, 0xFFFFFFFF

#: Letters that a unique identifier has at most.
LONGEST_UID = 64

#: How much of a library's error a message shows.
LONGEST_REASON = 200

#: An encoding in which all of a file is compressed, so that nothing lies where it would without.
DEFLATED = pydicom.uid.DeflatedExplicitVRLittleEndian

# A value that does not follow the standard is either not needed here, or ends in an error that names the file.
pydicom.config.settings.reading_validation_mode = pydicom.config.IGNORE


@dataclass(frozen=True)
class Layout:
    """How the pixels of an image are stored.

    Attributes:
        frames: How many there are.
        rows: Of each frame.
        columns: Of each frame.
        samples: Values per pixel.
        allocated: Bits of a value.
        stored: How many of these count.
        highest: The highest that counts.
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
        """How many values all pixels have."""
        return self.frames * self.rows * self.columns * self.samples

    @property
    def bytes(self) -> int:
        """What the pixels take if they are not compressed."""
        return self.values * self.allocated // 8


@dataclass(frozen=True)
class Header:
    """What stands before a file's pixels, and where these are.

    Attributes:
        values: The elements.
        kind: The name of the object's class; empty where it is not stated.
        series: The series, its modality, and the study and the frame of reference that say whether slices of several
            series belong together.
        layout: How the pixels are stored; None for an object without pixels.
        syntax: The transfer syntax.
        big_endian: The byte order.
        offset: Where the pixels begin, in bytes.
        length: Their bytes; undefined for compressed ones.
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
        """Whether it belongs to a volume. Structures, reports, presentation states, segmentations and doses do not."""
        return "Image Storage" in self.kind or not self.kind or (self.layout is not None and self.kind[0].isdecimal())

    @property
    def is_compressed(self) -> bool:
        """Whether its pixels have to be unpacked."""
        return self.length == UNDEFINED_LENGTH or self.syntax == DEFLATED


class _Bounded(io.BufferedReader):
    """A file of which no more is read than there is: a damaged length would have gigabytes of memory made ready."""

    def __init__(self, path: Path) -> None:
        super().__init__(io.FileIO(path))
        self.end = path.stat().st_size

    def read(self, size: int | None = -1, /) -> bytes:
        """As of any file."""
        left = max(0, self.end - self.tell())
        return super().read(left if size is None or size < 0 else min(size, left))


def is_dicom(path: Path) -> bool:
    """Whether a file is one of DICOM, by its first bytes."""
    if not path.is_file() or path.name.lower() == "dicomdir":
        return False
    with path.open("rb") as file:
        start = file.read(132)
    if start[128:] == b"DICM":
        return True
    return start[:2] in BARE_STARTS and _has_pixels_or_class(path)


def _has_pixels_or_class(path: Path) -> bool:
    """Whether what begins like a DICOM file without its preamble goes on like one."""
    try:
        with _Bounded(path) as file:
            header = pydicom.dcmread(file, force=True, specific_tags=["SOPClassUID", "Rows"], stop_before_pixels=True)
        return "SOPClassUID" in header or "Rows" in header
    except Exception:  # it is something else
        return False


def read_header(path: Path) -> Header:
    """Read what stands before the pixels, of which there must be enough.

    Raises:
        UserError: It is damaged, or pixels are missing.
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
        # A file without a preamble does not say, and is not compressed.
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
        # Some writers leave the highest bit at 0: there are at least as many as are stored.
        highest=max(int(values.get("HighBit") or 0), stored - 1),
        signed=bool(values.get("PixelRepresentation")),
    )


def _shown(values: pydicom.Dataset, keyword: str) -> str:
    """A value as a message can show it: of a damaged file it may be anything."""
    text = str(values.get(keyword) or "").strip()
    return "".join(letter if letter.isprintable() else "?" for letter in text)[:LONGEST_UID]


def unreadable(path: Path, error: Exception) -> UserError:
    """The error of a file that begins like one of DICOM and cannot be read as one."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    reason = "".join(letter if letter.isprintable() else "?" for letter in lines[-1].strip())[:LONGEST_REASON]
    return UserError(f"{path}: cannot be read as DICOM ({reason}); expected a complete slice; copy it again")
