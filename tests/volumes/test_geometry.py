"""Grids: when two describe the same voxels."""

from dataclasses import replace

import pytest

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
