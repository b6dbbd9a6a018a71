"""Prepare the cases of a dataset and store them on disk: clip, normalise, resample."""

from __future__ import annotations

import logging
import math
import os
import shutil
from collections.abc import Container, Sequence
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
from dlunet.locks import alone
from dlunet.parallel import for_each_case
from dlunet.preparation.fingerprint import Fingerprint, take_fingerprint
from dlunet.preparation.plan import Intensity, Plan
from dlunet.preparation.resampling import resample, resample_labels, separate_axis, target_shape
from dlunet.preparation.sharing import SharedFolder
from dlunet.preparation.store import PreparedCase, is_up_to_date, save_index, save_prepared
from dlunet.shards import ALL, Shard
from dlunet.volumes import Volume, times

logger = logging.getLogger(__name__)

#: A prepared case with more voxels than this has a wrong voxel size: the largest real cases have a tenth.
MOST_VOXELS = 2**31

#: Names in a folder of prepared cases.
LABELLED, UNLABELLED, FINGERPRINT = "labelled", "unlabelled", "fingerprint.json"

#: Names of the folders of indexes of pseudo-labels, by whether the pseudo-labels are targets.
PSEUDO_LABELS = {False: "pseudo_labels", True: "pseudo_targets"}

#: Incremented when cases prepared by an older version must be prepared again.
STORE_VERSION = 3


