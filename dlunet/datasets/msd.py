"""The layout of the Medical Segmentation Decathlon: ``dataset.json`` lists the files.

::

    "labels": {"0": "background", "1": "spleen"},
    "training": [{"image": "./imagesTr/spleen_2.nii.gz", "label": "./labelsTr/spleen_2.nii.gz"}, …],
    "test": ["./imagesTs/spleen_1.nii.gz", …]
"""

from __future__ import annotations

from pathlib import Path

from dlunet.datasets.cases import Case, Dataset
from dlunet.datasets.dataset_json import labels_of, read_dataset_json
from dlunet.datasets.nnunet_raw import unlabelled_cases
from dlunet.datasets.splits import Fold, split_cases
from dlunet.errors import UserError
from dlunet.volumes import case_name


def read_msd(
    root: Path | str, splits: Path | str, unlabelled: Path | str | None = None, fold: Fold = 0, folds: int = 5
) -> Dataset:
    """List the cases of a dataset of the decathlon.

    Its test cases come without labels: ``unlabelled="imagesTs"`` trains on them as unlabelled cases.

    Args:
        root: The folder with ``dataset.json``.
        splits: The file of folds, see :func:`split_cases`.
        unlabelled: Folder of unlabelled CTs, as it is or below ``root``; by default ``imagesUn``, if it exists.
        fold: The fold that validates, or ``all``.
        folds: How many folds.

    Raises:
        UserError: A file or folder is missing or does not fit the layout.
    """
    root = Path(root)
    description = root / "dataset.json"
    values = read_dataset_json(description)
    labels = labels_of(description, values)
    try:
        cases = [_case(root / pair["image"], root / pair["label"]) for pair in values["training"]]
        test = [_case(root / image) for image in values.get("test", []) if isinstance(image, str)]
    except (KeyError, TypeError) as error:
        raise UserError(
            f'{description}: its lists of cases cannot be read ({type(error).__name__}: {error}); expected "training": '
            '[{"image": FILE, "label": FILE}, …]; use data=nnunet if the folder is a raw dataset of nnU-Net'
        ) from None
    if not cases:
        raise UserError(f"{description}: lists no training case; expected at least one image with its label")
    training, validation = split_cases(cases, Path(splits), fold, folds)
    return Dataset(labels, training, unlabelled_cases(root, unlabelled), validation, tuple(test))


def _case(image: Path, label: Path | None = None) -> Case:
    for path in (image, label):
        if path is not None and not path.exists():
            raise UserError(f"{path}: no such file; dataset.json lists it; add the file, or take it out of the list")
    return Case(case_name(image), image, label)
