"""Cases and datasets, independent of the folder layout."""

from __future__ import annotations

from collections.abc import Container, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from dlunet.errors import UserError
from dlunet.labels import LabelSet
from dlunet.volumes import case_name, label_name, list_volumes, loose_slices, unreadable_volumes

#: Default folder of unlabelled CTs.
UNLABELLED = "imagesUn"


@dataclass(frozen=True)
class Case:
    """One CT and what is known about it.

    Attributes:
        name: The case's name.
        image: The CT.
        label: Its label map, if it has one.
        pseudo_label: A network's prediction for an unlabelled CT. It determines where to crop, and is a target only for
            methods that train on pseudo-labels.
    """

    name: str
    image: Path
    label: Path | None = None
    pseudo_label: Path | None = None

    @property
    def sources(self) -> list[Path]:
        """The files of its CT and label map."""
        return [path for path in (self.image, self.label) if path is not None]


@dataclass(frozen=True)
class Dataset:
    """The cases of a dataset by purpose.

    Attributes:
        labels: The classes of the label maps.
        labelled: Training cases with labels.
        unlabelled: Training cases without labels.
        validation: Cases with labels, used to choose the best checkpoint.
        test: Held-out cases; their labels, if any, are used for scores only.
        problems: One message per skipped file.
        pool: If folds were drawn, the cases they were drawn from.
    """

    labels: LabelSet
    labelled: tuple[Case, ...]
    unlabelled: tuple[Case, ...] = ()
    validation: tuple[Case, ...] = ()
    test: tuple[Case, ...] = ()
    problems: tuple[str, ...] = ()
    pool: tuple[Case, ...] = ()

    @property
    def fingerprinted(self) -> tuple[Case, ...]:
        """The cases whose statistics determine the plan: as in nnU-Net, those of all folds, which share one plan."""
        return self.pool or self.labelled


def list_cases(images: Path, labels: Path | None, problems: list[str]) -> list[Case]:
    """The CTs in a folder, each with the label map of the same name in another folder, if there is one.

    A CT of which there is a label map that cannot be used is left out: it would be taken for an unlabelled one.

    Args:
        images: Folder of CTs.
        labels: Folder of label maps, if there is one.
        problems: Receives a message for each skipped file: a name shared by several files, or an unsupported format.

    Raises:
        UserError: The folder of images is missing.
    """
    named = [(case_name(path), path) for path in list_volumes(images)]
    by_name, unusable = {}, set()
    if labels and labels.is_dir():
        names = {name for name, _ in named}
        by_name, unreadable = _labels_by_name(labels, names, problems), unreadable_volumes(labels)
        problems += unreadable.values()
        found = (*list_volumes(labels), *unreadable, *loose_slices(labels))
        unusable = {label_name(path, names) for path in found} - by_name.keys()
    problems += unreadable_volumes(images).values()
    cases = [Case(name, path, by_name.get(name)) for name, path in _by_name(named, problems).items()]
    return [case for case in cases if case.name not in unusable]


def list_labelled(images: Path, labels: Path, problems: list[str]) -> list[Case]:
    """Like :func:`list_cases`, but every CT must have a label map, and every label map a CT.

    Raises:
        UserError: A folder is missing.
    """
    cases = list_cases(images, labels, problems)
    problems += [
        f"{case.image}: has no label map; expected {labels / case.name}.nii.gz; add it, or list the CT as unlabelled"
        for case in cases
        if case.label is None
    ]
    check_labels(images, labels, problems)
    return [case for case in cases if case.label is not None]


def check_labels(images: Path, labels: Path, problems: list[str]) -> None:
    """Add a problem for each label map that has no CT."""
    names = {case_name(path) for path in list_volumes(images)}
    problems += [
        f"{path}: is a label map without a CT; expected {images / name}.nii.gz; add it, or remove the label map"
        for path in list_volumes(labels)
        if (name := label_name(path, names)) not in names
    ]


