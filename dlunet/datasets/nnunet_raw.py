"""The folder layout of nnU-Net's raw datasets.

::

    dataset.json     imagesTr/NAME_0000.nii.gz     labelsTr/NAME.nii.gz
                     imagesTs/NAME_0000.nii.gz     labelsTs/NAME.nii.gz (if there are any)
                     imagesUn/NAME_0000.nii.gz     unlabelled CTs; not part of nnU-Net, any folder can be given
"""

from __future__ import annotations

from pathlib import Path

from dlunet.datasets.cases import (
    Dataset,
    first_problem,
    list_cases,
    list_labelled,
    unlabelled_cases,
    without_labelled,
)
from dlunet.datasets.dataset_json import labels_of, read_dataset_json
from dlunet.datasets.splits import Fold, split_cases
from dlunet.errors import UserError


def read_nnunet_raw(
    root: Path | str, splits: Path | str, unlabelled: Path | str | None = None, fold: Fold = 0, folds: int = 5
) -> Dataset:
    """List the cases of an nnU-Net dataset.

    Args:
        root: The folder with ``dataset.json``.
        splits: The file of folds, see :func:`split_cases`.
        unlabelled: Folder of unlabelled CTs, as given or below ``root``; by default ``imagesUn``, if it exists.
        fold: The fold used for validation, or ``all``.
        folds: Number of folds.

    Raises:
        UserError: A file or folder is missing or does not fit the layout.
    """
    root = Path(root)
    _check_folder(root)
    description = root / "dataset.json"
    labels = labels_of(description, read_dataset_json(description))
    problems: list[str] = []
    cases = list_labelled(root / "imagesTr", root / "labelsTr", problems)
    if not cases:
        raise UserError(
            f"{root / 'imagesTr'}: contains no CT with a label map; expected NAME_0000.nii.gz, and NAME.nii.gz in "
            f"{root / 'labelsTr'}; check data.root{first_problem(problems)}"
        )
    training, validation = split_cases(cases, Path(splits), fold, folds, problems)
    others = without_labelled(unlabelled_cases(root, unlabelled, problems), cases, problems)
    test = list_cases(root / "imagesTs", root / "labelsTs", problems) if (root / "imagesTs").is_dir() else []
    return Dataset(labels, training, others, validation, tuple(test), tuple(problems), tuple(cases))


def _check_folder(root: Path) -> None:
    if not root.is_dir():
        raise UserError(f"{root}: no such folder; expected one with dataset.json, imagesTr and labelsTr; set data.root")
