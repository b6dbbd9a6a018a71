"""Synthetic abdomens: anatomy, variety, difficulty, and the files they are written to."""

from __future__ import annotations

import errno
import gzip
import json
import os
import subprocess
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from dlunet.datasets import open_phantoms, read_flare22
from dlunet.errors import UserError
from dlunet.files import TEMPORARY
from dlunet.labels import FLARE22
from dlunet.phantom import Phantom, make_phantom, phantom_of, phase_of, write_phantoms
from dlunet.phantom.variation import PHASES, draw_variation
from dlunet.phantom.writer import GENERATOR_VERSION, RECORD_NAME

ID = {label.name: label.id for label in FLARE22}
SHAPE = (56, 80, 80)
TINY = (16, 24, 24)

#: Human organ volumes in ml; a case may be 40 % outside (body size, organs cut off by the field of view).
HUMAN_VOLUMES = {
    "Liver": (1100, 1900),
    "Right kidney": (130, 200),
    "Left kidney": (130, 200),
    "Spleen": (120, 350),
    "Pancreas": (50, 110),
    "Aorta": (60, 140),
    "Inferior vena cava": (40, 100),
    "Right adrenal gland": (3, 7),
    "Left adrenal gland": (3, 7),
    "Gallbladder": (15, 60),
    "Esophagus": (10, 25),
    "Stomach": (150, 450),
    "Duodenum": (50, 100),
}


@pytest.fixture(scope="module")
def labelled() -> list[Phantom]:
    return [make_phantom(seed, "labelled", SHAPE) for seed in range(7)]


@pytest.fixture(scope="module")
def varied() -> list[Phantom]:
    return [make_phantom(100 + seed, "varied", SHAPE) for seed in range(6)]


def points_mm(phantom: Phantom, organ: str) -> np.ndarray:
    """Voxel centres of an organ, (n, 3) in the order z, y, x, in mm."""
    return np.argwhere(phantom.labels == ID[organ]) * np.array(phantom.spacing)


def center_mm(phantom: Phantom, organ: str) -> np.ndarray:
    return points_mm(phantom, organ).mean(axis=0)


def gap_mm(phantom: Phantom, first: str, second: str) -> float:
    """Smallest distance between two organs in mm."""
    mask = sitk.GetImageFromArray((phantom.labels == ID[second]).astype(np.uint8))
    mask.SetSpacing(phantom.spacing[::-1])
    distance = sitk.GetArrayFromImage(sitk.SignedMaurerDistanceMap(mask, squaredDistance=False, useImageSpacing=True))
    return float(distance[phantom.labels == ID[first]].min())


def test_arrays_have_the_announced_types_and_ranges(labelled: list[Phantom], varied: list[Phantom]) -> None:
    for phantom in labelled + varied:
        assert phantom.image.shape == phantom.labels.shape == SHAPE
        assert phantom.image.dtype == np.int16 and phantom.labels.dtype == np.uint8
        assert phantom.image.min() >= -1024 and phantom.image.max() <= 3071
        assert phantom.image.min() < -900 and phantom.image.max() > 250, "no air or no bone"
        assert np.abs(np.array(phantom.spacing)).min() > 1
        direction = np.array(phantom.direction).reshape(3, 3)
        np.testing.assert_allclose(direction @ direction.T, np.eye(3), atol=1e-9)


def test_a_seed_gives_the_same_case_and_another_seed_another() -> None:
    first, again, other = (make_phantom(seed, "varied", TINY) for seed in (3, 3, 4))
    np.testing.assert_array_equal(first.image, again.image)
    np.testing.assert_array_equal(first.labels, again.labels)
    assert first.spacing == again.spacing and first.findings == again.findings
    assert (first.image != other.image).mean() > 0.3


def test_an_unknown_profile_is_named() -> None:
    with pytest.raises(ValueError, match="'odd'"):
        make_phantom(0, "odd", TINY)  # type: ignore[arg-type]


def test_every_labelled_case_shows_all_13_organs(labelled: list[Phantom]) -> None:
    for phantom in labelled:
        assert set(np.unique(phantom.labels)) == set(range(FLARE22.num_classes))


