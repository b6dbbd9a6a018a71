"""Foreground intensity statistics, and a cache that detects when it is out of date."""

import gc
import tracemalloc

import numpy as np
import pytest

from dlunet.datasets import Case, read_case
from dlunet.errors import UserError
from dlunet.preparation import take_fingerprint
from dlunet.preparation.fingerprint import VOXELS_A_CASE, read_facts


@pytest.fixture
def write_case(tmp_path, write_volume):
    def write(name, hu, labels, **grid_of_labels):
        image = write_volume(tmp_path / f"{name}_0000.nii.gz", hu.astype(np.int16))
        return Case(name, image, write_volume(tmp_path / f"{name}.nii.gz", labels.astype(np.uint8), **grid_of_labels))

    return write


def foreground_intensity(cases, cache, num_classes=14):
    return take_fingerprint(cases, num_classes, cache, workers=1).intensity


def random_case(seed, shape=(6, 20, 20)):
    rng = np.random.default_rng(seed)
    return rng.normal(50 * seed, 80, shape).round(), rng.choice([0, 0, 1, 13], shape)


def assert_statistics(intensity, *cases):
    foreground = np.concatenate([hu[labels > 0] for hu, labels in cases])
    assert intensity.lower == pytest.approx(np.percentile(foreground, 0.5))
    assert intensity.upper == pytest.approx(np.percentile(foreground, 99.5))
    assert intensity.mean == pytest.approx(foreground.mean(), rel=1e-5)
    assert intensity.std == pytest.approx(foreground.std(), rel=1e-5)


def test_percentiles_mean_and_deviation_over_all_foreground_voxels(tmp_path, write_case):
    first, second = random_case(1), random_case(2)
    cases = [write_case("a", *first), write_case("b", *second)]
    assert_statistics(foreground_intensity(cases, tmp_path / "cache.json"), first, second)


def test_the_cache_is_used_until_a_file_changes(tmp_path, write_case, monkeypatch):
    cases, cache = [write_case("a", *random_case(1))], tmp_path / "cache.json"
    before = foreground_intensity(cases, cache)
    with monkeypatch.context() as patch:
        patch.setattr("dlunet.preparation.fingerprint.read_case", None)  # any read would fail
        assert foreground_intensity(cases, cache) == before
    changed = random_case(3)
    write_case("a", *changed)
    assert_statistics(foreground_intensity(cases, cache), changed)
    other = random_case(4)
    cases.append(write_case("b", *other))
    assert_statistics(foreground_intensity(cases, cache), changed, other)


@pytest.mark.parametrize("broken", [False, True])
def test_a_file_that_is_replaced_while_it_is_read(tmp_path, write_case, monkeypatch, broken):
    """The next run reads the new one, also if the old one could not be read."""
    first, second, kept = random_case(1), random_case(2), random_case(3)
    cases, cache = [write_case("a", *first), write_case("b", *kept)], tmp_path / "cache.json"
    if broken:
        cases[0].image.write_text("not a CT")

    def read(case, num_classes):
        try:
            return read_case(case, num_classes)
        finally:
            if case is cases[0]:
                write_case("a", *second)

    with monkeypatch.context() as patch:
        patch.setattr("dlunet.preparation.fingerprint.read_case", read)
        assert_statistics(foreground_intensity(cases, cache), *([] if broken else [first]), kept)
    assert_statistics(foreground_intensity(cases, cache), second, kept)


def test_a_large_case_is_thinned_out(tmp_path, write_case):
    shape = (30, 130, 130)
    hu = np.random.default_rng(0).normal(0, 100, shape).round()
    labels = np.ones(shape)
    assert labels.size > 2 * VOXELS_A_CASE
    intensity = foreground_intensity([write_case("a", hu, labels)], tmp_path / "cache.json")
    assert intensity.upper == pytest.approx(np.percentile(hu, 99.5), abs=3)
    assert intensity.mean == pytest.approx(0, abs=1)


def test_the_sample_of_a_large_case_does_not_keep_the_rest_in_memory(write_case):
    """With data.workers=1, no process between the reader and the result drops it."""
    labels = np.ones((25, 160, 160), np.uint8)
    case = write_case("a", np.random.default_rng(7).normal(0, 100, labels.shape), labels)
    gc.collect()
    tracemalloc.start()
    facts = read_facts(case, 2)
    kept, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert facts.foreground.size <= VOXELS_A_CASE < labels.size / 2
    assert kept < 1.5 * facts.foreground.nbytes


def test_a_case_that_cannot_be_read_is_left_out(tmp_path, write_case):
    good, bad = random_case(1), random_case(2)
    cases = [write_case("a", *good), write_case("b", *bad)]
    cases[1].image.write_text("not a CT")
    assert_statistics(foreground_intensity(cases, tmp_path / "cache.json"), good)
    with pytest.raises(UserError, match=f"none of the 1 labelled cases can be read.*{cases[1].image}"):
        foreground_intensity(cases[1:], tmp_path / "other.json")


def test_no_organ_anywhere(tmp_path, write_case):
    hu, labels = random_case(1)
    with pytest.raises(UserError, match="none of the 1 labelled cases has any label above 0"):
        foreground_intensity([write_case("a", hu, labels * 0)], tmp_path / "cache.json")


def test_labels_on_another_grid_than_their_image(tmp_path, write_case):
    case = write_case("a", *random_case(1), spacing=(1.0, 1.0, 1.5))
    with pytest.raises(
        UserError, match=f"{case.label}: geometry .* differs from {case.image}.*spacing in mm 1.5×1×1 .expected 1×1×1"
    ):
        foreground_intensity([case], tmp_path / "cache.json")
