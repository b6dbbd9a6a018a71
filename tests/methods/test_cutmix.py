"""CutMix: boxes follow the published distribution, and the mask selects the source of each voxel."""

import itertools
import math

import numpy as np
import pytest
import torch
from scipy import stats

from dlunet.methods import cut_mix, draw_box, draw_masks

DRAWS = 10_000
PATCH = (56, 160, 160)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module", params=[1, 3])
def draws(request):
    """Edges as fractions of the patch before division by the number of boxes, positions as fractions of the free range.

    The patch is so large that rounding to whole voxels is negligible.
    """
    generator, size = seeded(), 10_000_000
    boxes = [draw_box((size,) * 3, request.param, generator) for _ in range(DRAWS)]
    edges = np.array([[side.stop - side.start for side in box] for box in boxes])
    starts = np.array([[side.start for side in box] for box in boxes])
    return edges / size * math.sqrt(request.param), starts / (size - edges)


def assert_uniform(values, low=0.0, high=1.0):
    assert stats.kstest(values, stats.uniform(low, high - low).cdf).pvalue > 0.01


def test_edges_follow_the_published_law(draws):
    (z, y, x), _ = draws[0].T, draws[1]
    s = y * x  # s^a · s^(1 − a)
    assert_uniform(s, 0.25, 0.5)
    a, b = np.log(y) / np.log(s), np.log(z) / np.log(s)
    assert_uniform(a)
    assert_uniform(b)
    for first, second in itertools.combinations((s, a, b), 2):
        assert stats.spearmanr(first, second).pvalue > 0.01


def test_boxes_lie_uniformly_and_independently_of_their_size(draws):
    edges, places = draws
    for axis in range(3):
        assert_uniform(places[:, axis])
        assert stats.spearmanr(places[:, axis], edges[:, axis]).pvalue > 0.01


def test_boxes_lie_inside_the_papers_patch_and_reach_its_borders():
    generator = seeded()
    boxes = [draw_box(PATCH, 3, generator) for _ in range(DRAWS)]
    for axis, size in enumerate(PATCH):
        starts, stops = ([getattr(box[axis], end) for box in boxes] for end in ("start", "stop"))
        edges = {stop - start for start, stop in zip(starts, stops, strict=True)}
        assert (min(starts), max(stops)) == (0, size)
        # s^b is between 1/4 and 1; each edge is that times √(1/3), rounded to the nearest voxel
        assert edges == set(range(round(size / 4 / math.sqrt(3)), round(size / math.sqrt(3)) + 1))


def test_overlapping_boxes_toggle_and_each_sample_draws_its_own():
    masks = draw_masks(4, PATCH, 3, seeded())
    generator, covered = seeded(), np.zeros((4, *PATCH), dtype=int)
    for sample, _ in itertools.product(range(4), range(3)):
        covered[sample][draw_box(PATCH, 3, generator)] += 1
    assert set(np.unique(covered)) >= {0, 1, 2}
    assert masks.dtype == torch.bool
    np.testing.assert_array_equal(masks, covered % 2 == 1)
    assert not any(torch.equal(first, second) for first, second in itertools.combinations(masks, 2))


@pytest.mark.parametrize("probability", [0.0, 0.3, 1.0])
def test_each_sample_has_boxes_with_the_probability_asked_for(probability):
    masks = draw_masks(1000, (4, 5, 6), 1, seeded(), probability)
    mixed = int(masks.flatten(1).any(1).sum())
    assert stats.binomtest(mixed, 1000, probability).pvalue > 0.01


def test_the_generator_alone_decides():
    torch.manual_seed(1)
    first = draw_masks(2, PATCH, generator=seeded(7))
    torch.manual_seed(2)
    assert torch.equal(first, draw_masks(2, PATCH, generator=seeded(7)))
    assert not torch.equal(first, draw_masks(2, PATCH, generator=seeded(8)))


@pytest.mark.parametrize("channels", [(), (1,), (3,)])
def test_boxes_are_filled_from_the_second_patch(channels):
    """Voxel by voxel, for label maps and for images of several channels."""
    size = (4, 5, 6)
    masks = torch.rand(2, *size, generator=seeded()) < 0.4
    shape = (2, *channels, *size)
    outside = torch.arange(math.prod(shape)).reshape(shape)
    inside = -1 - outside
    mixed = cut_mix(outside, inside, masks)
    assert mixed.shape == shape
    for index in itertools.product(*map(range, shape)):
        source = inside if masks[(index[0], *index[-3:])] else outside
        assert mixed[index] == source[index]
