"""One CT stored in each of the 48 axis orientations gives the same prepared case."""

from itertools import permutations, product

import numpy as np
import pytest

from dlunet.datasets import Case, Dataset
from dlunet.labels import FLARE22
from dlunet.preparation import prepare_dataset

ORIENTATIONS = ["".join(letters) for axes in permutations(("LR", "PA", "SI")) for letters in product(*axes)]


@pytest.fixture(scope="module")
def prepare(tiny_abdomen, write_volume, tmp_path_factory):
    """``prepare(orientation)`` returns the prepared CT, its labels, index ranges and quantisation step."""
    abdomen = tiny_abdomen(0)

    def prepare(orientation):
        folder = tmp_path_factory.mktemp(orientation)
        grid = {"orientation": orientation, "spacing": (9.0, 7.0, 8.0), "origin": (-20.0, 13.0, 5.0)}
        image = write_volume(folder / "ct.nii.gz", abdomen.hu, **grid)
        label = write_volume(folder / "labels.nii.gz", abdomen.labels, **grid)
        dataset = Dataset(FLARE22, (Case("ct", image, label),))
        (case,) = prepare_dataset(dataset, folder, (10.0, 8.0, 6.0), (16, 32, 32), workers=1).labelled
        return np.array(case.image), np.array(case.label), case.ranges, case.quantisation_step

    return prepare


@pytest.fixture(scope="module")
def reference(prepare):
    return prepare("LPS")


def test_there_are_48():
    assert len(set(ORIENTATIONS)) == 48


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_every_orientation_is_the_same_case(prepare, reference, orientation):
    image, label, ranges, unit = prepare(orientation)
    np.testing.assert_array_equal(image, reference[0])
    np.testing.assert_array_equal(label, reference[1])
    assert (ranges, unit) == reference[2:]
