"""From a dataset's files to prepared cases on disk: clip, normalise, resample."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dlunet import stamps
from dlunet.datasets import Case, Dataset, read_case
from dlunet.errors import UserError, WriteError
from dlunet.files import remove_leftovers
from dlunet.labels import LabelSet
from dlunet.parallel import for_each_case
from dlunet.preparation.fingerprint import Fingerprint, take_fingerprint
from dlunet.preparation.plan import Intensity, Plan
from dlunet.preparation.resampling import resample, resample_labels, separate_axis, target_shape
from dlunet.preparation.sharing import SharedFolder
from dlunet.preparation.store import PreparedCase, is_up_to_date, save_index, save_prepared

logger = logging.getLogger(__name__)

#: A prepared case of more voxels than this is a mistake in a voxel size: the largest real ones have a tenth.
MOST_VOXELS = 2**31

#: Where things lie in a folder of prepared cases.
LABELLED, UNLABELLED, PSEUDO_LABELS, FINGERPRINT = "labelled", "unlabelled", "pseudo_labels", "fingerprint.json"

#: Changes when cases prepared by an older version must be prepared again.
STORE_VERSION = 3


@dataclass(frozen=True)
class PreparedDataset:
    """The training part of a dataset, prepared."""

    labels: LabelSet
    plan: Plan
    labelled: tuple[PreparedCase, ...]
    unlabelled: tuple[PreparedCase, ...]
    validation: tuple[PreparedCase, ...]


def prepare_dataset(
    dataset: Dataset,
    folder: Path,
    spacing: Sequence[float],
    patch_size: Sequence[int],
    workers: int | None = None,
    strict: bool = False,
    found: Fingerprint | None = None,
    shared: SharedFolder | None = None,
) -> PreparedDataset:
    """Prepare the training and validation cases; those that are up to date are kept.

    A case that cannot be prepared is reported and left out.

    Args:
        dataset: The cases.
        folder: Where the prepared cases go.
        spacing: Target voxel size (z, y, x) in mm.
        patch_size: (z, y, x), recorded in the plan.
        workers: Processes; by default one a core.
        strict: Raise an error, with every problem and warning, where there are some; the cases are prepared first.
        found: The labelled cases' fingerprint; by default it is taken, and kept in ``folder``.
        shared: Keeps other runs from replacing the cases for as long as it is open; by default, until this returns.

    Raises:
        WriteError: The disk is full or cannot be written; what is finished is kept.
        UserError: No labelled case can be used; or ``strict`` and some case cannot; or cases that another run is
            reading would have to be replaced.
    """
    if strict and dataset.problems:
        raise UserError(_all_problems(dataset.problems))
    own = SharedFolder(folder) if shared is None else shared
    try:
        with own.preparing():
            if found is None:
                found = take_fingerprint(
                    dataset.fingerprinted, dataset.labels.num_classes, folder / FINGERPRINT, workers
                )
            plan = Plan.of(spacing, patch_size, found.intensity)
            parts = _jobs(dataset, folder, plan)
            failures = _run([job for jobs in parts.values() for job in jobs], own, workers)
    finally:
        if shared is None:
            own.close()
    prepared = {part: tuple(job.open() for job in jobs if job not in failures) for part, jobs in parts.items()}
    problems = [*dataset.problems, *failures.values()]
    warnings = [f"{case.name}: {warning}" for cases in prepared.values() for case in cases for warning in case.warnings]
    for message in problems:
        logger.warning("left out: %s", message)
    for message in warnings:
        logger.warning("warning: %s", message)
    if strict and (problems or warnings):
        raise UserError(_all_problems([*problems, *warnings]))
    if not prepared["labelled"]:
        raise UserError(
            f"none of the {len(parts['labelled'])} labelled cases could be prepared; the first: "
            f"{failures[parts['labelled'][0]]}"
        )
    return PreparedDataset(labels=dataset.labels, plan=plan, **prepared)


def normalise(image: np.ndarray, intensity: Intensity) -> np.ndarray:
    """Clip HU to the foreground's percentiles, subtract its mean, divide by its standard deviation."""
    values = np.clip(image.astype(np.float32, order="C", copy=False), intensity.lower, intensity.upper)
    values -= intensity.mean  # in place: a CT of 512×512×200 takes 0.2 GiB
    values /= intensity.std
    return values


