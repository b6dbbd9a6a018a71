"""The page of predicted label maps: the volumes are those of the files, and CTs that cannot be shown are left out."""

import json
import shutil

import numpy as np
import pytest
import SimpleITK as sitk

from dlunet.inference import predictions_page
from dlunet.inference.predictions_page import write_predictions_page
from dlunet.labels import FLARE22
from dlunet.reporting import EmbeddedCases, ShownCase, viewer
from dlunet.volumes import Geometry, read_ct, read_labels, write_labels
from tests.reporting.html_page import Page

GRID = Geometry((30, 20, 10), (2.0, 2.0, 5.0), (0.0, 0.0, 0.0), (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0))


@pytest.fixture
def folder(tmp_path):
    """Two CTs of which one has a label map: 100 voxels of liver, 3 of spleen."""
    labels = np.zeros((10, 20, 30), np.uint8)
    labels[2, :10, :10], labels[3, 0, :3] = 1, 3
    write_labels(labels, tmp_path / "labels" / "one.nii.gz", GRID)
    for name in ("one", "two"):
        image = GRID.apply_to(sitk.GetImageFromArray(np.zeros((10, 20, 30), np.int16)))
        sitk.WriteImage(image, str(tmp_path / f"{name}.nii.gz"))
    return tmp_path


def test_volumes_and_pictures_of_the_cases_that_have_label_maps(folder):
    images = [folder / "one.nii.gz", folder / "two.nii.gz"]
    page = Page(write_predictions_page(folder / "labels", images, FLARE22))
    (table,) = page.tables
    assert table[0] == ["Case", *(label.abbreviation for label in FLARE22)]
    assert table[1:] == [["one", "2.0", "0.0", "0.1", *["0.0"] * 10]]  # 20 mm³ per voxel
    assert page.sections == ["volumes", "viewer", "pictures"] and len(page.images) == 1
    assert all(link.startswith("data:") for link in page.links)


def test_warnings_and_missing_cases_are_said_first(folder):
    warnings = {"one": ["values are probably not Hounsfield units"], "another": ["of another command"]}
    record = {"images": {}, "stamps": {}, "warnings": warnings}
    (folder / "labels" / "prediction.json").write_text(json.dumps(record))
    page = Page(write_predictions_page(folder / "labels", [folder / "one.nii.gz", folder / "two.nii.gz"], FLARE22))
    before = " ".join(page.text.split()).partition("Volumes")[0]
    assert "Without a label map, or not readable: two." in before
    assert "one: values are probably not Hounsfield units." in before
    assert "of another command" not in page.text


def test_a_label_map_with_another_class_is_left_out(folder, caplog):
    labels = np.full((10, 20, 30), 20, np.uint8)
    write_labels(labels, folder / "labels" / "two.nii.gz", GRID)
    page = Page(write_predictions_page(folder / "labels", [folder / "one.nii.gz", folder / "two.nii.gz"], FLARE22))
    assert [row[0] for row in page.tables[0][1:]] == ["one"]
    assert "not in the page" in caplog.text and "two.nii.gz: found the label value 20" in caplog.text


def test_a_ct_that_is_gone_is_left_out(folder, caplog):
    (folder / "one.nii.gz").unlink()
    page = Page(write_predictions_page(folder / "labels", [folder / "one.nii.gz"], FLARE22))
    assert len(page.tables[0]) == 1 and not page.images and "viewer" not in page.sections
    assert "not in the page" in caplog.text and "one.nii.gz: no such file" in caplog.text


def test_cts_are_read_for_pictures_and_the_viewer_only(folder, monkeypatch):
    """The viewer has room for one case, and the page for one picture."""
    names = ("one", "three", "two")
    for name in names[1:]:
        shutil.copy(folder / "labels" / "one.nii.gz", folder / "labels" / f"{name}.nii.gz")
        shutil.copy(folder / "one.nii.gz", folder / f"{name}.nii.gz")
    images = [folder / f"{name}.nii.gz" for name in names]
    embedded = EmbeddedCases(FLARE22)
    ct, labels = (
        read(path).array for read, path in ((read_ct, images[0]), (read_labels, folder / "labels/one.nii.gz"))
    )
    embedded.add(ShownCase("one", "", ct, GRID.spacing[::-1], None, {"prediction": labels}))
    monkeypatch.setattr(viewer, "MOST_BYTES", int(1.5 * embedded.cases[0].size))
    monkeypatch.setattr(predictions_page, "MOST_PICTURES", 1)
    read = []
    monkeypatch.setattr(predictions_page, "read_ct", lambda path: read.append(path) or read_ct(path))
    page = Page(write_predictions_page(folder / "labels", images, FLARE22))
    assert [row[:2] for row in page.tables[0][1:]] == [[name, "2.0"] for name in names] and len(page.images) == 1
    assert read == images[:2]  # the second one did not fit
    assert "The viewer has 1 of 3 cases" in page.text and "The first 1 of 3 cases have a picture." in page.text
