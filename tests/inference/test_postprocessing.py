"""Largest connected components, holes and volumes, compared with plain loops."""

from collections import deque
from itertools import product

import numpy as np

from dlunet.inference.postprocessing import fill_holes, keep_largest_components, organ_volumes, postprocess
from dlunet.labels import label_set

LABELS = np.random.default_rng(0).choice(4, size=(9, 11, 12), p=[0.5, 0.3, 0.15, 0.05]).astype(np.uint8)


def parts(mask):
    """Face-connected components, found voxel by voxel."""
    left = set(map(tuple, np.argwhere(mask)))
    while left:
        queue, part = deque([left.pop()]), []
        while queue:
            voxel = queue.popleft()
            part.append(voxel)
            for axis, step in product(range(3), (-1, 1)):
                near = tuple(c + step * (k == axis) for k, c in enumerate(voxel))
                if near in left:
                    left.remove(near)
                    queue.append(near)
        yield part


def test_the_largest_part_of_each_organ_stays():
    kept = keep_largest_components(LABELS)
    for value in (1, 2, 3):
        sizes = sorted((len(part) for part in parts(value == LABELS)), reverse=True)
        (part,) = parts(kept == value)
        assert len(part) == sizes[0] and all(LABELS[voxel] == value for voxel in part)
    assert ((kept == LABELS) | (kept == 0)).all()


def test_enclosed_background_is_filled_and_nothing_else():
    labels = np.zeros((9, 9, 9), np.uint8)
    labels[1:8, 1:8, 1:8] = 1
    labels[3:6, 3:6, 3:6] = 0  # a hole
    labels[4, 4, 4] = 2  # another class in it
    labels[1, 4, 4] = 0  # a dent
    filled = fill_holes(labels)
    expected = labels.copy()
    expected[3:6, 3:6, 3:6] = 1
    expected[4, 4, 4] = 2
    np.testing.assert_array_equal(filled, expected)
    np.testing.assert_array_equal(fill_holes(filled), filled)


def test_steps_by_name_and_in_a_fixed_order():
    np.testing.assert_array_equal(postprocess(LABELS, []), LABELS)
    both = fill_holes(keep_largest_components(LABELS))
    np.testing.assert_array_equal(postprocess(LABELS, ["holes", "largest"]), both)
    empty = np.zeros((3, 4, 5), np.uint8)
    np.testing.assert_array_equal(postprocess(empty, ["holes", "largest"]), empty)


def test_volumes():
    found = organ_volumes(LABELS, (5.0, 0.7, 0.8), label_set("x", {1: "a", 2: "b", 3: "c", 4: "d"}))
    assert found == {name: (k == LABELS).sum() * 5 * 0.7 * 0.8 / 1000 for k, name in enumerate("abcd", start=1)}
