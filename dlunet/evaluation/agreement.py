"""How far two label maps of one CT agree, where there is no reference to score them against."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np

from dlunet.evaluation.scores import dice_score
from dlunet.labels import LabelSet
from dlunet.volumes import check_grid, read_labels


def agreement(one: np.ndarray, other: np.ndarray, labels: LabelSet) -> float:
    """Mean DSC of two label maps over the classes that at least one of them contains, background excluded.

    Args:
        one: Label map (z, y, x) of integers; 0 is background.
        other: Label map of the same shape.
        labels: The classes.

    Returns:
        A value in 0 … 1; NaN where neither map contains any class.

    Raises:
        ValueError: The shapes differ.
    """
    masks = ((one == label.id, other == label.id) for label in labels)
    scores = [dice_score(*pair) for pair in masks if pair[0].any() or pair[1].any()]
    return float(np.mean(scores)) if scores else math.nan


def agreement_of_files(paths: tuple[Path, Path], labels: LabelSet) -> float:
    """The :func:`agreement` of the label maps in two files.

    Raises:
        UserError: A file cannot be read, or the grids of the two differ.
    """
    one, other = (read_labels(path, labels.num_classes) for path in paths)
    check_grid(paths[0], one, paths[1], other, "delete both and rerun the command")
    return agreement(one.array, other.array, labels)
