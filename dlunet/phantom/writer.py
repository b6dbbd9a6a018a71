"""Write a synthetic dataset to disk, with FLARE22's folders and file names."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk

from dlunet.errors import UserError, WriteError
from dlunet.files import remove_leftovers, write_if_changed
from dlunet.parallel import for_each_case
from dlunet.phantom.generator import Phantom, make_phantom
from dlunet.phantom.variation import Profile, draw_variation
from dlunet.volumes import write_image

#: Incremented whenever the same seed gives other voxels, so that two versions never share a folder.
GENERATOR_VERSION = 1

#: The file in the dataset's folder that records how it was made.
RECORD_NAME = "phantom.json"


@dataclass(frozen=True)
class _Split:
    """How the cases of one split are made and named; ``{}`` stands for the case's number, from 1."""

    name: str
    profile: Profile
    image: str
    label: str | None


_LABELLED_FOLDER = "Training/FLARE22_LabeledCase50"
_TRUTH_FOLDER = "Truth"
# A split's index in this tuple is part of its cases' seeds: append new splits at the end.
_SPLITS = (
    _Split(
        "labelled",
        "labelled",
        f"{_LABELLED_FOLDER}/images/FLARE22_Tr_{{:04d}}_0000.nii.gz",
        f"{_LABELLED_FOLDER}/labels/FLARE22_Tr_{{:04d}}.nii.gz",
    ),
    _Split("unlabelled", "varied", "Training/FLARE22_UnlabeledCase1-1000/Case_{:05d}_0000.nii.gz", None),
    _Split("validation", "varied", "Tuning/images/FLARETs_{:04d}_0000.nii.gz", "Tuning/labels/FLARETs_{:04d}.nii.gz"),
    _Split("test", "varied", "Testing/images/FLARETs_{:04d}_0000.nii.gz", "Testing/labels/FLARETs_{:04d}.nii.gz"),
)


@dataclass(frozen=True)
class _Case:
    """One case to make. Paths are final; ``seed`` determines everything about the case but its shape."""

    seed: tuple[int, int, int]
    profile: Profile
    image: Path
    label: Path | None

    @property
    def finished(self) -> bool:
        """Whether all files of the case exist. They are written atomically, the image last."""
        return self.image.exists() and (self.label is None or self.label.exists())


def write_phantoms(
    root: Path,
    labelled: int = 10,
    unlabelled: int = 40,
    validation: int = 4,
    test: int = 8,
    seed: int = 0,
    shape: tuple[int, int, int] = (64, 128, 128),
    workers: int | None = None,
    truth: bool = False,
) -> None:
    """Write a dataset of synthetic CTs in FLARE22's layout.

    A case depends only on the seed, its split and its number, so that more cases can be added later; existing cases
    are kept.

    Args:
        root: The dataset's folder; created if missing.
        labelled: Training cases with labels, of the narrower profile.
        unlabelled: Training cases without labels.
        validation: Cases with labels under ``Tuning``.
        test: Cases with labels under ``Testing``.
        seed: Determines every case, 0 or more.
        shape: Voxels of each CT (z, y, x).
        workers: Processes; by default one per core; 1 runs in this process.
        truth: Whether the label maps of the unlabelled cases are written too, to a folder ``Truth`` that nothing else
            reads: for experiments on what their labels would be worth.

    Raises:
        UserError: The folder contains a dataset made with other arguments, or cannot be written.

    Example:
        >>> write_phantoms(Path("data/phantoms"), labelled=10, unlabelled=40)
    """
    root = Path(root)
    counts = {"labelled": labelled, "unlabelled": unlabelled, "validation": validation, "test": test}
    _check_arguments(counts, seed, shape)
    try:
        _record(root, counts, seed, shape)
        missing = [case for case in _cases(root, counts, seed, truth) if not case.finished]
        for folder in {path.parent for case in missing for path in (case.image, case.label) if path is not None}:
            remove_leftovers(folder)
        _make_all(missing, shape, workers)
    except OSError as error:
        raise WriteError.of(root, error) from None


def _check_arguments(counts: dict[str, int], seed: int, shape: tuple[int, int, int]) -> None:
    for name, value in {**counts, "seed": seed}.items():
        if value < 0:
            raise UserError(f"{name}: found {value}; expected 0 or more")
    if len(shape) != 3 or min(shape) < 16:
        raise UserError(f"shape: found {tuple(shape)}; expected three numbers of voxels (z, y, x), each 16 or more")


