"""Evaluation of a folder of cases: tables, matching of files, and error messages."""

import numpy as np
import pandas as pd
import pytest

from dlunet.errors import UserError
from dlunet.evaluation import evaluate_folder, score_case
from dlunet.evaluation.metrics import Metric
from dlunet.files import write_text
from dlunet.labels import FLARE22
from dlunet.volumes import Geometry, write_labels

RAS = (-1.0, 0.0, 0.0, 0.0, -1.0, 0.0, 0.0, 0.0, 1.0)
RAI = (-1.0, 0.0, 0.0, 0.0, -1.0, 0.0, 0.0, 0.0, -1.0)
SHAPE = (12, 10, 8)


def grid(direction=RAS, spacing=(1.0, 1.5, 2.5), origin=(0.0, 0.0, 0.0)):
    return Geometry(SHAPE[::-1], spacing, origin, direction)


def label_map(seed):
    rng = np.random.default_rng(seed)
    array = np.zeros(SHAPE, np.uint8)
    for organ in range(1, 14):
        z, y, x = (int(rng.integers(0, n - 4)) for n in SHAPE)
        array[z : z + 4, y : y + 4, x : x + 4] = organ
    return array


@pytest.fixture
def folders(tmp_path):
    """Three references and predictions; the predictions have the images' channel suffix, as written by some tools."""
    for seed, name in enumerate(["a", "b", "c"]):
        write_labels(label_map(seed), tmp_path / "references" / f"{name}.nii.gz", grid())
        write_labels(np.roll(label_map(seed), 1, axis=0), tmp_path / "predictions" / f"{name}_0000.nii.gz", grid())
    return tmp_path


def evaluate(folders, **options):
    return evaluate_folder(folders / "predictions", folders / "references", folders / "output", **options)


def test_the_part_of_the_dataset_is_that_of_these_scores(folders):
    """Training knows it; whoever scores other label maps into the same folder does not."""
    record = folders / "output" / "part.txt"
    evaluate(folders, workers=1, part="validation")
    assert record.read_text() == "validation\n"
    evaluate(folders, workers=1)
    assert not record.exists() and (folders / "output" / "scores.csv").exists()


def test_a_killed_command_leaves_no_scores_without_their_part(folders, monkeypatch):
    def write(path, text):
        if path.name == "scores.csv":
            raise KeyboardInterrupt
        write_text(path, text)

    monkeypatch.setattr("dlunet.evaluation.folder.write_text", write)
    with pytest.raises(KeyboardInterrupt):
        evaluate(folders, workers=1, part="validation")
    assert (folders / "output" / "part.txt").read_text() == "validation\n"


def test_the_tables(folders):
    scores = evaluate(folders, workers=1)
    written = pd.read_csv(folders / "output" / "scores.csv")
    assert list(written.columns) == ["case", "organ", "dsc", "nsd"]
    assert list(written["case"]) == [name for name in "abc" for _ in FLARE22]
    assert list(written["organ"][:13]) == [label.name for label in FLARE22]
    pd.testing.assert_frame_equal(scores, written)
    expected = score_case(np.roll(label_map(1), 1, axis=0), label_map(1), (2.5, 1.5, 1.0))
    assert [tuple(row[1:]) for row in written[written["case"] == "b"].itertuples(index=False)] == expected

    summary = pd.read_csv(folders / "output" / "summary.csv")
    estimates = [f"{score}_{name}" for score in ("dsc", "nsd") for name in ("mean", "std", "low", "high", "cases")]
    assert list(summary.columns) == ["organ", "abbreviation", *estimates, "cases"]
    assert list(summary["abbreviation"]) == [label.abbreviation for label in FLARE22] + ["Mean"]
    assert (summary["cases"] == 3).all()
    liver = written.loc[written["organ"] == "Liver", "dsc"].to_numpy()
    assert summary.loc[0, "dsc_mean"] == pytest.approx(liver.mean(), abs=5e-5)
    assert summary.loc[0, "dsc_std"] == pytest.approx(liver.std(), abs=5e-5)
    assert summary.iloc[-1]["organ"] == "Mean"
    assert summary.iloc[-1]["nsd_mean"] == pytest.approx(written["nsd"].mean(), abs=5e-5)
    files = {path.name for path in (folders / "output").iterdir()}
    assert files == {"metrics.json", "references.json", "scores.csv", "summary.csv"}


def test_processes_give_the_same_scores(folders):
    pd.testing.assert_frame_equal(evaluate(folders, workers=2), evaluate(folders, workers=1))


