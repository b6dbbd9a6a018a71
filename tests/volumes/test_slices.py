"""Slices as pictures: which slice is chosen, and the colour of its pixels."""

import numpy as np
import pytest

from dlunet.labels import FLARE22
from dlunet.volumes.slices import grey, most_organs_slice, overlay


@pytest.mark.parametrize(
    ("slices", "chosen"),
    [
        ([[0, 1], [1, 2], [3, 3]], 1),  # two classes
        ([[0, 1, 2], [1, 2, 2], [3, 3, 3]], 1),  # two classes each: the one with more voxels
        ([[0, 0]] * 5, 2),  # no class: the middle
    ],
)
def test_the_slice_with_most_classes_then_most_voxels(slices, chosen):
    assert most_organs_slice(np.array(slices)[:, None]) == chosen


def test_grey_is_the_abdominal_window():
    np.testing.assert_allclose(grey(np.array([[-1000, -160, 40, 240, 3000]])), [[0, 0, 0.5, 1, 1]])


def test_colours_cover_the_ct_to_three_fifths():
    rgb = overlay(np.array([[0.5, 0.5]]), np.array([[0, 1]]), FLARE22)
    liver = np.array([0xC0, 0x50, 0x4D]) / 255
    np.testing.assert_allclose(rgb, [[[0.5] * 3, 0.4 * 0.5 + 0.6 * liver]])
    np.testing.assert_allclose(overlay(np.array([[0.2]]), None, FLARE22), [[[0.2] * 3]])