def prepare_image(image: np.ndarray, spacing: Sequence[float], plan: Plan) -> np.ndarray:
    """Normalise a CT (z, y, x) in HU of ``spacing`` mm and resample it to the plan's spacing: (1, z, y, x), float32."""
    shape = target_shape(image.shape, spacing, plan.spacing)

    def normalised(slab: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(normalise(slab, plan.intensity))

    return resample(image[None], shape, 3, separate_axis(spacing, plan.spacing), normalised)


@dataclass(frozen=True)
class _Job:
    """A case to prepare, and where.

    Attributes:
        index_folder: Where the index of its pseudo-labels goes, if it has some.
    """

    case: Case
    folder: Path
    index_folder: Path | None
    plan: Plan
    num_classes: int

    @property
    def settings(self) -> dict[str, Any]:
        """What a prepared case depends on, besides its files; the patch it does not."""
        plan = self.plan.to_dict()
        del plan["patch_size"]
        return {"version": STORE_VERSION, "plan": plan}

    @property
    def sources(self) -> list[Path]:
        """The files that the case is made from."""
        return [path for path in (self.case.image, self.case.label) if path is not None]

    @property
    def index_settings(self) -> dict[str, Any]:
        """What the index of its pseudo-labels depends on, besides their file: values do not matter there."""
        return {"version": STORE_VERSION, "spacing": list(self.plan.spacing)}

    @property
    def index_sources(self) -> list[Path]:
        """The files that the index of its pseudo-labels is made from."""
        return [path for path in (self.case.image, self.case.pseudo_label) if path is not None]

    @property
    def case_is_up_to_date(self) -> bool:
        """Whether the case itself need not be prepared."""
        return is_up_to_date(self.folder, self.settings, self.sources)

    @property
    def index_is_up_to_date(self) -> bool:
        """Whether the index of its pseudo-labels need not be made, or there are none."""
        return self.index_folder is None or is_up_to_date(self.index_folder, self.index_settings, self.index_sources)

    @property
    def replaces(self) -> bool:
        """Whether something that is out of date, and that another run may be reading, makes way."""
        return (self.folder.exists() and not self.case_is_up_to_date) or (
            self.index_folder is not None and self.index_folder.exists() and not self.index_is_up_to_date
        )

    def open(self) -> PreparedCase:
        """The prepared case."""
        return PreparedCase.open(self.folder, self.index_folder)


def _jobs(dataset: Dataset, folder: Path, plan: Plan) -> dict[str, list[_Job]]:
    """The cases by part. Folds share the labelled ones, whichever of them validate."""
    parts = {
        "labelled": (dataset.labelled, LABELLED),
        "unlabelled": (dataset.unlabelled, UNLABELLED),
        "validation": (dataset.validation, LABELLED),
    }
    return {
        part: [
            _Job(case, folder / place / case.name, _index_folder(case, folder), plan, dataset.labels.num_classes)
            for case in cases
        ]
        for part, (cases, place) in parts.items()
    }


def _index_folder(case: Case, folder: Path) -> Path | None:
    """Pseudo-labels of different folders have indexes of their own: several students may train at a time."""
    if case.label is not None or case.pseudo_label is None:
        return None
    source = blake2b(os.fsencode(case.pseudo_label.parent.resolve()), digest_size=6).hexdigest()
    return folder / PSEUDO_LABELS / source / case.name


def _prepare_case(job: _Job) -> None:
    """Prepare a case, the index of its pseudo-labels, or both, whatever is out of date."""
    image, label = read_case(job.case, job.num_classes)
    shape = target_shape(image.array.shape, image.spacing, job.plan.spacing)
    _check_size(job.case, image.spacing, shape, job.plan)
    labels = None
    if label is not None:
        labels = resample_labels(label.array, shape, separate_axis(image.spacing, job.plan.spacing))
    if not job.case_is_up_to_date:
        own = None if job.case.label is None else labels
        made_from = {**job.settings, "files": stamps.stamp(job.sources)}
        prepared = prepare_image(image.array, image.spacing, job.plan)[0]
        save_prepared(job.folder, prepared, own, made_from, image.warnings)
    if job.index_folder is not None and labels is not None:
        save_index(job.index_folder, labels, {**job.index_settings, "files": stamps.stamp(job.index_sources)})


def _check_size(case: Case, spacing: Sequence[float], shape: Sequence[int], plan: Plan) -> None:
    if math.prod(shape) > MOST_VOXELS:
        old, new = ("×".join(f"{mm:.3g}" for mm in one) for one in (spacing, plan.spacing))
        raise UserError(
            f"{case.image}: would have {'×'.join(map(str, shape))} voxels once resampled from {old} to {new} mm; "
            f"expected at most {MOST_VOXELS}; check its voxel size, or choose a coarser plan.spacing"
        )


def _run(jobs: Sequence[_Job], shared: SharedFolder, workers: int | None) -> dict[_Job, str]:
    """Prepare what is out of date, and return what was wrong with the cases that failed."""
    todo = [job for job in jobs if not (job.case_is_up_to_date and job.index_is_up_to_date)]
    replaced = sum(job.replaces for job in todo)
    if replaced:
        shared.replace(replaced)
    for part in {path.parent for job in todo for path in (job.folder, job.index_folder) if path is not None}:
        remove_leftovers(part)
    failures: dict[_Job, str] = {}
    for job, outcome in for_each_case("preparing", _prepare_case, todo, workers) if todo else ():
        if isinstance(outcome, WriteError):
            raise outcome
        if isinstance(outcome, UserError):
            failures[job] = str(outcome)
    return {job: failures[job] for job in todo if job in failures}


def _all_problems(problems: Sequence[str]) -> str:
    return "strict=true, and some cases cannot be used:\n" + "\n".join(f"  {problem}" for problem in problems)
