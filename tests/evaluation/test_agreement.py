"""The agreement of two label maps, compared with sets of voxels in plain Python."""

import math

import numpy as np
import pytest

from dlunet.errors import UserError
from dlunet.evaluation.agreement import agreement, agreement_of_files
from dlunet.labels import label_set

LABELS = label_set("three", {1: "a", 2: "b", 3: "c"})


def by_sets(one, other):
    """The mean over the classes that occur of twice the common voxels divided by all voxels of both."""
    scores = []
    for label in (1, 2, 3):
        first, second = ({index for index, value in np.ndenumerate(x) if value == label} for x in (one, other))
        if first | second:
            scores.append(2 * len(first & second) / (len(first) + len(second)))
    return sum(scores) / len(scores)


@pytest.mark.parametrize("classes", [(4, 4), (3, 4), (2, 4), (1, 4), (3, 2)])
def test_the_mean_is_over_the_classes_of_either_map(classes):
    draw = np.random.default_rng(sum(classes))
    one, other = (draw.integers(0, highest, (3, 4, 5), dtype=np.uint8) for highest in classes)
    assert agreement(one, other, LABELS) == agreement(other, one, LABELS) == pytest.approx(by_sets(one, other))


def test_the_ends_of_the_scale():
    one = np.zeros((2, 3, 4), np.uint8)
    one[0], one[1, 1] = 1, 3
    assert agreement(one, one, LABELS) == 1
    assert agreement(one, np.where(one, 2, 0), LABELS) == 0
    assert agreement(one, 0 * one, LABELS) == 0
    assert math.isnan(agreement(0 * one, 0 * one, LABELS))


def test_files_on_different_grids(tmp_path, write_volume):
    one = np.ones((3, 4, 5), np.uint8)
    paths = (write_volume(tmp_path / "one.nii.gz", one), write_volume(tmp_path / "other.nii.gz", one[1:]))
    assert agreement_of_files((paths[0], paths[0]), LABELS) == 1
    with pytest.raises(UserError, match=r"one\.nii\.gz: geometry .* differs .*; delete both and rerun the command$"):
        agreement_of_files(paths, LABELS)
