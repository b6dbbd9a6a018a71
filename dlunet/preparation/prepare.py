"""From a dataset's files to prepared cases on disk: clip, normalise, resample."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dlunet.datasets import Case, Dataset, read_case
from dlunet.errors import UserError, WriteError
from dlunet.files import file_stamp
from dlunet.labels import LabelSet
from dlunet.parallel import for_each_case
from dlunet.preparation.fingerprint import Fingerprint, take_fingerprint
from dlunet.preparation.plan import Intensity, Plan
from dlunet.preparation.resampling import resample, resample_labels, separate_axis, target_shape
from dlunet.preparation.store import PreparedCase, is_up_to_date, remove_unfinished, save_prepared

logger = logging.getLogger(__name__)

#: A prepared case of more voxels than this is a mistake in a voxel size: the largest real ones have a tenth.
MOST_VOXELS = 2**31

#: Changes when cases prepared by an older version must be prepared again.
STORE_VERSION = 2


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
) -> PreparedDataset:
    """Prepare the training and validation cases; those that are up to date are kept.

    A case that cannot be prepared is reported and left out.

    Args:
        dataset: The cases.
        folder: Where the prepared cases go, one folder a part.
        spacing: Target voxel size (z, y, x) in mm.
        patch_size: (z, y, x), recorded in the plan.
        workers: Processes; by default one a core.
        strict: Raise an error, with every problem, where a case would be left out; the others are prepared first.
        found: The labelled cases' fingerprint; by default it is taken, and kept in ``folder``.

    Raises:
        WriteError: The disk is full or cannot be written; what is finished is kept.
        UserError: No labelled case can be used, or ``strict`` and some case cannot.
    """
    if strict and dataset.problems:
        raise UserError(_all_problems(dataset.problems))
    if found is None:
        found = take_fingerprint(dataset.labelled, dataset.labels.num_classes, folder / "fingerprint.json", workers)
    plan = Plan.of(spacing, patch_size, found.intensity)
    parts = {"labelled": dataset.labelled, "unlabelled": dataset.unlabelled, "validation": dataset.validation}
    jobs = {
        folder / part / case.name: _Job(case, folder / part / case.name, plan, dataset.labels.num_classes)
        for part, cases in parts.items()
        for case in cases
    }
    failures = _run([job for job in jobs.values() if not is_up_to_date(job.folder, job.made_from)], workers)
    problems = [*dataset.problems, *failures.values()]
    for message in problems:
        logger.warning("left out: %s", message)
    if strict and problems:
        raise UserError(_all_problems(problems))
    prepared = {
        part: tuple(
            PreparedCase.open(folder / part / case.name)
            for case in cases
            if is_up_to_date(folder / part / case.name, jobs[folder / part / case.name].made_from)
        )
        for part, cases in parts.items()
    }
    if not prepared["labelled"]:
        first = next(message for case, message in failures.items() if case.parent.name == "labelled")
        raise UserError(f"none of the {len(dataset.labelled)} labelled cases could be prepared; the first: {first}")
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
    case: Case
    folder: Path
    plan: Plan
    num_classes: int

    @property
    def _sources(self) -> tuple[Path | None, ...]:
        return self.case.image, self.case.label, self.case.pseudo_label

    @property
    def made_from(self) -> dict[str, Any]:
        plan = self.plan.to_dict()
        del plan["patch_size"]  # a prepared case does not depend on it
        return {"version": STORE_VERSION, "plan": plan, "files": file_stamp(*self._sources)}


def _prepare_case(job: _Job) -> None:
    image, label = read_case(job.case, job.num_classes)
    _check_size(job.case, image.spacing, target_shape(image.array.shape, image.spacing, job.plan.spacing), job.plan)
    prepared = prepare_image(image.array, image.spacing, job.plan)[0]
    if label is None:
        labels = None
    else:
        labels = resample_labels(label.array, prepared.shape, separate_axis(image.spacing, job.plan.spacing))
    if job.case.label is None:
        save_prepared(job.folder, prepared, None, job.made_from, pseudo_label=labels)
    else:
        save_prepared(job.folder, prepared, labels, job.made_from)


def _check_size(case: Case, spacing: Sequence[float], shape: Sequence[int], plan: Plan) -> None:
    if math.prod(shape) > MOST_VOXELS:
        old, new = ("×".join(f"{mm:.3g}" for mm in one) for one in (spacing, plan.spacing))
        raise UserError(
            f"{case.image}: would have {'×'.join(map(str, shape))} voxels once resampled from {old} to {new} mm; "
            f"expected at most {MOST_VOXELS}; check its voxel size, or choose a coarser plan.spacing"
        )


def _run(jobs: Sequence[_Job], workers: int | None) -> dict[Path, str]:
    """Prepare cases and return, by folder, what was wrong with those that failed."""
    for part in {job.folder.parent for job in jobs}:
        remove_unfinished(part)
    outcomes = for_each_case("preparing", _prepare_case, jobs, workers) if jobs else ()
    failures = {job.folder: outcome for job, outcome in outcomes if isinstance(outcome, UserError)}
    for error in failures.values():
        if isinstance(error, WriteError):
            raise error
    return {job.folder: str(failures[job.folder]) for job in jobs if job.folder in failures}


def _all_problems(problems: Sequence[str]) -> str:
    return "strict=true, and some cases cannot be used:\n" + "\n".join(f"  {problem}" for problem in problems)