def test_slices_stored_downwards_lose_their_lowest_slice(tmp_path):
    reference, prediction = np.zeros(SHAPE, np.uint8), np.zeros(SHAPE, np.uint8)
    reference[3:9, 2:6, 2:6] = prediction[3:8, 2:6, 2:6] = 5  # the topmost slice of the aorta is missed
    for name, direction in (("upwards", RAS), ("downwards", RAI)):
        write_labels(reference, tmp_path / "references" / f"{name}.nii.gz", grid(direction))
        write_labels(prediction, tmp_path / "predictions" / f"{name}.nii.gz", grid(direction))
    metrics = {"length": Metric("Slices", measure=lambda predicted, *_: predicted.any((1, 2)).sum())}
    scores = evaluate(tmp_path, workers=1, metrics=metrics)
    aorta = scores[scores["organ"] == "Aorta"].set_index("case")
    assert dict(aorta["dsc"]) == {"upwards": 1, "downwards": round(8 / 9, 4)}
    assert dict(aorta["length"]) == {"upwards": 5, "downwards": 4}  # of the prediction, in the scored slices


def test_a_reference_without_prediction_is_named(folders):
    (folders / "predictions" / "b_0000.nii.gz").unlink()
    with pytest.raises(UserError, match=r"references/b\.nii\.gz: has no prediction \(1 of 3"):
        evaluate(folders)
    assert not (folders / "output").exists()


def test_a_prediction_without_reference_is_left_out_with_a_warning(folders, capsys):
    (folders / "references" / "b.nii.gz").unlink()
    assert set(evaluate(folders, workers=1)["case"]) == {"a", "c"}
    assert "1 predictions without a reference are ignored: b" in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize(
    ("other", "difference"),
    [
        (grid(origin=(0.0, 0.0, 9.0)), "found origin in mm 0, 0, 9 (expected 0, 0, 0);"),
        (grid(origin=(0.0, 0.0, 0.005)), "found origin in mm 0, 0, 0.005 (expected 0, 0, 0);"),
        (grid(spacing=(1.0, 1.5, 3.0)), "found spacing in mm 1×1.5×3 (expected 1×1.5×2.5);"),
        (grid(RAI), "found origin in mm -7, -13.5, -27.5 (expected -7, -13.5, 0);"),  # canonical
    ],
)
def test_different_grids_are_an_error_that_names_both_files(folders, other, difference):
    write_labels(label_map(0), folders / "predictions" / "a_0000.nii.gz", other)
    with pytest.raises(UserError) as error:
        evaluate(folders, workers=1)
    message = str(error.value)
    differs = "geometry (size, spacing, orientation) differs from"
    assert f"predictions/a_0000.nii.gz: {differs} {folders / 'references' / 'a.nii.gz'}" in message
    assert difference in message


@pytest.mark.parametrize("workers", [1, 2])
def test_an_unreadable_case_does_not_keep_the_others_from_being_scored(folders, workers):
    (folders / "predictions" / "b_0000.nii.gz").write_bytes(b"not a volume")
    with pytest.raises(UserError, match=r"1 of 3 cases could not be scored \(the other 2 are in .*(.|\n)*b_0000"):
        evaluate(folders, workers=workers)
    assert set(pd.read_csv(folders / "output" / "scores.csv")["case"]) == {"a", "c"}
    assert (pd.read_csv(folders / "output" / "summary.csv")["cases"] == 2).all()


def test_the_summary_of_the_others_is_printed_where_a_case_cannot_be_scored(folders, dlunet):
    (folders / "predictions" / "b_0000.nii.gz").write_bytes(b"not a volume")
    words = ("predictions=predictions", "references=references", "output=scores", "labels=flare22")
    ended = dlunet("evaluate", *words, cwd=folders, fails=True)
    assert "Means over 2 cases" in ended.stdout and "1 of 3 cases could not be scored" in ended.stderr


def test_a_label_beyond_the_label_set_is_an_error(folders):
    array = label_map(0)
    array[0, 0, 0] = 14
    write_labels(array, folders / "predictions" / "a_0000.nii.gz", grid())
    with pytest.raises(UserError, match="label value 14"):
        evaluate(folders, workers=1)


def test_a_missing_or_empty_folder_is_an_error(folders):
    (folders / "empty").mkdir()
    for predictions, references in (("none", "references"), ("predictions", "none")):
        with pytest.raises(UserError, match="none: no such folder"):
            evaluate_folder(folders / predictions, folders / references, folders / "output")
    for predictions, references in (("empty", "references"), ("predictions", "empty")):
        with pytest.raises(UserError, match="empty: found no volumes"):
            evaluate_folder(folders / predictions, folders / references, folders / "output")


