"""A folder of label maps knows the CTs and the settings that its label maps were made from."""

import json
import logging
import shutil

import numpy as np
import pytest
import SimpleITK as sitk

from dlunet.errors import UserError
from dlunet.inference import Extras, OutputFolder, Predictor, predict_files
from dlunet.labels import FLARE22
from dlunet.networks import Bundle
from dlunet.shards import Shard
from tests.inference.test_predictor import PLAN, BrighterThan, expected_labels

NAMES = ("001", "002")


@pytest.fixture
def predictor():
    return Predictor(Bundle(BrighterThan(), PLAN, FLARE22))


@pytest.fixture
def write_cts(tmp_path, write_volume):
    """``write_cts(folder, seed)`` writes the two CTs 001 and 002 and returns their paths."""

    def write(folder, seed):
        rng = np.random.default_rng(seed)
        values = (rng.normal(0, 200, (8, 20, 20)).astype(np.int16) for _ in NAMES)
        paths = [tmp_path / folder / f"{name}.nii.gz" for name in NAMES]
        return [write_volume(path, hu, spacing=(8.0, 8.0, 8.0)) for path, hu in zip(paths, values, strict=True)]

    return write


def voxels(path):
    return sitk.GetArrayFromImage(sitk.ReadImage(str(path)))


def check(output, images):
    """The label maps are those of these CTs, and the record says so."""
    for path in images:
        np.testing.assert_array_equal(voxels(output / path.name), expected_labels(voxels(path)))
    recorded = json.loads((output / "prediction.json").read_text())["images"]
    assert recorded == {path.name.removesuffix(".nii.gz"): str(path) for path in images}


def written_at(output):
    return {path.name: path.stat().st_mtime_ns for path in output.glob("*.nii.gz")}


@pytest.mark.parametrize("replace", [False, True], ids=["predict", "self_train"])
@pytest.mark.parametrize("where", ["elsewhere", "in place"])
def test_label_maps_of_other_cts_are_made_again_or_refused(predictor, write_cts, tmp_path, caplog, where, replace):
    output = tmp_path / "out"
    first = write_cts("a", 0)
    predict_files(predictor, first, output, replace)
    assert "again" not in caplog.text
    before = written_at(output)
    second = write_cts("b", 1)
    if where == "in place":
        shutil.copy(second[0], first[0])
        predict_files(predictor, first, output, replace)
        check(output, first)
        assert caplog.text.count("changed, which are made again: 001\n") == 1
        assert written_at(output)["002.nii.gz"] == before["002.nii.gz"]
    elif replace:
        predict_files(predictor, second, output, replace)
        check(output, second)
        assert caplog.text.count("changed, which are made again: 001, 002\n") == 1
    else:
        with pytest.raises(
            UserError, match=rf"001.nii.gz: was made from another CT of this name, {first[0]}, not from"
        ):
            predict_files(predictor, second, output)
        check(output, first)
        assert written_at(output) == before


def test_cts_that_were_moved_or_copied_are_finished(predictor, write_cts, tmp_path, caplog):
    output = tmp_path / "out"
    predict_files(predictor, write_cts("a", 0), output)
    before = written_at(output)
    shutil.copytree(tmp_path / "a", tmp_path / "copied")
    (tmp_path / "copied").rename(tmp_path / "moved")
    moved = [tmp_path / "moved" / f"{name}.nii.gz" for name in NAMES]
    predict_files(predictor, moved, output)
    check(output, moved)
    assert written_at(output) == before and "again" not in caplog.text
    record = (output / "prediction.json").read_text()
    for path in moved:
        path.unlink()
    predict_files(predictor, moved, output)  # nothing can be said of them, and nothing be made
    assert written_at(output) == before and (output / "prediction.json").read_text() == record


def test_a_shard_leaves_the_label_maps_of_others_alone(predictor, write_cts, tmp_path, caplog):
    output = tmp_path / "out"
    first = write_cts("a", 0)
    predict_files(predictor, first, output)
    before, second = written_at(output), write_cts("b", 1)
    predict_files(predictor, second, output, replace=True, shard=Shard(2, 2))
    assert written_at(output)["001.nii.gz"] == before["001.nii.gz"]
    check(output, [first[0], second[1]])
    predict_files(predictor, second, output, replace=True, shard=Shard(1, 2))
    check(output, second)
    assert [line.rpartition(" ")[2] for line in caplog.text.splitlines()] == ["002", "001"]


def test_a_ct_that_changes_while_it_is_segmented(predictor, write_cts, tmp_path, monkeypatch):
    """Which of the two was read is unknown to the record, so that its label map is made again."""
    output, (first, _), (second, _) = tmp_path / "out", write_cts("a", 0), write_cts("b", 1)
    prepare = predictor.prepare

    def prepare_while_it_changes(volume):
        shutil.copy(second, first)
        return prepare(volume)

    with monkeypatch.context() as patch:
        patch.setattr(predictor, "prepare", prepare_while_it_changes)
        predict_files(predictor, [first], output)
    predict_files(predictor, [first], output)
    check(output, [first])


