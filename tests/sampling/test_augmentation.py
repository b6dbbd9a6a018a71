"""Augmentation: closed forms, a sufficient margin, and the shipped configs."""

from itertools import product
from pathlib import Path

import hydra
import numpy as np
import pytest
import torch
import torchio as tio
from hydra.utils import instantiate

from dlunet.sampling import (
    Augmentation,
    ClassBalancedSampler,
    PatchDataset,
    RandomBrightness,
    RandomContrast,
    RandomGamma,
    RandomNoise,
)
from dlunet.sampling.augmentation import crop_size, turn

CONFIGS = sorted((Path(__file__).parents[2] / "conf" / "augmentation").glob("*.yaml"))


@pytest.fixture
def subject():
    rng = np.random.default_rng(0)
    label = rng.integers(0, 14, (1, 6, 7, 8)).astype(np.uint8)
    image = torch.from_numpy(rng.normal(0.5, 1, (1, 6, 7, 8))).float()
    return tio.Subject(image=tio.ScalarImage(tensor=image), label=tio.LabelMap(tensor=torch.from_numpy(label)))


@pytest.mark.parametrize("seed", range(3))
def test_noise_is_torchio_s(subject, seed):
    before, label = subject["image"].data.clone(), subject["label"].data.clone()
    noisy = []
    for transform in (RandomNoise, tio.RandomNoise):
        torch.manual_seed(seed)
        noisy.append(transform(mean=(-1, 1), std=(0.1, 0.3))(subject))
    assert torch.equal(noisy[0]["image"].data, noisy[1]["image"].data)
    assert not torch.equal(noisy[0]["image"].data, before)
    assert torch.equal(noisy[0]["label"].data, label)


def test_brightness_multiplies(subject):
    before, label = subject["image"].data.clone(), subject["label"].data.clone()
    after = RandomBrightness((1.3, 1.3))(subject)
    torch.testing.assert_close(after["image"].data, before * 1.3)
    assert torch.equal(after["label"].data, label)


@pytest.mark.parametrize("factor", [0.75, 1.25])
def test_contrast_stretches_around_the_mean_within_the_range(subject, factor):
    before, label = subject["image"].data.clone().double(), subject["label"].data.clone()
    after = RandomContrast((factor, factor))(subject)
    stretched = before.mean() + (before - before.mean()) * factor
    expected = torch.minimum(torch.maximum(stretched, before.min()), before.max())
    torch.testing.assert_close(after["image"].data.double(), expected, atol=1e-5, rtol=0)
    assert (stretched.max() > before.max()) == (factor > 1)  # only one of the two factors needs clipping
    assert torch.equal(after["label"].data, label)


@pytest.mark.parametrize("inverted", [False, True])
def test_gamma_is_a_power_between_the_extremes_with_mean_and_deviation_kept(subject, inverted):
    before, label = subject["image"].data.clone().double(), subject["label"].data.clone()
    after = RandomGamma((1, 1), inverted=inverted)(subject)["image"].data.double()
    torch.testing.assert_close(after, before, atol=1e-5, rtol=0)
    values = []
    for _ in range(200):
        after = RandomGamma((0.7, 1.5), inverted=inverted)(subject)["image"].data.double()
        torch.testing.assert_close(
            torch.stack([after.mean(), after.std()]), torch.stack([before.mean(), before.std()]), atol=1e-4, rtol=0
        )
        # Affine maps preserve ratios of distances, so the relative position of the middle grey value gives the power.
        ends, middle = (before.argmin(), before.argmax()), (before - (before.max() + before.min()) / 2).abs().argmin()
        low, high = (ends[1], ends[0]) if inverted else ends
        part = [
            ((v.flatten()[middle] - v.flatten()[low]) / (v.flatten()[high] - v.flatten()[low])) for v in (before, after)
        ]
        values.append((part[1].log() / part[0].log()).item())
    assert 0.7 <= min(values) < 0.72 and 1.47 < max(values) <= 1.5
    assert np.mean([value < 1 for value in values]) == pytest.approx(0.5, abs=0.12)
    assert torch.equal(subject["label"].data, label)


def test_gamma_leaves_air_alone():
    air = tio.Subject(image=tio.ScalarImage(tensor=torch.full((1, 3, 3, 3), -2.0)))
    assert torch.equal(RandomGamma()(air)["image"].data, air["image"].data)


@pytest.mark.parametrize("transform", [RandomBrightness, RandomContrast])
def test_factors_are_drawn_from_their_range(subject, transform):
    """The standard deviation scales with the factor; contrast is clipped to the range, hence factors up to 1."""
    before = subject["image"].data.std()
    spreads = torch.stack([transform((0.6, 1.0))(subject)["image"].data.std() / before for _ in range(200)])
    assert 0.6 <= spreads.min() < 0.62 and 0.98 < spreads.max() <= 1.0001
    assert 0.75 < spreads.mean() < 0.85


SIZES = [((8, 20, 20), (2.5, 1.5, 1.5)), ((12, 12, 12), (1.0, 1.0, 1.0)), ((7, 16, 11), (1.0, 2.0, 3.0))]


@pytest.mark.parametrize(("patch", "spacing"), SIZES)
@pytest.mark.parametrize("angles", [*product((-30, 30), repeat=3), (45, 90, 10)])
def test_a_turned_and_shrunk_patch_holds_no_padding(make_case, patch, spacing, angles):
    """A volume of ones that is larger than any crop: a value other than 1 in the patch is from outside the crop."""
    case = make_case("ones", np.ones((110, 110, 110)))
    degrees = [angle for angle in angles for _ in range(2)]
    affine = tio.RandomAffine(scales=(0.7, 0.7), degrees=degrees, isotropic=True, default_pad_value=0)
    dataset = PatchDataset([case], [0], ClassBalancedSampler(patch), Augmentation(affine, 1.0), spacing, False, [0])
    dataset.sampler.draw_centre = lambda *_: (55, 55, 55)
    image = dataset[0]["image"].data
    assert image.shape == (1, *patch)
    torch.testing.assert_close(image, torch.ones_like(image))


