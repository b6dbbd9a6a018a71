"""The viewer: what a page embeds, against the volumes themselves; and pages without it."""

import base64
import gzip
import json
import re
import shutil

import nibabel as nib
import numpy as np
import pytest

from dlunet.errors import UserError
from dlunet.labels import FLARE22
from dlunet.reporting import EmbeddedCases, ShownCase, read_report, viewer, write_report
from dlunet.volumes import Geometry, write_labels
from tests.reporting.conftest import GRID, SHAPE
from tests.reporting.html_page import Page

pytestmark = pytest.mark.usefixtures("blank_figures")
RNG = np.random.default_rng(3)


def case(name="a", shape=(7, 10, 13), spacing=(5.0, 1.5, 1.0)):
    image = RNG.normal(0, 300, shape).astype(np.float32)
    reference, prediction = (RNG.integers(0, 14, shape).astype(np.uint8) for _ in range(2))
    return ShownCase(name, "worst, DSC 0.5", image, spacing, reference, {"bcp": prediction, "sup": None})


def unpacked(text):
    return nib.Nifti1Image.from_bytes(gzip.decompress(base64.b64decode(text)))


def embedded(*cases):
    page = EmbeddedCases(FLARE22)
    for each in cases:
        page.add(each)
    return page


def data_of(page_file):
    return json.loads(re.search(r'id="viewer-data">(.*?)</script>', page_file.read_text())[1])