def test_cases_whose_names_end_like_a_channel(folders):
    """A name that both folders, or the references by case, have in common is that of a case."""
    for folder in ("predictions", "references"):
        write_labels(label_map(3), folders / folder / "d_0000.nii.gz", grid())
        write_labels(label_map(4), folders / folder / "d.nii.gz", grid())
    assert list(evaluate(folders, workers=1)["case"].unique()) == ["a", "b", "c", "d", "d_0000"]
    expected = {name: folders / "references" / f"{name}.nii.gz" for name in ("a", "b", "c", "d", "d_0000")}
    scores = evaluate_folder(folders / "predictions", expected, folders / "output", workers=1)
    assert (scores.loc[scores["case"].isin(["d", "d_0000"]), "dsc"] == 1).all()


def test_two_files_of_one_case_are_an_error(folders):
    write_labels(label_map(0), folders / "predictions" / "a.nii.gz", grid())
    with pytest.raises(UserError, match="same case as"):
        evaluate(folders)


def test_an_output_that_is_a_file_is_an_error(folders):
    (folders / "output").write_text("")
    with pytest.raises(UserError, match="output: cannot create directory"):
        evaluate(folders)


def write_pair(folders, case, prediction, reference):
    for folder, boxes in (("predictions", prediction), ("references", reference)):
        array = np.zeros(SHAPE, np.uint8)
        for label, box in boxes.items():
            array[box] = label
        write_labels(array, folders / "unknown" / folder / f"{case}.nii.gz", grid())


def evaluate_unknown(folders, **settings):
    unknown = folders / "unknown"
    evaluate_folder(unknown / "predictions", unknown / "references", unknown / "scores", workers=1, **settings)
    return (pd.read_csv(unknown / "scores" / f"{table}.csv") for table in ("scores", "summary"))


def test_label_maps_of_which_nothing_is_known_are_scored_on_the_labels_that_occur(folders, capsys):
    """Labels 2 and 4, computed by hand: of 8 and 4 voxels, 4 and 1 are found; in case b, label 4 is false positive."""
    half, whole = np.s_[0, 0, 0:4], np.s_[0, 0, 0:8]
    write_pair(folders, "a", {2: half, 4: np.s_[1, 0, 0]}, {2: whole, 4: np.s_[1, 0, 0:4]})
    write_pair(folders, "b", {2: whole, 4: half}, {2: whole})
    scores, summary = evaluate_unknown(folders, labels=None)
    rows = {(case, organ): dsc for case, organ, dsc in scores[["case", "organ", "dsc"]].itertuples(index=False)}
    expected = {
        ("a", "label 2"): 2 * 4 / 12,
        ("a", "label 4"): 2 / 5,
        ("b", "label 2"): 2 * 4 / 12,
        ("b", "label 4"): 0,
    }
    assert rows == pytest.approx(expected, abs=1e-4)
    assert list(summary["organ"]) == ["label 2", "label 4", "Mean"]
    assert summary["dsc_mean"].iloc[-1] == pytest.approx(np.mean(list(expected.values())), abs=1e-4)
    assert scores["nsd"].isna().all()  # no tolerance is defined
    assert "found label 2, label 4; their names are unknown" in " ".join(capsys.readouterr().err.split())


FLARE22_BOXES = {organ: np.s_[organ - 1, 0:2, 0 : 7 if organ == 1 else 4] for organ in range(1, 14) if organ != 12}
FLARE22_BOXES[13] = np.s_[11, 0:2, 0:4]


@pytest.mark.parametrize(
    ("boxes", "taken"),
    [
        (FLARE22_BOXES, True),
        ({**FLARE22_BOXES, 2: np.s_[1, 0:4, 0:8]}, False),  # another organ is larger than the liver
        ({organ: box for organ, box in FLARE22_BOXES.items() if organ > 5 or organ == 1}, False),
        ({organ: box for organ, box in FLARE22_BOXES.items() if organ != 13}, False),
        ({13: np.s_[0, 0, 0:4]}, False),
    ],
)
def test_label_maps_that_look_like_flare22_s_are_taken_for_them(folders, boxes, taken):
    write_pair(folders, "a", boxes, boxes)
    scores, _ = evaluate_unknown(folders, labels=None)
    names = [label.name for label in FLARE22] if taken else [f"label {organ}" for organ in sorted(boxes)]
    assert list(scores["organ"]) == names


def test_unknown_label_maps_that_cannot_be_read(folders):
    write_pair(folders, "a", {1: np.s_[0]}, {1: np.s_[0]})
    broken = folders / "unknown" / "predictions" / "a.nii.gz"
    broken.write_bytes(b"not a volume")
    with pytest.raises(UserError, match=f"{broken}: cannot be read as a volume"):
        evaluate_unknown(folders, labels=None)


def test_label_maps_that_show_nothing_are_not_scored(folders):
    write_pair(folders, "a", {}, {})
    with pytest.raises(UserError, match="neither label maps nor references contain a class"):
        evaluate_unknown(folders, labels=None)
