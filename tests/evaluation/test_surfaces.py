"""Surfaces and distances between them, against all pairs of points, the ``surface-distance`` package and SimpleITK."""

import itertools
import warnings

import numpy as np
import pytest
import SimpleITK as sitk
from scipy import ndimage

from dlunet.evaluation import surface_dice
from dlunet.evaluation.metrics import asd, hd95, volume_difference
from dlunet.evaluation.surfaces import surface_distances

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)
    import surface_distance as published
    from surface_distance.lookup_tables import create_table_neighbour_code_to_surface_area


def random_pair(seed):
    """Two overlapping blobs, or scattered voxels, of random size, with a random spacing in mm."""
    rng = np.random.default_rng(seed)
    shape = rng.integers(1, 12, 3)
    noise = rng.normal(size=(2, *shape))
    if seed % 4:
        noise = noise.sum(0) + 0.7 * noise
        noise = np.stack([ndimage.gaussian_filter(half, 1.0) for half in noise])
    masks = noise > np.quantile(noise, rng.uniform(0.1, 0.95))
    for mask in masks:
        mask.flat[rng.integers(mask.size)] = True
    spacing = rng.choice([0.7, 1.0, 2.5, 5.0], 3) if seed % 2 else rng.uniform(0.3, 5.0, 3)
    return *masks, tuple(map(float, spacing))


def by_all_pairs(prediction, reference, spacing):
    """Distances and areas of both surfaces: loops over corners and their voxels, and every distance."""
    table = create_table_neighbour_code_to_surface_area(spacing)
    points, areas = [], []
    for mask in (prediction, reference):
        found = {}
        for corner in itertools.product(*(range(size + 1) for size in mask.shape)):
            code = 0
            for number, offset in enumerate(itertools.product((-1, 0), repeat=3)):
                voxel = tuple(c + o for c, o in zip(corner, offset, strict=True))
                inside = all(0 <= v < size for v, size in zip(voxel, mask.shape, strict=True)) and mask[voxel]
                code += int(inside) << (7 - number)
            if 0 < code < 255:
                found[corner] = table[code]
        points.append(np.array(list(found)) * spacing)
        areas.append(np.array(list(found.values())))
    apart = np.linalg.norm(points[0][:, None] - points[1][None], axis=-1)
    return apart.min(1), areas[0], apart.min(0), areas[1]


@pytest.mark.parametrize("first", range(0, 200, 50))
def test_random_masks(first):
    for seed in range(first, first + 50):
        prediction, reference, spacing = random_pair(seed)
        every = by_all_pairs(prediction, reference, spacing)
        for found, expected in zip(surface_distances(prediction, reference, spacing), every, strict=True):
            np.testing.assert_allclose(found, expected, atol=1e-9)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            theirs = published.compute_surface_distances(reference, prediction, spacing)
        for tolerance in (0.0, spacing[0], 2 * spacing[1], 3.0):
            expected = published.compute_surface_dice_at_tolerance(theirs, tolerance)
            assert surface_dice(prediction, reference, spacing, tolerance) == pytest.approx(expected, abs=1e-6)
        assert hd95(prediction, reference, spacing) == pytest.approx(
            published.compute_robust_hausdorff(theirs, 95), abs=1e-6
        )
        sides = np.array(published.compute_average_surface_distance(theirs))
        sizes = np.array([theirs["surfel_areas_gt"].sum(), theirs["surfel_areas_pred"].sum()])
        assert asd(prediction, reference, spacing) == pytest.approx(sides @ sizes / sizes.sum(), abs=1e-6)


@pytest.mark.parametrize("limit", [0.5, 2.0, 7.0])
def test_distances_up_to_the_limit_are_known(limit):
    prediction, reference, spacing = random_pair(5)
    known = surface_distances(prediction, reference, spacing, limit)
    every = surface_distances(prediction, reference, spacing)
    for found, expected in ((known.predicted, every.predicted), (known.expected, every.expected)):
        near = expected <= limit
        np.testing.assert_array_equal(found[near], expected[near])
        assert (found[~near] > limit).all()


def test_volume_difference_beside_simpleitk():
    prediction, reference, spacing = random_pair(7)
    measures = sitk.LabelOverlapMeasuresImageFilter()
    measures.Execute(*(sitk.GetImageFromArray(mask.astype(np.uint8)) for mask in (reference, prediction)))
    similarity = (
        measures.GetVolumeSimilarity()
    )  # 2 (reference − prediction) / (reference + prediction), or its negative
    ratio = prediction.sum() / reference.sum()
    assert abs(similarity) == pytest.approx(abs(2 * (ratio - 1) / (ratio + 1)))
    assert volume_difference(prediction, reference, spacing) == pytest.approx(100 * abs(ratio - 1))
    assert volume_difference(prediction, reference, spacing) > 0


@pytest.mark.parametrize("kind", [np.uint8, np.int32, float])
def test_masks_of_numbers(kind):
    prediction, reference, spacing = random_pair(9)
    numbers = (7 * prediction).astype(kind), (3 * reference).astype(kind)
    for measure in (asd, hd95, volume_difference):
        assert measure(*numbers, spacing) == measure(prediction, reference, spacing)