@dataclass(frozen=True)
class PreparedDataset:
    """The prepared training and validation cases of a dataset."""

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
    pseudo_targets: bool = False,
    shard: Shard = ALL,
) -> PreparedDataset:
    """Prepare the training and validation cases; those that are up to date are kept.

    A case that cannot be prepared is reported and skipped.

    Args:
        dataset: The cases.
        folder: Destination of the prepared cases.
        spacing: Target voxel size (z, y, x) in mm.
        patch_size: (z, y, x), recorded in the plan.
        workers: Processes; by default one per core.
        strict: Raise an error with all problems and warnings, if there are any; the cases are prepared first.
        found: The labelled cases' fingerprint; by default it is computed and cached in ``folder``.
        shared: Keeps other runs from replacing the cases while it is open; by default, until this function returns.
        pseudo_targets: Store pseudo-labels as targets; by default, they only decide where to crop.
        shard: The cases that this job prepares, and returns; other jobs prepare the others, at the same time.

    Raises:
        WriteError: The disk is full or cannot be written; finished cases are kept.
        UserError: No labelled case can be used; or, with ``strict``, there is a problem or warning; or cases that
            another run is reading would have to be replaced.
    """
    if strict and dataset.problems:
        raise UserError(_all_problems(dataset.problems))
    own = SharedFolder(folder) if shared is None else shared
    try:
        with own.preparing(alone=shard.is_all):
            if found is None:
                found = take_fingerprint(
                    dataset.fingerprinted, dataset.labels.num_classes, folder / FINGERPRINT, workers
                )
            plan = Plan.of(spacing, patch_size, found.intensity)
            preparation = _Preparation(folder, plan, dataset.labels.num_classes, pseudo_targets)
            cases = [*dataset.labelled, *dataset.unlabelled, *dataset.validation]
            mine = set(shard.of(cases))
            failures = _prepare_all(cases, preparation, own, workers, shard)
    finally:
        if shared is None:
            own.close()
    prepared = {
        part: tuple(preparation.open(case) for case in getattr(dataset, part) if case in mine and case not in failures)
        for part in ("labelled", "unlabelled", "validation")
    }
    problems = [*dataset.problems, *failures.values()]
    warnings = [f"{case.name}: {warning}" for part in prepared.values() for case in part for warning in case.warnings]
    warnings += _lost_classes(dataset.labels, plan, [*prepared["labelled"], *prepared["validation"]])
    if shard.is_all:
        known = {id_ for case in prepared["labelled"] for id_ in (*case.lost, *case.ranges)}
        warnings += unknown_classes(dataset.labels, known) if prepared["labelled"] else []
    for message in problems:
        logger.warning("skipped: %s", message)
    for message in warnings:
        logger.warning("warning: %s", message)
    if strict and (problems or warnings):
        raise UserError(_all_problems([*problems, *warnings]))
    if not prepared["labelled"] and shard.is_all:
        raise UserError(
            f"none of the {len(dataset.labelled)} labelled cases could be prepared; the first error: "
            f"{failures[dataset.labelled[0]]}"
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
class _Preparation:
    """How cases are prepared, and where they are stored.

    Attributes:
        folder: The folder of prepared cases.
        plan: Their spacing and intensities.
        num_classes: Their labels are in 0 … num_classes − 1.
        pseudo_targets: Whether pseudo-labels are stored as targets.
    """

    folder: Path
    plan: Plan
    num_classes: int
    pseudo_targets: bool

    def place(self, case: Case) -> Path:
        """The folder of a case. Folds share the labelled cases, whether they train or validate."""
        return self.folder / (UNLABELLED if case.label is None else LABELLED) / case.name

    def index_place(self, case: Case) -> Path | None:
        """The folder of the index of a case's pseudo-labels, if it has any.

        Pseudo-labels from different folders have separate indexes: several students may train at the same time.
        """
        if case.label is not None or case.pseudo_label is None:
            return None
        source = blake2b(os.fsencode(case.pseudo_label.parent.resolve()), digest_size=6).hexdigest()
        return self.folder / PSEUDO_LABELS[self.pseudo_targets] / source / case.name

    def open(self, case: Case) -> PreparedCase:
        """The prepared case."""
        return PreparedCase.open(self.place(case), self.index_place(case))

    def case_is_up_to_date(self, case: Case) -> bool:
        """Whether the case itself is up to date, regardless of its index."""
        return is_up_to_date(self.place(case), self._settings, case.sources, self.num_classes)

    def index_is_up_to_date(self, case: Case) -> bool:
        """Whether the index of its pseudo-labels is up to date, or there are none."""
        place = self.index_place(case)
        return place is None or is_up_to_date(place, self._index_settings, _index_sources(case), self.num_classes)

    def replaces(self, case: Case) -> bool:
        """Whether preparing the case replaces something outdated that another run may be reading."""
        place = self.index_place(case)
        return (self.place(case).exists() and not self.case_is_up_to_date(case)) or (
            place is not None and place.exists() and not self.index_is_up_to_date(case)
        )

    def prepare(self, case: Case) -> None:
        """Prepare a case and the index of its pseudo-labels, those that are out of date."""
        files = stamps.stamp_if_readable(case.sources)  # before reading: see stamp
        index_files = stamps.stamp_if_readable(_index_sources(case))
        image, label = read_case(case, self.num_classes)
        shape = target_shape(image.array.shape, image.spacing, self.plan.spacing)
        check_size(case.image, image, self.plan)
        labels = None
        if label is not None:
            labels = resample_labels(label.array, shape, separate_axis(image.spacing, self.plan.spacing))
        if not self.case_is_up_to_date(case):
            own = None if case.label is None else labels
            made_from = {**self._settings, "files": files}
            prepared = prepare_image(image.array, image.spacing, self.plan)[0]
            classes = set() if case.label is None or label is None else _classes(label.array)
            save_prepared(self.place(case), prepared, own, made_from, image.warnings, classes)
        index_place = self.index_place(case)
        if index_place is not None and labels is not None and not self.index_is_up_to_date(case):
            made_from = {**self._index_settings, "files": index_files}
            save_index(index_place, labels, made_from, self.pseudo_targets)

    def prepare_beside_others(self, case: Case) -> None:
        """The same while other jobs prepare cases here: of two with the same case, the second one finds it finished."""
        with alone(self.place(case).with_name(f".{case.name}.preparing")):
            if not (self.case_is_up_to_date(case) and self.index_is_up_to_date(case)):
                self.prepare(case)

    def remove_outdated(self, case: Case) -> None:
        """Remove what is prepared of a case but out of date."""
        if not self.case_is_up_to_date(case):
            shutil.rmtree(self.place(case), ignore_errors=True)
        index = self.index_place(case)
        if index is not None and not self.index_is_up_to_date(case):
            shutil.rmtree(index, ignore_errors=True)

    @property
    def _settings(self) -> dict[str, Any]:
        """What a prepared case depends on besides its files; the patch size does not matter."""
        plan = self.plan.to_dict()
        del plan["patch_size"]
        return {"version": STORE_VERSION, "plan": plan}

    @property
    def _index_settings(self) -> dict[str, Any]:
        """What the index of pseudo-labels depends on besides its files; intensities do not matter."""
        return {"version": STORE_VERSION, "spacing": list(self.plan.spacing)}


def _index_sources(case: Case) -> list[Path]:
    """The files that the index of a case's pseudo-labels is made from."""
    return [path for path in (case.image, case.pseudo_label) if path is not None]


def _classes(labels: np.ndarray) -> set[int]:
    """The classes in a label map, found slice by slice, since an index takes eight bytes a voxel; 0 is none."""
    occurs = np.zeros(256, bool)
    for part in labels:
        occurs[part] = True
    return {*np.flatnonzero(occurs).tolist()} - {0}


def _lost_classes(labels: LabelSet, plan: Plan, cases: Sequence[PreparedCase]) -> list[str]:
    """A warning for each class of which nothing is left in some cases, since its voxels are too few for the spacing."""
    warnings = []
    for label in labels:
        lost, left = sum(label.id in case.lost for case in cases), sum(label.id in case.ranges for case in cases)
        if lost:
            warnings.append(
                f"{label.name}: no voxel is left at {times(plan.spacing)} mm in {lost} of the {lost + left} cases with "
                "labels of it; choose a finer plan.spacing"
            )
    return warnings


def unknown_classes(labels: LabelSet, known: Container[int]) -> list[str]:
    """A warning for each class that is not among those of the labelled cases."""
    return [
        f"{label.name}: not in any labelled case; a network cannot learn it"
        for label in labels
        if label.id not in known
    ]


def check_size(path: Path, image: Volume, plan: Plan) -> None:
    """Check that a CT can be resampled in memory.

    Raises:
        UserError: It would have too many voxels.
    """
    shape = target_shape(image.array.shape, image.spacing, plan.spacing)
    if math.prod(shape) > MOST_VOXELS:
        raise UserError(
            f"{path}: would have {times(shape)} voxels after resampling from {times(image.spacing)} to "
            f"{times(plan.spacing)} mm; expected at most {MOST_VOXELS}; check its spacing, or choose a coarser "
            "plan.spacing"
        )


def _prepare_all(
    cases: Sequence[Case], preparation: _Preparation, shared: SharedFolder, workers: int | None, shard: Shard
) -> dict[Case, str]:
    """Prepare the outdated cases of a shard, and return an error message for each case that failed."""
    todo = [
        case for case in cases if not (preparation.case_is_up_to_date(case) and preparation.index_is_up_to_date(case))
    ]
    outdated = {case for case in todo if preparation.replaces(case)}
    if outdated:
        shared.replace(len(outdated))
    prepare = preparation.prepare
    if not shard.is_all:
        # Outdated cases go while no other job has any: from then on no job has to replace what others may read. What
        # was not there stays, since the job of another shard may have finished it in the meantime.
        while outdated:
            preparation.remove_outdated(outdated.pop())
        shared.let_others_prepare()
        missing = set(todo)
        todo, prepare = [case for case in shard.of(cases) if case in missing], preparation.prepare_beside_others
    places = (place for case in cases for place in (preparation.place(case), preparation.index_place(case)))
    for part in {preparation.folder, *(place.parent for place in places if place is not None)}:
        remove_leftovers(part)
    failures: dict[Case, str] = {}
    for case, outcome in for_each_case("preparing", prepare, todo, workers) if todo else ():
        if isinstance(outcome, WriteError):
            raise outcome
        if isinstance(outcome, UserError):
            failures[case] = str(outcome)
            if case in outdated:  # else the next process of this run would have to replace what this one reads by then
                preparation.remove_outdated(case)
    return {case: failures[case] for case in todo if case in failures}


def _all_problems(problems: Sequence[str]) -> str:
    return "strict=true, and some cases cannot be used:\n" + "\n".join(f"  {problem}" for problem in problems)