def test_embedded_volumes_are_means_and_middles_of_blocks():
    shown = case()
    page = embedded(shown)
    (found,) = page.data()["cases"]
    assert page.titles == ("bcp", "sup") and found["predictions"][1] is None and found["caption"] == "worst, DSC 0.5"
    image, reference, prediction = map(unpacked, (found["image"], found["reference"], found["predictions"][0]))
    assert image.shape == (13 // 3, 10 // 2, 7)  # 1 mm: three voxels are joined; 1.5 mm: two; 5 mm: none
    assert np.array_equal(image.header.get_zooms(), (3, 3, 5))
    for x in range(4):
        for y in range(5):
            for z in range(7):
                block = shown.image[z, 2 * y : 2 * y + 2, 3 * x : 3 * x + 3]
                assert abs(image.dataobj[x, y, z] - block.mean()) <= viewer.HU_STEP / 2 + 1e-3
                assert reference.dataobj[x, y, z] == shown.reference[z, 2 * y + 1, 3 * x + 1]
                assert prediction.dataobj[x, y, z] == shown.predictions["bcp"][z, 2 * y + 1, 3 * x + 1]


def test_a_file_in_any_orientation_lies_in_the_page_where_it_lies_in_the_patient(make_run, tmp_path, data):
    """The centre of a class, in mm from the centre of the volume, towards right, front and up as in NIfTI."""
    run = make_run("ssl_light")
    write_report(read_report([run]), tmp_path / "report", ["case_3"])
    (found,) = data_of(tmp_path / "report" / "index.html")["cases"]
    stored = nib.load(data / "Testing" / "labels" / "case_3.nii.gz")
    for label in FLARE22:
        centres = []
        for volume in (stored, unpacked(found["reference"])):
            voxels = np.asarray(volume.dataobj)
            middle = (np.array(voxels.shape) - 1) / 2
            centres.append(volume.affine[:3, :3] @ (np.argwhere(voxels == label.id).mean(axis=0) - middle))
        assert centres[0] == pytest.approx(centres[1], abs=1.5), label.name  # half a joined voxel


def test_thin_and_coarse_volumes_are_embedded_whole():
    (found,) = embedded(case(shape=(1, 4, 4), spacing=(0.5, 6.0, 6.0))).data()["cases"]
    assert unpacked(found["image"]).shape == (4, 4, 1)


def test_values_without_a_class_are_background():
    shown = case()
    shown.reference[:] = RNG.integers(0, 256, shown.reference.shape)
    (found,) = embedded(shown).data()["cases"]
    seen = np.asarray(unpacked(found["reference"]).dataobj).T
    expected = shown.reference[:, 1::2, 1::3]
    assert np.array_equal(seen, np.where(expected > 13, 0, expected))


def test_a_page_stays_small(monkeypatch):
    one = embedded(case()).cases[0].size
    monkeypatch.setattr(viewer, "MOST_BYTES", int(2.5 * one))
    page = embedded(case("large", (7, 30, 30)), *(case(name) for name in "abcd"))
    assert [each.name for each in page.cases] == ["a", "b"]
    assert page.note == "The viewer has 2 of 5 cases, to keep the page small."


def test_the_first_case_that_does_not_fit_ends_the_viewer(monkeypatch):
    """What comes after it is not worth reading."""
    shown = [case("a"), case("larger", (7, 12, 15)), case("b")]
    sizes = [embedded(each).cases[0].size for each in shown]
    monkeypatch.setattr(viewer, "MOST_BYTES", sizes[0] + sizes[2])
    assert sizes[0] + sizes[1] > sizes[0] + sizes[2] > sizes[1]
    page = embedded(*shown)
    assert [each.name for each in page.cases] == ["a"] and not page.has_room
    assert page.note == "The viewer has 1 of 3 cases, to keep the page small."


@pytest.fixture
def no_bundle():
    """Bundles are read once per process."""
    viewer.bundle.cache_clear()
    yield
    viewer.bundle.cache_clear()


@pytest.mark.parametrize("reason", ["not installed", "another bundle", "no bundle"])
def test_without_niivue_the_pictures_stay(make_run, tmp_path, monkeypatch, no_bundle, reason):
    changed = {
        "not installed": ("PACKAGE", "dlunet_has_no_such_package"),
        "another bundle": ("CREATION", re.compile("never found in a bundle")),
        "no bundle": ("BUNDLE", "static/nothing.js"),
    }
    monkeypatch.setattr(viewer, *changed[reason])
    page = Page(write_report(read_report([make_run("ssl_light")]), tmp_path / "report"))
    assert "viewer" not in page.sections and "case_1" in page.images[-1]["alt"]
    assert "The viewer is left out: it needs NiiVue" in page.text and "pip install 'dlunet[viewer]'" in page.text


def test_the_bundle_is_one_script_without_exports():
    code = gzip.decompress(base64.b64decode(viewer.bundle())).decode()
    assert re.search(r"globalThis\.Niivue=[\w$]+;$", code) and not re.search(r"^(import|export)\b", code, re.MULTILINE)


def test_cases_are_chosen_by_name(make_run, tmp_path):
    report = read_report([make_run("ssl_light")])
    page = Page(write_report(report, tmp_path / "report", ["case_2", "case_3"]))
    assert {each["name"] for each in data_of(tmp_path / "report" / "index.html")["cases"]} == {"case_2", "case_3"}
    assert "case_2" in page.images[-1]["alt"] and "case_1" not in page.images[-1]["alt"]
    with pytest.raises(UserError, match=r"cases: found case_9; expected names of scored cases: case_1, case_2"):
        write_report(report, tmp_path / "report", ["case_9"])
    with pytest.raises(UserError, match="cases: found an empty list"):
        write_report(report, tmp_path / "report", [])


def test_a_chosen_case_that_cannot_be_shown_is_named(make_run, tmp_path):
    runs = [make_run("sup_light"), make_run("ssl_light")]
    (runs[1] / "predictions" / "case_2.nii.gz").unlink()
    page = Page(write_report(read_report(runs), tmp_path / "report", ["case_2", "case_3"]))
    assert "case_2: not shown: ssl_light has no score, prediction, CT or reference of it" in page.text


def test_no_name_of_an_experiment_takes_the_place_of_the_reference(make_run, tmp_path):
    names = ("reference", "bcp", "image", "7")
    runs = [make_run(name, error=error, parts_of=("m.M", "n.N", "l.L")) for error, name in enumerate(names, start=1)]
    write_report(read_report(runs), tmp_path / "report", ["case_1"])
    data = data_of(tmp_path / "report" / "index.html")
    (found,) = data["cases"]
    predicted = {name: nib.load(run / "predictions" / "case_1.nii.gz") for name, run in zip(names, runs, strict=True)}
    assert set(data["titles"]) == set(names)
    for title, volume in zip(data["titles"], found["predictions"], strict=True):
        expected = np.asarray(predicted[title].dataobj)[1::2, 1::2]  # 1.5 mm, 1.5 mm and 4 mm
        assert np.array_equal(np.asarray(unpacked(volume).dataobj), expected), title


@pytest.mark.parametrize("difference", ["fewer slices", "shifted"])
def test_label_maps_on_another_grid_than_their_ct_are_not_shown(make_run, tmp_path, data, difference):
    run = make_run("ssl_light")
    x, y, z = GRID.origin
    grid = Geometry((*SHAPE[:0:-1], 5), GRID.spacing, GRID.origin, GRID.direction)
    if difference == "shifted":
        grid = Geometry(GRID.size, GRID.spacing, (x, y + 30, z), GRID.direction)
    write_labels(np.ones(grid.size[::-1], np.uint8), run / "predictions" / "case_1.nii.gz", grid)
    page = Page(write_report(read_report([run]), tmp_path / "report", ["case_1"]))
    assert "case_1.nii.gz: geometry (size, spacing, orientation) differs" in page.text
    assert data_of(tmp_path / "report" / "index.html")["cases"][0]["predictions"] == [None]
    references = json.loads((run / "scores" / "references.json").read_text())
    shutil.copy(run / "predictions" / "case_1.nii.gz", tmp_path / "other.nii.gz")
    references["case_1"] = str(tmp_path / "other.nii.gz")
    (run / "scores" / "references.json").write_text(json.dumps(references))
    page = Page(write_report(read_report([run]), tmp_path / "report", ["case_1"]))
    assert "case_1: not shown: " in page.text and "viewer" not in page.sections


def test_a_case_of_the_same_name_in_other_data_is_not_shown_on_this_ct(make_run, tmp_path):
    runs = [make_run("sup_light"), make_run("ssl_light", data_name="others")]
    references = json.loads((runs[0] / "scores" / "references.json").read_text())
    references["case_1"] = references["case_2"]
    (runs[0] / "scores" / "references.json").write_text(json.dumps(references))
    page = Page(write_report(read_report(runs), tmp_path / "report", ["case_1"]))
    assert "is of another case_1 than the one shown" in page.text
    (found,) = data_of(tmp_path / "report" / "index.html")["cases"]
    assert [volume is None for volume in found["predictions"]] == [True, False]
