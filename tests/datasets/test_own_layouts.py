"""nnU-Net raw datasets, the Medical Segmentation Decathlon and plain folders: cases found, problems reported."""

import errno
import json
import os
import shutil
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from dlunet.datasets import (
    Case,
    Dataset,
    dataset_of,
    read_folders,
    read_msd,
    read_nnunet_raw,
    split_cases,
    with_pseudo_labels,
)
from dlunet.errors import UserError
from dlunet.labels import label_set
from dlunet.volumes import case_name

LABELS = {"background": 0, "liver": 1, "kidney_right": 2, "tumour": 3}


def touch(*paths):
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


@pytest.fixture
def nnunet(tmp_path):
    root = tmp_path / "Dataset007_Own"
    touch(*(root / "imagesTr" / f"own_{k}_0000.nii.gz" for k in range(4)))
    touch(*(root / "labelsTr" / f"own_{k}.nii.gz" for k in range(4)))
    touch(*(root / "imagesTs" / f"own_{k}_0000.nii.gz" for k in (7, 8)), root / "labelsTs" / "own_7.nii.gz")
    touch(*(root / "imagesUn" / f"other_{k}_0000.mha" for k in range(8)))
    describe(root, labels=LABELS, channel_names={"0": "CT"}, numTraining=4, file_ending=".nii.gz")
    return root


@pytest.fixture
def msd(tmp_path):
    root = tmp_path / "Task09_Own"
    names = [f"own_{k}.nii.gz" for k in range(4)]
    touch(*(root / folder / name for folder in ("imagesTr", "labelsTr") for name in names))
    touch(root / "imagesTs" / "own_9.nii.gz")
    training = [{"image": f"./imagesTr/{name}", "label": f"./labelsTr/{name}"} for name in names]
    names = {str(id_): name for name, id_ in LABELS.items()}
    describe(root, name="Own", labels=names, modality={"0": "CT"}, training=training, test=["./imagesTs/own_9.nii.gz"])
    return root


def describe(root, **values):
    (root / "dataset.json").write_text(json.dumps(values))


def change(root, **values):
    describe(root, **{**json.loads((root / "dataset.json").read_text()), **values})


def names(cases):
    return sorted(case.name for case in cases)


def test_nnunet_raw(nnunet, tmp_path):
    dataset = read_nnunet_raw(nnunet, tmp_path / "splits.json")
    assert [(label.id, label.name, label.nsd_tolerance_mm) for label in dataset.labels] == [
        (1, "liver", 5),
        (2, "kidney_right", 3),
        (3, "tumour", None),
    ]
    assert names(dataset.labelled + dataset.validation) == [f"own_{k}" for k in range(4)]
    assert len(dataset.validation) == 1
    assert names(dataset.unlabelled) == [f"other_{k}" for k in range(8)]
    assert [(case.name, case.label is not None) for case in dataset.test] == [("own_7", True), ("own_8", False)]
    for case in dataset.labelled:
        assert (case.image, case.label) == (
            nnunet / "imagesTr" / f"{case.name}_0000.nii.gz",
            nnunet / "labelsTr" / f"{case.name}.nii.gz",
        )


def test_names_that_end_like_a_channel(nnunet, tmp_path):
    """Of the cases own_0 and own_0_0000, each has its own label map; a DICOM folder's name is that of its case."""
    touch(nnunet / "imagesTr" / "own_0_0000_0000.nii.gz", nnunet / "labelsTr" / "own_0_0000.nii.gz")
    dataset = read_nnunet_raw(nnunet, tmp_path / "splits.json", fold="all")
    assert not dataset.problems
    labels = {case.name: case.label.name for case in dataset.labelled}
    assert labels == {name: f"{name}.nii.gz" for name in ("own_0", "own_0_0000", "own_1", "own_2", "own_3")}

    series = tmp_path / "Case_1_0000"
    touch(series / "slice.dcm", tmp_path / "pseudo_labels" / "Case_1_0000.nii.gz")
    unlabelled = Dataset(dataset.labels, (), unlabelled=(Case(case_name(series), series),))
    found = with_pseudo_labels(unlabelled, tmp_path / "pseudo_labels").unlabelled[0]
    assert found.pseudo_label == tmp_path / "pseudo_labels" / "Case_1_0000.nii.gz"


def test_the_decathlon(msd, tmp_path):
    dataset = read_msd(msd, tmp_path / "splits.json", unlabelled="imagesTs")
    assert [label.name for label in dataset.labels] == ["liver", "kidney_right", "tumour"]
    assert dataset.labels.name == "Own"
    assert names(dataset.labelled + dataset.validation) == [f"own_{k}" for k in range(4)]
    assert names(dataset.unlabelled) == names(dataset.test) == ["own_9"]


