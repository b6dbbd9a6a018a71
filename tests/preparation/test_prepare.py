"""From FLARE22 files to prepared cases: values, which cases are prepared again, and bad cases."""

import json
import logging
import os
import shutil
import subprocess
from dataclasses import replace

import numpy as np
import pytest
import SimpleITK as sitk
from scipy import ndimage

from dlunet.datasets import read_case, read_flare22
from dlunet.errors import UserError
from dlunet.files import TEMPORARY
from dlunet.labels import FLARE22
from dlunet.preparation import PreparedCase, prepare_dataset

SPACING, PATCH = (10.0, 8.0, 6.0), (16, 32, 32)


@pytest.fixture
def root(tiny_root, tmp_path):
    return shutil.copytree(tiny_root, tmp_path / "flare22")


@pytest.fixture
def prepare(root, tmp_path):
    """Prepare in this process, for speed."""
    return lambda spacing=SPACING, patch=PATCH: prepare_dataset(
        read_flare22(root), tmp_path / "prepared", spacing, patch, workers=1
    )


def times(folder):
    return {path.parent: path.stat().st_mtime_ns for path in folder.glob("*/*/case.json")}


def changed(before, after):
    return sorted(path.name for path in after if before.get(path) != after[path])


def ended_process():
    """The id of a process that no longer runs."""
    with subprocess.Popen(["true"]) as process:
        return process.pid


def test_values_against_numpy_and_scipy(root, prepare):
    """The files are RAS: SimpleITK's arrays are mirrored, clipped, normalised and zoomed by hand."""
    prepared = prepare()

    def read(path):
        return sitk.GetArrayFromImage(sitk.ReadImage(str(path)))[:, ::-1, ::-1].astype(float)

    cases = read_flare22(root).labelled
    foreground = np.concatenate([read(case.image)[read(case.label) > 0] for case in cases])
    low, high = np.percentile(foreground, [0.5, 99.5])
    factors = [8 / mm for mm in SPACING]  # 24×40×40 → 19×40×53
    for case, result in zip(cases, prepared.labelled, strict=True):
        values = (np.clip(read(case.image), low, high) - foreground.mean()) / foreground.std()
        expected = ndimage.zoom(values, factors, order=3, mode="nearest", grid_mode=True)
        assert result.shape == expected.shape == (19, 40, 53)
        stored = result.image[0] * result.quantisation_step
        np.testing.assert_allclose(stored, expected.clip(values.min(), values.max()), atol=3e-4)
        masks = [
            ndimage.zoom((read(case.label) == organ) * 1.0, factors, order=1, mode="nearest", grid_mode=True)
            for organ in range(14)
        ]
        clear = np.sort(masks, axis=0)[-1] - np.sort(masks, axis=0)[-2] > 1e-6  # ties: see test_resampling
        assert clear.mean() > 0.99
        np.testing.assert_array_equal(result.label[clear], np.argmax(masks, axis=0)[clear])
        assert set(result.ranges) == set(range(1, 14))
    assert (prepared.plan.spacing, prepared.plan.patch_size) == (SPACING, PATCH)
    assert (prepared.plan.intensity.lower, prepared.plan.intensity.upper) == pytest.approx((low, high))
    assert [len(part) for part in (prepared.labelled, prepared.unlabelled, prepared.validation)] == [3, 4, 1]
    assert all(case.label is None for case in prepared.unlabelled)


def test_slices_that_are_thick_are_not_interpolated_between(root, prepare, tiny_abdomen, write_volume):
    """As in nnU-Net: zoomed within each slice; along z, voxels and labels are those of the nearest slice."""
    abdomen, training = tiny_abdomen(0), root / "Training" / "FLARE22_LabeledCase50"
    hu, labels, grid = abdomen.hu[::4], abdomen.labels[::4], {"spacing": (32.0, 8.0, 8.0)}
    write_volume(training / "images" / "FLARE22_Tr_0001_0000.nii.gz", hu, **grid)
    write_volume(training / "labels" / "FLARE22_Tr_0001.nii.gz", labels, **grid)
    prepared = prepare()
    case, intensity = prepared.labelled[0], prepared.plan.intensity
    values = (np.clip(hu.astype(float), intensity.lower, intensity.upper) - intensity.mean) / intensity.std
    in_plane = (1, 8 / SPACING[1], 8 / SPACING[2])

    def zoom(volume, order):
        return ndimage.zoom(volume, in_plane, order=order, mode="nearest", grid_mode=True)

    lowest, highest = values.min((1, 2), keepdims=True), values.max((1, 2), keepdims=True)
    taken = ((np.arange(19) + 0.5) * 6 / 19).astype(int)  # 6 slices of 32 mm → 19 of 10 mm
    stored = case.image[0] * case.quantisation_step
    np.testing.assert_allclose(stored, zoom(values, 3).clip(lowest, highest)[taken], atol=3e-4)
    masks = np.sort([zoom((labels == organ) * 1.0, 1)[taken] for organ in range(14)], axis=0)
    clear = masks[-1] - masks[-2] > 1e-6
    expected = np.argmax([zoom((labels == organ) * 1.0, 1)[taken] for organ in range(14)], axis=0)
    assert clear.mean() > 0.99 and len(np.unique(expected)) > 5
    np.testing.assert_array_equal(case.label[clear], expected[clear])


