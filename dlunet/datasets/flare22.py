"""FLARE22's folders, as they unpack.

::

    Training/FLARE22_LabeledCase50/images/FLARE22_Tr_0001_0000.nii.gz     Tuning/images/FLARETs_0001_0000.nii.gz
    Training/FLARE22_LabeledCase50/labels/FLARE22_Tr_0001.nii.gz          Tuning/labels/FLARETs_0001.nii.gz
    Training/FLARE22_UnlabeledCase1-1000/Case_00001_0000.nii.gz           Testing/FLARETs_0001_0000.nii.gz
"""

from __future__ import annotations

from pathlib import Path

from dlunet.datasets.cases import Case, Dataset
from dlunet.errors import UserError
from dlunet.labels import FLARE22
from dlunet.volumes import case_name, list_volumes

LAYOUT = (
    "Training/FLARE22_LabeledCase50/{images,labels}, Training/FLARE22_UnlabeledCase*/, "
    "Tuning/{images,labels} and Testing/"
)


def read_flare22(root: Path | str) -> Dataset:
    """List the cases under ``root``.

    Raises:
        UserError: The folder is missing, has no labelled case, or a training or tuning image has no label.
    """
    root = Path(root)
    if not root.is_dir():
        raise UserError(f"{root}: no such folder; expected FLARE22's layout ({LAYOUT}); set data.root=FOLDER")
    labelled = [case for folder in sorted(root.glob("Training/FLARE22_Labeled*")) for case in _labelled_cases(folder)]
    if not labelled:
        raise UserError(f"{root}: found no labelled case; expected FLARE22's layout ({LAYOUT}); check data.root")
    unlabelled = [
        Case(case_name(path), path)
        for folder in sorted(root.glob("Training/FLARE22_Unlabeled*"))
        for path in list_volumes(folder)
    ]
    tuning, testing = root / "Tuning", root / "Testing"
    return Dataset(
        labels=FLARE22,
        labelled=tuple(labelled),
        unlabelled=tuple(unlabelled),
        validation=tuple(_labelled_cases(tuning) if tuning.is_dir() else ()),
        test=tuple(_test_cases(testing) if testing.is_dir() else ()),
    )


def _labelled_cases(folder: Path) -> list[Case]:
    cases = _cases(folder / "images", folder / "labels")
    missing = [case.image for case in cases if case.label is None]
    if missing:
        raise UserError(
            f"{missing[0]}: has no label (and {len(missing) - 1} more); expected "
            f"{folder / 'labels' / case_name(missing[0])}.nii.gz; add it, or move the image to the unlabelled cases"
        )
    return cases


def _test_cases(folder: Path) -> list[Case]:
    """Testing holds the images themselves; a copy with labels keeps them in images/ and labels/, like Tuning."""
    images = folder / "images"
    return _cases(images if images.is_dir() else folder, folder / "labels")


def _cases(images: Path, labels: Path) -> list[Case]:
    by_name = {case_name(path): path for path in list_volumes(labels)} if labels.is_dir() else {}
    return [Case(case_name(path), path, by_name.get(case_name(path))) for path in list_volumes(images)]