def test_the_decathlon_with_labelled_tests_and_own_validation(msd, tmp_path):
    """As MONAI writes it: what is not used is said."""
    touch(*(msd / "imagesTs" / f"own_{k}.nii.gz" for k in (7, 8)), msd / "labelsTs" / "own_7.nii.gz")
    pairs = [{"image": "imagesTs/own_7.nii.gz", "label": "labelsTs/own_7.nii.gz"}, {"image": "imagesTs/own_8.nii.gz"}]
    change(msd, test=["imagesTs/own_9.nii.gz", *pairs, 5, {"label": "labelsTs/own_7.nii.gz"}], validation=pairs)
    dataset = read_msd(msd, tmp_path / "splits.json")
    labels = {case.name: case.label for case in dataset.test}
    assert labels == {"own_7": msd / "labelsTs" / "own_7.nii.gz", "own_8": None, "own_9": None}
    expected = ('"test" has the entry 5', "\"test\" has the entry {'label'", '"validation" is not used')
    for said, problem in zip(expected, dataset.problems, strict=True):
        assert problem.startswith(f"{msd / 'dataset.json'}: ") and said in problem


def test_two_folders(tmp_path):
    root = tmp_path / "mine"
    touch(*(root / "images" / f"{name}.nrrd" for name in "abcd"), *(root / "labels" / f"{name}.nrrd" for name in "ab"))
    touch(tmp_path / "archive" / "e.nii.gz")
    settings = {"names": ["liver", "cyst"], "splits": tmp_path / "splits.json", "fold": "all"}
    dataset = read_folders(root, unlabelled=tmp_path / "archive", **settings)
    assert [label.name for label in dataset.labels] == ["liver", "cyst"]
    assert (names(dataset.labelled), names(dataset.unlabelled)) == (["a", "b"], ["c", "d", "e"])


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"labels": None}, "has no entry for labels"),
        ({"labels": {"background": 0, "liver": 1, "spleen": 3}}, r"without gaps, found \[1, 3\]"),
        ({"labels": {"background": 0, "all": [1, 2], "liver": 1}}, "all is a region of the labels"),
        ({"labels": {"background": 0, "liver": 1, "ignore": 2}}, "has an ignore label"),
        ({"labels": {"background": 0, "liver": "one"}}, "label 'one' has the id 'liver'"),
        ({"labels": {"background": 0, "liver": 1.5}}, "label 'liver' has the id 1.5; expected a whole number"),
        ({"labels": {"background": 0}}, r"found the ids \[\]; expected 1, 2, …, at most 255"),
        ({"labels": {"background": 0, "liver": 1, "spleen": 1}}, "'liver' and 'spleen' have the id 1"),
        ({"channel_names": {"0": "CT", "1": "PET"}}, "found the channels CT, PET; expected one channel, CT"),
        ({"channel_names": ["CT", "CT"]}, "found the channels CT, CT"),
        ({"channel_names": {"0": "T2"}}, "found the channels T2; .* correct the entry if the images are CTs, or keep"),
        ({"channel_names": {"0": "SPECT"}}, "found the channels SPECT; expected one channel, CT"),
        ({"channel_names": None, "modality": "MR"}, "found the channels MR; expected one channel, CT"),
        ({"channel_names": 1}, "found the channels 1; expected one channel, CT"),
    ],
)
def test_descriptions_that_cannot_be_used(nnunet, tmp_path, values, message):
    change(nnunet, **values)
    with pytest.raises(UserError, match=f"^{nnunet / 'dataset.json'}: .*{message}"):
        read_nnunet_raw(nnunet, tmp_path / "splits.json")


@pytest.mark.parametrize(
    "values",
    [
        {"labels": {name: str(id_) for name, id_ in LABELS.items()}},
        {"labels": {str(id_): name for name, id_ in LABELS.items()}},
        {"channel_names": None, "modality": "CT"},
        {"channel_names": ["CT"]},
        {"channel_names": {"0": "CBCT"}},
    ],
)
def test_other_ways_to_describe_the_same(nnunet, tmp_path, values):
    expected = read_nnunet_raw(nnunet, tmp_path / "splits.json").labels
    change(nnunet, **values)
    assert read_nnunet_raw(nnunet, tmp_path / "splits.json").labels == expected


def test_a_description_with_a_byte_order_mark(nnunet, tmp_path):
    path = nnunet / "dataset.json"
    path.write_text(path.read_text(), encoding="utf-8-sig")
    assert len(read_nnunet_raw(nnunet, tmp_path / "splits.json").labels) == 3