def test_only_what_changed_is_done_again(root, prepare, tmp_path, write_volume):
    prepare()
    start = times(tmp_path / "prepared")
    assert len(start) == 8
    prepare(patch=(8, 16, 16))  # prepared cases do not depend on the patch
    assert times(tmp_path / "prepared") == start

    label = root / "Tuning" / "labels" / "FLARETs_0001.nii.gz"
    write_volume(label, np.ones((24, 40, 40), np.uint8), spacing=(8, 8, 8), orientation="RAS")
    assert list(prepare().validation[0].ranges) == [1]
    second = times(tmp_path / "prepared")
    assert changed(start, second) == ["FLARETs_0001"]

    assert prepare(spacing=(9.0, 8.0, 6.0)).labelled[0].shape == (21, 40, 53)
    assert len(changed(second, times(tmp_path / "prepared"))) == 8


def test_a_file_that_is_replaced_while_it_is_read_is_prepared_again(root, prepare, monkeypatch, write_volume):
    label = root / "Tuning" / "labels" / "FLARETs_0001.nii.gz"

    def read(case, num_classes):
        found = read_case(case, num_classes)
        if case.label == label:
            write_volume(label, np.ones((24, 40, 40), np.uint8), spacing=(8, 8, 8), orientation="RAS")
        return found

    with monkeypatch.context() as patch:
        patch.setattr("dlunet.preparation.prepare.read_case", read)
        assert list(prepare().validation[0].ranges) == list(range(1, 14))
    assert list(prepare().validation[0].ranges) == [1]


@pytest.mark.parametrize(
    ("part", "workers"),
    [("Training/FLARE22_LabeledCase50/images", 1), ("Training/FLARE22_UnlabeledCase1-1000", 2)],
)
def test_a_broken_ct_is_reported_and_left_out(root, tmp_path, caplog, part, workers):
    broken = sorted((root / part).iterdir())[1]
    broken.write_bytes(broken.read_bytes()[:-2000])
    with caplog.at_level(logging.WARNING):
        prepared = prepare_dataset(read_flare22(root), tmp_path / "prepared", SPACING, PATCH, workers)
    assert [record.getMessage() for record in caplog.records if str(broken) in record.getMessage()]
    names = [case.name for case in (*prepared.labelled, *prepared.unlabelled, *prepared.validation)]
    assert len(names) == 7 and broken.name.removesuffix("_0000.nii.gz") not in names


def test_a_stopped_process_ends_in_one_message(root, tmp_path, monkeypatch):
    monkeypatch.setattr("dlunet.parallel._begin_worker", os.abort)  # the first call in a worker
    with pytest.raises(UserError, match=r"was killed, probably out of memory.*data\.workers=1"):
        prepare_dataset(read_flare22(root), tmp_path / "prepared", SPACING, PATCH, workers=2)


def test_a_case_that_breaks_later_is_not_used_as_it_was(root, prepare):
    prepare()
    next((root / "Training/FLARE22_UnlabeledCase1-1000").iterdir()).write_text("not a CT")
    assert len(prepare().unlabelled) == 3


def test_labels_on_another_grid_leave_their_case_out(root, prepare, caplog, write_volume):
    label = root / "Training/FLARE22_LabeledCase50/labels/FLARE22_Tr_0002.nii.gz"
    write_volume(label, np.ones((24, 40, 40), np.uint8), spacing=(8, 8, 8), origin=(0, 0, 8))
    assert [case.name for case in prepare().labelled] == ["FLARE22_Tr_0001", "FLARE22_Tr_0003"]
    assert f"{label}: geometry (size, spacing, orientation) differs from" in caplog.text


def test_a_case_of_impossible_size_is_not_tried(prepare):
    with pytest.raises(UserError, match=r"would have .* voxels after resampling from .* to 0\.01×0\.01×0\.01 mm"):
        prepare(spacing=(0.01, 0.01, 0.01))


def test_without_one_labelled_case_nothing_can_be_done(root, prepare):
    images = sorted((root / "Training/FLARE22_LabeledCase50/images").iterdir())
    for image in images:
        image.write_text("not a CT")
    next((root / "Training/FLARE22_UnlabeledCase1-1000").iterdir()).write_text("not a CT")
    with pytest.raises(UserError, match=f"none of the 3 labelled cases.*{images[0]}"):
        prepare()


