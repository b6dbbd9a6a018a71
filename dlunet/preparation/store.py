"""Prepared cases on disk: memory-mapped arrays, so that a patch is read without reading the complete case.

One folder per case, written atomically::

    image.npy    (1, z, y, x) int16, in quantisation   label.npy    (z, y, x) uint8, if the case has labels
                 steps, see case.json
    index.npy    (n, 3) int16, voxels of each class    case.json    the rest, see :class:`PreparedCase`

The index of an unlabelled case's pseudo-labels, which determines where to crop, is in a separate folder with index.npy
and case.json, so that other pseudo-labels leave the case unchanged. The pseudo-labels themselves are stored beside it,
as label.npy, only for methods that train on them; for all others they can never become a target.

Arrays are plain .npy because reading a patch is 16 times faster than from blosc2's b2nd and 27 times faster than from
zarr, at four times the space (``benchmarks/patch_store.py``). They are opened for each read, in a fraction of a
millisecond: an open map takes a file descriptor, of which a process may have fewer than a dataset has arrays.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dlunet import stamps
from dlunet.errors import UserError, cannot_be_opened
from dlunet.files import whole, write_text

#: The files of a case.
IMAGE, LABEL, INDEX, CASE = "image.npy", "label.npy", "index.npy", "case.json"

#: Key of the image's quantisation step in case.json.
STEP = "quantisation_step"

#: Key in case.json beside an index: the shape of the pseudo-labels, if they are stored as targets.
TARGET = "target"

#: Maximum number of voxels stored per class; crop centres are drawn from these.
VOXELS_A_CLASS = 10_000


@dataclass(frozen=True)
class PreparedCase:
    """A case written by :func:`save_prepared`; the arrays are opened for each read and never read completely.

    An array that cannot be opened, or is damaged, is a :class:`dlunet.errors.UserError`.

    Attributes:
        folder: Its folder.
        shape: (z, y, x) of the prepared volume.
        ranges: For each class that the case contains, its rows in the index.
        quantisation_step: Normalised values are those of :attr:`image` times this.
        index_folder: Folder of the index: that of the case or of its pseudo-labels.
        warnings: What looks wrong in its CT.
        labelled: Whether it has labels.
        has_target: Whether it has labels, or pseudo-labels that were stored as targets.
        lost: The classes of its label map of which no voxel is left after resampling.
    """

    folder: Path
    shape: tuple[int, int, int]
    ranges: dict[int, tuple[int, int]]
    quantisation_step: float
    index_folder: Path
    labelled: bool
    has_target: bool
    warnings: tuple[str, ...] = ()
    lost: tuple[int, ...] = ()

    @classmethod
    def open(cls, folder: Path, index_folder: Path | None = None) -> PreparedCase:
        """Open a prepared case.

        Args:
            folder: Its folder.
            index_folder: Folder of the index of its pseudo-labels, for a case without labels.

        Raises:
            UserError: A folder is not a valid prepared case.
        """
        index_folder = index_folder or folder
        at = folder
        try:
            values = json.loads((folder / CASE).read_text())
            z, y, x = values["shape"]
            step = float(values[STEP] if STEP in values else values["unit"])  # its name in version 0.1
            labelled, warnings = bool(values["labelled"]), tuple(values["warnings"])
            lost = tuple(map(int, values.get("lost", ())))  # not known of cases prepared by version 0.1
            at = index_folder
            indexed = json.loads((at / CASE).read_text())
            rows = {int(label): (int(start), int(stop)) for label, (start, stop) in indexed["ranges"].items()}
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{at}: is not a prepared case ({error}); delete it and rerun the command") from None
        has_target = labelled or TARGET in indexed
        return cls(folder, (z, y, x), rows, step, index_folder, labelled, has_target, warnings, lost)

    @property
    def name(self) -> str:
        """The case's name."""
        return self.folder.name

    @property
    def image(self) -> np.ndarray:
        """(1, z, y, x) int16, to be multiplied by :attr:`quantisation_step`; memory-mapped."""
        return _mapped(self.folder / IMAGE, (1, *self.shape), np.int16)

    @property
    def label(self) -> np.ndarray | None:
        """(z, y, x) uint8, memory-mapped; None for an unlabelled case."""
        return self.target if self.labelled else None

    @property
    def target(self) -> np.ndarray | None:
        """What patches are trained on, as :attr:`label`: the labels, or pseudo-labels that were stored as targets."""
        return _mapped(self.index_folder / LABEL, self.shape, np.uint8) if self.has_target else None

    def class_voxels(self, label: int) -> np.ndarray:
        """Some voxels (n, 3) of a class, as z, y, x."""
        start, stop = self.ranges[label]
        return self._index[start:stop]

    def check(self) -> None:
        """Open every array.

        Raises:
            UserError: One is missing, truncated, not of this case's shape, or cannot be opened.
        """
        _ = self.image, self.target, self._index

    @property
    def _index(self) -> np.ndarray:
        rows = max((stop for _, stop in self.ranges.values()), default=0)
        return _mapped(self.index_folder / INDEX, (rows, 3), np.int16)