def unique_cases(cases: Sequence[Case], problems: list[str]) -> tuple[Case, ...]:
    """The cases with a unique name; cases that share a name are ambiguous."""
    paths = _by_name([(case_name(case.image), case.image) for case in cases], problems)
    return tuple(case for case in cases if case.name in paths)


def unlabelled_cases(root: Path, folder: Path | str | None, problems: list[str]) -> list[Case]:
    """The CTs in a folder of unlabelled cases, as given or below ``root``; by default ``imagesUn``, if it exists.

    Raises:
        UserError: The given folder does not exist.
    """
    if folder is None:
        return list_cases(root / UNLABELLED, None, problems) if (root / UNLABELLED).is_dir() else []
    found = next((path for path in (root / folder, Path(folder)) if path.is_dir()), None)
    if found is None:
        raise UserError(
            f"data.unlabelled: found no folder {folder}, neither as given nor in {root}; expected a folder of CTs; "
            "check the path"
        )
    return list_cases(found, None, problems)


def without_labelled(unlabelled: Sequence[Case], labelled: Sequence[Case], problems: list[str]) -> tuple[Case, ...]:
    """The unlabelled cases that are not also labelled ones, by name or because the file is the same."""
    named = {case.name: case for case in labelled} | {str(case.image.resolve()): case for case in labelled}
    kept = []
    for case in unlabelled:
        twin = named.get(case.name) or named.get(str(case.image.resolve()))
        if twin is None:
            kept.append(case)
        else:
            problems.append(
                f"{case.image}: is listed as unlabelled but has a label map, {twin.label}; expected one or the other; "
                "remove it from the unlabelled folder, or rename it if it is another patient"
            )
    return tuple(kept)


def with_pseudo_labels(dataset: Dataset, folder: Path) -> Dataset:
    """Attach the label maps in a folder of predictions to a dataset's unlabelled cases, by name.

    An unlabelled case without a prediction stays without; one whose prediction cannot be used, too, and is a problem.

    Raises:
        UserError: The folder is missing, or contains no label map for any unlabelled case.
    """
    names = {case.name for case in dataset.unlabelled}
    problems = list(dataset.problems)
    by_name = _labels_by_name(folder, names, problems)
    problems += [text for path, text in unreadable_volumes(folder).items() if label_name(path, names) in names]
    if dataset.unlabelled and names.isdisjoint(by_name):
        raise UserError(
            f"{folder}: contains no label map for any of the {len(dataset.unlabelled)} unlabelled cases; expected "
            f"files such as {dataset.unlabelled[0].name}.nii.gz; predict them, or check data.pseudo_labels"
        )
    unlabelled = tuple(replace(case, pseudo_label=by_name.get(case.name)) for case in dataset.unlabelled)
    return replace(dataset, unlabelled=unlabelled, problems=tuple(problems))


def first_problem(problems: Sequence[str]) -> str:
    """Addition to the message that no case is left: how many were skipped, and the first problem."""
    return f". {len(problems)} skipped; the first: {problems[0]}" if problems else ""


def _labels_by_name(folder: Path, cases: Container[str], problems: list[str]) -> dict[str, Path]:
    """The label maps in a folder by the name of their case; those that share a name are skipped."""
    return _by_name([(label_name(path, cases), path) for path in list_volumes(folder)], problems)


def _by_name(named: Sequence[tuple[str, Path]], problems: list[str]) -> dict[str, Path]:
    """Files by name; those that share a name are skipped."""
    grouped: dict[str, list[Path]] = {}
    for name, path in named:
        grouped.setdefault(name, []).append(path)
    problems += [
        f"{sharing[0]}: has the same name as {', '.join(map(str, sharing[1:]))}; expected one file per case; rename one"
        for sharing in grouped.values()
        if len(sharing) > 1
    ]
    return {name: sharing[0] for name, sharing in grouped.items() if len(sharing) == 1}
