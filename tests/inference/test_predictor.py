"""From CT files to label maps."""

import csv
import json
import os
import re
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from itertools import permutations, product
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest
import SimpleITK as sitk
import torch
from scipy.spatial.transform import Rotation
from torch import nn

from dlunet.errors import UserError, WriteError
from dlunet.files import TEMPORARY
from dlunet.inference import Extras, Predictor, find_images, labels_on_grid, predict_files, predict_logits
from dlunet.labels import FLARE22
from dlunet.networks import Bundle, LightUNet
from dlunet.preparation import Intensity, Plan, prepare_image
from dlunet.volumes import case_name, read_ct

PLAN = Plan((8.0, 8.0, 8.0), (16, 32, 32), Intensity(-1000, 400, 0, 100))
WRITTEN = ["FLARETs_0001.nii.gz", "FLARETs_0002.nii.gz", "efficiency.csv", "prediction.json"]


class BrighterThan(nn.Module):
    """Class 1 above 0 HU, class 13 above 200 HU: the expected labels follow from the CT alone."""

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


@pytest.mark.parametrize(("flips", "mirrored"), [("none", False), ("axes", True), ("axes", None), ("full", False)])
def test_flips_of_a_network_that_has_seen_no_mirrored_ct_are_warned_of(predictor, caplog, flips, mirrored):
    described = {} if mirrored is None else {"mirrored": mirrored}
    Predictor(replace(predictor.bundle, description=described), flips=flips)
    assert (f"flips={flips}: this network was trained without mirrored CTs" in caplog.text) == (flips == "full")


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
    """A smooth CT gives the same labels in all 48 orientations, correct except for a thin rim."""
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
    ended = subprocess.Popen(["true"])
    ended.wait()
    (tmp_path / f"{TEMPORARY}{ended.pid}.FLARETs_0002.nii.gz").write_text("half-written")
    predict_files(predictor, images, tmp_path)
    predict_files(predictor, images, tmp_path)  # nothing left to do
    assert sorted(os.listdir(tmp_path)) == WRITTEN
    assert first.stat().st_mtime_ns == stamp
    assert list(seconds(tmp_path)) == ["FLARETs_0001", "FLARETs_0002"]
    assert seconds(tmp_path)["FLARETs_0001"] == before["FLARETs_0001"]
    np.testing.assert_array_equal(read(tmp_path / "FLARETs_0002.nii.gz")[0], expected_labels(read(images[1])[0]))


def test_labels_made_otherwise_are_not_taken_for_finished(predictor, images, tmp_path):
    predict_files(predictor, images[:1], tmp_path)
    with pytest.raises(UserError, match=f"^{tmp_path}: contains .* different settings .flips: found none, now full"):
        predict_files(Predictor(predictor.bundle, flips="full"), images, tmp_path)
    other = Predictor(replace(predictor.bundle, digest="other"))
    with pytest.raises(UserError, match=r"different settings \(weights"):
        predict_files(other, images, tmp_path)
    assert not (tmp_path / "FLARETs_0002.nii.gz").exists()


def test_a_bad_case_is_reported_while_the_others_are_done(predictor, images, tmp_path, caplog):
    bad = tmp_path / "bad.nii.gz"
    bad.write_text("not a CT")
    with pytest.raises(UserError, match=f"1 of 3 cases could not be segmented.*{bad}"):
        predict_files(predictor, [images[0], bad, images[1]], tmp_path / "out")
    assert f"{bad}: cannot be read as a volume" in caplog.text
    assert sorted(os.listdir(tmp_path / "out")) == WRITTEN


