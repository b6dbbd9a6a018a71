"""Read a folder of DICOM files: one series, and nothing else that could be a slice of it."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

from dlunet.errors import UserError
from dlunet.files import check_name
from dlunet.volumes.dicom.headers import Header, is_dicom, read_header, unreadable
from dlunet.volumes.names import SUFFIXES

#: Maximum number of series listed in a message.
MOST_LISTED = 3

#: Usual endings of slices, and endings of incompletely copied or downloaded ones.
SLICE_SUFFIXES = (".dcm", ".ima")
PARTIAL_SUFFIXES = ("", ".part", ".partial", ".filepart", ".crdownload", ".download", ".tmp", ".bak", ".htm", ".html",
                    ".txt")  # fmt: skip

#: Files without an ending that are found beside slices and are not slices.
OTHER_FILES = ("dicomdir", "lockfile", "version", "readme", "license", "copying", "autorun", "makefile")


def is_series(folder: Path) -> bool:
    """Whether a folder is read as a series: it contains DICOM files, and at least as many as other volumes."""
    if not folder.is_dir():
        return False
    paths = _visible(folder)
    volumes = [path for path in paths if path.name.lower().endswith(SUFFIXES)]
    if not volumes:
        return any(is_dicom(path) for path in paths)
    return sum(is_dicom(path) for path in paths) >= len(volumes)


def is_meant_as_series(folder: Path) -> bool:
    """Whether a folder contains an entry named like a slice, whatever it is."""
    return folder.is_dir() and any(path.name.lower().endswith(SLICE_SUFFIXES) for path in _visible(folder))


def volumes_beside(folder: Path) -> list[Path]:
    """Volumes in other formats in a folder of slices."""
    return [path for path in _visible(folder) if path.name.lower().endswith(SUFFIXES) and path.is_file()]


def read_headers(folder: Path) -> dict[Path, Header]:
    """The headers of the images of the only series in a folder.

    Raises:
        UserError: The folder contains no series or several, a file named like a slice that is not one, or slices that
            are hidden or in a subfolder.
    """
    slices: list[Path] = []
    others: list[Path] = []
    hidden: list[Path] = []
    for path in sorted(folder.iterdir()):
        if path.name.startswith("."):
            hidden.append(path)
            continue
        check_name(path)
        (slices if is_dicom(path) else others).append(path)
    headers = {path: header for path in slices if (header := read_header(path)).is_image}
    if not headers:
        raise UserError(
            f"{folder}: contains no DICOM series; expected a volume file, or a folder of the slices of one CT"
        )
    looks_like_one = _Slices(slices)
    folders = [path for path in others if path.is_dir()]
    for path in others:
        if looks_like_one(path) and not path.is_dir():
            raise UserError(
                f"{path}: lies among DICOM slices but is not one ({_what_it_is(path)}); expected only the "
                "slices of one CT; copy it again, or remove it"
            )
    _check_one_series(folder, headers)
    _check_nothing_aside(hidden, folders, headers)
    return headers


class _Slices:
    """The names of slices; determines whether another file is named like a slice."""

    def __init__(self, slices: list[Path]) -> None:
        self.names = {path.name.lower() for path in slices}
        self.suffixes = {_suffix(name) for name in self.names}
        self.stems = {_stem(name) for name in self.names}
        self.patterns = {_pattern(stem) for stem in self.stems}

    def __call__(self, path: Path) -> bool:
        name = path.name.lower()
        stem, suffix = _stem(name), _suffix(name)
        if suffix in self.suffixes:
            return name not in OTHER_FILES
        if stem in self.stems or stem in self.names:  # it belongs to that slice: a text, a picture, …
            return False
        return _suffix(stem) in self.suffixes - {""} or (suffix in PARTIAL_SUFFIXES and _pattern(stem) in self.patterns)


def _suffix(name: str) -> str:
    """The file ending; names that are unique identifiers have none."""
    suffix = Path(name).suffix
    return suffix if re.search("[a-z]", suffix) else ""


def _stem(name: str) -> str:
    return name.removesuffix(_suffix(name))


def _pattern(stem: str) -> str:
    """The common pattern of numbered file names."""
    return re.sub(r"\d+", "0", stem)


def _check_one_series(folder: Path, headers: dict[Path, Header]) -> None:
    """Check that slices are of one series; some scanners and anonymisers give each slice its own series UID."""
    series = Counter(header.series[:2] for header in headers.values())
    nameless = [path for path, header in headers.items() if not header.series[0]]
    if 0 < len(nameless) < len(headers):
        raise unreadable(nameless[0], EOFError("its header is truncated"))
    places = {header.series[2:] for header in headers.values()}
    together = len(places) == 1 and all(next(iter(places)))
    if len(series) == 1 or (len(series) == len(headers) and together):
        return
    listed = [
        f"{one} ({modality or '?'}, {count} slice{'s' * (count > 1)})"
        for (one, modality), count in series.most_common(MOST_LISTED)
    ]
    more = ", …" if len(series) > MOST_LISTED else ""
    raise UserError(
        f"{folder}: contains {len(series)} series: {', '.join(listed)}{more}; expected one; put each into its own "
        "folder"
    )


def _check_nothing_aside(hidden: list[Path], folders: list[Path], headers: dict[Path, Header]) -> None:
    """Check that no slice of the series is hidden or in a subfolder."""
    series = {header.series[0] for header in headers.values()}
    for path in [*hidden, *filter(None, map(_first_slice, folders))]:
        if _series_of(path) in series:
            raise UserError(
                f"{path}: is a slice of the series in {next(iter(headers)).parent}; expected all its slices in that "
                "folder, not hidden; move it there, or remove it"
            )


def _first_slice(folder: Path) -> Path | None:
    """The first DICOM file of a folder, if there is one."""
    try:
        return next((path for path in _visible(folder) if is_dicom(path)), None)
    except OSError:  # an inaccessible folder is not part of the series
        return None


def _series_of(path: Path) -> str | None:
    try:
        header = read_header(path) if is_dicom(path) else None
    except (OSError, UserError):  # an unreadable file is not a slice
        return None
    return header.series[0] if header and header.is_image else None


def _visible(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if not path.name.startswith("."))


def _what_it_is(path: Path) -> str:
    if path.is_symlink() and not path.exists():
        return "a broken link"
    return f"{path.stat().st_size} bytes" if path.is_file() else "no file"
