"""From CT files to label files."""

import csv
import os
import re
from itertools import permutations, product

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from torch import nn

from dlunet.errors import UserError
from dlunet.inference import Predictor, find_images, predict_files
from dlunet.labels import FLARE22
from dlunet.networks import Bundle
from dlunet.preparation import Intensity, Plan

PLAN = Plan((8.0, 8.0, 8.0), (16, 32, 32), Intensity(-1000, 400, 0, 100))
WRITTEN = ["FLARETs_0001.nii.gz", "FLARETs_0002.nii.gz", "efficiency.csv", "prediction.json"]


class BrighterThan(nn.Module):
    """Class 1 above 0 HU, class 13 above 200 HU: whatever is done to the volume, its labels are known."""

    def forward(self, x):
        zero = torch.zeros_like(x)
        return torch.cat([zero, x, *[zero - 99] * 11, 2 * x - 2], dim=1)


def expected_labels(hu):
    return np.select([hu > 200, hu > 0], [13, 1], 0)


@pytest.fixture
def predictor():
    return Predictor(Bundle(BrighterThan(), PLAN, FLARE22))


@pytest.fixture
def images(tiny_root):
    return sorted((tiny_root / "Testing" / "images").iterdir())


def read(path):
    image = sitk.ReadImage(str(path))
    return sitk.GetArrayFromImage(image), image


def seconds(output):
    with (output / "efficiency.csv").open(newline="") as lines:
        return {row["case"]: float(row["seconds"]) for row in csv.DictReader(lines)}


@pytest.mark.parametrize("flips", ["none", "axes", "full"])
def test_labels_lie_on_the_inputs_own_grid(predictor, images, tmp_path, flips):
    """The CTs have the plan's spacing, so that nothing is interpolated and every voxel's label is known."""
    predict_files(Predictor(predictor.bundle, flips=flips), images, tmp_path)
    assert sorted(os.listdir(tmp_path)) == WRITTEN
    for path in images:
        hu, ct = read(path)
        labels, written = read(tmp_path / path.name.replace("_0000", ""))
        np.testing.assert_array_equal(labels, expected_labels(hu))
        assert written.GetPixelID() == sitk.sitkUInt8
        for what in ("GetSize", "GetSpacing", "GetOrigin", "GetDirection"):
            assert getattr(written, what)() == pytest.approx(getattr(ct, what)())
    assert list(seconds(tmp_path)) == ["FLARETs_0001", "FLARETs_0002"]
    assert all(value > 0 for value in seconds(tmp_path).values())


def test_another_spacing_and_every_kind_of_orientation(predictor, tmp_path, write_volume):
    """The same smooth CT in all 48 orientations gives the same labels, which follow it but for a thin rim."""
    z, y, x = np.indices((20, 60, 50))
    hu = (300 - 40 * np.hypot((z - 8) / 2, np.hypot((y - 25) / 4, (x - 20) / 4))).astype(np.float32)
    found = []
    for orientation in ("".join(word) for axes in permutations(("LR", "PA", "SI")) for word in product(*axes)):
        path = tmp_path / f"{orientation}.nii.gz"
        write_volume(path, hu, spacing=(10, 5, 6), orientation=orientation)
        predict_files(predictor, [path], tmp_path / "out")
        labels = sitk.DICOMOrient(sitk.ReadImage(str(tmp_path / "out" / path.name)), "LPS")
        found.append(sitk.GetArrayFromImage(labels))
        np.testing.assert_array_equal(found[-1], found[0])
    assert len(found) == 48
    assert (found[0] != expected_labels(hu)).mean() < 0.02
    assert all((found[0] == value).sum() > 200 for value in (1, 13))


def test_a_finished_case_is_skipped_and_a_new_one_is_added(predictor, images, tmp_path):
    predict_files(predictor, images[:1], tmp_path)
    first, before = tmp_path / "FLARETs_0001.nii.gz", seconds(tmp_path)
    stamp = first.stat().st_mtime_ns
    (tmp_path / ".99.FLARETs_0002.nii.gz").write_text("half-written")
    predict_files(predictor, images, tmp_path)
    assert first.stat().st_mtime_ns == stamp
    assert list(seconds(tmp_path)) == ["FLARETs_0001", "FLARETs_0002"]
    assert seconds(tmp_path)["FLARETs_0001"] == before["FLARETs_0001"]
    np.testing.assert_array_equal(read(tmp_path / "FLARETs_0002.nii.gz")[0], expected_labels(read(images[1])[0]))


def test_labels_made_otherwise_are_not_taken_for_finished(predictor, images, tmp_path):
    predict_files(predictor, images[:1], tmp_path)
    with pytest.raises(UserError, match=f"^{tmp_path}: holds labels made otherwise .flips: found none, now full"):
        predict_files(Predictor(predictor.bundle, flips="full"), images, tmp_path)
    predictor.bundle.network.register_buffer("other", torch.ones(1))
    with pytest.raises(UserError, match=r"holds labels made otherwise \(weights"):
        predict_files(predictor, images, tmp_path)
    assert not (tmp_path / "FLARETs_0002.nii.gz").exists()


def test_a_bad_case_is_reported_while_the_others_are_done(predictor, images, tmp_path, caplog):
    bad = tmp_path / "bad.nii.gz"
    bad.write_text("not a CT")
    with pytest.raises(UserError, match=f"1 of 3 cases could not be segmented.*{bad}"):
        predict_files(predictor, [images[0], bad, images[1]], tmp_path / "out")
    assert f"{bad}: cannot be read as a volume" in caplog.text
    assert sorted(os.listdir(tmp_path / "out")) == WRITTEN


def test_two_inputs_of_one_name_are_refused(predictor, tmp_path):
    inputs = [tmp_path / "a" / "x_0000.nii.gz", tmp_path / "b" / "x.mha"]
    with pytest.raises(UserError, match=f"several inputs are called x.*{tmp_path / 'out' / 'x'}.nii.gz"):
        predict_files(predictor, inputs, tmp_path / "out")


def test_an_output_that_is_a_file(predictor, images, tmp_path):
    output = tmp_path / "out"
    output.write_text("")
    with pytest.raises(UserError, match=f"^{output}: cannot be made a folder"):
        predict_files(predictor, images, output)


def test_find_images(images, tmp_path):
    assert find_images(images[0]) == [images[0]]
    assert find_images(images[0].parent) == images
    (tmp_path / "notes.txt").touch()
    for source, message in ((tmp_path, "holds no CT"), (tmp_path / "gone", "no such file or folder")):
        with pytest.raises(UserError, match=f"^{re.escape(str(source))}: {message}; expected"):
            find_images(source)
