"""Prepared cases on disk."""

import errno
import json
import os
from pathlib import Path

import numpy as np
import pytest

from dlunet import stamps
from dlunet.errors import UserError
from dlunet.preparation import PreparedCase
from dlunet.preparation.store import VOXELS_A_CLASS, is_up_to_date, save_prepared

IMAGE = np.random.default_rng(0).normal(size=(8, 30, 60)).astype(np.float32)
LABEL = np.zeros(IMAGE.shape, np.uint8)
LABEL[:, :, :50] = 2  # 12,000 voxels: more than the index keeps
LABEL[3:5, 4, 55:] = 13


@pytest.fixture
def folder(tmp_path):
    save_prepared(tmp_path / "case", IMAGE, LABEL, {"from": [1, 2.5], "files": []})
    return tmp_path / "case"


def test_arrays_are_mapped_not_read(folder):
    case = PreparedCase.open(folder)
    assert (case.name, case.shape) == ("case", IMAGE.shape)
    assert isinstance(case.image, np.memmap) and isinstance(case.label, np.memmap)
    assert case.image.dtype == np.int16
    np.testing.assert_allclose(case.image * case.quantisation_step, IMAGE[None], atol=np.abs(IMAGE).max() / 32767)
    np.testing.assert_array_equal(case.label, LABEL)
    assert os.listdir(folder.parent) == ["case"]


@pytest.mark.parametrize("factor", [0, 1e-3, 1, 4, 300])
def test_stored_values_are_close_and_zero_is_zero(tmp_path, factor):
    image = IMAGE * factor
    image[0] = 0
    save_prepared(tmp_path / "case", image, None, {})
    case = PreparedCase.open(tmp_path / "case")
    np.testing.assert_allclose(case.image[0] * case.quantisation_step, image, atol=np.abs(image).max() / 32767)
    assert not case.image[0, 0].any()


def test_remembered_voxels_are_of_their_class_and_spread_over_it(folder):
    case = PreparedCase.open(folder)
    assert sorted(case.ranges) == [2, 13]
    np.testing.assert_array_equal(case.class_voxels(13), np.argwhere(LABEL == 13))
    many = case.class_voxels(2)
    assert len(many) == VOXELS_A_CLASS == len(np.unique(many, axis=0))
    assert (LABEL[tuple(many.T)] == 2).all()
    np.testing.assert_allclose(many.mean(0), np.argwhere(LABEL == 2).mean(0), atol=0.5)


def test_a_case_without_labels(tmp_path):
    save_prepared(tmp_path / "case", IMAGE, None, {})
    case = PreparedCase.open(tmp_path / "case")
    assert case.label is None and case.ranges == {}


def test_up_to_date_means_made_from_the_same(folder, tmp_path):
    assert is_up_to_date(folder, {"from": [1, 2.5]}, [], 14)
    assert not is_up_to_date(folder, {"from": [1, 2.6]}, [], 14)
    assert not is_up_to_date(folder, {"from": [1, 2.5]}, [tmp_path / "more"], 14)
    assert not is_up_to_date(folder.with_name("gone"), {"from": [1, 2.5]}, [], 14)


def test_a_case_with_more_classes_than_the_dataset_is_out_of_date(folder):
    highest = int(LABEL.max())
    assert is_up_to_date(folder, {"from": [1, 2.5]}, [], highest + 1)
    assert not is_up_to_date(folder, {"from": [1, 2.5]}, [], highest)


@pytest.mark.parametrize("part", ["image.npy", "label.npy", "index.npy", "case.json"])
def test_a_case_that_lost_a_part_is_made_anew(folder, part):
    """For instance where old files are deleted one by one: a labelled case is not taken for an unlabelled one."""
    (folder / part).unlink()
    assert not is_up_to_date(folder, {"from": [1, 2.5]}, [], 14)
    if part != "case.json":
        with pytest.raises(UserError, match=f"^{folder / part}: is damaged"):
            PreparedCase.open(folder).check()


def test_where_the_files_lie_does_not_matter(tmp_path):
    """Their new location is recorded, so that they are read once and not at every start."""
    (tmp_path / "a").write_text("CT")
    save_prepared(tmp_path / "case", IMAGE, LABEL, {"files": stamps.stamp([tmp_path / "a"])})
    (tmp_path / "b").write_text("CT")
    assert is_up_to_date(tmp_path / "case", {}, [tmp_path / "b"], 14)
    noted = json.loads((tmp_path / "case" / "case.json").read_text())["made_from"]["files"]
    assert noted == stamps.stamp([tmp_path / "b"])
    np.testing.assert_array_equal(PreparedCase.open(tmp_path / "case").label, LABEL)


@pytest.mark.parametrize("content", ["", '{"shape": [8, 30', "null", '{"shape": 3, "ranges": {}}', '{"ranges": {}}'])
def test_a_damaged_description(folder, content):
    (folder / "case.json").write_text(content)
    assert not is_up_to_date(folder, {"from": [1, 2.5]}, [], 14)
    with pytest.raises(UserError, match=f"^{folder}: is not a prepared case.*rerun the command"):
        PreparedCase.open(folder)


@pytest.mark.parametrize("keep", [0, 50, 2000])
def test_a_damaged_array_is_named(folder, keep):
    content = (folder / "image.npy").read_bytes()
    (folder / "image.npy").write_bytes(content[:keep])
    with pytest.raises(UserError, match=f"^{folder / 'image.npy'}: is damaged.*delete {folder} and rerun the command"):
        _ = PreparedCase.open(folder).image


def open_files():
    return len(os.listdir("/proc/self/fd"))


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="counts file descriptors under Linux")
def test_no_array_stays_open(folder):
    """A process may have 1024 open files; FLARE22 has 2000 unlabelled CTs alone."""
    before = open_files()
    cases = [PreparedCase.open(folder) for _ in range(20)]
    for case in cases:
        case.check()
        assert case.image.any() and case.label.any() and case.target.any() and case.class_voxels(2).any()
    assert open_files() == before


@pytest.mark.parametrize("code", [errno.EMFILE, errno.EIO, errno.EACCES, errno.ESTALE])
def test_an_array_that_cannot_be_opened_is_not_called_damaged(folder, monkeypatch, code):
    case = PreparedCase.open(folder)

    def refuse(path, **_):
        raise OSError(code, os.strerror(code), str(path))

    monkeypatch.setattr("dlunet.preparation.store.np.load", refuse)
    reason = f"^{folder / 'image.npy'}: cannot be opened .{os.strerror(code)}.; check its permissions and its disk$"
    with pytest.raises(UserError, match=reason):
        _ = case.image


def test_a_failed_write_leaves_the_old_case_and_nothing_else(folder, monkeypatch):
    def full(*_):
        raise OSError("No space left on device")

    monkeypatch.setattr("dlunet.preparation.store.np.save", full)
    with pytest.raises(UserError, match=f"{folder}: could not be written .No space left"):
        save_prepared(folder, IMAGE, LABEL, {"from": "new"})
    assert os.listdir(folder.parent) == ["case"]
    assert is_up_to_date(folder, {"from": [1, 2.5]}, [], 14)
