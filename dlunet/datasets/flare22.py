"""The folder layout of FLARE22, as unpacked.

::

    Training/FLARE22_LabeledCase50/images/FLARE22_Tr_0001_0000.nii.gz     Tuning/images/FLARETs_0001_0000.nii.gz
    Training/FLARE22_LabeledCase50/labels/FLARE22_Tr_0001.nii.gz          Tuning/labels/FLARETs_0001.nii.gz
    Training/FLARE22_UnlabeledCase1-1000/Case_00001_0000.nii.gz           Testing/FLARETs_0001_0000.nii.gz
"""

from __future__ import annotations

from pathlib import Path

from dlunet.datasets.cases import (
    Case,
    Dataset,
    first_problem,
    list_cases,
    list_labelled,
    unique_cases,
    without_labelled,
)
from dlunet.errors import UserError
from dlunet.labels import FLARE22

LAYOUT = (
    "Training/FLARE22_LabeledCase50/{images,labels}, Training/FLARE22_UnlabeledCase*/, "
    "Tuning/{images,labels} and Testing/"
)


def read_flare22(root: Path | str) -> Dataset:
    """List the cases under ``root``.

    Raises:
        UserError: The folder is missing, or contains no labelled case.
    """
    root = Path(root)
    if not root.is_dir():
        raise UserError(f"{root}: no such folder; expected FLARE22's layout ({LAYOUT}); set data.root=FOLDER")
    training, tuning, testing = root / "Training", root / "Tuning", root / "Testing"
    problems: list[str] = []
    labelled = [case for folder in _folders(training, "FLARE22_Labeled*") for case in _labelled_cases(folder, problems)]
    if not labelled:
        raise UserError(
            f"{root}: found no labelled cases; expected FLARE22's layout ({LAYOUT}); check data.root"
            f"{first_problem(problems)}"
        )
    unlabelled = [
        case for folder in _folders(training, "FLARE22_Unlabeled*") for case in list_cases(folder, None, problems)
    ]
    validation = _labelled_cases(tuning, problems) if tuning.is_dir() else []
    sound = {case.name for case in unique_cases([*labelled, *validation], problems)}
    return Dataset(
        labels=FLARE22,
        labelled=tuple(case for case in labelled if case.name in sound),
        unlabelled=unique_cases(without_labelled(unlabelled, [*labelled, *validation], problems), problems),
        validation=tuple(case for case in validation if case.name in sound),
        test=tuple(_test_cases(testing, problems) if testing.is_dir() else ()),
        problems=tuple(problems),
    )


def _folders(training: Path, pattern: str) -> list[Path]:
    """The folders of a kind; the archives they were unpacked from may lie beside them."""
    return sorted(path for path in training.glob(pattern) if path.is_dir())


def _labelled_cases(folder: Path, problems: list[str]) -> list[Case]:
    return list_labelled(folder / "images", folder / "labels", problems)


def _test_cases(folder: Path, problems: list[str]) -> list[Case]:
    """Testing contains the images directly; a copy with labels has images/ and labels/, like Tuning."""
    images = folder / "images"
    return list_cases(images if images.is_dir() else folder, folder / "labels", problems)