def test_organs_lie_where_they_belong(labelled: list[Phantom]) -> None:
    for seed, phantom in enumerate(labelled):
        z, y, x = np.array([center_mm(phantom, label.name) for label in FLARE22]).T
        at = {label.name: label.id - 1 for label in FLARE22}
        liver, spleen, stomach = at["Liver"], at["Spleen"], at["Stomach"]
        right_kidney, left_kidney = at["Right kidney"], at["Left kidney"]
        aorta, cava = at["Aorta"], at["Inferior vena cava"]
        relations = {
            "liver right of spleen": x[liver] + 100 < x[spleen],
            "liver right of stomach": x[liver] < x[stomach],
            "right kidney right of left": x[right_kidney] + 80 < x[left_kidney],
            "right kidney lower": z[right_kidney] < z[left_kidney] + 25,
            "liver above right kidney": z[liver] > z[right_kidney],
            "spleen behind stomach": y[spleen] > y[stomach],
            "cava right of aorta": x[cava] < x[aorta],
            "aorta between the kidneys": x[right_kidney] < x[aorta] < x[left_kidney],
            "kidneys behind aorta": min(y[right_kidney], y[left_kidney]) > y[aorta],
            "right adrenal above its kidney": z[at["Right adrenal gland"]] > z[right_kidney] + 15,
            "left adrenal above its kidney": z[at["Left adrenal gland"]] > z[left_kidney] + 15,
            "right adrenal behind cava": y[at["Right adrenal gland"]] > y[cava],
            "adrenals either side": x[at["Right adrenal gland"]] < x[aorta] < x[at["Left adrenal gland"]],
            "gallbladder in front of right kidney": y[at["Gallbladder"]] < y[right_kidney],
            "pancreas in front of aorta": y[at["Pancreas"]] < y[aorta],
            "duodenum right of pancreas": x[at["Duodenum"]] < x[at["Pancreas"]],
            "esophagus above stomach": z[at["Esophagus"]] > z[stomach],
            "stomach in front of left kidney": y[stomach] < y[left_kidney],
        }
        broken = [name for name, holds in relations.items() if not holds]
        assert not broken, f"seed {seed}: {broken}"


@pytest.mark.parametrize(
    ("first", "second", "furthest"),
    [
        ("Gallbladder", "Liver", 6),
        ("Duodenum", "Pancreas", 6),
        ("Duodenum", "Stomach", 15),
        ("Esophagus", "Stomach", 8),
        ("Inferior vena cava", "Liver", 6),
        ("Right adrenal gland", "Right kidney", 30),
        ("Left adrenal gland", "Left kidney", 30),
        ("Spleen", "Pancreas", 30),
    ],
)
def test_neighbours_touch_or_nearly(labelled: list[Phantom], first: str, second: str, furthest: float) -> None:
    for seed, phantom in enumerate(labelled):
        gap = gap_mm(phantom, first, second)
        assert gap <= furthest, f"seed {seed}: {first} is {gap:.1f} mm from {second}"


def test_vessels_run_in_front_of_the_spine(labelled: list[Phantom]) -> None:
    for seed, phantom in enumerate(labelled):
        middle = phantom.labels.shape[0] // 2
        slab = slice(middle - 5, middle + 6)
        _, y, x = np.argwhere(phantom.labels[slab] == ID["Aorta"]).mean(axis=0)
        _, bone_y, bone_x = np.argwhere(phantom.image[slab] > 250).T
        behind = (np.abs(bone_x - x) < 8) & (bone_y > y)
        before = (np.abs(bone_x - x) < 8) & (bone_y < y - 8)
        assert behind.sum() > 100 > 20 * before.sum(), f"seed {seed}: {behind.sum()} behind, {before.sum()} in front"


