"""A CT and its labels are matched voxel by voxel, whatever the order and direction of their stored axes."""

import numpy as np
import pytest

from dlunet.datasets import Case, read_case
from dlunet.errors import UserError
from dlunet.evaluation import evaluate_folder

SHAPE, SPACING, ORIGIN = (4, 6, 8), (5.0, 0.8, 0.7), (-20.0, 30.0, 100.0)
HU = np.random.default_rng(0).normal(0, 300, SHAPE).round().astype(np.int16)
LABELS = np.random.default_rng(1).integers(0, 3, SHAPE).astype(np.uint8)


@pytest.fixture
def write(tmp_path, write_volume):
    """A CT and a label map of the same patient."""

    def write(ct="RAS", labels="RAS", origin=ORIGIN, ending=".nii.gz"):
        grid = {"spacing": SPACING, "origin": ORIGIN}
        image = write_volume(tmp_path / "images" / f"a{ending}", HU, **grid, orientation=ct)
        grid["origin"] = origin
        return Case("a", image, write_volume(tmp_path / "labels" / "a.nii.gz", LABELS, **grid, orientation=labels))

    return write


@pytest.mark.parametrize("ending", [".nii.gz", ".mha"])
@pytest.mark.parametrize("ct", ["RAS", "LPI", "PIR"])
@pytest.mark.parametrize("labels", ["RAS", "LPS", "LAS", "PIR", "SAL"])
def test_labels_in_another_axis_order(write, ct, labels, ending):
    image, label = read_case(write(ct, labels, ending=ending), 3)
    np.testing.assert_array_equal(image.array, HU)
    np.testing.assert_array_equal(label.array, LABELS)


@pytest.mark.parametrize("labels", ["RAS", "LPS", "PIR"])
@pytest.mark.parametrize("shift", [0.005, 0.7, 30.0])
def test_labels_on_another_grid_are_refused_with_the_numbers_that_differ(write, labels, shift):
    case = write(labels=labels, origin=(ORIGIN[0] + shift, *ORIGIN[1:]))
    with pytest.raises(
        UserError, match=rf"^{case.label}: geometry .* differs from {case.image}: found origin"
    ) as error:
        read_case(case, 3)
    found, expected = (str(error.value).split(word)[1] for word in ("origin in mm", "(expected"))
    assert found.split("(")[0].strip() != expected.split(")")[0].strip()


def test_predictions_in_another_axis_order_score_the_same(tmp_path, write_volume):
    grid = {"spacing": SPACING, "origin": ORIGIN}
    prediction = np.roll(LABELS, 1, axis=0)
    tables = []
    for orientation in ("RAS", "LPS", "PIR"):
        folder = tmp_path / orientation
        write_volume(folder / "predictions" / "a.nii.gz", prediction, **grid, orientation=orientation)
        write_volume(folder / "references" / "a.nii.gz", LABELS, **grid, orientation="RAS")
        tables.append(evaluate_folder(folder / "predictions", folder / "references", folder / "scores", workers=1))
    assert tables[0].equals(tables[1]) and tables[0].equals(tables[2])
    liver = tables[0].set_index("organ").loc["Liver", "dsc"]
    hits, sizes = ((prediction == 1) & (LABELS == 1)).sum(), (prediction == 1).sum() + (LABELS == 1).sum()
    assert liver == pytest.approx(2 * hits / sizes, abs=1e-4)
