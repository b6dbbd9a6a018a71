"""Where patches are cut: at the stated frequencies, from the right voxels."""

from collections import Counter

import numpy as np
import pytest
from scipy.stats import chisquare

from dlunet.sampling import ClassBalancedSampler, crop

DRAWS = 5000


def test_classes_are_drawn_as_often_as_stated(make_case):
    """Classes are in the outermost slices, where no random patch is centred: a centre shows how it was drawn."""
    label = np.zeros((12, 30, 30), np.uint8)
    label[0, :3, :1], label[0, 10:, :], label[11, 5, 5:7] = 1, 6, 13  # 3, 600 and 2 voxels
    case = make_case("a", np.zeros(label.shape), label)
    sampler, rng = ClassBalancedSampler((8, 16, 16), 0.55), np.random.default_rng(0)
    drawn = Counter(int(label[sampler.draw_centre(case, rng)]) for _ in range(DRAWS))
    assert set(drawn) == {0, 1, 6, 13}
    expected = np.array([0.45, 0.55 / 3, 0.55 / 3, 0.55 / 3]) * DRAWS
    assert chisquare([drawn[value] for value in (0, 1, 6, 13)], expected).pvalue > 0.01


@pytest.mark.parametrize("label", [None, np.zeros((9, 4, 10), np.uint8)], ids=["no labels", "nothing labelled"])
def test_elsewhere_every_patch_inside_the_volume_is_equally_likely(make_case, label):
    """Patch 4×6×7 in 9×4×10: 6 positions along z and 4 along x; along y the patch is larger and is centred."""
    case = make_case("a", np.zeros((9, 4, 10)), label)
    sampler, rng = ClassBalancedSampler((4, 6, 7), 1.0), np.random.default_rng(1)
    drawn = Counter(sampler.draw_centre(case, rng) for _ in range(DRAWS))
    assert set(drawn) == {(z, 2, x) for z in range(2, 8) for x in range(3, 7)}
    assert chisquare(list(drawn.values())).pvalue > 0.01


@pytest.mark.parametrize("size", [(2, 3, 4), (5, 1, 6), (9, 8, 7)])
def test_a_crop_is_what_padding_and_slicing_give(size):
    volume = np.random.default_rng(0).normal(size=(2, 3, 4, 5)).astype(np.float16)
    padded = np.pad(volume, [(0, 0), (9, 9), (9, 9), (9, 9)])
    for centre in np.ndindex(3, 4, 5):
        z, y, x = (c + 9 - n // 2 for c, n in zip(centre, size, strict=True))
        expected = padded[:, z : z + size[0], y : y + size[1], x : x + size[2]]
        np.testing.assert_array_equal(crop(volume, centre, size).numpy(), expected)
        np.testing.assert_array_equal(crop(volume[1], centre, size).numpy(), expected[1])
