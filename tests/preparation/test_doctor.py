"""A dataset with one file per kind of defect: every problem is named, and the other cases are used."""

import json
import shutil

import numpy as np
import pytest
import SimpleITK as sitk

from dlunet.datasets import read_nnunet_raw
from dlunet.errors import UserError
from dlunet.preparation import examine, prepare_dataset

GRID = {"spacing": (8.0, 8.0, 8.0), "orientation": "RAS"}
ORGANS = ("liver", "right_kidney", "spleen")
SPACING, PATCH = (10.0, 8.0, 6.0), (16, 32, 32)


@pytest.fixture(scope="module")
def healthy(tiny_abdomen, write_volume, tmp_path_factory):
    """An nnU-Net dataset of 14 labelled and 3 unlabelled CTs of 24×40×40 voxels."""
    root = tmp_path_factory.mktemp("doctor") / "Dataset001_Mixed"
    for seed in range(14):
        abdomen = tiny_abdomen(seed)
        write_volume(root / "imagesTr" / f"case_{seed:02}_0000.nii.gz", abdomen.hu, **GRID)
        labels = abdomen.labels * (abdomen.labels <= len(ORGANS))
        write_volume(root / "labelsTr" / f"case_{seed:02}.nii.gz", labels, **GRID)
    for seed in range(3):
        write_volume(root / "imagesUn" / f"more_{seed}_0000.nii.gz", tiny_abdomen(20 + seed).hu, **GRID)
    names = {"background": 0} | {name: k for k, name in enumerate(ORGANS, start=1)}
    (root / "dataset.json").write_text(json.dumps({"labels": names, "channel_names": {"0": "CT"}}))
    return root


@pytest.fixture
def root(healthy, tmp_path):
    return shutil.copytree(healthy, tmp_path / healthy.name)


def change(path, make):
    """Replace a volume by ``make(array)`` on the same grid."""
    image = sitk.ReadImage(str(path))
    changed = sitk.GetImageFromArray(make(sitk.GetArrayFromImage(image)))
    changed.CopyInformation(image)
    sitk.WriteImage(changed, str(path))


def with_value(value, dtype):
    def make(array):
        array = array.astype(dtype)
        array[3, 4, 5] = value
        return array

    return make


def patch_bytes(path, offset, data):
    """Replace a file by an uncompressed copy with changed header bytes."""
    image = sitk.ReadImage(str(path))
    plain = path.with_name(path.name.removesuffix(".gz"))
    path.unlink()
    sitk.WriteImage(image, str(plain))
    raw = bytearray(plain.read_bytes())
    raw[offset : offset + len(data)] = data
    plain.write_bytes(raw)


def make_everything_wrong(root):
    """Damage one file per kind of defect; returns the expected message by file name. Cases 0 to 2 stay valid."""
    image = lambda k: root / "imagesTr" / f"case_{k:02}_0000.nii.gz"  # noqa: E731
    label = lambda k: root / "labelsTr" / f"case_{k:02}.nii.gz"  # noqa: E731
    image(3).write_bytes(image(3).read_bytes()[:-3000])
    image(4).write_text("this is not a CT")
    change(image(5), with_value(np.nan, np.float32))
    change(image(6), np.zeros_like)
    patch_bytes(image(7), 76 + 8, np.float32(0).tobytes())
    patch_bytes(image(8), 76 + 12, np.float32(-8).tobytes())
    sitk.WriteImage(sitk.GetImageFromArray(np.zeros((40, 40), np.int16)), str(image(9)))
    sitk.WriteImage(sitk.JoinSeries([sitk.ReadImage(str(image(10)))] * 2), str(image(10)))
    change(label(11), with_value(9, np.uint8))
    change(label(12), with_value(0.5, np.float32))
    shifted = sitk.ReadImage(str(label(13)))
    shifted.SetOrigin((5, 0, 0))
    sitk.WriteImage(shifted, str(label(13)))
    change(root / "imagesUn" / "more_0_0000.nii.gz", with_value(np.inf, np.float32))
    shutil.copy(image(0), root / "imagesUn" / "case_00_0000.nii.gz")
    shutil.copy(label(0), root / "labelsTr" / "nobody.nii.gz")
    shutil.copy(root / "imagesUn" / "more_1_0000.nii.gz", root / "imagesUn" / "more_1.nii.gz")
    return {
        "case_03_0000.nii.gz": "damaged or truncated",
        "case_04_0000.nii.gz": "cannot be read as a volume",
        "case_05_0000.nii.gz": "1 voxels are NaN or infinite",
        "case_06_0000.nii.gz": "all voxels are 0",
        "case_07_0000.nii": "voxels of 8×0×8 mm",
        "case_08_0000.nii": "voxels of 8×8×-8 mm",
        "case_09_0000.nii.gz": "found 2 dimensions",
        "case_10_0000.nii.gz": "found 4 dimensions",
        "case_11.nii.gz": "found the label value 9; expected whole numbers from 0 to 3",
        "case_12.nii.gz": "found the label value 0.5",
        "case_13.nii.gz": "geometry (size, spacing, orientation) differs from",
        "more_0_0000.nii.gz": "1 voxels are NaN or infinite",
        "imagesUn/case_00_0000.nii.gz": "is listed as unlabelled but has a label map",
        "nobody.nii.gz": "is a label map without a CT",
        "more_1.nii.gz": "has the same name as",
    }