def test_layouts_that_do_not_fit(nnunet, msd, tmp_path):
    splits = tmp_path / "splits.json"
    with pytest.raises(UserError, match=r"gone: no such folder; expected one with dataset\.json"):
        read_nnunet_raw(tmp_path / "gone", splits)
    with pytest.raises(UserError, match=r"data\.unlabelled: found no folder nowhere"):
        read_nnunet_raw(nnunet, splits, unlabelled="nowhere")
    with pytest.raises(UserError, match=r"lists of cases cannot be read.*use data=nnunet"):
        read_msd(nnunet, splits)
    shutil.rmtree(msd / "labelsTr")
    with pytest.raises(UserError, match=r"4 skipped; the first: .*own_0\.nii\.gz: no such file; dataset\.json lists"):
        read_msd(msd, splits)
    for label in (nnunet / "labelsTr").iterdir():
        label.unlink()
    with pytest.raises(UserError, match=r"4 skipped; the first: .*own_0_0000\.nii\.gz: has no label"):
        read_nnunet_raw(nnunet, splits)
    (nnunet / "dataset.json").write_text("{")
    with pytest.raises(UserError, match=r"dataset\.json: cannot be read"):
        read_nnunet_raw(nnunet, splits)


def test_what_is_left_out_is_said(nnunet, msd, tmp_path):
    """One bad case per kind of problem; the other cases are kept."""
    touch(
        nnunet / "imagesUn" / "other_3.nrrd", nnunet / "imagesUn" / "own_1.nrrd", nnunet / "labelsTr" / "own_9.nii.gz"
    )
    (nnunet / "labelsTr" / "own_2.nii.gz").unlink()
    (nnunet / "imagesUn" / "link.nii.gz").symlink_to(nnunet / "imagesTr" / "own_3_0000.nii.gz")
    dataset = read_nnunet_raw(nnunet, tmp_path / "splits.json")
    assert names(dataset.labelled + dataset.validation) == ["own_0", "own_1", "own_3"]
    assert names(dataset.unlabelled) == [f"other_{k}" for k in (0, 1, 2, 4, 5, 6, 7)]
    expected = {
        "own_2_0000.nii.gz": "has no label map; expected",
        "own_9.nii.gz": "is a label map without a CT",
        "other_3.nrrd": "has the same name as",
        "own_1.nrrd": "is listed as unlabelled but has a label map",
        "link.nii.gz": "is listed as unlabelled but has a label map",
    }
    assert len(dataset.problems) == len(expected)
    for name, message in expected.items():
        assert [problem for problem in dataset.problems if name in problem and message in problem], name

    (msd / "labelsTr" / "own_2.nii.gz").unlink()
    dataset = read_msd(msd, tmp_path / "msd.json")
    assert names(dataset.labelled + dataset.validation) == ["own_0", "own_1", "own_3"]
    assert [problem.startswith(f"{msd / 'labelsTr' / 'own_2.nii.gz'}: no such file") for problem in dataset.problems]


def test_two_folders_in_disorder(tmp_path):
    root = tmp_path / "mine"
    touch(*(root / "images" / f"{name}.nrrd" for name in "abcd"), *(root / "labels" / f"{name}.nrrd" for name in "abz"))
    touch(root / "images" / "d_0000.nrrd", root / "images" / "e.mhd", root / "labels" / "e.hdr")
    dataset = read_folders(root, ["liver"], tmp_path / "splits.json", fold="all")
    assert (names(dataset.labelled), names(dataset.unlabelled)) == (["a", "b"], ["c"])
    expected = (
        "e.hdr: is not a supported format",
        "e.mhd: is not a supported format",
        "has the same name as",
        "z.nrrd: is a label map",
    )
    assert len(dataset.problems) == len(expected)
    for said, problem in zip(expected, dataset.problems, strict=True):
        assert said in problem


@pytest.mark.parametrize(
    "unusable",
    [
        ["b.nii", "b.nii.gz"],
        ["b.mhd"],
        ["b_0000.nii", "b.nii.gz"],
        ["b.nii.bz2"],
        ["b.nii.zst"],
        ["b.img.gz"],
    ],
)
def test_a_ct_whose_label_map_cannot_be_used_is_not_an_unlabelled_one(tmp_path, unusable):
    root = tmp_path / "mine"
    touch(*(root / "images" / f"{name}.nii.gz" for name in "abc"), root / "labels" / "a.nii.gz")
    touch(*(root / "labels" / name for name in unusable))
    dataset = read_folders(root, ["liver"], tmp_path / "splits.json", fold="all")
    assert (names(dataset.labelled), names(dataset.unlabelled)) == (["a"], ["c"])
    assert len(dataset.problems) == 1 and unusable[0] in dataset.problems[0]


