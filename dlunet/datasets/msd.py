"""The layout of the Medical Segmentation Decathlon: ``dataset.json`` lists the files.

::

    "labels": {"0": "background", "1": "spleen"},
    "training": [{"image": "./imagesTr/spleen_2.nii.gz", "label": "./labelsTr/spleen_2.nii.gz"}, …],
    "test": ["./imagesTs/spleen_1.nii.gz", …], or pairs as above, if they have labels
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dlunet.datasets.cases import Case, Dataset, first_problem, unique_cases, unlabelled_cases, without_labelled
from dlunet.datasets.dataset_json import labels_of, read_dataset_json
from dlunet.datasets.splits import Fold, split_cases
from dlunet.errors import UserError
from dlunet.volumes import case_name


def read_msd(
    root: Path | str, splits: Path | str, unlabelled: Path | str | None = None, fold: Fold = 0, folds: int = 5
) -> Dataset:
    """List the cases of a decathlon dataset.

    Test cases usually have no labels: ``unlabelled="imagesTs"`` trains on them as unlabelled cases.

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
    description = root / "dataset.json"
    values = read_dataset_json(description)
    labels = labels_of(description, values)
    problems: list[str] = []
    try:
        listed = [(root / pair["image"], root / pair["label"]) for pair in values["training"]]
        test = _listed_tests(description, values, problems)
    except (KeyError, TypeError) as error:
        raise UserError(
            f'{description}: its lists of cases cannot be read ({type(error).__name__}: {error}); expected "training": '
            '[{"image": FILE, "label": FILE}, …]; use data=nnunet if this is an nnU-Net raw dataset'
        ) from None
    if values.get("validation"):
        problems.append(
            f'{description}: its list "validation" is not used, since folds of the training cases validate; expected '
            'no such list; move its cases to "training", and give a file with your own fold as data.splits'
        )
    cases = _existing(listed, problems)
    if not cases:
        raise UserError(
            f"{description}: lists no existing training case; expected at least one image with its label"
            f"{first_problem(problems)}"
        )
    training, validation = split_cases(cases, Path(splits), fold, folds, problems)
    others = without_labelled(unlabelled_cases(root, unlabelled, problems), cases, problems)
    return Dataset(labels, training, others, validation, _existing(test, problems), tuple(problems), tuple(cases))


def _listed_tests(description: Path, values: dict[str, Any], problems: list[str]) -> list[tuple[Path, Path | None]]:
    """The test cases: files of CTs, or pairs as in the training list."""
    root, found = description.parent, []
    for entry in values.get("test", []):
        pair = entry if isinstance(entry, dict) else {"image": entry}
        image, label = pair.get("image"), pair.get("label")
        if isinstance(image, str) and (label is None or isinstance(label, str)):
            found.append((root / image, None if label is None else root / label))
        else:
            problems.append(
                f'{description}: its list "test" has the entry {entry}; expected the file of a CT, or '
                '{"image": FILE, "label": FILE}; correct it'
            )
    return found


def _existing(listed: Sequence[tuple[Path, Path | None]], problems: list[str]) -> tuple[Case, ...]:
    """The listed cases whose files exist."""
    cases = []
    for image, label in listed:
        missing = [path for path in (image, label) if path is not None and not path.exists()]
        if missing:
            problems.append(f"{missing[0]}: no such file; dataset.json lists it; add it, or remove it from the list")
        else:
            cases.append(Case(case_name(image), image, label))
    return unique_cases(cases, problems)
