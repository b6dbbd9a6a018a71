"""What lies in a folder of DICOM files, and what stands in a file before its pixels; read by pydicom."""

from __future__ import annotations

import io
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pydicom
import pydicom.config
import pydicom.uid
from pydicom.filereader import read_partial

from dlunet.errors import UserError
from dlunet.files import check_name

#: Series that a message lists at most.
MOST_LISTED = 3

#: Files that lie beside slices and are nobody's slice.
OTHER_FILES = ("dicomdir", "lockfile", "version", "readme", "license", "copying")
OTHER_SUFFIXES = (".txt", ".md", ".rtf", ".csv", ".tsv", ".json", ".xml", ".yaml", ".yml", ".log", ".htm", ".html",
                  ".pdf", ".jpg", ".jpeg", ".png", ".gif", ".bmp", ".ico", ".ini", ".inf", ".db", ".xlsx", ".docx",
                  ".exe", ".dll", ".sh", ".bat", ".py", ".md5", ".sha256")  # fmt: skip

#: How a file without DICOM's preamble of 132 bytes begins: with an element of group 2 or 8, little or big endian.
BARE_STARTS = (b"\x02\x00", b"\x08\x00", b"\x00\x08")

#: Where the pixels are, and the length of an element that is stored in parts: compressed pixels.
PIXELS, UNDEFINED_LENGTH = 0x7FE00010, 0xFFFFFFFF

#: What tells which slices belong together, and how many letters of it can.
SERIES, LONGEST_UID = ("SeriesInstanceUID", "Modality", "StudyInstanceUID", "FrameOfReferenceUID"), 64

#: How much of a library's error a message shows.
LONGEST_REASON = 200

#: An encoding in which all of a file is compressed, so that nothing lies where it would without.
DEFLATED = str(pydicom.uid.DeflatedExplicitVRLittleEndian)

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
    def bytes(self) -> int:
        """What the pixels take if they are not compressed."""
        return self.frames * self.rows * self.columns * self.samples * self.allocated // 8


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
        offset: Where the pixels begin, in bytes.
        length: Their bytes; undefined for compressed ones.
    """

    values: pydicom.Dataset
    kind: str
    series: tuple[str, str, str, str]
    layout: Layout | None
    syntax: str
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


def entries(folder: Path) -> list[Path]:
    """What lies in a folder, by name, but for hidden files."""
    return sorted(path for path in folder.iterdir() if not path.name.startswith("."))


def read_headers(folder: Path) -> dict[Path, Header]:
    """The headers of the images of the one series in a folder.

    Raises:
        UserError: The folder holds no series or several, or something that is not what its neighbours are.
    """
    headers = {}
    for path in entries(folder):
        check_name(path)
        if is_dicom(path):
            header = read_header(path)
            if header.is_image:
                headers[path] = header
        elif not path.is_dir() and not _is_other_file(path):
            raise UserError(
                f"{path}: lies among DICOM slices and is not one ({_what_it_is(path)}); expected the slices of one CT "
                "alone; copy it again, or take it out"
            )
    if not headers:
        raise UserError(f"{folder}: holds no DICOM series; expected a volume file, or a folder of the slices of one CT")
    _check_one_series(folder, headers)
    return headers


def _check_one_series(folder: Path, headers: dict[Path, Header]) -> None:
    """Whether slices are of one series; some scanners and anonymisers give each slice of one a number of its own."""
    series = Counter(header.series[:2] for header in headers.values())
    nameless = [path for path, header in headers.items() if not header.series[0]]
    if 0 < len(nameless) < len(headers):
        raise unreadable(nameless[0], EOFError("its header is truncated"))
    places = {header.series[2:] for header in headers.values()}
    together = len(places) == 1 and all(next(iter(places)))
    if len(series) == 1 or (len(series) == len(headers) and together):
        return
    listed = [
        f"{one} ({modality or '?'}, {count} slices)" for (one, modality), count in series.most_common(MOST_LISTED)
    ]
    more = ", …" if len(series) > MOST_LISTED else ""
    raise UserError(
        f"{folder}: holds {len(series)} series: {', '.join(listed)}{more}; expected one; give each a folder of its own"
    )


def _is_other_file(path: Path) -> bool:
    return path.name.lower() in OTHER_FILES or (path.is_file() and path.name.lower().endswith(OTHER_SUFFIXES))


def _what_it_is(path: Path) -> str:
    if path.is_symlink() and not path.exists():
        return "a broken link"
    return f"{path.stat().st_size} bytes" if path.is_file() else "no file"


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
        tuple(_shown(values, keyword) for keyword in SERIES),  # type: ignore[arg-type]
        _layout(values) if {"Rows", "Columns", "BitsAllocated"} <= set(values.dir()) else None,
        # A file without a preamble does not say, and is not compressed.
        str(values.file_meta.get("TransferSyntaxUID") or pydicom.uid.ImplicitVRLittleEndian),
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
        highest=int(values.get("HighBit", stored - 1)),
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
    return UserError(f"{path}: cannot be read as DICOM ({reason}); expected a whole slice; copy it again")
