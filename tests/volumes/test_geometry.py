"""When two grids describe the same voxels."""

from dataclasses import replace

import pytest
from scipy.spatial.transform import Rotation

from dlunet.volumes import Geometry

GRID = Geometry((30, 20, 100), (0.8, 0.8, 5.0), (-10.0, 5.0, 40.0), (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0))
SIGN_FLIPPED = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, -1.0)


@pytest.mark.parametrize(
    ("other", "same"),
    [
        (GRID, True),
        (replace(GRID, origin=(-10.0005, 5.0, 40.0)), True),  # 0.0006 voxels: rounding in a header
        (replace(GRID, origin=(-10.002, 5.0, 40.0)), False),
        (replace(GRID, spacing=(0.8, 0.8, 5.000001)), True),  # adds up to 0.0001 mm over 99 steps
        (replace(GRID, spacing=(0.8, 0.8, 5.0001)), False),  # adds up to 0.0099 mm
        (replace(GRID, size=(30, 20, 99)), False),
        (replace(GRID, direction=SIGN_FLIPPED), False),
    ],
)
def test_same_grid(other, same):
    assert GRID.same_grid(other) is same
    assert other.same_grid(GRID) is same


def turned(degrees, decimals=None):
    direction = Rotation.from_euler("z", degrees, degrees=True).as_matrix()
    return tuple((direction if decimals is None else direction.round(decimals)).ravel().tolist())


@pytest.mark.parametrize(
    ("labels", "ct", "fits"),
    [
        (GRID, GRID, True),
        (replace(GRID, origin=(-10.003, 5.0, 40.0)), GRID, True),  # rounded
        (replace(GRID, origin=(-10.005, 5.0, 40.0)), GRID, False),  # shifted
        (replace(GRID, direction=turned(20, 4)), replace(GRID, direction=turned(20)), True),
        (replace(GRID, direction=turned(20.5)), replace(GRID, direction=turned(20)), False),  # 0.26 mm at the far side
        (replace(GRID, spacing=(0.80005, 0.8, 5.0)), GRID, True),  # adds up to 0.0015 mm
        (replace(GRID, spacing=(0.81, 0.8, 5.0)), GRID, False),
        (replace(GRID, size=(30, 20, 99)), GRID, False),
        (replace(GRID, direction=SIGN_FLIPPED), GRID, False),
        (replace(GRID, direction=SIGN_FLIPPED, origin=(-10.0, 5.0, 535.0)), GRID, True),  # stored from the top down
    ],
)
def test_labels_that_fit_a_ct_up_to_the_rounding_of_headers(labels, ct, fits):
    assert labels.fits(ct) is fits and ct.fits(labels) is fits