def test_a_half_written_case_is_not_taken_for_finished(prepare, tmp_path):
    """Killed while writing: the case has its temporary name or, were writes not atomic, lacks its last file."""
    first = prepare()
    killed, cut = first.labelled[0].folder, first.labelled[1].folder
    killed.rename(killed.with_name(f"{TEMPORARY}{ended_process()}.{killed.name}"))
    running, elsewhere = (f"{machine}{os.getppid()}.x" for machine in (TEMPORARY, ".elsewhere."))
    (killed.parent / running).mkdir()
    (killed.parent / elsewhere).mkdir()
    (cut / "case.json").unlink()
    again = prepare()
    assert [case.name for case in again.labelled] == [case.name for case in first.labelled]
    assert (killed / "case.json").exists() and (cut / "case.json").exists()
    np.testing.assert_array_equal(PreparedCase.open(cut).image, first.labelled[1].image)
    left = {path.name for path in cut.parent.glob(".*")}
    assert left == {running, elsewhere}  # folders that another run may still be writing stay


def test_what_a_killed_process_left_goes_though_all_cases_are_finished(prepare, tmp_path):
    prepared = prepare()
    folder = tmp_path / "prepared"
    before = {*folder.rglob("*")}
    for place in (folder, prepared.labelled[0].folder.parent, prepared.unlabelled[0].folder.parent):
        (place / f"{TEMPORARY}{ended_process()}.x").mkdir()
    prepare()
    assert {*folder.rglob("*")} == before


def test_the_fingerprint_follows_the_labels(root, prepare, tmp_path, write_volume):
    """Changed labels change the intensity range: every case is normalised again, so that all share one plan."""
    before = prepare()
    labelled = read_flare22(root).labelled
    labels = sitk.GetArrayFromImage(sitk.ReadImage(str(labelled[0].label)))
    write_volume(labelled[0].label, np.uint8(labels == 1)[:, ::-1, ::-1], spacing=(8, 8, 8), orientation="RAS")
    after = prepare()
    assert after.plan.intensity != before.plan.intensity
    stored = [json.loads((case.folder / "case.json").read_text())["made_from"]["plan"] for case in after.unlabelled]
    assert {plan["intensity"]["mean"] for plan in stored} == {after.plan.intensity.mean}
    assert replace(after.plan, intensity=before.plan.intensity) == before.plan


def test_a_ct_that_is_not_in_hu_is_warned_of_each_time_and_refused_where_strict(root, tmp_path, caplog, write_volume):
    odd = sorted((root / "Training/FLARE22_UnlabeledCase1-1000").iterdir())[1]
    hu = sitk.GetArrayFromImage(sitk.ReadImage(str(odd)))[:, ::-1, ::-1]
    write_volume(odd, hu + 1024, spacing=(8, 8, 8), orientation="RAS")

    def prepare(strict):
        caplog.clear()
        return prepare_dataset(read_flare22(root), tmp_path / "prepared", SPACING, PATCH, workers=1, strict=strict)

    for _ in range(2):
        assert len(prepare(strict=False).unlabelled) == 4
        assert caplog.text.count("warning: Case_00002: its lowest value is") == 1
    for _ in range(2):
        with pytest.raises(UserError, match=r"strict=true.*\n  Case_00002: its lowest value is"):
            prepare(strict=True)


def test_a_class_that_no_labelled_case_has_is_said(root, prepare, caplog):
    labelled = read_flare22(root).labelled
    for case in labelled:
        drawn = sitk.ReadImage(str(case.label))
        sitk.WriteImage(sitk.ChangeLabel(drawn, {5: 0}), str(case.label))
    with caplog.at_level(logging.WARNING):
        prepare()
    name = next(label.name for label in FLARE22 if label.id == 5)
    assert [message for message in caplog.messages if "cannot learn" in message] == [
        f"warning: {name}: not in any labelled case; a network cannot learn it"
    ]


def test_classes_that_are_too_small_for_the_spacing_are_said(root, prepare, caplog):
    def classes(array):
        return set(np.unique(array)) - {0}

    dataset = read_flare22(root)
    cases = [*dataset.labelled, *dataset.validation]
    drawn = sitk.ReadImage(str(cases[0].label))
    drawn[1, 1, 1] = 13
    sitk.WriteImage(drawn, str(cases[0].label))
    with caplog.at_level(logging.WARNING):
        prepared = prepare(spacing=(40.0, 40.0, 40.0))
    before = [classes(sitk.GetArrayFromImage(sitk.ReadImage(str(case.label)))) for case in cases]
    after = [classes(case.label) for case in (*prepared.labelled, *prepared.validation)]
    said = [message.removeprefix("warning: ") for message in caplog.messages if "no voxel is left" in message]
    expected = []
    for label in dataset.labels:
        had = sum(label.id in found for found in before)
        lost = had - sum(label.id in found for found in after)
        if lost:
            expected.append(
                f"{label.name}: no voxel is left at 40×40×40 mm in {lost} of the {had} cases with labels of it; choose "
                "a finer plan.spacing"
            )
    assert said == expected and expected
    caplog.clear()
    prepare()
    assert "no voxel is left" not in caplog.text
