"""FLARE22's folders, as they unpack.

::

    Training/FLARE22_LabeledCase50/images/FLARE22_Tr_0001_0000.nii.gz     Tuning/images/FLARETs_0001_0000.nii.gz
    Training/FLARE22_LabeledCase50/labels/FLARE22_Tr_0001.nii.gz          Tuning/labels/FLARETs_0001.nii.gz
    Training/FLARE22_UnlabeledCase1-1000/Case_00001_0000.nii.gz           Testing/FLARETs_0001_0000.nii.gz
"""

from __future__ import annotations

from pathlib import Path

from dlunet.datasets.cases import Case, Dataset, list_cases, list_labelled
from dlunet.errors import UserError
from dlunet.labels import FLARE22

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
    unlabelled = [case for folder in sorted(root.glob("Training/FLARE22_Unlabeled*")) for case in list_cases(folder)]
    tuning, testing = root / "Tuning", root / "Testing"
    return Dataset(
        labels=FLARE22,
        labelled=tuple(labelled),
        unlabelled=tuple(unlabelled),
        validation=tuple(_labelled_cases(tuning) if tuning.is_dir() else ()),
        test=tuple(_test_cases(testing) if testing.is_dir() else ()),
    )


def _labelled_cases(folder: Path) -> list[Case]:
    return list_labelled(folder / "images", folder / "labels")


def _test_cases(folder: Path) -> list[Case]:
    """Testing holds the images themselves; a copy with labels keeps them in images/ and labels/, like Tuning."""
    images = folder / "images"
    return list_cases(images if images.is_dir() else folder, folder / "labels")
