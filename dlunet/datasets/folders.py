"""Plain folders: one of CTs, one with label maps of the same names for some of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from dlunet.datasets.cases import (
    Dataset,
    check_labels,
    first_problem,
    list_cases,
    unique_cases,
    unlabelled_cases,
    without_labelled,
)
from dlunet.datasets.splits import Fold, split_cases
from dlunet.errors import UserError
from dlunet.labels import LabelSet, label_set


def read_folders(
    root: Path | str,
    names: Sequence[str],
    splits: Path | str,
    images: str = "images",
    labels: str = "labels",
    unlabelled: Path | str | None = None,
    fold: Fold = 0,
    folds: int = 5,
) -> Dataset:
    """List the cases of two folders. A CT without a label map is an unlabelled case.

    Args:
        root: The folder that contains both.
        names: Class names of the labels 1, 2, ….
        splits: The file of folds, see :func:`split_cases`.
        images: Name of the folder of CTs.
        labels: Name of the folder of label maps.
        unlabelled: Another folder of unlabelled CTs, as given or below ``root``; by default ``imagesUn``, if it exists.
        fold: The fold used for validation, or ``all``.
        folds: Number of folds.

    Raises:
        UserError: A folder is missing, or no CT has a label map.
    """
    root = Path(root)
    problems: list[str] = []
    cases = list_cases(root / images, root / labels, problems)
    check_labels(root / images, root / labels, problems)
    labelled = [case for case in cases if case.label is not None]
    if not labelled:
        raise UserError(
            f"{root / images}: none of its {len(cases)} CTs has a label map in {root / labels}; expected files of the "
            f"same names{first_problem(problems)}"
        )
    training, validation = split_cases(labelled, Path(splits), fold, folds, problems)
    others = [case for case in cases if case.label is None]
    others += unlabelled_cases(root, unlabelled, problems)
    others_alone = unique_cases(without_labelled(others, labelled, problems), problems)
    return Dataset(_label_set(root, names), training, others_alone, validation, (), tuple(problems), tuple(labelled))


def _label_set(root: Path, names: Sequence[str]) -> LabelSet:
    if not names or isinstance(names, (str, Mapping)):
        raise UserError(
            f"data.names: found {names}; expected the names of labels 1, 2, …, such as 'data.names=[liver,tumour]'"
        )
    if "background" in map(str.lower, map(str, names)):
        raise UserError(
            f"data.names: found {', '.join(map(str, names))}; expected the names of labels 1, 2, … without the "
            "background, which is 0; leave it out"
        )
    try:
        return label_set(root.name, dict(enumerate(map(str, names), start=1)))
    except ValueError as error:
        raise UserError(f"data.names: {error}") from None
