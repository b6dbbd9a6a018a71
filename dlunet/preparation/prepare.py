"""From a dataset's files to prepared cases on disk: clip, normalise, resample."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dlunet.datasets import Case, Dataset
from dlunet.errors import UserError
from dlunet.files import file_stamp
from dlunet.labels import LabelSet
from dlunet.preparation.fingerprint import foreground_intensity, read_labelled
from dlunet.preparation.plan import Intensity, Plan
from dlunet.preparation.resampling import resample, resample_labels, separate_axis, target_shape
from dlunet.preparation.store import PreparedCase, is_up_to_date, save_prepared
from dlunet.progress import progress_bar
from dlunet.volumes import read_ct

logger = logging.getLogger(__name__)

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
) -> PreparedDataset:
    """Prepare the training and validation cases; those that are up to date are kept.

    A case that cannot be prepared is reported and left out.

    Args:
        dataset: The cases.
        folder: Where the prepared cases go, one folder a part.
        spacing: Target voxel size (z, y, x) in mm.
        patch_size: (z, y, x), recorded in the plan.
        workers: Processes; by default one a core.

    Raises:
        UserError: No labelled case can be used.
    """
    intensity = foreground_intensity(dataset.labelled, folder / "fingerprint.json")
    plan = Plan.of(spacing, patch_size, intensity)
    parts = {"labelled": dataset.labelled, "unlabelled": dataset.unlabelled, "validation": dataset.validation}
    jobs = {
        folder / part / case.name: _Job(case, folder / part / case.name, plan, dataset.labels.num_classes)
        for part, cases in parts.items()
        for case in cases
    }
    failures = _run([job for job in jobs.values() if not is_up_to_date(job.folder, job.made_from)], workers)
    for message in failures.values():
        logger.warning("left out: %s", message)
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
    return (np.clip(image, intensity.lower, intensity.upper) - intensity.mean) / intensity.std


def prepare_image(image: np.ndarray, spacing: Sequence[float], plan: Plan) -> np.ndarray:
    """Normalise a CT (z, y, x) in HU of ``spacing`` mm and resample it to the plan's spacing: (1, z, y, x), float32."""
    shape = target_shape(image.shape, spacing, plan.spacing)
    normalised = normalise(image, plan.intensity)[None].astype(np.float32, copy=False)
    return resample(normalised, shape, 3, separate_axis(spacing, plan.spacing))


@dataclass(frozen=True)
class _Job:
    case: Case
    folder: Path
    plan: Plan
    num_classes: int

    @property
    def made_from(self) -> dict[str, Any]:
        plan = self.plan.to_dict()
        del plan["patch_size"]  # a prepared case does not depend on it
        return {"version": STORE_VERSION, "plan": plan, "files": file_stamp(self.case.image, self.case.label)}


def _prepare_case(job: _Job) -> None:
    if job.case.label is None:
        image, label = read_ct(job.case.image), None
    else:
        image, label = read_labelled(job.case, job.num_classes)
    prepared = prepare_image(image.array, image.spacing, job.plan)[0]
    if label is None:
        labels = None
    else:
        labels = resample_labels(label.array, prepared.shape, separate_axis(image.spacing, job.plan.spacing))
    save_prepared(job.folder, prepared, labels, job.made_from)


def _try_case(job: _Job) -> str | None:
    """Prepare a case and return what was wrong with it, if anything: one bad case must not stop the others."""
    try:
        _prepare_case(job)
    except UserError as error:
        return str(error)
    return None


def _run(jobs: Sequence[_Job], workers: int | None) -> dict[Path, str]:
    """Prepare cases and return, by folder, what was wrong with those that failed."""
    if not jobs:
        return {}
    workers = min(workers or os.cpu_count() or 1, len(jobs))
    outcomes: dict[Path, str | None] = {}
    with progress_bar("preparing", len(jobs)) as advance:
        if workers == 1:
            for job in jobs:
                outcomes[job.folder] = _try_case(job)
                advance()
        else:
            outcomes = _run_in_parallel(jobs, workers, advance)
    return {folder: message for folder, message in outcomes.items() if message}


def _run_in_parallel(jobs: Sequence[_Job], workers: int, advance: Callable[[], None]) -> dict[Path, str | None]:
    outcomes = {}
    # One thread a process: the processes themselves fill the cores.
    with ProcessPoolExecutor(workers, get_context("spawn"), torch.set_num_threads, (1,)) as pool:
        futures = {pool.submit(_try_case, job): job for job in jobs}
        try:
            for future in as_completed(futures):
                outcomes[futures[future].folder] = future.result()
                advance()
        except BrokenProcessPool:
            raise UserError(
                f"preparing: one of {workers} processes was stopped from outside, most likely for want of memory; the "
                "finished cases are kept; give the command again with data.workers=1, which needs the least"
            ) from None
    return outcomes
