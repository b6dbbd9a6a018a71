"""The prepared case on disk: memory-mapped arrays, so that a patch is read without reading the case.

A folder a case, which appears whole or not at all::

    image.npy    (1, z, y, x) int16, in units that     label.npy    (z, y, x) uint8, if the case has labels
                 case.json states
    index.npy    (n, 3) int16, voxels of each class    case.json    the rest, see :class:`PreparedCase`

An unlabelled case may have the index of its pseudo-labels; its label map is not there.

Plain .npy because a patch comes from it 16 times faster than from blosc2's b2nd and 27 times faster than from zarr, for
four times the space (``benchmarks/patch_store.py``).
"""

from __future__ import annotations

import json
import math
import os
import platform
import re
import shutil
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from dlunet.errors import UserError, WriteError
from dlunet.files import is_running

#: Voxels of a class that are remembered at most; a crop centre is drawn from these.
VOXELS_A_CLASS = 10_000

#: How the name of a case begins while it is written; then machine, process and the case's own name follow.
UNFINISHED = ".unfinished."


@dataclass(frozen=True)
class PreparedCase:
    """A case as :func:`save_prepared` wrote it; the arrays are opened on demand and never read whole.

    Attributes:
        folder: Where it lies.
        shape: (z, y, x) of the prepared volume.
        ranges: For each class that the case shows, its rows in the index.
        unit: Normalised values are those of :attr:`image` times this.
    """

    folder: Path
    shape: tuple[int, int, int]
    ranges: dict[int, tuple[int, int]]
    unit: float

    @classmethod
    def open(cls, folder: Path) -> PreparedCase:
        """Open a prepared case.

        Raises:
            UserError: The folder is not a prepared case.
        """
        try:
            values = json.loads((folder / "case.json").read_text())
            z, y, x = values["shape"]
            ranges = {int(label): (start, stop) for label, (start, stop) in values["ranges"].items()}
            unit = float(values["unit"])
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{folder}: is not a prepared case ({error}); delete it and prepare again") from None
        return cls(folder, (z, y, x), ranges, unit)

    @property
    def name(self) -> str:
        """The case's name."""
        return self.folder.name

    @cached_property
    def image(self) -> np.ndarray:
        """(1, z, y, x) int16, to be multiplied by :attr:`unit`; memory-mapped."""
        return self._mapped("image", (1, *self.shape), np.int16)

    @cached_property
    def label(self) -> np.ndarray | None:
        """(z, y, x) uint8, memory-mapped; none for an unlabelled case."""
        return self._mapped("label", self.shape, np.uint8) if (self.folder / "label.npy").exists() else None

    def class_voxels(self, label: int) -> np.ndarray:
        """Some voxels (n, 3) of a class, as z, y, x."""
        start, stop = self.ranges[label]
        return self._index[start:stop]

    def check(self) -> None:
        """Open every array.

        Raises:
            UserError: One is missing, cut off, or not of this case's shape.
        """
        _ = self.image, self.label, self._index

    @cached_property
    def _index(self) -> np.ndarray:
        rows = max((stop for _, stop in self.ranges.values()), default=0)
        return self._mapped("index", (rows, 3), np.int16)

    def _mapped(self, part: str, shape: tuple[int, ...], dtype: type) -> np.ndarray:
        path = self.folder / f"{part}.npy"
        try:
            array = np.load(path, mmap_mode="r")
        except (OSError, ValueError, EOFError) as error:
            raise UserError(f"{path}: is damaged ({error}); delete {self.folder} and prepare again") from None
        if array.shape != shape or array.dtype != dtype:
            raise UserError(
                f"{path}: found {array.dtype} {array.shape}; expected {np.dtype(dtype)} {shape}, as case.json says; "
                f"delete {self.folder} and prepare again"
            )
        return array


def save_prepared(
    folder: Path,
    image: np.ndarray,
    label: np.ndarray | None,
    made_from: dict[str, Any],
    pseudo_label: np.ndarray | None = None,
) -> None:
    """Write a prepared case.

    Args:
        folder: Where; replaced if it exists.
        image: (z, y, x), normalised.
        label: (z, y, x), uint8, or none.
        made_from: What the case was made from; a case made from something else is not up to date.
        pseudo_label: (z, y, x), uint8, for a case without labels. Where its classes lie is remembered for crops; it is
            not stored itself, so that it can never become a target.

    Raises:
        WriteError: The folder cannot be written.
    """
    index, ranges = _class_index(pseudo_label if label is None else label)
    temporary = folder.with_name(f"{UNFINISHED}{platform.node()}.{os.getpid()}.{folder.name}")
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        unit = _unit(image)
        np.save(temporary / "image.npy", np.rint(image[None] / unit).astype(np.int16))
        if label is not None:
            np.save(temporary / "label.npy", label)
        np.save(temporary / "index.npy", index)
        values = {"shape": image.shape, "ranges": ranges, "unit": unit, "made_from": made_from}
        (temporary / "case.json").write_text(json.dumps(values))
        shutil.rmtree(folder, ignore_errors=True)
        temporary.rename(folder)
    except OSError as error:
        shutil.rmtree(temporary, ignore_errors=True)
        if is_up_to_date(folder, made_from):
            return  # another process, such as a worker that outlived its run, was quicker with the same case
        raise WriteError(f"{folder}: could not be written ({error}); check permissions and free space") from None


def remove_unfinished(part: Path) -> None:
    """Remove what processes of this machine that no longer run left half-written in a folder of cases."""
    pattern = re.compile(re.escape(f"{UNFINISHED}{platform.node()}.") + r"(\d+)\.")
    for path in part.glob(f"{UNFINISHED}*"):
        match = pattern.match(path.name)
        if match and not is_running(int(match[1])):
            shutil.rmtree(path, ignore_errors=True)


def is_up_to_date(folder: Path, made_from: dict[str, Any]) -> bool:
    """Whether a finished case stands in ``folder`` that was made from the same files and plan."""
    try:
        if json.loads((folder / "case.json").read_text())["made_from"] != made_from:
            return False
        PreparedCase.open(folder).check()
    except (OSError, ValueError, KeyError, TypeError, UserError):
        return False  # it is made anew
    return True


def _unit(image: np.ndarray) -> float:
    """The smallest power of two in which int16 holds an image: finer than float16 for all but the smallest values.

    Zero stays zero, so that what is padded with 0 needs no care, and a power of two adds no rounding of its own.
    """
    highest = float(np.abs(image).max(initial=0)) or 1.0
    return float(2.0 ** math.ceil(math.log2(highest / np.iinfo(np.int16).max)))


def _class_index(label: np.ndarray | None) -> tuple[np.ndarray, dict[int, tuple[int, int]]]:
    """Voxels of each class, drawn with a fixed seed where there are too many, and the rows of each class."""
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
