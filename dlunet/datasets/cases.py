"""What a dataset is, whatever its folders look like."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dlunet.errors import UserError
from dlunet.labels import LabelSet
from dlunet.volumes import case_name, list_volumes


@dataclass(frozen=True)
class Case:
    """One CT and, where it has one, its label map."""

    name: str
    image: Path
    label: Path | None = None


@dataclass(frozen=True)
class Dataset:
    """The cases of a dataset by what they are for.

    Attributes:
        labels: The organs that label maps show.
        labelled: Training cases with labels.
        unlabelled: Training cases without labels.
        validation: Cases with labels, used to choose the best checkpoint.
        test: Held-out cases; their labels, if any, are used for scores only.

    Raises:
        UserError: Two cases of a part share a name, or an unlabelled case is also one of the labelled ones.
    """

    labels: LabelSet
    labelled: tuple[Case, ...]
    unlabelled: tuple[Case, ...] = ()
    validation: tuple[Case, ...] = ()
    test: tuple[Case, ...] = ()

    def __post_init__(self) -> None:
        for part in (self.labelled + self.validation, self.unlabelled, self.test):
            _check_names(part)
        named = {case.name: case for case in self.labelled + self.validation}
        for case in self.unlabelled:
            if case.name in named and case.image.resolve() == named[case.name].image.resolve():
                raise UserError(
                    f"{case.image}: is listed as unlabelled and has a label, {named[case.name].label}; expected a case "
                    "to be one or the other; take it out of the unlabelled folder"
                )


def list_cases(images: Path, labels: Path | None = None) -> list[Case]:
    """The CTs in a folder, each with the label map of its name in another folder, if there is one.

    Raises:
        UserError: The folder of images is missing.
    """
    by_name = {case_name(path): path for path in list_volumes(labels)} if labels and labels.is_dir() else {}
    return [Case(case_name(path), path, by_name.get(case_name(path))) for path in list_volumes(images)]


def list_labelled(images: Path, labels: Path) -> list[Case]:
    """As :func:`list_cases`, where every CT must have its label map.

    Raises:
        UserError: A folder is missing, or a CT has no label map.
    """
    cases = list_cases(images, labels)
    missing = [case.image for case in cases if case.label is None]
    if missing:
        raise UserError(
            f"{missing[0]}: has no label (and {len(missing) - 1} more); expected "
            f"{labels / case_name(missing[0])}.nii.gz; add it, or move the image to the unlabelled cases"
        )
    return cases


def _check_names(cases: Sequence[Case]) -> None:
    seen: dict[str, Case] = {}
    for case in cases:
        other = seen.setdefault(case.name, case)
        if other is not case:
            raise UserError(f"{case.image}: has the name of {other.image}; expected a name of its own; rename one")