@pytest.mark.parametrize(("flips", "tile_step"), [("none", 0.5), ("axes", 0.5), ("full", 0.5), ("none", 0.3)])
@pytest.mark.parametrize("shape", [(40, 70, 33), (16, 32, 32), (9, 50, 20), (1, 40, 40), (3, 8, 8)], ids=str)
def test_streamed_labels_are_those_of_the_whole_volume(shape, flips, tile_step, tmp_path, write_volume):
    """Volumes longer than the patch, equal to it and shorter; logits depend on a voxel's position in its tile."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv3d(1, 8, 5, padding=2), nn.InstanceNorm3d(8), nn.Conv3d(8, 14, 3, padding=1)).eval()
    hu = np.random.default_rng(0).normal(0, 300, shape)
    volume = read_ct(write_volume(tmp_path / "ct.nii.gz", hu.astype(np.float32), spacing=(11, 7, 9)))
    predictor = Predictor(Bundle(network, PLAN, FLARE22), tile_step, flips)
    labels, tiles = predictor.segment(volume), []
    prepared = torch.from_numpy(prepare_image(volume.array, volume.spacing, PLAN))
    logits = predict_logits(network, prepared, PLAN.patch_size, tile_step, flips)
    np.testing.assert_array_equal(labels, labels_on_grid([logits], logits.shape[1:], shape))
    assert labels.shape == shape and len(np.unique(labels)) > 3
    predictor.label(prepared, shape, after_tile=lambda: tiles.append(1))
    assert len(tiles) == predictor.count_tiles(prepared)


@pytest.mark.parametrize("orientation", ["LPS", "RAI", "SLP"])
def test_oblique_directions(predictor, tmp_path, write_volume, orientation):
    """An oblique grid changes the positions of voxels, not their values: labels are those of the upright CT."""
    hu = np.random.default_rng(0).normal(0, 200, (18, 34, 40)).astype(np.int16)
    tilt = Rotation.from_euler("ZYX", [20, -15, 10], degrees=True).as_matrix()
    for name, rotation in (("upright", None), ("oblique", tilt)):
        grid = {"spacing": (8, 7, 9), "origin": (30, -20, 10), "orientation": orientation, "rotation": rotation}
        predict_files(predictor, [write_volume(tmp_path / f"{name}.nii.gz", hu, **grid)], tmp_path / "out")
    upright, oblique = (read(tmp_path / "out" / f"{name}.nii.gz") for name in ("upright", "oblique"))
    np.testing.assert_array_equal(oblique[0], upright[0])
    assert len(np.unique(oblique[0])) == 3
    _, ct = read(tmp_path / "oblique.nii.gz")
    for what in ("GetSize", "GetSpacing", "GetOrigin", "GetDirection"):
        assert getattr(oblique[1], what)() == pytest.approx(getattr(ct, what)(), abs=1e-5)


@pytest.mark.parametrize("inserts", [0, 900])
def test_a_phantom_of_the_scanner(tmp_path, write_volume, inserts):
    """A calibration phantom without any anatomy: water in air, alone or with dense rods."""
    _, y, x = np.indices((12, 40, 40)) - np.array([0, 20, 20]).reshape(3, 1, 1, 1)
    hu = np.where(np.hypot(y, x) < 14, 0, -1000)
    hu[(np.hypot(y - 7, x) < 2) | (np.hypot(y + 7, x) < 2)] += inserts
    path = write_volume(tmp_path / "water.nii.gz", hu.astype(np.int16), spacing=(5, 7, 7))
    torch.manual_seed(0)
    predict_files(Predictor(Bundle(LightUNet(), PLAN, FLARE22)), [path], tmp_path / "out", extras=Extras(overlay=True))
    assert read(tmp_path / "out" / "water.nii.gz")[0].shape == hu.shape
    assert plt.imread(tmp_path / "out" / "water.png").shape[2] == 4


@pytest.mark.parametrize("dtype", [np.int16, np.int32, np.float32, np.float64])
@pytest.mark.parametrize(
    ("shape", "spacing"), [((1, 40, 40), (5, 8, 8)), ((3, 40, 40), (5, 8, 8)), ((20, 40, 40), 8.0)]
)
def test_few_slices_other_types_and_padding_outside_the_scan(predictor, tmp_path, write_volume, shape, spacing, dtype):
    hu = np.full(shape, -3024.0)  # padding outside the scanner's circular field of view
    hu[:, 8:30, 8:30] = 100
    spacing = (spacing,) * 3 if isinstance(spacing, float) else spacing
    path = write_volume(tmp_path / "ct.nii.gz", hu.astype(dtype), spacing=spacing)
    predict_files(predictor, [path], tmp_path / "out")
    labels, written = read(tmp_path / "out" / "ct.nii.gz")
    np.testing.assert_array_equal(labels, expected_labels(hu))
    assert written.GetSpacing() == pytest.approx(spacing[::-1])


CPU_MEMORY = "[enforce fail at alloc_cpu.cpp:130] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to …"


@pytest.mark.parametrize("error", [torch.OutOfMemoryError(), MemoryError(), RuntimeError(CPU_MEMORY)])
def test_nothing_in_view_and_too_little_memory(predictor, images, tmp_path, write_volume, caplog, error):
    air = write_volume(tmp_path / "air.nii.gz", np.full((4, 40, 40), -1000, np.int16), spacing=(8.0, 8.0, 8.0))
    predict_files(Predictor(Bundle(LightUNet(), PLAN, FLARE22)), [air], tmp_path / "air")
    assert read(tmp_path / "air" / "air.nii.gz")[0].shape == (4, 40, 40)

    class Full(nn.Module):
        def forward(self, x):
            raise error

    with pytest.raises(UserError, match="2 of 2 cases"):
        predict_files(Predictor(Bundle(Full(), PLAN, FLARE22)), images, tmp_path / "full")
    assert f"{images[0]}: not enough memory" in caplog.text
    assert ("or choose device=cpu" in caplog.text) == isinstance(error, torch.OutOfMemoryError)  # on a GPU


def test_a_ct_that_would_be_too_large_is_a_case_that_failed(predictor, images, tmp_path, caplog, monkeypatch):
    monkeypatch.setattr("dlunet.preparation.prepare.MOST_VOXELS", 100)
    with pytest.raises(UserError, match="2 of 2 cases"):
        predict_files(predictor, images, tmp_path / "large")
    assert f"{images[0]}: would have " in caplog.text and "check its spacing" in caplog.text


def test_a_full_disk_stops_at_once(predictor, images, tmp_path, monkeypatch):
    """Otherwise all other CTs would be segmented for nothing, and the first few be taken for a success."""
    begun = []

    def full(labels, target, stored):
        raise WriteError.of(target, "No space left on device")

    monkeypatch.setattr(sys.modules["dlunet.inference.predict_files"], "write_labels", full)
    monkeypatch.setattr(Predictor, "label", lambda self, *rest: begun.append(rest) or np.zeros((1, 1, 1), np.uint8))
    inputs = tmp_path / "inputs"
    inputs.mkdir()
    for number in range(6):
        (inputs / f"case_{number}.nii.gz").symlink_to(images[0])
    with pytest.raises(WriteError, match=r"could not be written \(No space left on device\)"):
        predict_files(predictor, find_images(inputs), tmp_path / "out")
    assert len(begun) == 2  # the second one while the first was written


def test_killed_at_any_moment_and_run_again(images, tmp_path):
    """The labels are those of an uninterrupted run, and no partial file remains."""
    inputs, output = tmp_path / "inputs", tmp_path / "out"
    inputs.mkdir()
    for number in range(8):
        (inputs / f"case_{number}.nii.gz").symlink_to(images[number % 2])
    bundle = Bundle(BrighterThan(), PLAN, FLARE22)
    predict_files(Predictor(bundle), find_images(inputs), tmp_path / "whole")
    child = f"""
