"""Patches: cut at the right position, reproducible, with image and label aligned."""

import numpy as np
import pytest
import torch
import torchio as tio

from dlunet.sampling import Augmentation, ClassBalancedSampler, PatchDataset, draw_order

SPACING = (2.5, 1.5, 1.5)
NEAREST = {"image_interpolation": "nearest", "default_pad_value": 0}
STILL = Augmentation(tio.RandomAffine(scales=(1, 1), degrees=0, **NEAREST), 1.0)
LIVELY = Augmentation(
    tio.RandomAffine(scales=(0.7, 1.4), degrees=30, isotropic=True, **NEAREST),
    0.5,
    intensity=[tio.RandomNoise(std=(0.1, 0.2), p=0.5)],
    flip=tio.RandomFlip(axes=[0, 1, 2], flip_probability=0.5),
)


@pytest.fixture
def cases(make_case):
    rng = np.random.default_rng(0)
    labels = [np.kron(rng.integers(0, 4, (5, 6, 7)), np.ones((3, 3, 3))).astype(np.uint8) for _ in range(3)]
    return [make_case(f"case{k}", label.astype(float), label) for k, label in enumerate(labels)]


def patches(cases, order=(0, 1, 2, 1, 0, 2), seed=(0, 0, 0, 0), augmentation=LIVELY, patch=(8, 10, 9), fraction=0.5):
    return PatchDataset(cases, order, ClassBalancedSampler(patch, fraction), augmentation, SPACING, True, seed)


@pytest.mark.parametrize("augmentation", [Augmentation(), STILL], ids=["cut", "cut with a margin"])
@pytest.mark.parametrize("patch", [(4, 6, 8), (5, 7, 3)], ids=["even", "odd"])
@pytest.mark.parametrize("voxel", [(0, 0, 0), (4, 5, 6), (0, 3, 6), (2, 3, 3)])
def test_the_drawn_voxel_is_in_the_middle_also_at_the_border(make_case, patch, voxel, augmentation):
    """Every voxel has a unique value; voxels outside the volume are 0, and nothing is shifted."""
    image = np.arange(1, 5 * 6 * 7 + 1).reshape(5, 6, 7)
    label = np.zeros(image.shape, np.uint8)
    label[voxel] = 4
    item = patches([make_case("a", image, label)], (0,), augmentation=augmentation, patch=patch, fraction=1.0)[0]
    corner = [v + 10 - n // 2 for v, n in zip(voxel, patch, strict=True)]
    where = tuple(slice(c, c + n) for c, n in zip(corner, patch, strict=True))
    np.testing.assert_array_equal(item["image"].data[0], np.pad(image, 10)[where])
    np.testing.assert_array_equal(item["label"].data[0], np.pad(label, 10)[where])
    assert item["label"].data[(0, *(n // 2 for n in patch))] == 4


def test_image_and_label_stay_together(cases):
    """The image equals its label map here and is rotated without interpolation: both must match voxel by voxel."""
    still = Augmentation(LIVELY.affine, 1.0, flip=tio.RandomFlip(axes=[0, 1, 2], flip_probability=0.5))
    items = patches(cases, [0, 1, 2] * 8, augmentation=still)
    for item in items:
        np.testing.assert_array_equal(item["image"].data, item["label"].data)
    unturned = patches(cases, [0, 1, 2] * 8, augmentation=Augmentation())
    assert all(not torch.equal(a["label"].data, b["label"].data) for a, b in zip(items, unturned, strict=True))


def test_an_item_depends_on_the_seed_and_its_number_alone(cases):
    expected = [item["image"].data for item in patches(cases)]
    again = patches(cases)
    torch.manual_seed(99)
    state = torch.random.get_rng_state()
    for k in (3, 0, 5, 1, 3):
        assert torch.equal(again[k]["image"].data, expected[k])
    assert torch.equal(torch.random.get_rng_state(), state)
    assert not torch.equal(expected[1], expected[3])  # both from case 1


@pytest.mark.parametrize("place", range(4), ids=["run", "stream", "epoch", "rank"])
def test_other_seeds_give_other_patches(cases, place):
    seed = [0, 0, 0, 0]
    seed[place] = 1
    for a, b in zip(patches(cases), patches(cases, seed=seed), strict=True):
        assert not torch.equal(a["image"].data, b["image"].data)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_queue_yields_the_items_in_order(cases, workers):
    dataset = patches(cases)
    queue = tio.Queue(
        dataset, 2, 1, dataset.sampler, num_workers=workers, shuffle_subjects=False, shuffle_patches=False
    )
    loader = tio.SubjectsLoader(queue, batch_size=2)
    batches = torch.cat([batch["image"][tio.DATA] for batch in loader])
    assert torch.equal(batches, torch.stack([item["image"].data for item in patches(cases)]))


def test_draw_order_visits_every_case_once_a_pass():
    num_cases = 11
    order = draw_order(num_cases, 50, [1, 2])
    assert len(order) == 50
    passes = [order[k : k + num_cases] for k in range(0, 50 - num_cases, num_cases)]
    assert all(set(one) == {*range(num_cases)} for one in passes)
    assert len({tuple(one) for one in passes}) > 1  # shuffled again for each pass


@pytest.mark.parametrize("num_cases", [2, 7, 11])
def test_shifted_orders_never_name_the_same_case_at_the_same_place(num_cases):
    first, second = (draw_order(num_cases, 40, [5], shift) for shift in (0, 1))
    assert all(a != b for a, b in zip(first, second, strict=True))
    assert set(first) == set(second)
