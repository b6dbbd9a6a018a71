"""What a dataset is, whatever its folders look like."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from dlunet.labels import LabelSet


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
    """

    labels: LabelSet
    labelled: tuple[Case, ...]
    unlabelled: tuple[Case, ...] = ()
    validation: tuple[Case, ...] = ()
    test: tuple[Case, ...] = ()