def _record(root: Path, counts: dict[str, int], seed: int, shape: tuple[int, int, int]) -> None:
    """Write the record of how the dataset is made, after comparing it with an existing one."""
    path = root / RECORD_NAME
    settings = {"generator_version": GENERATOR_VERSION, "seed": seed, "shape": list(shape)}
    if path.exists():
        before = _read_record(path)
        differing = [name for name, value in settings.items() if before.get(name) != value]
        if differing:
            found = ", ".join(f"{name} {before.get(name)} there but {settings[name]} now" for name in differing)
            raise UserError(
                f"{root}: contains synthetic CTs made with other arguments ({found}); "
                "use the same arguments, choose another folder, or delete this one"
            )
        known = before.get("counts", {})
        # A call for fewer cases leaves the others on disk.
        counts = {name: max(count, int(known.get(name, 0))) for name, count in counts.items()}
    write_if_changed(path, json.dumps({**settings, "counts": counts}, indent=2) + "\n")


def _read_record(path: Path) -> dict[str, Any]:
    try:
        record = json.loads(path.read_text())
    except ValueError:
        record = None
    if not isinstance(record, dict):
        raise UserError(
            f"{path}: is damaged; expected the JSON record of synthetic CTs; delete the folder to start over"
        )
    return record


def truth_of(root: Path, image: Path) -> Path:
    """The label map of an unlabelled CT, if :func:`write_phantoms` wrote the truth."""
    return root / _TRUTH_FOLDER / image.name.replace("_0000.nii.gz", ".nii.gz")


def phantom_of(image: Path) -> Phantom | None:
    """The synthetic abdomen of an unlabelled CT, made again; None unless :func:`write_phantoms` wrote the CT.

    Its labels are the truth that the CT hides: for judging pseudo-labels, not for training.

    Args:
        image: The file of the CT.

    Raises:
        UserError: The record of the dataset is damaged.
    """
    found = _recorded(image)
    if found is None or found[1].label is not None:
        return None
    seed, split, shape = found
    return make_phantom(np.random.default_rng(seed), split.profile, shape)


def is_phantom(image: Path) -> bool:
    """Whether a CT lies in a dataset that :func:`write_phantoms` wrote, as any of its versions."""
    return any((parent / RECORD_NAME).is_file() for parent in image.absolute().parents[:3])


def phase_of(image: Path) -> str | None:
    """The contrast phase of a synthetic CT; None unless :func:`write_phantoms` wrote the CT.

    Args:
        image: The file of the CT.

    Raises:
        UserError: The record of the dataset is damaged.
    """
    found = _recorded(image)
    if found is None:
        return None
    seed, split, shape = found
    return draw_variation(np.random.default_rng(seed), split.profile, shape).phase


def _recorded(image: Path) -> tuple[tuple[int, int, int], _Split, tuple[int, int, int]] | None:
    """Seed, split and shape of a CT by its path and the record of its dataset; None for any other file."""
    named = re.search(r"_(\d+)_0000\.nii\.gz$", image.name)
    if named is None:
        return None
    number = int(named[1])
    for index, split in enumerate(_SPLITS):
        depth = split.image.count("/")
        if len(image.parents) <= depth or (root := image.parents[depth]) / split.image.format(number) != image:
            continue
        record = _read_record(root / RECORD_NAME) if (root / RECORD_NAME).exists() else {}
        if record.get("generator_version") == GENERATOR_VERSION:
            z, y, x = record["shape"]
            return (record["seed"], index, number), split, (z, y, x)
    return None


def _cases(root: Path, counts: dict[str, int], seed: int, truth: bool) -> Iterator[_Case]:
    for index, split in enumerate(_SPLITS):
        for number in range(1, counts[split.name] + 1):
            image = root / split.image.format(number)
            label = root / split.label.format(number) if split.label else truth_of(root, image) if truth else None
            yield _Case((seed, index, number), split.profile, image, label)


def _make_all(cases: list[_Case], shape: tuple[int, int, int], workers: int | None) -> None:
    make = partial(_make, shape=(shape[0], shape[1], shape[2]))
    for _, outcome in for_each_case("making synthetic CTs", make, cases, workers) if cases else ():
        if isinstance(outcome, UserError):
            raise outcome


def _make(case: _Case, shape: tuple[int, int, int]) -> None:
    phantom = make_phantom(np.random.default_rng(case.seed), case.profile, shape)
    if case.label is not None and not case.label.exists():
        _write(phantom, phantom.labels, case.label)
    if not case.image.exists():
        _write(phantom, phantom.image, case.image)


def _write(phantom: Phantom, array: np.ndarray, path: Path) -> None:
    """Write an array (z, y, x) in the phantom's geometry and orientation."""
    image = sitk.GetImageFromArray(array)
    image.SetSpacing(phantom.spacing[::-1])
    image.SetDirection(phantom.direction)
    image.SetOrigin(_origin(phantom))
    write_image(sitk.DICOMOrient(image, phantom.orientation), path)


def _origin(phantom: Phantom) -> tuple[float, ...]:
    """Centre of the first voxel (x, y, z) in mm, so that the scan is centred at 0."""
    last = np.array(phantom.image.shape[::-1]) - 1
    half = last * np.array(phantom.spacing[::-1]) / 2
    return tuple(float(v) for v in -np.array(phantom.direction).reshape(3, 3) @ half)