def test_a_folder_of_an_earlier_version(predictor, write_cts, tmp_path):
    """Without stamps the place of the CT decides; from then on they are known."""
    output, first, second = tmp_path / "out", write_cts("a", 0), write_cts("b", 1)
    predict_files(predictor, first, output)
    before, record = written_at(output), json.loads((output / "prediction.json").read_text())
    del record["stamps"]
    (output / "prediction.json").write_text(json.dumps(record))
    mixed = [first[0], second[1]]
    with pytest.raises(UserError, match=r"002.nii.gz: was made from another CT"):
        predict_files(predictor, mixed, output)
    assert written_at(output) == before
    predict_files(predictor, mixed, output, replace=True)
    assert written_at(output)["001.nii.gz"] == before["001.nii.gz"]
    check(output, mixed)
    shutil.copy(second[0], first[0])
    predict_files(predictor, mixed, output)
    check(output, mixed)


def test_of_two_commands_with_different_settings_the_first_one_stops(predictor, write_cts, tmp_path, monkeypatch):
    """The second one claims the folder before the first one has written a label map; no further case is read."""
    output, images, read = tmp_path / "out", [*write_cts("a", 0), *write_cts("b", 1)], []
    for number, path in enumerate(images):
        images[number] = path.rename(tmp_path / f"{number}.nii.gz")
    other, prepare = Predictor(predictor.bundle, flips="axes"), predictor.prepare

    def prepare_after_the_other_has_claimed(volume):
        if not read:
            OutputFolder(output).claim(images, other.settings, replace=False)
        read.append(volume)
        return prepare(volume)

    monkeypatch.setattr(predictor, "prepare", prepare_after_the_other_has_claimed)
    with pytest.raises(UserError, match=rf"^{output}: is now used .*flips: found axes, now none.*another output="):
        predict_files(predictor, images, output)
    assert len(read) < len(images) and list(output.iterdir()) == [output / "prediction.json"]
    predict_files(other, images, output)
    check(output, images)


@pytest.mark.parametrize("replace", [False, True], ids=["predict", "self_train"])
def test_label_maps_of_another_engine(predictor, write_cts, tmp_path, replace, caplog):
    """A training that is resumed where another engine is chosen keeps them: the student is trained with them."""
    output, images = tmp_path / "out", write_cts("a", 0)
    predict_files(predictor, images[:1], output, replace)
    before, name = written_at(output), predictor.engine.name
    predictor.engine.name = "another"
    if not replace:
        with pytest.raises(UserError, match=rf"engine: found {name}, now another.*request that engine, device and"):
            predict_files(predictor, images, output)
        return
    predict_files(predictor, images, output, replace)
    check(output, images)
    assert written_at(output)["001.nii.gz"] == before["001.nii.gz"]
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
    predict_files(Predictor(predictor.bundle, flips="axes"), images, output, replace)
    assert "2 label maps of other settings are deleted (flips: found none, now axes" in caplog.text
    assert written_at(output)["001.nii.gz"] != before["001.nii.gz"]


@pytest.mark.parametrize("overlay", [False, True])
def test_pictures_that_were_not_made_here_stay(predictor, write_cts, tmp_path, overlay):
    output, images, extras = tmp_path / "out", write_cts("a", 0), Extras(overlay=overlay)
    output.mkdir()
    (output / "001.png").write_text("a screenshot")
    if overlay:
        with pytest.raises(UserError, match="1 of 2 cases could not be segmented"):
            predict_files(predictor, images, output, extras=extras)
    else:
        predict_files(predictor, images, output, extras=extras)
    assert (output / "001.png").read_text() == "a screenshot" and (output / "002.nii.gz").exists()
    assert (output / "001.nii.gz").exists() != overlay


def extras_in(output):
    return {path.name: path.read_bytes() for path in output.iterdir() if path.suffix == ".png"} | {
        "volumes.csv": (output / "volumes.csv").read_text()
    }


def test_extras_of_finished_cases_are_those_of_cases_that_are_segmented(predictor, write_cts, tmp_path, caplog):
    output, images, extras = tmp_path / "out", write_cts("a", 0), Extras(volumes=True, overlay=True)
    predict_files(predictor, images, tmp_path / "expected", extras=extras)
    predict_files(predictor, images, output)
    before = written_at(output)
    predict_files(predictor, images, output, extras=extras, shard=Shard(2, 2))
    assert sorted(extras_in(output)) == ["002.png", "volumes.csv"]
    predict_files(predictor, images, output, extras=extras)
    assert extras_in(output) == extras_in(tmp_path / "expected")
    times = {path: path.stat().st_mtime_ns for path in output.iterdir()}
    predict_files(predictor, images, output, extras=extras)  # nothing left to do
    times_after = {path: path.stat().st_mtime_ns for path in output.iterdir()}
    del times[output / "prediction.json"], times_after[output / "prediction.json"]
    assert times_after == times and written_at(output) == before
    (output / "001.png").unlink()
    images[0].unlink()
    predict_files(predictor, images, output, extras=extras)
    assert "the finished case 001 still lacks its volumes or picture" in caplog.text


def test_extras_of_an_earlier_label_map_do_not_remain(predictor, write_cts, tmp_path):
    output, extras = tmp_path / "out", Extras(volumes=True, overlay=True)
    predict_files(predictor, write_cts("a", 0), output, extras=extras)
    second = write_cts("b", 1)
    predict_files(predictor, second, tmp_path / "expected", extras=extras)
    predict_files(predictor, second, output, replace=True)
    assert extras_in(output) == {"volumes.csv": extras_in(tmp_path / "expected")["volumes.csv"]}