def test_volumes_are_human(labelled: list[Phantom]) -> None:
    volumes = np.array(
        [np.bincount(p.labels.ravel(), minlength=14) * np.prod(p.spacing) / 1000 for p in labelled], float
    )
    for organ, (low, high) in HUMAN_VOLUMES.items():
        of_organ = volumes[:, ID[organ]]
        assert low <= np.median(of_organ) <= high, f"{organ}: median {np.median(of_organ):.1f} ml"
        inside = (of_organ >= low * 0.6) & (of_organ <= high * 1.4)
        assert inside.mean() >= 0.8, f"{organ}: {np.round(of_organ, 1)} ml"


def test_no_organ_is_an_ellipsoid(labelled: list[Phantom]) -> None:
    for phantom in labelled[:3]:
        grid = np.indices(SHAPE, dtype=np.float32) * np.array(phantom.spacing, np.float32)[:, None, None, None]
        for organ in ID:
            mask = phantom.labels == ID[organ]
            points = points_mm(phantom, organ)
            if len(points) < 50:
                continue
            inverse = np.linalg.inv(np.cov(points.T) + 1e-3 * np.eye(3))
            offset = grid - points.mean(axis=0)[:, None, None, None]
            # A solid ellipsoid with these second moments ends where the squared Mahalanobis distance is 5.
            ellipsoid = np.einsum("izyx,ij,jzyx->zyx", offset, inverse, offset, optimize=True) <= 5
            overlap = 2 * (mask & ellipsoid).sum() / (mask.sum() + ellipsoid.sum())
            assert overlap < 0.95, f"{organ}: {overlap:.3f}"


