"""Geometry and rescaling of the slices in a DICOM file, frame by frame."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pydicom

from dlunet.errors import UserError
from dlunet.volumes.dicom.headers import Header, Layout, unreadable

#: The functional group in which an enhanced CT stores an element of a frame.
MACROS = {
    "ImagePositionPatient": "PlanePositionSequence",
    "ImageOrientationPatient": "PlaneOrientationSequence",
    "PixelSpacing": "PixelMeasuresSequence",
    "SliceThickness": "PixelMeasuresSequence",
    "SpacingBetweenSlices": "PixelMeasuresSequence",
    "RescaleSlope": "PixelValueTransformationSequence",
    "RescaleIntercept": "PixelValueTransformationSequence",
    "RescaleType": "PixelValueTransformationSequence",
}

#: Rescale types accepted as Hounsfield units; US means unspecified.
HOUNSFIELD = ("", "HU", "US", "HOUNSFIELD", "HOUNSFIELD UNIT", "HOUNSFIELD UNITS")


@dataclass(frozen=True)
class Frame:
    """Geometry and rescaling of one slice; x, y, z in mm (LPS).

    Attributes:
        path: Its file.
        number: Its index in the file, from 0.
        shape: Rows and columns.
        spacing: Pixel size along x and y.
        position: Centre of its first pixel.
        direction: 3×3 matrix with the directions of x, y and the normal as columns.
        thickness: Slice thickness or, without it, spacing between slices, if stated.
        rescale: Slope and intercept of this frame.
        unit: Unit of its values, ``HU`` unless another is stated.
        acquisition: Acquisition number, if stated.
        decimals: Decimals of its position: of the coordinates that distinguish slices, and of the in-plane ones.
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
    acquisition: str
    decimals: tuple[int, int]

    @property
    def height(self) -> float:
        """Position of the slice along its normal, in mm."""
        return float(self.direction[:, 2] @ self.position)

    @property
    def name(self) -> str:
        """Its name in messages."""
        return f"{self.path.name} (frame {self.number + 1})" if self.number else self.path.name


def frames_of(path: Path, header: Header) -> list[Frame]:
    """The slices of a CT file.

    Raises:
        UserError: It is not a CT, or the geometry or rescaling of its slices is missing or invalid.
    """
    layout = _layout_of_ct(path, header)
    try:
        described = len(header.values.get("PerFrameFunctionalGroupsSequence") or range(layout.frames))
        if described != layout.frames:
            raise UserError(
                f"{path}: describes {described} frames; expected {layout.frames}, as its header says; copy it again"
            )
        return [_frame(path, k, layout, header.values) for k in range(layout.frames)]
    except UserError:
        raise
    except Exception as error:  # damaged, empty or non-numeric values can fail in any way
        raise unreadable(path, error) from None


def _layout_of_ct(path: Path, header: Header) -> Layout:
    """How the pixels of a CT are stored. A file without a modality is a CT if its SOP class says so."""
    modality = header.series[1]
    if modality != "CT" and (modality or "CT Image Storage" not in header.kind):
        raise UserError(
            f"{path}: found {f'modality {modality}' if modality else 'no modality'}; expected CT, in Hounsfield units; "
            "remove the series"
        )
    layout = header.layout
    if layout is None or min(layout.frames, layout.rows, layout.columns) < 1:
        raise UserError(f"{path}: has no pixels; expected a complete slice; copy it again, or remove it")
    if layout.samples != 1:
        raise UserError(
            f"{path}: found {layout.samples} values per pixel; expected one, in Hounsfield units; remove the series"
        )
    return layout


