"""A CT as DICOM: a folder of slices, or one file with many frames (enhanced CT).

pydicom reads the headers, slice by slice and frame by frame, since each has a position, an orientation, a rescale slope
and an intercept of its own; GDCM, within SimpleITK, unpacks the pixels. A series whose slices do not form an upright
stack of even distances is refused, since no volume with a voxel size describes it. So is a folder in which a file is
not what its neighbours are: a slice that was lost at the end of a stack leaves no gap by which it would be missed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pydicom.config
import SimpleITK as sitk
from pydicom.filereader import read_partial

from dlunet.errors import UserError
from dlunet.volumes.geometry import Geometry

#: Distances between slices may differ by this part of a slice, or by what the decimals of their positions leave open.
DISTANCE_TOLERANCE = 0.01
#: Slices may be shifted against each other by this part of a voxel; a tilted gantry shifts them by many.
SHIFT_TOLERANCE = 0.1
#: However coarsely positions are rounded, slices further off than this part of their distance are not evenly stacked.
ROUNDING_LIMIT = 0.3

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


@dataclass(frozen=True)
class _Frame:
    """Where one slice lies; x, y, z in mm (LPS).

    Attributes:
        path: Its file.
        number: Its place in the file, from 0.
        shape: Rows and columns.
        spacing: Pixel size along x and y.
        position: Centre of its first pixel.
        direction: Columns: along x, along y, and the normal.
        thickness: If stated.
        rescale: Slope and intercept of this frame.
        unit: Of its values, ``HU`` where no other is stated.
        decimals: Of its position, along the normal.
    """

    path: Path
    number: int
    shape: tuple[int, int]
    spacing: tuple[float, float]
    position: np.ndarray
    direction: np.ndarray
    thickness: float | None
    rescale: tuple[float, float]
    unit: str
    decimals: int

    @property
    def height(self) -> float:
        """Where the slice lies along its normal, in mm."""
        return float(self.direction[:, 2] @ self.position)

    @property
    def name(self) -> str:
        """What to call it in a message."""
        return f"{self.path.name} (frame {self.number + 1})" if self.number else self.path.name


def is_series(folder: Path) -> bool:
    """Whether a folder holds DICOM files."""
    return folder.is_dir() and any(is_dicom(path) for path in _entries(folder))


def is_dicom(path: Path) -> bool:
    """Whether a file is one of DICOM, by its first bytes."""
    if not path.is_file() or path.name.lower() == "dicomdir":
        return False
    with path.open("rb") as file:
        start = file.read(132)
    if start[128:] == b"DICM":
        return True
    return start[:2] in BARE_STARTS and _has_pixels_or_class(path)


def read(path: Path) -> tuple[np.ndarray, Geometry, tuple[str, ...]]:
    """Read a CT: a folder of the slices of one series, or a file.

    Returns:
        The voxels (z, y, x) in HU, float32; the grid; and what to warn of.

    Raises:
        UserError: The folder holds no series or several, a file cannot be read or is not CT, or the slices do not form
            an upright stack of even distances.
    """
    headers = _headers(path) if path.is_dir() else {path: _header(path)}
    frames = [frame for at, header in headers.items() for frame in _frames(at, header)]
    frames.sort(key=lambda frame: frame.height)
    _check_alike(frames)
    distance = _distance(path, frames)
    first = frames[0]
    try:
        matrix = first.direction * (*first.spacing, distance)
        grid = Geometry.of_affine((first.shape[1], first.shape[0], len(frames)), matrix, first.position.tolist())
    except ValueError as error:
        raise UserError(f"{path}: found {error}; expected rows and columns at right angles; export it again") from None
    # Dual-energy scanners also store maps of other things than HU as CTs.
    others = sorted({frame.unit for frame in frames} - {"HU"})
    return _read_pixels(frames), grid, tuple(f"its header states values in {unit}, not in HU" for unit in others)


def _entries(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if not path.name.startswith("."))


def _headers(folder: Path) -> dict[Path, pydicom.Dataset]:
    """The headers of the images of the one series in a folder."""
    headers = {}
    for path in _entries(folder):
        if is_dicom(path):
            header = _header(path)
            if _is_image(header):
                headers[path] = header
        elif not path.is_dir() and not _is_other_file(path):
            raise UserError(
                f"{path}: lies among DICOM slices and is not one ({_what_it_is(path)}); expected the slices of one CT "
                "alone; copy it again, or take it out"
            )
    without_series = [path for path, header in headers.items() if "SeriesInstanceUID" not in header]
    if 0 < len(without_series) < len(headers):
        raise _unreadable(without_series[0], EOFError("its header is truncated"))
    series = Counter((str(h.get("SeriesInstanceUID", "?")), str(h.get("Modality", "?"))) for h in headers.values())
    if len(series) > 1:
        listed = ", ".join(f"{one} ({modality}, {count} slices)" for (one, modality), count in series.items())
        raise UserError(f"{folder}: holds {len(series)} series: {listed}; expected one; give each a folder of its own")
    if not headers:
        raise UserError(f"{folder}: holds no DICOM series; expected a volume file, or a folder of the slices of one CT")
    return headers


def _is_other_file(path: Path) -> bool:
    return path.name.lower() in OTHER_FILES or (path.is_file() and path.name.lower().endswith(OTHER_SUFFIXES))


def _what_it_is(path: Path) -> str:
    if path.is_symlink() and not path.exists():
        return "a broken link"
    return f"{path.stat().st_size} bytes" if path.is_file() else "no file"


def _header(path: Path) -> pydicom.Dataset:
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
        raise _unreadable(path, error) from None
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


def _has_pixels_or_class(path: Path) -> bool:
    """Whether what begins like a DICOM file without its preamble goes on like one."""
    try:
        header = pydicom.dcmread(path, force=True, specific_tags=["SOPClassUID", "Rows"], stop_before_pixels=True)
        return "SOPClassUID" in header or "Rows" in header
    except Exception:  # it is something else
        return False


def _unreadable(path: Path, error: Exception) -> UserError:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return UserError(f"{path}: cannot be read as DICOM ({lines[-1].strip()}); expected a whole slice; copy it again")


def _is_image(header: pydicom.Dataset) -> bool:
    """Whether it belongs to a volume. Structures, reports, presentation states, segmentations and doses do not."""
    kind = header.get("SOPClassUID")
    return kind is None or "Image Storage" in kind.name or ("Rows" in header and kind.is_private)


def _frames(path: Path, header: pydicom.Dataset) -> list[_Frame]:
    _check_modality(path, header)
    try:
        count = int(header.get("NumberOfFrames") or 1)
        described = len(header.get("PerFrameFunctionalGroupsSequence") or range(count))
        if described != count:
            raise UserError(f"{path}: describes {described} frames; expected {count}, as it states; copy it again")
        return [_frame(path, number, header, _frame_groups(header, number)) for number in range(count)]
    except UserError:
        raise
    except Exception as error:  # what is damaged, empty or no number fails in as many ways
        raise _unreadable(path, error) from None


def _check_modality(path: Path, header: pydicom.Dataset) -> None:
    """A file without a modality is a CT if its class says so."""
    kind = header.get("SOPClassUID")
    stated = str(header.get("Modality") or "").strip()
    if stated != "CT" and (stated or kind is None or "CT Image Storage" not in kind.name):
        raise UserError(
            f"{path}: found {f'modality {stated}' if stated else 'no modality'}; expected CT, in Hounsfield units; "
            "leave the series out"
        )
    if "Rows" not in header or "Columns" not in header:
        raise UserError(f"{path}: has no pixels; expected a whole slice; copy it again, or take it out")
    values = int(header.get("SamplesPerPixel") or 1)
    if values != 1:
        raise UserError(
            f"{path}: found {values} values per pixel; expected one, in Hounsfield units; leave the series out"
        )


def _frame_groups(header: pydicom.Dataset, number: int) -> list[pydicom.Dataset]:
    """Where to look up what describes a frame: the items of its functional groups, its own before the shared ones."""
    if "PerFrameFunctionalGroupsSequence" not in header:
        return [header]
    own, shared = header.PerFrameFunctionalGroupsSequence[number:], header.get("SharedFunctionalGroupsSequence", [])
    groups = [*own[:1], *shared[:1]]
    return [item for group in groups for element in group if element.VR == "SQ" for item in element.value[:1]]


def _frame(path: Path, number: int, header: pydicom.Dataset, groups: Sequence[pydicom.Dataset]) -> _Frame:
    position = _numbers(path, groups, "ImagePositionPatient", 3)
    orientation = _numbers(path, groups, "ImageOrientationPatient", 6)
    y, x = _numbers(path, groups, "PixelSpacing", 2)
    if not (x > 0 and y > 0):
        raise UserError(f"{path}: found pixels of {x:g}×{y:g} mm; expected sizes above 0; export it again")
    rows, columns = orientation[:3], orientation[3:]
    axes = np.stack([rows, columns, np.cross(rows, columns)], axis=1)
    lengths = np.linalg.norm(axes, axis=0)
    if not lengths.all():
        raise UserError(
            f"{path}: found the orientation {orientation.tolist()}; expected two directions; export it again"
        )
    thickness, unit = (_value(groups, keyword) for keyword in ("SliceThickness", "RescaleType"))
    slope, intercept = (_value(groups, keyword) for keyword in ("RescaleSlope", "RescaleIntercept"))
    if slope is not None and not float(slope):
        raise UserError(f"{path}: found the rescale slope 0; expected another; export the series again")
    return _Frame(
        path,
        number,
        (int(header.Rows), int(header.Columns)),
        (float(x), float(y)),
        position,
        axes / lengths,
        float(thickness) if thickness else None,
        (1.0 if slope is None else float(slope), 0.0 if intercept is None else float(intercept)),
        str(unit or "HU").strip().replace("US", "HU"),  # US: unspecified
        _decimals(_value(groups, "ImagePositionPatient"), axes[:, 2]),
    )


def _value(groups: Sequence[pydicom.Dataset], keyword: str) -> Any:
    return next((group[keyword].value for group in groups if keyword in group), None)


def _numbers(path: Path, groups: Sequence[pydicom.Dataset], keyword: str, count: int) -> np.ndarray:
    values = _value(groups, keyword)
    found = np.array([] if values is None else values, dtype=float).ravel()
    if len(found) != count or not np.isfinite(found).all():
        raise UserError(
            f"{path}: has {'no' if not len(found) else 'a damaged'} {keyword}; expected {count} numbers that say where "
            "the slice lies; export the series again from the scanner or archive"
        )
    return found


def _decimals(position: Sequence[Any], normal: np.ndarray) -> int:
    """Decimals of a position, of those coordinates that tell slices apart."""
    exponents = [
        Decimal(str(getattr(value, "original_string", value)).strip()).normalize().as_tuple().exponent
        for value, share in zip(position, normal, strict=True)
        if abs(share) > 1e-3
    ]
    return max(-int(exponent) for exponent in exponents)


def _check_alike(frames: list[_Frame]) -> None:
    first = frames[0]
    for other in frames[1:]:
        if other.shape != first.shape or not np.allclose(other.spacing, first.spacing, rtol=1e-4):
            raise UserError(
                f"{other.path}: found {_size(other)}; expected {_size(first)}, as in {first.name}; one of them belongs "
                "to another series; take it out"
            )
        if not np.allclose(other.direction, first.direction, atol=1e-4):
            raise UserError(
                f"{other.path}: is turned against {first.name}; expected parallel slices; take out localizers and "
                "reformatted slices"
            )


def _distance(path: Path, frames: list[_Frame]) -> float:
    """The distance between slices in mm, after checking that they are stacked evenly and upright."""
    first, last = frames[0], frames[-1]
    if len(frames) == 1:
        if not first.thickness:
            raise UserError(f"{path}: found one slice of unknown thickness; expected more, or a slice thickness")
        return first.thickness
    heights = np.array([frame.height for frame in frames])
    distance = float(heights[-1] - heights[0]) / (len(frames) - 1)
    rounding = 10.0 ** -max(frame.decimals for frame in frames)
    if not _is_even(heights, distance, rounding):
        steps = np.diff(heights)
        usual = float(np.median(steps))
        at = int(np.argmax(np.abs(steps - usual)))
        expected = f"{usual:.4g} mm, as between the others" if usual > 0 else "one slice in each place"
        raise UserError(
            f"{path}: found {steps[at]:.4g} mm between {frames[at].name} and {frames[at + 1].name}; expected "
            f"{expected}; slices are missing or there twice; export the series again"
        )
    along = first.direction[:, 2]
    offsets = np.array([frame.position - first.position for frame in frames])
    shift = float(np.linalg.norm(offsets - np.outer(offsets @ along, along), axis=1).max())
    if shift > SHIFT_TOLERANCE * min(first.spacing) + rounding:
        tilt = np.degrees(np.arctan2(shift, last.height - first.height))
        raise UserError(
            f"{path}: its slices are shifted against each other by up to {shift:.4g} mm, as with a gantry tilted by "
            f"{tilt:.3g}°; expected a stack at right angles to its slices; resample the series to one, then give that"
        )
    return distance


def _is_even(heights: np.ndarray, distance: float, rounding: float) -> bool:
    """Whether slices lie at even distances, up to a small part of these or to the rounding of their positions."""
    if (np.abs(np.diff(heights) - distance) <= DISTANCE_TOLERANCE * distance).all():
        return distance > 0
    off = np.abs(heights - heights[0] - distance * np.arange(len(heights)))
    return bool(off.max() <= min(rounding, ROUNDING_LIMIT * distance))


def _read_pixels(frames: list[_Frame]) -> np.ndarray:
    """The voxels (z, y, x) in HU; a file of many frames is unpacked once."""
    voxels = np.empty((len(frames), *frames[0].shape), np.float32)
    by_file: dict[Path, list[int]] = {}
    for z, frame in enumerate(frames):
        by_file.setdefault(frame.path, []).append(z)
    for path, places in by_file.items():
        own = [frames[z] for z in places]
        pixels = _unpack(path, own)
        for z, frame in zip(places, own, strict=True):
            voxels[z] = pixels[frame.number]
    return voxels


def _unpack(path: Path, frames: list[_Frame]) -> np.ndarray:
    """The frames (n, y, x) of a file in HU, in the file's order."""
    if len({frame.rescale for frame in frames}) > 1:  # of which GDCM takes the first for all
        return _unpack_frame_by_frame(path, frames)
    try:
        image = sitk.ReadImage(str(path), imageIO="GDCMImageIO")
    except RuntimeError as error:
        raise _unreadable(path, error) from None
    size, expected = ("×".join(map(str, n)) for n in (image.GetSize(), (*frames[0].shape[::-1], len(frames))))
    if size != expected or image.GetNumberOfComponentsPerPixel() != 1:
        raise UserError(f"{path}: found {size} pixels; expected {expected}, as its header says; copy it again")
    return sitk.GetArrayViewFromImage(image).astype(np.float32)


def _unpack_frame_by_frame(path: Path, frames: list[_Frame]) -> np.ndarray:
    try:
        pixels = pydicom.dcmread(path).pixel_array.astype(np.float32)
    except Exception as error:  # a compression that pydicom does not know, or a damaged file
        raise _unreadable(path, error) from None
    for frame in frames:
        slope, intercept = frame.rescale
        pixels[frame.number] = pixels[frame.number] * slope + intercept
    return pixels


def _size(one: _Frame) -> str:
    (rows, columns), (x, y) = one.shape, one.spacing
    return f"{columns}×{rows} pixels of {x:.4g}×{y:.4g} mm"