def test_organs_differ_from_case_to_case(labelled: list[Phantom]) -> None:
    """Even with their centres aligned, two livers do not overlap completely."""
    first, second = (np.round(points_mm(p, "Liver") - center_mm(p, "Liver")) // 4 for p in labelled[:2])
    shared = len({tuple(p) for p in first} & {tuple(p) for p in second})
    assert 2 * shared / (len(first) + len(second)) < 0.9


def test_varied_cases_show_more_than_labelled_ones(labelled: list[Phantom], varied: list[Phantom]) -> None:
    assert len({p.phase for p in varied}) > 1
    assert len(set().union(*(p.findings for p in varied))) > len(set().union(*(p.findings for p in labelled[:8])))

    def spread(phantoms: list[Phantom]) -> float:
        return float(np.std([p.spacing[0] for p in phantoms]))

    assert spread(varied) > spread(labelled)
    drawn = [draw_variation(np.random.default_rng(seed), "varied", TINY) for seed in range(40)]
    assert len({p.orientation for p in drawn}) >= 3
    assert any(not np.allclose(p.direction, np.eye(3)) for p in drawn)
    assert {p.phase for p in drawn} == set(PHASES)


def test_a_threshold_per_organ_scores_badly(labelled: list[Phantom], varied: list[Phantom]) -> None:
    """The best HU interval for each organ, fitted on the labelled cases themselves, does not segment it."""
    edges = np.arange(-200, 401, 3)

    def histogram(image: np.ndarray) -> np.ndarray:
        return np.concatenate([[0], np.cumsum(np.histogram(image, edges)[0])])

    scores = []
    everything = sum(histogram(p.image) for p in labelled)
    for organ in FLARE22:
        hits = sum(histogram(p.image[p.labels == organ.id]) for p in labelled)
        size = sum(int((p.labels == organ.id).sum()) for p in labelled)
        inside = hits[None, :] - hits[:, None]
        dice = 2 * inside / (size + np.maximum(everything[None, :] - everything[:, None], 0))
        low, high = np.unravel_index(np.argmax(dice), dice.shape)
        for phantom in varied + labelled:
            reference = phantom.labels == organ.id
            if reference.any():
                found = (phantom.image >= edges[low]) & (phantom.image < edges[high])
                scores.append(2 * (found & reference).sum() / (found.sum() + reference.sum()))
    assert np.mean(scores) < 0.35


def test_neighbouring_noise_is_correlated() -> None:
    phantom = make_phantom(2, "labelled", SHAPE)
    inside = phantom.labels == ID["Liver"]
    both = inside[:, :, 1:] & inside[:, :, :-1]
    left, right = phantom.image[:, :, :-1][both], phantom.image[:, :, 1:][both]
    assert np.corrcoef(left, right)[0, 1] > 0.2


# On disk -----------------------------------------------------------------------------------------------------------


def write_small(root: Path, **changes: object) -> None:
    arguments: dict[str, object] = {
        "labelled": 2,
        "unlabelled": 2,
        "validation": 1,
        "test": 1,
        "seed": 5,
        "shape": TINY,
        "workers": 1,
    }
    write_phantoms(root, **(arguments | changes))  # type: ignore[arg-type]


def files_of(root: Path) -> dict[str, bytes]:
    """Every file under a folder; volumes without the gzip header, which may contain a time stamp."""
    return {
        str(path.relative_to(root)): gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }


def test_folders_and_names_are_those_of_flare22(tmp_path: Path) -> None:
    write_small(tmp_path)
    assert sorted(files_of(tmp_path)) == [
        "Testing/images/FLARETs_0001_0000.nii.gz",
        "Testing/labels/FLARETs_0001.nii.gz",
        "Training/FLARE22_LabeledCase50/images/FLARE22_Tr_0001_0000.nii.gz",
        "Training/FLARE22_LabeledCase50/images/FLARE22_Tr_0002_0000.nii.gz",
        "Training/FLARE22_LabeledCase50/labels/FLARE22_Tr_0001.nii.gz",
        "Training/FLARE22_LabeledCase50/labels/FLARE22_Tr_0002.nii.gz",
        "Training/FLARE22_UnlabeledCase1-1000/Case_00001_0000.nii.gz",
        "Training/FLARE22_UnlabeledCase1-1000/Case_00002_0000.nii.gz",
        "Tuning/images/FLARETs_0001_0000.nii.gz",
        "Tuning/labels/FLARETs_0001.nii.gz",
        "phantom.json",
    ]
    dataset = read_flare22(tmp_path)
    assert [len(cases) for cases in (dataset.labelled, dataset.unlabelled, dataset.validation, dataset.test)] == [
        2,
        2,
        1,
        1,
    ]


def test_the_truth_of_unlabelled_cases_changes_no_other_file(tmp_path: Path) -> None:
    """It is written on request, later too, and is what the generator painted."""
    write_small(tmp_path)
    before = files_of(tmp_path)
    times = {name: (tmp_path / name).stat().st_mtime_ns for name in before if name.endswith("_0000.nii.gz")}
    write_small(tmp_path, truth=True)
    after = files_of(tmp_path)
    assert times and {name: (tmp_path / name).stat().st_mtime_ns for name in times} == times
    assert {name: after[name] for name in before} == before
    assert sorted(after.keys() - before.keys()) == ["Truth/Case_00001.nii.gz", "Truth/Case_00002.nii.gz"]
    for number in (1, 2):
        image = read_case(tmp_path / f"Training/FLARE22_UnlabeledCase1-1000/Case_0000{number}_0000.nii.gz")
        labels = read_case(tmp_path / f"Truth/Case_0000{number}.nii.gz")
        painted = make_phantom(np.random.default_rng((5, 1, number)), "varied", TINY)
        np.testing.assert_array_equal(image, painted.image)
        np.testing.assert_array_equal(labels, painted.labels)


def test_the_phantom_of_an_unlabelled_ct_is_found_by_its_file_alone(tmp_path: Path) -> None:
    write_small(tmp_path, truth=True)
    folder = tmp_path / "Training/FLARE22_UnlabeledCase1-1000"
    for number in (1, 2):
        found = phantom_of(folder / f"Case_0000{number}_0000.nii.gz")
        assert found is not None
        np.testing.assert_array_equal(found.labels, read_case(tmp_path / f"Truth/Case_0000{number}.nii.gz"))
        np.testing.assert_array_equal(found.image, read_case(folder / f"Case_0000{number}_0000.nii.gz"))
    others = [*tmp_path.glob("Tuning/images/*"), *tmp_path.glob("Training/FLARE22_Labeled*/images/*")]
    assert len(others) == 3
    assert [phantom_of(path) for path in (*others, Path("Case_00001_0000.nii.gz"))] == [None] * 4
    record = json.loads((tmp_path / RECORD_NAME).read_text())
    (tmp_path / RECORD_NAME).write_text(json.dumps({**record, "generator_version": GENERATOR_VERSION + 1}))
    assert phantom_of(folder / "Case_00001_0000.nii.gz") is None


def test_the_phase_of_a_ct_is_found_by_its_file_alone(tmp_path: Path) -> None:
    """In folders of all splits, against the phantom made again."""
    write_phantoms(tmp_path, labelled=2, unlabelled=3, validation=1, test=4, seed=5, shape=TINY, workers=1)
    images = sorted(tmp_path.rglob("*_0000.nii.gz"))
    splits = {"Labeled": (0, "labelled"), "Unlabeled": (1, "varied"), "Tuning": (2, "varied"), "Testing": (3, "varied")}
    found = []
    for image in images:
        index, profile = next(value for part, value in splits.items() if part in str(image.relative_to(tmp_path)))
        number = int(image.name.split("_")[-2])
        found.append(make_phantom(np.random.default_rng((5, index, number)), profile, TINY))
        np.testing.assert_array_equal(found[-1].image, read_case(image))
    assert [phase_of(image) for image in images] == [phantom.phase for phantom in found]
    assert len(images) == 10 and len({phantom.phase for phantom in found}) > 1
    assert [
        phase_of(Path(name)) for name in ("a_0000.nii.gz", "a.nii.gz", "Testing/images/FLARETs_0001_0000.nii.gz")
    ] == [None] * 3


def read_case(path: Path) -> np.ndarray:
    """The array (z, y, x) in the generator's orientation."""
    return sitk.GetArrayFromImage(sitk.DICOMOrient(sitk.ReadImage(str(path)), "LPS"))


def test_a_ceiling_lists_the_unlabelled_cases_with_the_truth(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dlunet.phantom.write_phantoms", partial(write_phantoms, shape=TINY))
    counts = {"labelled": 3, "unlabelled": 2, "validation": 1, "test": 1, "workers": 1, "seed": 5}
    floor = open_phantoms(tmp_path, **counts)
    ceiling = open_phantoms(tmp_path, **counts, all_labelled=True)
    assert [len(floor.labelled), len(floor.unlabelled), len(ceiling.labelled), len(ceiling.unlabelled)] == [3, 2, 5, 0]
    assert ceiling.labelled[:3] == floor.labelled and ceiling.test == floor.test
    for known, unknown in zip(ceiling.labelled[3:], floor.unlabelled, strict=True):
        assert known.image == unknown.image and known.label is not None and known.label.is_file()
    fewer = open_phantoms(tmp_path, **{**counts, "labelled": 1})
    assert fewer.labelled == floor.labelled[:1] and fewer.unlabelled == floor.unlabelled


def test_files_are_sound_and_images_share_their_labels_grid(tmp_path: Path) -> None:
    write_small(tmp_path, labelled=1, unlabelled=8)
    image = sitk.ReadImage(str(tmp_path / "Training/FLARE22_LabeledCase50/images/FLARE22_Tr_0001_0000.nii.gz"))
    labels = sitk.ReadImage(str(tmp_path / "Training/FLARE22_LabeledCase50/labels/FLARE22_Tr_0001.nii.gz"))
    assert image.GetPixelID() == sitk.sitkInt16 and labels.GetPixelID() == sitk.sitkUInt8
    for got, expected in (
        (labels.GetOrigin(), image.GetOrigin()),
        (labels.GetSpacing(), image.GetSpacing()),
        (labels.GetDirection(), image.GetDirection()),
    ):
        np.testing.assert_allclose(got, expected, atol=1e-4)
    orientations = set()
    for path in (tmp_path / "Training/FLARE22_UnlabeledCase1-1000").iterdir():
        stored = sitk.ReadImage(str(path))
        direction = stored.GetDirection()
        orientations.add(sitk.DICOMOrientImageFilter.GetOrientationFromDirectionCosines(direction))
        assert stored.GetSize() == TINY[::-1]
    assert len(orientations) > 1


def test_a_file_brought_to_lps_is_the_phantom_itself(tmp_path: Path) -> None:
    write_small(tmp_path, labelled=0, validation=0, test=0, unlabelled=3)
    for number in range(1, 4):
        stored = sitk.ReadImage(str(tmp_path / f"Training/FLARE22_UnlabeledCase1-1000/Case_{number:05d}_0000.nii.gz"))
        phantom = make_phantom(np.random.default_rng((5, 1, number)), "varied", TINY)
        np.testing.assert_array_equal(sitk.GetArrayFromImage(sitk.DICOMOrient(stored, "LPS")), phantom.image)


def test_files_do_not_depend_on_workers_or_counts(tmp_path: Path) -> None:
    write_small(tmp_path / "one")
    write_small(tmp_path / "two", workers=2, unlabelled=3)
    one, two = files_of(tmp_path / "one"), files_of(tmp_path / "two")
    del one["phantom.json"]
    assert all(two[name] == content for name, content in one.items())


def test_a_broken_off_run_is_taken_up_again(tmp_path: Path) -> None:
    write_small(tmp_path)
    whole = files_of(tmp_path)
    kept = tmp_path / "Tuning/images/FLARETs_0001_0000.nii.gz"
    before = kept.stat().st_mtime_ns
    (tmp_path / "Training/FLARE22_UnlabeledCase1-1000/Case_00002_0000.nii.gz").unlink()
    # As if killed between writing a case's labels and its image.
    killed = tmp_path / "Training/FLARE22_LabeledCase50/images/FLARE22_Tr_0001_0000.nii.gz"
    with subprocess.Popen(["true"]) as ended:
        pass
    killed.rename(killed.with_name(f"{TEMPORARY}{ended.pid}.0.nii.gz"))
    write_small(tmp_path)
    assert files_of(tmp_path) == whole
    assert kept.stat().st_mtime_ns == before, "a finished case was made again"


def test_a_complete_dataset_is_only_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It may lie on a read-only disk."""
    write_small(tmp_path)

    def read_only(path: Path, *_: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))

    monkeypatch.setattr("dlunet.files.os.fsync", read_only)
    write_small(tmp_path, unlabelled=1)
    with pytest.raises(UserError, match=r"phantom\.json: could not be written .Read-only file system"):
        write_small(tmp_path, unlabelled=3)


def test_counts_may_grow(tmp_path: Path) -> None:
    write_small(tmp_path, unlabelled=1)
    write_small(tmp_path, unlabelled=3, test=0)
    assert len(read_flare22(tmp_path).unlabelled) == 3
    counts = json.loads((tmp_path / "phantom.json").read_text())["counts"]
    assert counts == {"labelled": 2, "unlabelled": 3, "validation": 1, "test": 1}


@pytest.mark.parametrize(
    ("change", "named"), [({"seed": 6}, "seed 5 there but 6 now"), ({"shape": (16, 24, 32)}, "shape")]
)
def test_other_arguments_in_the_same_folder_are_refused(tmp_path: Path, change: dict[str, object], named: str) -> None:
    write_small(tmp_path, labelled=1, unlabelled=0, validation=0, test=0)
    with pytest.raises(UserError, match=named) as caught:
        write_small(tmp_path, **change)
    assert str(tmp_path) in str(caught.value) and "another folder" in str(caught.value)


@pytest.mark.parametrize("change", [{"labelled": -1}, {"seed": -1}, {"shape": (8, 24, 24)}])
def test_impossible_arguments_are_refused(tmp_path: Path, change: dict[str, object]) -> None:
    with pytest.raises(UserError, match=f"{next(iter(change))}: found"):
        write_small(tmp_path, **change)
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("")
    with pytest.raises(UserError, match="taken"):
        write_small(tmp_path / "taken")


@pytest.mark.parametrize("workers", [1, 2])
def test_a_case_that_cannot_be_written_is_named(tmp_path: Path, workers: int) -> None:
    image = tmp_path / "Tuning/images/FLARETs_0001_0000.nii.gz"
    image.parent.parent.mkdir()
    image.parent.write_text("")
    with pytest.raises(UserError, match=f"^{image}: could not be written"):
        write_small(tmp_path, workers=workers)