import sys, time
sys.path[:0] = [{str(Path(__file__).parent)!r}]
from test_predictor import *
class Slow(BrighterThan):
    def forward(self, x):
        time.sleep(0.05)
        return super().forward(x)
predict_files(Predictor(Bundle(Slow(), PLAN, FLARE22)), find_images(Path({str(inputs)!r})), Path({str(output)!r}))
"""
    for finished in (1, 4):
        with subprocess.Popen([sys.executable, "-c", child], stdout=subprocess.DEVNULL) as process:
            while len(list(output.glob("case_*"))) < finished and process.poll() is None:
                time.sleep(0.002)
            process.kill()
    assert 4 <= len(list(output.glob("case_*"))) < 8
    predict_files(Predictor(bundle), find_images(inputs), output)
    assert sorted(os.listdir(output)) == sorted(os.listdir(tmp_path / "whole"))
    for path in output.glob("*.nii.gz"):
        np.testing.assert_array_equal(read(path)[0], read(tmp_path / "whole" / path.name)[0])


def test_what_the_extras_write(predictor, images, tmp_path):
    extras = Extras(volumes=True, overlay=True, plot=True)
    predict_files(predictor, images[:1], tmp_path, extras=extras)
    predict_files(predictor, images, tmp_path, extras=extras)
    with (tmp_path / "volumes.csv").open(newline="") as lines:
        rows = {row["case"]: row for row in csv.DictReader(lines)}
    for path in images:
        name = path.name.removesuffix("_0000.nii.gz")
        labels, _ = read(tmp_path / f"{name}.nii.gz")
        assert float(rows[name]["Liver"]) == pytest.approx((labels == 1).sum() * 0.512)  # voxels of 8×8×8 mm
        assert float(rows[name]["Spleen"]) == 0
        picture = plt.imread(tmp_path / f"{name}.png")
        assert picture.shape[2] == 4 and picture[..., :3].std() > 0.05
    assert plt.imread(tmp_path / "efficiency.png").shape[2] == 4


def test_the_cost_of_a_case_that_failed_is_not_that_of_the_next_one(predictor, images, tmp_path, monkeypatch):
    """The first one takes an hour, by a clock that is set forward."""
    label, clock, hours = predictor.label, time.perf_counter, []

    def slow_first(prepared, shape, after_tile=None):
        if not hours:
            hours.append(3600)
            raise UserError("the first case cannot be segmented")
        return label(prepared, shape, after_tile)

    monkeypatch.setattr(predictor, "label", slow_first)
    monkeypatch.setattr(time, "perf_counter", lambda: clock() + sum(hours))
    with pytest.raises(UserError, match="1 of 2 cases could not be segmented"):
        predict_files(predictor, images, tmp_path)
    assert list(seconds(tmp_path)) == ["FLARETs_0002"] and seconds(tmp_path)["FLARETs_0002"] < 600


def test_a_case_whose_name_ends_like_a_channel(predictor, images, tmp_path):
    """Its output is called like its label map, and does not replace that of the case without the ending."""
    cts = [tmp_path / "cts" / name for name in ("a_0000.nii.gz", "a_0000_0000.nii.gz")]
    cts[0].parent.mkdir()
    for image, ct in zip(images, cts, strict=True):
        shutil.copy(image, ct)
    predict_files(predictor, cts, tmp_path / "out", extras=Extras(volumes=True, overlay=True))
    for name in ("a", "a_0000"):
        assert {f"{name}.nii.gz", f"{name}.png"} <= {*os.listdir(tmp_path / "out")}
    for table in ("volumes.csv", "efficiency.csv"):
        with (tmp_path / "out" / table).open(newline="") as lines:
            assert [row["case"] for row in csv.DictReader(lines)] == ["a", "a_0000"]


def test_a_list_of_inputs(predictor, images, tmp_path):
    (tmp_path / "beside.nii.gz").symlink_to(images[0])
    (tmp_path / "list.txt").write_text(f"beside.nii.gz\n\n{images[1]}\n")
    assert find_images(tmp_path / "list.txt") == [tmp_path / "beside.nii.gz", images[1]]
    (tmp_path / "typo.txt").write_text(f"gone.nii.gz\n{images[1]}\n")
    with pytest.raises(UserError, match=r"1 of 2 cases could not be segmented.*gone\.nii\.gz"):
        predict_files(predictor, find_images(tmp_path / "typo.txt"), tmp_path / "out")
    assert (tmp_path / "out" / "FLARETs_0002.nii.gz").exists()
    (tmp_path / "empty.txt").touch()
    with pytest.raises(UserError, match=r"empty\.txt: is empty"):
        find_images(tmp_path / "empty.txt")


@pytest.mark.parametrize(
    "encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "latin-1"], ids=lambda name: name
)
def test_a_list_in_whatever_encoding(images, tmp_path, encoding):
    for name in ("Größe ß.nii.gz", "plain.nii.gz"):
        (tmp_path / name).symlink_to(images[0])
    (tmp_path / "list.TXT").write_bytes("Größe ß.nii.gz\r\nplain.nii.gz\r\n".encode(encoding))
    assert find_images(tmp_path / "list.TXT") == [tmp_path / "Größe ß.nii.gz", tmp_path / "plain.nii.gz"]


@pytest.mark.parametrize("name", ["scan.nii", "scan.img", "scan.hdr", "a.b.c", "x" * 248, "ä" * 124, " blank "])
def test_names_that_a_writer_might_not_like(predictor, images, tmp_path, name):
    ct = tmp_path / "ct" / f"{name}.nii.gz"
    ct.parent.mkdir()
    shutil.copy(images[0], ct)
    predict_files(predictor, [ct], tmp_path / "out", extras=Extras(volumes=True, overlay=True))
    assert sorted(os.listdir(tmp_path / "out")) == sorted(
        [f"{name}.nii.gz", f"{name}.png", *WRITTEN[2:], "volumes.csv"]
    )
    labels, _ = read(tmp_path / "out" / f"{name}.nii.gz")
    np.testing.assert_array_equal(labels, expected_labels(read(images[0])[0]))


def test_labels_do_not_go_where_the_cts_lie(predictor, images, tmp_path):
    shutil.copy(images[0], tmp_path / "a.nii.gz")
    before = (tmp_path / "a.nii.gz").read_bytes()
    with pytest.raises(UserError, match=f"{tmp_path}: contains the input CTs.*choose another output"):
        predict_files(predictor, [tmp_path / "a.nii.gz"], tmp_path)
    assert (tmp_path / "a.nii.gz").read_bytes() == before and os.listdir(tmp_path) == ["a.nii.gz"]


def test_a_name_that_is_too_long_for_its_labels(predictor, tmp_path):
    with pytest.raises(UserError, match="its name has 249 bytes; expected at most 248; rename it"):
        predict_files(predictor, [tmp_path / ("x" * 249 + ".mha")], tmp_path / "out")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda hu: hu + 1024, "its lowest value is 0"),
        (lambda hu: hu + 1024.0, "its lowest value is 0"),
        (lambda hu: (hu + 1024) / 2048, "its lowest value is 0"),
        (lambda hu: hu / 1000, "its lowest value is -1"),
        (lambda hu: hu.clip(-160, 240), "its lowest value is -160"),
        (lambda hu: hu - 1024, "of its voxels lie between -200 and 300"),
        (lambda hu: hu.astype(np.uint16), "its lowest value is"),
    ],
)
def test_a_ct_that_is_not_in_hu_is_segmented_with_a_warning_or_not_at_all(
    predictor, tiny_abdomen, tmp_path, write_volume, caplog, change, said
):
    hu = np.maximum(tiny_abdomen(0).hu, -1024)
    hu[0, 0, 0] = -1024
    odd, sound = (
        write_volume(tmp_path / f"{name}.nii.gz", values, spacing=(8.0, 8.0, 8.0))
        for name, values in (("odd", change(hu)), ("sound", hu))
    )
    predict_files(predictor, [odd, sound], tmp_path / "out")
    assert said in caplog.text and "sound" not in caplog.text
    ((case, (message,)),) = json.loads((tmp_path / "out" / "prediction.json").read_text())["warnings"].items()
    assert case == "odd" and said in message
    with pytest.raises(UserError, match=f"1 of 2 cases could not be segmented.*{odd}"):
        predict_files(predictor, [odd, sound], tmp_path / "strict", strict=True)
    assert [path.name for path in (tmp_path / "strict").glob("*.nii.gz")] == ["sound.nii.gz"]
    caplog.clear()
    predict_files(predictor, [odd, sound], tmp_path / "out", strict=True)
    assert "label maps with warnings are kept" in caplog.text and caplog.text.endswith("checked: odd\n")
    shutil.copy(sound, odd)  # corrected and segmented again
    (tmp_path / "out" / "odd.nii.gz").unlink()
    predict_files(predictor, [odd, sound], tmp_path / "out")
    assert json.loads((tmp_path / "out" / "prediction.json").read_text())["warnings"] == {}


def test_an_organ_on_the_wrong_side_is_noticed(tmp_path, write_volume, caplog):
    """Class 2, the right kidney, at large x of the array, which is the patient's left."""
    hu = np.full((8, 40, 40), -900.0)
    hu[2:6, 10:20, 4:14], hu[2:6, 10:20, 26:36] = 100, 300
    network = nn.Conv3d(1, 14, 1)
    for image, swapped in ((hu, True), (hu[..., ::-1], False)):
        caplog.clear()
        with torch.no_grad():  # right kidney above 200 HU, left kidney from 0 to 200
            network.weight.zero_(), network.bias.fill_(-99)
            network.bias[[0, 2, 13]] = torch.tensor([0.0, -2.0, 0.0])
            network.weight[[2, 13], 0, 0, 0, 0] = torch.tensor([2.0, 1.0])
        path = write_volume(tmp_path / f"{swapped}.nii.gz", image.astype(np.float32), spacing=(8.0, 8.0, 8.0))
        predict_files(Predictor(Bundle(network.eval(), PLAN, FLARE22)), [path], tmp_path / "out")
        assert ("Right kidney lies to the patient's left of Left kidney" in caplog.text) is swapped


