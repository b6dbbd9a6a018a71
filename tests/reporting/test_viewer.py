"""The viewer: what a page embeds, against the volumes themselves; and pages without it."""

import base64
import gzip
import json
import re

import nibabel as nib
import numpy as np
import pytest

from dlunet.errors import UserError
from dlunet.labels import FLARE22
from dlunet.reporting import EmbeddedCases, ShownCase, read_report, viewer, write_report
from tests.reporting.html_page import Page

RNG = np.random.default_rng(3)


def case(name="a", shape=(7, 10, 13), spacing=(5.0, 1.5, 1.0)):
    image = RNG.normal(0, 300, shape).astype(np.float32)
    maps = {title: RNG.integers(0, 14, shape).astype(np.uint8) for title in ("reference", "ssl")}
    return ShownCase(name, "worst, DSC 0.5", image, spacing, {**maps, "sup": None})


def unpacked(text):
    return nib.Nifti1Image.from_bytes(gzip.decompress(base64.b64decode(text)))


def embedded(*cases):
    page = EmbeddedCases()
    for each in cases:
        page.add(each)
    return page


def test_embedded_volumes_are_means_and_middles_of_blocks():
    shown = case()
    (found,) = embedded(shown).data(FLARE22)["cases"]
    assert set(found["maps"]) == {"reference", "ssl"} and found["caption"] == "worst, DSC 0.5"
    image, maps = unpacked(found["image"]), {title: unpacked(text) for title, text in found["maps"].items()}
    assert image.shape == (13 // 3, 10 // 2, 7)  # 1 mm: three voxels are joined; 1.5 mm: two; 5 mm: none
    assert np.array_equal(image.header.get_zooms(), (3, 3, 5))
    for x in range(4):
        for y in range(5):
            for z in range(7):
                block = shown.image[z, 2 * y : 2 * y + 2, 3 * x : 3 * x + 3]
                assert abs(image.dataobj[x, y, z] - block.mean()) <= viewer.HU_STEP / 2 + 1e-3
                for title, volume in maps.items():
                    assert volume.dataobj[x, y, z] == shown.maps[title][z, 2 * y + 1, 3 * x + 1]


def test_embedded_volumes_point_to_the_left_the_back_and_up():
    (found,) = embedded(case()).data(FLARE22)["cases"]
    assert nib.aff2axcodes(unpacked(found["image"]).affine) == ("L", "P", "S")


def test_thin_and_coarse_volumes_are_embedded_whole():
    (found,) = embedded(case(shape=(1, 4, 4), spacing=(0.5, 6.0, 6.0))).data(FLARE22)["cases"]
    assert unpacked(found["image"]).shape == (4, 4, 1)


def test_a_page_stays_small(monkeypatch):
    one = embedded(case()).cases[0].size
    monkeypatch.setattr(viewer, "MOST_BYTES", int(2.5 * one))
    page = embedded(*(case(name) for name in "abcde"))
    assert [each.name for each in page.cases] == ["a", "b"]
    assert page.note == "The viewer has the first 2 cases: 3 are left out to keep the page small."


@pytest.fixture
def no_bundle():
    """Bundles are read once per process."""
    viewer.bundle.cache_clear()
    yield
    viewer.bundle.cache_clear()


@pytest.mark.parametrize("reason", ["not installed", "another bundle"])
def test_without_niivue_the_pictures_stay(make_run, tmp_path, monkeypatch, no_bundle, reason):
    if reason == "not installed":
        monkeypatch.setattr(viewer, "PACKAGE", "dlunet_has_no_such_package")
    else:
        monkeypatch.setattr(viewer, "CREATION", re.compile("never found in a bundle"))
    page = Page(write_report(read_report([make_run("ssl_light")]), tmp_path / "report"))
    assert "viewer" not in page.sections and "case_1" in page.images[-1]["alt"]
    assert "The viewer is left out: it needs NiiVue, which pip install 'dlunet[viewer]' adds." in page.text


def test_the_bundle_is_one_script_without_exports():
    code = gzip.decompress(base64.b64decode(viewer.bundle())).decode()
    assert re.search(r"globalThis\.Niivue=[\w$]+;$", code) and not re.search(r"^(import|export)\b", code, re.MULTILINE)


def test_cases_are_chosen_by_name(make_run, tmp_path):
    report = read_report([make_run("ssl_light")])
    page = Page(write_report(report, tmp_path / "report", ["case_2", "case_3"]))
    source = (tmp_path / "report" / "index.html").read_text()
    data = json.loads(re.search(r'id="viewer-data">(.*?)</script>', source)[1])
    assert {each["name"] for each in data["cases"]} == {"case_2", "case_3"}
    assert "case_2" in page.images[-1]["alt"] and "case_1" not in page.images[-1]["alt"]
    with pytest.raises(UserError, match=r"cases: found case_9; expected names of scored cases: case_1, case_2"):
        write_report(report, tmp_path / "report", ["case_9"])
