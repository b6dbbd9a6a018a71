"""FLARE22's folders: which file belongs to which case, and what is reported where one is missing."""

import shutil

import pytest

from dlunet.datasets import read_flare22
from dlunet.errors import UserError
from dlunet.labels import FLARE22


@pytest.fixture
def root(tiny_root, tmp_path):
    return shutil.copytree(tiny_root, tmp_path / "flare22")


def names(cases):
    return [case.name for case in cases]


def test_the_layout_as_it_unpacks(tiny_root):
    dataset = read_flare22(str(tiny_root))
    assert dataset.labels is FLARE22
    assert names(dataset.labelled) == ["FLARE22_Tr_0001", "FLARE22_Tr_0002", "FLARE22_Tr_0003"]
    assert names(dataset.unlabelled) == [f"Case_{n:05}" for n in range(1, 5)]
    assert names(dataset.validation) == ["FLARETs_0001"]
    assert names(dataset.test) == ["FLARETs_0001", "FLARETs_0002"]
    for case in (*dataset.labelled, *dataset.validation, *dataset.test):
        assert case.image.name == f"{case.name}_0000.nii.gz" and case.image.is_file()
        assert case.label == case.image.parents[1] / "labels" / f"{case.name}.nii.gz" and case.label.is_file()
    assert all(case.label is None and case.image.is_file() for case in dataset.unlabelled)


def test_several_unlabelled_folders_and_half_written_files(root):
    second = root / "Training" / "FLARE22_UnlabeledCase1001-2000"
    second.mkdir()
    (second / "Case_01001_0000.nii.gz").touch()
    (second / ".77.Case_01002_0000.nii.gz").touch()
    (root / "Training" / "FLARE22_LabeledCase50" / "images" / ".77.FLARE22_Tr_0009_0000.nii.gz").touch()
    dataset = read_flare22(root)
    assert names(dataset.unlabelled) == ["Case_00001", "Case_00002", "Case_00003", "Case_00004", "Case_01001"]
    assert len(dataset.labelled) == 3


def test_archives_beside_the_unpacked_folders(root, tiny_root):
    for name in ("FLARE22_LabeledCase50.zip", "FLARE22_UnlabeledCase1-1000.zip"):
        (root / "Training" / name).write_bytes(b"PK")
    dataset, alone = read_flare22(root), read_flare22(tiny_root)
    assert names(dataset.labelled) == names(alone.labelled) and names(dataset.unlabelled) == names(alone.unlabelled)
    assert not dataset.problems


def test_test_images_without_subfolders_or_labels(root):
    testing = root / "Testing"
    for path in (testing / "images").iterdir():
        path.rename(testing / path.name)
    (testing / "images").rmdir()
    (testing / "labels" / "FLARETs_0002.nii.gz").unlink()
    first, second = read_flare22(root).test
    assert (first.image, first.label) == (
        testing / "FLARETs_0001_0000.nii.gz",
        testing / "labels" / "FLARETs_0001.nii.gz",
    )
    assert (second.image, second.label) == (testing / "FLARETs_0002_0000.nii.gz", None)


def test_only_labelled_cases_are_needed(root):
    for part in ("Tuning", "Testing", "Training/FLARE22_UnlabeledCase1-1000"):
        shutil.rmtree(root / part)
    dataset = read_flare22(root)
    assert (len(dataset.labelled), dataset.unlabelled, dataset.validation, dataset.test) == (3, (), (), ())


def test_a_missing_and_an_empty_folder(tmp_path):
    with pytest.raises(UserError, match=r"gone: no such folder; expected FLARE22's layout.*data\.root"):
        read_flare22(tmp_path / "gone")
    with pytest.raises(UserError, match="found no labelled cases; expected FLARE22's layout"):
        read_flare22(tmp_path)


@pytest.mark.parametrize("part", ["Training/FLARE22_LabeledCase50", "Tuning"])
def test_a_missing_label_is_named(root, part):
    label = next((root / part / "labels").iterdir())
    label.unlink()
    image = root / part / "images" / label.name.replace(".nii.gz", "_0000.nii.gz")
    dataset = read_flare22(root)
    (problem,) = dataset.problems
    assert problem.startswith(f"{image}: has no label map; expected {label}")
    assert image not in [case.image for case in (*dataset.labelled, *dataset.unlabelled, *dataset.validation)]