def test_a_healthy_dataset(healthy, tmp_path):
    diagnosis = examine(read_nnunet_raw(healthy, tmp_path / "splits.json"), workers=1)
    assert diagnosis.problems == ()
    assert [len(cases) for cases in diagnosis.parts.values()] == [14, 3, 0]
    facts = diagnosis.parts["labelled"]["case_03"]
    image, labels = (sitk.GetArrayFromImage(sitk.ReadImage(str(healthy / folder / name))) for folder, name in
                     (("imagesTr", "case_03_0000.nii.gz"), ("labelsTr", "case_03.nii.gz")))  # fmt: skip
    assert (facts.shape, facts.spacing, facts.orientation) == ((24, 40, 40), GRID["spacing"], "RAS")
    assert facts.hu_range == (image.min(), image.max())
    assert facts.voxels == {k: int((labels == k).sum()) for k in (1, 2, 3)}
    assert not any(case.foreground.size for cases in diagnosis.parts.values() for case in cases.values())


def test_every_problem_is_named_and_the_rest_is_used(root, tmp_path, caplog):
    expected = make_everything_wrong(root)
    dataset = read_nnunet_raw(root, tmp_path / "splits.json", fold="all")
    diagnosis = examine(dataset, workers=2)
    for name, message in expected.items():
        assert [text for text in diagnosis.problems if name in text and message in text], (name, diagnosis.problems)
    assert len(diagnosis.problems) == len(expected)
    assert sorted(diagnosis.parts["labelled"]) == ["case_00", "case_01", "case_02"]
    assert sorted(diagnosis.parts["unlabelled"]) == ["more_2"]

    prepared = prepare_dataset(dataset, tmp_path / "prepared", SPACING, PATCH, workers=1)
    assert [case.name for case in prepared.labelled] == ["case_00", "case_01", "case_02"]
    assert [case.name for case in prepared.unlabelled] == ["more_2"]
    for problem in diagnosis.problems:  # same checks, same messages
        assert problem in caplog.text
    with pytest.raises(UserError, match=r"strict=true.*\n(.*\n)*.*is a label map without a CT"):
        prepare_dataset(dataset, tmp_path / "prepared", SPACING, PATCH, workers=1, strict=True)


def test_what_is_most_likely_not_meant(root, tmp_path):
    """It is reported as a warning, and the case is used."""
    change(root / "labelsTr" / "case_00.nii.gz", np.zeros_like)
    change(root / "imagesTr" / "case_01_0000.nii.gz", lambda hu: hu + 1024)
    shutil.copy(root / "imagesTr" / "case_02_0000.nii.gz", root / "imagesUn" / "again.nii.gz")
    for path in (root / "labelsTr").iterdir():
        change(path, lambda labels: labels * (labels != 3))
    diagnosis = examine(read_nnunet_raw(root, tmp_path / "splits.json", fold="all"), workers=1)
    assert diagnosis.problems == ()
    expected = (
        "case_00: its label map is empty",
        "case_01: its lowest value is 0; a CT in HU shows air",
        "unlabelled case again: has the same voxels as labelled case case_02",
        "spleen: not in any labelled case",
    )
    assert len(diagnosis.warnings) == len(expected)
    for said, warning in zip(expected, diagnosis.warnings, strict=True):
        assert said in warning


def test_the_command(root, dlunet, dlunet_process, monkeypatch):
    """Exit code 1 and a list of problems if there are any, otherwise 0; nothing is written."""
    monkeypatch.setenv("COLUMNS", "160")
    settings = ("data=nnunet", f"data.root={root}", "scale=tiny", "data.workers=1")
    done = dlunet_process("doctor", *settings, cwd=root.parent)
    assert done.stderr == ""
    assert "14 of 14" in done.stdout and "right_kidney" in done.stdout and "RAS 14" in done.stdout
    assert [path.name for path in root.parent.iterdir()] == [root.name]
    (root / "labelsTr" / "case_05.nii.gz").unlink()
    change(root / "imagesUn" / "more_2_0000.nii.gz", np.ones_like)
    done = dlunet("doctor", *settings, cwd=root.parent, fails=True)
    assert "2 problems" in done.stderr
    assert "case_05_0000.nii.gz: has no label" in done.stdout and "all voxels are 1" in done.stdout
    strict = dlunet("prepare", *settings, "strict=true", cwd=root.parent, fails=True)
    assert "case_05_0000.nii.gz: has no label" in strict.stderr
    dlunet("prepare", *settings, cwd=root.parent)