def test_loose_dicom_label_maps_are_not_overlooked(tmp_path):
    """They share one message, but each of their CTs is left out."""
    root = tmp_path / "mine"
    touch(*(root / "images" / f"{name}.nii.gz" for name in "abcd"), root / "labels" / "a.nii.gz")
    for name in ("b.dcm", "c.dcm"):
        (root / "labels" / name).write_bytes(bytes(128) + b"DICM")
    dataset = read_folders(root, ["liver"], tmp_path / "splits.json", fold="all")
    assert (names(dataset.labelled), names(dataset.unlabelled)) == (["a"], ["d"])
    assert len(dataset.problems) == 1 and "b.dcm: is one of 2 DICOM files" in dataset.problems[0]


def test_a_pseudo_label_that_cannot_be_used_is_a_problem(tmp_path):
    """Other entries of the folder, such as pictures of predictions, are not."""
    folder = tmp_path / "predictions"
    touch(*(folder / name for name in ("a.nii.gz", "b.nii.gz", "b.nrrd", "c.nii.zst", "prediction.json")))
    touch(folder / "overlays" / "a.png", folder / "z.mhd")
    cases = tuple(Case(name, tmp_path / f"{name}.nii.gz") for name in "abcd")
    dataset = with_pseudo_labels(Dataset(label_set("mine", {1: "liver"}), (), cases, problems=("known",)), folder)
    assert [case.name for case in dataset.unlabelled if case.pseudo_label] == ["a"]
    for said, problem in zip(("known", "b.nii.gz: has the same name as", "c.nii.zst: is not a supported format"),
                             dataset.problems, strict=True):  # fmt: skip
        assert said in problem


def test_the_background_is_not_among_the_names(tmp_path):
    touch(tmp_path / "images" / "a.nii.gz", tmp_path / "labels" / "a.nii.gz")
    with pytest.raises(UserError, match=r"data.names: found Background, liver; .* without the background, which is 0"):
        read_folders(tmp_path, ["Background", "liver"], tmp_path / "splits.json", fold="all")


def test_a_layout_of_one_s_own_that_returns_something_wrong(monkeypatch):
    """Cases of one name would be training and validation cases at once."""
    labels, case = label_set("mine", {1: "liver"}), Case("a", Path("a.nii.gz"), Path("b.nii.gz"))
    twin, other = Case("a", Path("z/a.nii.gz"), Path("z/b.nii.gz")), Case("c", Path("c.nii.gz"), Path("d.nii.gz"))
    both = r"mine: found the case a more than once \(a.nii.gz and z/a.nii.gz\); expected unique names; rename one"
    config = OmegaConf.create({"data": {"root": "mine", "source": {"_target_": f"{__name__}.returned"}}})
    for value, message in (
        (None, "data.source: found NoneType; expected a function that returns a Dataset"),
        (Dataset(labels, ()), "mine: found no labelled cases"),
        (Dataset(labels, (case, case)), "mine: found the case a more than once"),
        (Dataset(labels, (case,), test=(case, case)), "mine: found the case a more than once"),
        (Dataset(labels, (case,), validation=(twin,)), both),
        (Dataset(labels, (case,), validation=(case,)), "mine: found the case a more than once"),
        (Dataset(labels, (case,), validation=(other,), pool=(other, case, twin)), both),
    ):
        monkeypatch.setitem(globals(), "returned", lambda value=value: value)
        with pytest.raises(UserError, match=f"^{message}"):
            dataset_of(config)
    sound = Dataset(labels, (case,), validation=(other,), test=(twin,), pool=(other, case))
    monkeypatch.setitem(globals(), "returned", lambda: sound)
    assert dataset_of(config) is sound
    with pytest.raises(UserError, match="found 3 labelled cases with 1 names"):
        split_cases([case] * 3, Path("splits.json"))


@pytest.mark.parametrize("named", [True, False])
def test_a_folder_that_cannot_be_listed_is_named(nnunet, monkeypatch, named):
    config = OmegaConf.create(
        {
            "data": {
                "root": str(nnunet),
                "source": {
                    "_target_": "dlunet.datasets.read_nnunet_raw",
                    "root": "${data.root}",
                    "splits": "splits.json",
                },
            }
        }
    )

    def refuse(folder):
        raise OSError(errno.EACCES, os.strerror(errno.EACCES), *([str(folder)] if named else []))

    monkeypatch.setattr(Path, "iterdir", refuse)
    at = nnunet / "imagesTr" if named else nnunet
    with pytest.raises(UserError, match=f"^{at}: cannot be opened .Permission denied.; check its permissions"):
        dataset_of(config)


returned = None
