"""Pseudo-labels determine crop positions, and are targets only for the method that trains on them."""

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import SimpleITK as sitk

from dlunet.datasets import read_flare22, with_pseudo_labels
from dlunet.errors import UserError
from dlunet.preparation import PreparedCase, prepare_dataset
from tests.commands import TINY

SPACING, PATCH = (8.0, 8.0, 8.0), (16, 32, 32)


@pytest.fixture
def dlunet(dlunet, place):
    """``dlunet(verb, setting, …)`` runs a command in ``place`` and returns what it printed."""
    return lambda verb, *settings, **more: dlunet(verb, *TINY, *settings, cwd=place, **more).all


def write_pseudo_labels(place, name, value):
    """Write pseudo-labels with the same ball of one class for every unlabelled case."""
    for case in read_flare22(place / "flare22").unlabelled:
        image = sitk.ReadImage(str(case.image))
        z, y, x = np.indices(image.GetSize()[::-1])
        ball = (z - 12) ** 2 + (y - 25) ** 2 + (x - 14) ** 2 < 16
        labels = sitk.GetImageFromArray((ball * value).astype(np.uint8))
        labels.CopyInformation(image)
        (place / name).mkdir(exist_ok=True)
        sitk.WriteImage(labels, str(place / name / f"{case.name}.nii.gz"))
    return place / name


def test_self_training_goes_through_and_goes_on(place, dlunet):
    settings = ("test=true", "output=chain", "trainer.max_epochs=1")
    printed = dlunet("self_train", *settings)
    assert "no pseudo-labels" not in printed
    assert len(list((place / "chain" / "pseudo_labels").glob("Case_*.nii.gz"))) == 4
    assert (place / "chain" / "student" / "scores" / "summary.csv").exists()
    metrics = place / "chain" / "student" / "metrics.csv"
    before = (metrics.read_bytes(), (place / "chain" / "teacher" / "metrics.csv").read_bytes())
    dlunet("self_train", *settings)  # already finished: nothing is trained again
    assert (metrics.read_bytes(), (place / "chain" / "teacher" / "metrics.csv").read_bytes()) == before


def test_a_dry_run_of_self_training_says_the_plan_of_the_teacher(place, dlunet):
    printed = dlunet("self_train", "dry_run=true", "output=dry")
    assert printed.count("expected end") == 1 and "the plan of a student is that of dlunet train" in printed
    assert not list((place / "dry").rglob("*.ckpt"))


def test_what_a_pseudo_label_says_changes_no_loss(place, dlunet):
    """Another class at the same voxels gives the same crops and identical losses; without pseudo-labels the losses
    differ, which shows that the comparison can fail."""
    losses = {}
    for name, value in (("liver", 1), ("kidney", 13)):
        folder = write_pseudo_labels(place, name, value)
        dlunet("train", f"output={name}", f"data.pseudo_labels={folder}")
        losses[name] = pd.read_csv(place / name / "metrics.csv")["train/loss"].dropna().tolist()
    assert "4 of 4 unlabelled cases have no pseudo-labels" in dlunet("train", "output=none")
    losses["none"] = pd.read_csv(place / "none" / "metrics.csv")["train/loss"].dropna().tolist()
    assert losses["liver"] == losses["kidney"] != losses["none"]


def test_only_the_class_index_is_stored(place, tmp_path):
    dataset = with_pseudo_labels(read_flare22(place / "flare22"), write_pseudo_labels(place, "spleen", 3))
    prepared = prepare_dataset(dataset, tmp_path, SPACING, PATCH, workers=1)
    for case in prepared.unlabelled:
        assert case.label is None and sorted(path.name for path in case.folder.iterdir()) == [
            "case.json", "image.npy", "index.npy"]  # fmt: skip
        assert list(case.ranges) == [3]
        middle = case.class_voxels(3).mean(0)  # stored as RAS: y and x are reversed; 8 mm spacing before and after
        np.testing.assert_allclose(middle, [12, 39 - 25, 39 - 14], atol=0.1)


def test_other_pseudo_labels_are_taken_in_and_a_case_without_one_stays(place, tmp_path):
    folder = write_pseudo_labels(place, "aorta", 5)
    dataset = read_flare22(place / "flare22")
    prepare_dataset(dataset, tmp_path, SPACING, PATCH, workers=1)
    (folder / f"{dataset.unlabelled[1].name}.nii.gz").unlink()
    prepared = prepare_dataset(with_pseudo_labels(dataset, folder), tmp_path, SPACING, PATCH, workers=1)
    assert [list(case.ranges) for case in prepared.unlabelled] == [[5], [], [5], [5]]
    times = {path: path.stat().st_mtime_ns for path in tmp_path.glob("labelled/*/case.json")}
    prepare_dataset(dataset, tmp_path, SPACING, PATCH, workers=1)
    assert all(PreparedCase.open(case.folder).ranges == {} for case in prepared.unlabelled)
    assert times == {path: path.stat().st_mtime_ns for path in tmp_path.glob("labelled/*/case.json")}


def test_pseudo_labels_that_do_not_fit(place, tmp_path, caplog):
    dataset = read_flare22(place / "flare22")
    with pytest.raises(UserError, match=r"no such folder"):
        with_pseudo_labels(dataset, tmp_path / "gone")
    (tmp_path / "empty").mkdir()
    with pytest.raises(
        UserError, match=r"contains no label map for any of the 4 unlabelled cases; expected files such as"
    ):
        with_pseudo_labels(dataset, tmp_path / "empty")
    folder = write_pseudo_labels(place, "stomach", 11)
    name = f"{dataset.unlabelled[0].name}.nii.gz"
    sitk.WriteImage(sitk.GetImageFromArray(np.ones((3, 4, 5), np.uint8)), str(folder / name))
    one = replace(dataset, unlabelled=dataset.unlabelled[:2])
    prepared = prepare_dataset(with_pseudo_labels(one, folder), tmp_path / "prepared", SPACING, PATCH, workers=1)
    assert (
        len(prepared.unlabelled) == 1 and f"{name}: geometry (size, spacing, orientation) differs from" in caplog.text
    )


def test_a_method_that_trains_on_pseudo_labels_gets_them_stored_and_what_they_say_matters(place, dlunet):
    """Patches come with the pseudo-labels of their own case; runs that only crop at them keep their own indexes."""
    losses = {}
    for name, value in (("pancreas", 4), ("duodenum", 12)):
        folder = write_pseudo_labels(place, name, value)
        (folder / "Case_00002.nii.gz").unlink()
        dlunet("train", "method=pseudo_label", f"output={name}-targets", f"data.pseudo_labels={folder}")
        metrics = pd.read_csv(place / f"{name}-targets" / "metrics.csv")
        losses[name] = metrics["train/pseudo_labelled_a"].dropna().tolist()
        cases = json.loads((place / f"{name}-targets" / "cases.json").read_text())
        assert cases["unlabelled"] == ["Case_00001", "Case_00003", "Case_00004"]
    assert len(losses["pancreas"]) == 8 and losses["pancreas"] != losses["duodenum"]
    stored = {np.load(path).max() for path in (place / "prepared").glob("*/pseudo_targets/*/*/label.npy")}
    assert stored == {4, 12}
    assert not list((place / "prepared").glob("*/pseudo_labels/*/*/label.npy"))


def test_training_on_pseudo_labels_that_are_missing(place, dlunet):
    message = dlunet("train", "method=pseudo_label", "output=never", fails=True)
    assert "data.pseudo_labels: found null; expected a folder with label maps" in message
    assert not (place / "never").exists()
