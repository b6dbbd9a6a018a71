"""What lies in a folder of DICOM files, and what stands in a file before its pixels; read by pydicom."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pydicom
import pydicom.config
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

# A value that does not follow the standard is either not needed here, or ends in an error that names the file.
pydicom.config.settings.reading_validation_mode = pydicom.config.IGNORE


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
        header = pydicom.dcmread(path, force=True, specific_tags=["SOPClassUID", "Rows"], stop_before_pixels=True)
        return "SOPClassUID" in header or "Rows" in header
    except Exception:  # it is something else
        return False


def entries(folder: Path) -> list[Path]:
    """What lies in a folder, by name, but for hidden files."""
    return sorted(path for path in folder.iterdir() if not path.name.startswith("."))


def read_headers(folder: Path) -> dict[Path, pydicom.Dataset]:
    """The headers of the images of the one series in a folder."""
    headers = {}
    for path in entries(folder):
        check_name(path)
        if is_dicom(path):
            header = read_header(path)
            if _is_image(header):
                headers[path] = header
        elif not path.is_dir() and not _is_other_file(path):
            raise UserError(
                f"{path}: lies among DICOM slices and is not one ({_what_it_is(path)}); expected the slices of one CT "
                "alone; copy it again, or take it out"
            )
    without_series = [path for path, header in headers.items() if "SeriesInstanceUID" not in header]
    if 0 < len(without_series) < len(headers):
        raise unreadable(without_series[0], EOFError("its header is truncated"))
    if not headers:
        raise UserError(f"{folder}: holds no DICOM series; expected a volume file, or a folder of the slices of one CT")
    _check_one_series(folder, list(headers.values()))
    return headers


def _check_one_series(folder: Path, headers: list[pydicom.Dataset]) -> None:
    """Whether slices are of one series; some scanners and anonymisers give each slice of one a number of its own."""
    series = Counter((str(h.get("SeriesInstanceUID", "?")), str(h.get("Modality", "?"))) for h in headers)
    places = {(str(h.get("StudyInstanceUID", "?")), str(h.get("FrameOfReferenceUID", h.filename))) for h in headers}
    if len(series) == 1 or (len(series) == len(headers) and len(places) == 1):
        return
    listed = [f"{one} ({modality}, {count} slices)" for (one, modality), count in series.most_common(MOST_LISTED)]
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


def _is_image(header: pydicom.Dataset) -> bool:
    """Whether it belongs to a volume. Structures, reports, presentation states, segmentations and doses do not."""
    kind = header.get("SOPClassUID")
    return kind is None or "Image Storage" in kind.name or ("Rows" in header and kind.is_private)


def read_header(path: Path) -> pydicom.Dataset:
    """What stands before the pixels, of which there must be enough: GDCM makes up what a file lacks."""
    found: list[int] = []

    def at_pixels(tag: Any, vr: str | None, length: int) -> bool:
        if tag != PIXELS:
            return False
        found.append(length)
        return True

    try:
        with path.open("rb") as file:
            header = read_partial(file, at_pixels, force=True)
        expected = _bytes_of_pixels(header)
    except Exception as error:  # a damaged header can fail in any way
        raise unreadable(path, error) from None
    if expected and found and found[0] != UNDEFINED_LENGTH and found[0] < expected:
        raise UserError(
            f"{path}: found {found[0]} bytes of pixels; expected {expected}, as its header says; copy it again"
        )
    return header


def _bytes_of_pixels(header: pydicom.Dataset) -> int:
    """Bytes that the pixels of an image take if they are not compressed; 0 for another object."""
    if "Rows" not in header or "Columns" not in header or "BitsAllocated" not in header:
        return 0
    values = int(header.Rows) * int(header.Columns) * int(header.get("SamplesPerPixel") or 1)
    return values * int(header.get("NumberOfFrames") or 1) * int(header.BitsAllocated) // 8


def unreadable(path: Path, error: Exception) -> UserError:
    """The error of a file that begins like one of DICOM and cannot be read as one."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return UserError(f"{path}: cannot be read as DICOM ({lines[-1].strip()}); expected a whole slice; copy it again")