def test_two_inputs_of_one_name_are_refused(predictor, tmp_path):
    inputs = [tmp_path / "a" / "x_0000.nii.gz", tmp_path / "b" / "x.mha"]
    with pytest.raises(UserError, match=f"several inputs are named x.*{tmp_path / 'out' / 'x'}.nii.gz"):
        predict_files(predictor, inputs, tmp_path / "out")


def test_an_output_that_is_a_file(predictor, images, tmp_path):
    output = tmp_path / "out"
    output.write_text("")
    with pytest.raises(UserError, match=f"^{output}: cannot create directory"):
        predict_files(predictor, images, output)


def test_find_images(images, tmp_path):
    assert find_images(images[0]) == [images[0]]
    assert find_images(images[0].parent) == images
    (tmp_path / "notes.txt").touch()
    for source, message in ((tmp_path, "contains no CT"), (tmp_path / "gone", "no such file or folder")):
        with pytest.raises(UserError, match=f"^{re.escape(str(source))}: {message}; expected"):
            find_images(source)


def test_what_is_meant_as_a_ct_and_is_none_is_a_case_that_failed(predictor, images, tmp_path, caplog):
    """A folder without slices is reported but is not a case; unreadable files of the same name count as one case."""
    folder = Path(shutil.copytree(images[0].parent, tmp_path / "in"))
    (folder / "series").mkdir()
    (folder / "series" / "IM1.dcm").touch()
    (folder / "gone").symlink_to(tmp_path / "nowhere")
    for name in ("c.mhd", "d.hdr", "d.img", f"{case_name(images[0])}.mhd"):
        (folder / name).touch()
    (folder / "notes").mkdir()
    with pytest.raises(UserError, match=r"4 of 6 cases could not be segmented") as error:
        predict_files(predictor, find_images(folder), tmp_path / "out")
    assert "notes" not in str(error.value)
    said = caplog.text
    for name, reason in {
        "series": "contains no DICOM series",
        "gone": "no such file",
        "c.mhd": "is not a supported format",
        "d.hdr": "is not a supported format",
        "notes": "is a folder without DICOM slices",
    }.items():
        assert f"{folder / name}: {reason}" in said
    assert sorted(path.name for path in (tmp_path / "out").glob("*.nii.gz")) == [
        f"{case_name(path)}.nii.gz" for path in images
    ]