def _mapped(path: Path, shape: tuple[int, ...], dtype: type) -> np.ndarray:
    try:
        array = np.load(path, mmap_mode="c")  # a private map, though nothing is written: some disks support no other
    except (FileNotFoundError, ValueError, EOFError) as error:
        raise UserError(f"{path}: is damaged ({error}); delete {path.parent} and rerun the command") from None
    except OSError as error:  # not the fault of the case
        raise cannot_be_opened(path, error) from None
    if array.shape != shape or array.dtype != dtype:
        raise UserError(
            f"{path}: found {array.dtype} {array.shape}; expected {np.dtype(dtype)} {shape}, as case.json says; "
            f"delete {path.parent} and rerun the command"
        )
    return array


def save_prepared(
    folder: Path,
    image: np.ndarray,
    label: np.ndarray | None,
    made_from: dict[str, Any],
    warnings: Sequence[str] = (),
    classes: Collection[int] = (),
) -> None:
    """Write a prepared case.

    Args:
        folder: Destination; replaced if it exists.
        image: (z, y, x), normalised.
        label: (z, y, x), uint8, or None.
        made_from: What the case was made from, see :func:`is_up_to_date`.
        warnings: What looks wrong in its CT.
        classes: The classes of the label map that ``label`` was resampled from.

    Raises:
        WriteError: The folder cannot be written.
    """
    index, ranges = _class_index(label)
    step = _quantisation_step(image)
    arrays = {IMAGE: np.rint(image[None] / step).astype(np.int16), INDEX: index}
    if label is not None:
        arrays[LABEL] = label
    values = {"shape": image.shape, "ranges": ranges, STEP: step, "labelled": label is not None}
    values |= {"warnings": list(warnings), "lost": sorted({*classes} - ranges.keys()), "made_from": made_from}
    _save(folder, arrays, values)


def save_index(folder: Path, label: np.ndarray, made_from: dict[str, Any], as_target: bool = False) -> None:
    """Write the class index of a label map (z, y, x), and the label map itself only if it is a target.

    Further arguments are those of :func:`save_prepared`.
    """
    index, ranges = _class_index(label)
    arrays, values = {INDEX: index}, {"ranges": ranges, "made_from": made_from}
    if as_target:
        arrays[LABEL], values[TARGET] = label, label.shape
    _save(folder, arrays, values)


def _save(folder: Path, arrays: dict[str, np.ndarray], values: dict[str, Any]) -> None:
    with whole(folder) as temporary:
        temporary.mkdir()
        for name, array in arrays.items():
            np.save(temporary / name, array)
        (temporary / CASE).write_text(json.dumps(values))
        shutil.rmtree(folder, ignore_errors=True)


def is_up_to_date(folder: Path, settings: dict[str, Any], sources: Sequence[Path], num_classes: int) -> bool:
    """Whether ``folder`` contains a finished case or index made with these settings from these files.

    If the files are the same and only moved or changed their times, the record in the folder is updated.
    """
    try:
        values = json.loads((folder / CASE).read_text())
        made_from = values["made_from"]
        if any(int(label) >= num_classes for label in values.get("ranges", {})):
            return False  # prepared for more classes: reading its label map again reports the surplus label
        if {key: value for key, value in made_from.items() if key != "files"} != settings:
            return False
        if "shape" in values:
            PreparedCase.open(folder).check()
        else:
            rows = max((stop for _, stop in values["ranges"].values()), default=0)
            _mapped(folder / INDEX, (rows, 3), np.int16)
        if TARGET in values:
            _mapped(folder / LABEL, tuple(values[TARGET]), np.uint8)
        files = stamps.follow(made_from["files"], sources)
        if files is not None and files != made_from["files"]:
            with suppress(UserError):  # in a read-only folder, the files are read again next time
                write_text(folder / CASE, json.dumps({**values, "made_from": {**made_from, "files": files}}))
        return files is not None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, UserError):
        return False  # it is prepared again


def _quantisation_step(image: np.ndarray) -> float:
    """The smallest power of two with which an image fits int16: finer than float16 for all but the smallest values.

    Zero stays zero, so that padding with 0 needs no special care, and a power of two adds no rounding of its own.
    """
    highest = float(np.abs(image).max(initial=0)) or 1.0
    return float(2.0 ** math.ceil(math.log2(highest / np.iinfo(np.int16).max)))


def _class_index(label: np.ndarray | None) -> tuple[np.ndarray, dict[int, tuple[int, int]]]:
    """Voxels of each class, sampled with a fixed seed if there are too many, and the rows of each class."""
    rows: list[np.ndarray] = [np.empty((0, 3), np.int16)]
    ranges: dict[int, tuple[int, int]] = {}
    start = 0
    generator = np.random.default_rng(0)
    for value in [] if label is None else [int(v) for v in np.unique(label) if v > 0]:
        voxels = np.flatnonzero(label == value)
        if len(voxels) > VOXELS_A_CLASS:
            voxels = np.sort(generator.choice(voxels, VOXELS_A_CLASS, replace=False))
        rows.append(np.stack(np.unravel_index(voxels, label.shape), axis=1).astype(np.int16))  # type: ignore[union-attr]
        ranges[value] = (start, start + len(voxels))
        start += len(voxels)
    return np.concatenate(rows), ranges