def _frame(path: Path, number: int, layout: Layout, header: pydicom.Dataset) -> Frame:
    position = _numbers(path, header, number, "ImagePositionPatient", 3)
    orientation = _numbers(path, header, number, "ImageOrientationPatient", 6)
    y, x = _numbers(path, header, number, "PixelSpacing", 2)
    if not (x > 0 and y > 0):
        raise UserError(f"{path}: found pixels of {x:g}×{y:g} mm; expected sizes above 0; export it again")
    rows, columns = orientation[:3], orientation[3:]
    axes = np.stack([rows, columns, np.cross(rows, columns)], axis=1)
    lengths = np.linalg.norm(axes, axis=0)
    if not lengths.all():
        raise UserError(
            f"{path}: found the orientation {orientation.tolist()}; expected two directions; export it again"
        )
    if _value(header, number, "ModalityLUTSequence"):
        raise UserError(f"{path}: uses a lookup table for its values; expected a rescale slope; convert it to HU")
    slope, intercept = (_number(path, header, number, keyword) for keyword in ("RescaleSlope", "RescaleIntercept"))
    if slope == 0:
        raise UserError(f"{path}: found a rescale slope of 0; expected another value; export the series again")
    direction = axes / lengths
    thickness = _value(header, number, "SliceThickness") or _value(header, number, "SpacingBetweenSlices")
    unit = str(_value(header, number, "RescaleType") or "").strip().upper()
    return Frame(
        path,
        number,
        (layout.rows, layout.columns),
        (float(x), float(y)),
        position,
        direction,
        float(thickness) if thickness else None,
        (1.0 if slope is None else slope, 0.0 if intercept is None else intercept),
        "HU" if unit in HOUNSFIELD else unit,
        str(header.get("AcquisitionNumber") or "").strip(),
        _decimals(_value(header, number, "ImagePositionPatient"), direction),
    )


def _value(header: pydicom.Dataset, number: int, keyword: str) -> Any:
    """An element of a frame: from its own functional group, else from the shared one, else from the top level.

    Only the group in :data:`MACROS` is searched: others may contain an element of the same name with another meaning.
    """
    for sequence, at in (("PerFrameFunctionalGroupsSequence", number), ("SharedFunctionalGroupsSequence", 0)):
        for groups in (header.get(sequence) or [])[at : at + 1]:
            for group in (groups.get(MACROS.get(keyword, keyword)) or [])[:1]:
                if keyword in group:
                    return group[keyword].value
    return header[keyword].value if keyword in header else None


def _number(path: Path, header: pydicom.Dataset, number: int, keyword: str) -> float | None:
    """A value that may be absent or empty; if present, it must be a number."""
    found = _numbers(path, header, number, keyword, 1, optional=True)
    return float(found[0]) if len(found) else None


def _numbers(
    path: Path, header: pydicom.Dataset, number: int, keyword: str, count: int, optional: bool = False
) -> np.ndarray:
    """Exactly ``count`` numbers, or none if they are optional."""
    try:
        values = _value(header, number, keyword)
        found = np.array([] if values is None else values, dtype=float).ravel()
        shown = str(found.tolist())
    except (ValueError, TypeError, ArithmeticError) as error:
        found, shown = np.array([np.nan]), _raw_value(header, keyword) or str(error)
    if optional and not len(found):
        return found
    if len(found) != count or not np.isfinite(found).all():
        raise UserError(
            f"{path}: {f'found {shown} as' if len(found) else 'has no'} {keyword}; expected {count} "
            f"{'numbers' if count > 1 else 'number'}; export the series again from the scanner or archive"
        )
    return found


def _raw_value(header: pydicom.Dataset, keyword: str) -> str:
    """A non-numeric value as stored in the file."""
    value = header.get_item(keyword).value if keyword in header else b""
    return value.decode("latin-1").strip() if isinstance(value, bytes) else str(value)


def _decimals(position: Sequence[Any], direction: np.ndarray) -> tuple[int, int]:
    """Decimals of a position: of the coordinates that distinguish slices, and of those that vary within a slice."""
    places = [
        -int(Decimal(str(getattr(value, "original_string", value)).strip()).normalize().as_tuple().exponent)
        for value in position
    ]
    shares = np.abs(direction) > 1e-3
    along, across = shares[:, 2], shares[:, :2].any(axis=1)
    return max(np.array(places)[along].tolist()), max(np.array(places)[across].tolist())