@pytest.mark.parametrize(
    ("scale", "degrees", "needed"),
    [
        (1, 0, (8, 20, 24)),
        (0.5, 0, (16, 40, 48)),
        (2, 0, (8, 20, 24)),  # the patch itself
        # About z the sides of 20 × 1.5 = 30 mm and 24 × 1 = 24 mm are swapped, about x those of 8 and 30 mm.
        (1, (90, 90, 0, 0, 0, 0), (8, 20, 30)),
        (1, (0, 0, 0, 0, 90, 90), (30, 20, 24)),
    ],
)
def test_the_margin_is_no_larger_than_needed(scale, degrees, needed):
    affine = Augmentation(tio.RandomAffine(scales=(scale, scale), degrees=degrees, isotropic=True), 1.0).draw_affine()
    size = crop_size(affine, (8, 20, 24), (1.0, 1.5, 1.0))
    assert all(n <= found <= n + 4 for n, found in zip(needed, size, strict=True)), size


PARAMETERS = [
    {"scales": (1.2, 0.9, 0.8), "degrees": (20, -10, 35), "translation": (0, 0, 0), "default_pad_value": 0},
    {"scales": (0.8, 0.8, 0.8), "degrees": (5, 15, -25), "translation": (2, -3, 1.5), "default_pad_value": -2.5},
    {"scales": (0.72, 0.72, 0.72), "degrees": (0, 0, 30), "translation": (9, 0, 0), "default_pad_value": "minimum"},
    {"scales": (0.5, 0.5, 0.5), "degrees": (40, 0, 0), "translation": (0, 0, 0), "default_pad_value": "mean"},
    {"scales": (1.1, 1.1, 1.1), "degrees": (9, 8, 7), "translation": (0, 0, 0), "image_interpolation": "bspline"},
]


@pytest.mark.parametrize("parameters", PARAMETERS)
@pytest.mark.parametrize(("patch", "spacing"), SIZES)
def test_turning_is_torchio_s_on_the_whole_crop(patch, spacing, parameters):
    """Also where the patch reaches beyond the crop, which is no larger here than a patch that is not turned needs."""
    rng, affine = np.random.default_rng(0), tio.Affine(**parameters, default_pad_label=7)
    shape, step, grid = [size + 6 for size in patch], 0.25, np.diag([*spacing, 1])
    stored, label = rng.integers(-9, 9, shape).astype(np.int16), rng.integers(0, 5, shape).astype(np.uint8)
    image = torch.from_numpy(stored)[None] * step
    subject = tio.Subject(
        image=tio.ScalarImage(tensor=image, affine=grid), label=tio.LabelMap(tensor=label[None], affine=grid)
    )
    expected = tio.Crop((3, 3, 3))(affine(subject))
    found = turn(affine, stored, patch, spacing, step) * step
    np.testing.assert_allclose(found, expected["image"].data[0], atol=1e-4)
    labels = turn(affine, label, patch, spacing)
    assert labels.dtype == np.uint8 and labels.shape == patch
    assert (labels != expected["label"].data[0].numpy()).mean() < 0.01  # rounding, halfway between two voxels


@pytest.mark.parametrize("probability", [0.0, 0.3, 1.0])
def test_how_often_a_patch_is_turned(probability):
    augmentation = Augmentation(tio.RandomAffine(), probability)
    torch.manual_seed(0)
    drawn = [augmentation.draw_affine() for _ in range(1000)]
    scaled = np.array([affine is not None and affine.scales != (1, 1, 1) for affine in drawn])
    turned = np.array([affine is not None and affine.degrees != (0, 0, 0) for affine in drawn])
    assert [scaled.mean(), turned.mean()] == pytest.approx([probability] * 2, abs=0.04)
    assert (scaled & turned).mean() == pytest.approx(probability**2, abs=0.04)
    assert sum(affine is None for affine in drawn) == (~scaled & ~turned).sum()
    assert Augmentation(None, probability).draw_affine() is None


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.stem)
def test_the_configs_that_ship(make_case, config):
    """Every transform is built and applied with probability 1; the patches remain valid."""
    with hydra.initialize_config_dir(str(config.parents[1]), version_base="1.3"):
        values = hydra.compose("train", [f"augmentation={config.stem}"]).augmentation
    for transform in (*values.get("intensity", []), *values.get("strong", [])):
        transform.p = 1.0
    augmentation = instantiate(values, _convert_="all")
    if augmentation.affine is not None:
        augmentation.affine_probability = 1.0
    rng = np.random.default_rng(0)
    case = make_case("a", rng.normal(0, 1, (20, 30, 30)), rng.integers(0, 3, (20, 30, 30)).astype(np.uint8))
    sampler = ClassBalancedSampler((8, 16, 16))
    dataset = PatchDataset([case], [0] * 3, sampler, augmentation, (2.5, 1.5, 1.5), True, [0], views=["strong"])
    for item in (dataset[k] for k in range(3)):
        assert item["image"].shape == item["label"].shape == item["strong"].shape == (1, 8, 16, 16)
        assert torch.isfinite(item["strong"].data).all()
        assert torch.equal(item["strong"].data, item["image"].data) == (config.stem == "none")
        assert torch.isfinite(item["image"].data).all() and item["image"].data.std() > 0.05
        assert set(item["label"].data.unique().tolist()) <= {0, 1, 2}
    assert (augmentation.affine is None) == (config.stem == "none")
