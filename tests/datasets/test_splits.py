"""Folds: every case validates once, an existing file is followed, and one that does not fit is refused."""

import json
from pathlib import Path

import pytest

from dlunet.datasets import Case, draw_folds, split_cases
from dlunet.errors import UserError

CASES = [Case(f"case_{k:02}", Path(f"case_{k:02}.nii.gz"), Path("label")) for k in range(12)]
NAMES = [case.name for case in CASES]

#: Validation cases of sklearn.model_selection.KFold(n_splits=5, shuffle=True, random_state=12345) for 12 cases.
NNUNET_FOLDS = [[0, 3, 8], [7, 10, 11], [6, 9], [1, 4], [2, 5]]


def test_the_folds_are_nnunets():
    for names in (NAMES, NAMES[::-1]):
        assert [[int(name[-2:]) for name in fold["val"]] for fold in draw_folds(names)] == NNUNET_FOLDS


@pytest.mark.parametrize("count", [2, 3, 4, 5, 12])
def test_every_case_validates_once(count, tmp_path):
    folds = min(5, count)
    parts = [split_cases(CASES[:count], tmp_path / "splits.json", fold) for fold in range(folds)]
    for training, validation in parts:
        assert not set(training) & set(validation) and set(training) | set(validation) == set(CASES[:count])
    assert sorted(case.name for _, validation in parts for case in validation) == NAMES[:count]
    assert len(json.loads((tmp_path / "splits.json").read_text())) == folds


def test_a_file_written_by_hand_is_followed(tmp_path):
    file = tmp_path / "splits.json"
    file.write_text(json.dumps([{"train": NAMES[:10], "val": NAMES[10:]}]))
    assert [len(part) for part in split_cases(CASES, file)] == [10, 2]
    with pytest.raises(UserError, match=r"data.fold: found 1; expected 0 to 0"):
        split_cases(CASES, file, 1)


def test_all_cases_train(tmp_path):
    assert split_cases(CASES, tmp_path / "splits.json", "all") == (tuple(CASES), ())
    assert split_cases(CASES[:1], tmp_path / "splits.json") == (tuple(CASES[:1]), ())
    assert not (tmp_path / "splits.json").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "cannot be read"),
        ('[{"train": []}]', "cannot be read"),
        (json.dumps([{"train": NAMES[:9], "val": NAMES[10:]}]), "does not fit the labelled cases: case_09"),
        (json.dumps([{"train": [*NAMES, "gone"], "val": []}]), "does not fit the labelled cases: gone"),
        (json.dumps([{"train": NAMES, "val": NAMES[:1]}]), "does not fit the labelled cases: case_00"),
    ],
)
def test_a_file_that_does_not_fit_is_refused(tmp_path, text, message):
    (tmp_path / "splits.json").write_text(text)
    with pytest.raises(UserError, match=f"^{tmp_path / 'splits.json'}.*{message}"):
        split_cases(CASES, tmp_path / "splits.json")


def test_what_does_not_fit_is_said(tmp_path):
    """Which cases are new and which are missing, and why they may be."""
    file = tmp_path / "splits.json"
    split_cases(CASES[:10], file)
    with pytest.raises(UserError) as error:
        split_cases(CASES[2:], file, problems=["case_00.nii.gz: has no label map", "another"])
    text = str(error.value)
    assert "cases: case_10, case_11 (new); case_00, case_01 (missing); correct the file, or delete it" in text
    assert text.endswith(". 2 skipped; the first: case_00.nii.gz: has no label map")


def test_another_number_of_folds_than_drawn_before(tmp_path):
    """It would be ignored; only a file written by hand may contain another number."""
    file = tmp_path / "splits.json"
    before = split_cases(CASES, file, 1, folds=5)
    for folds in (3, 10, 20):
        with pytest.raises(UserError, match=f"^{file}: found 5 folds .* expected {folds}, .* set data.folds=5, or del"):
            split_cases(CASES, file, 1, folds)
    assert split_cases(CASES, file, 1, folds=5) == before
    few = tmp_path / "few.json"
    assert split_cases(CASES[:3], few, folds=5) == split_cases(CASES[:3], few, folds=10)  # as many as there are cases
    by_hand = [{"train": NAMES[:k] + NAMES[k + 1 :], "val": [NAMES[k]]} for k in range(3)]
    file.write_text(json.dumps(by_hand))
    assert split_cases(CASES, file, 1)[1] == (CASES[1],)


def test_one_fold_is_no_fold(tmp_path):
    with pytest.raises(UserError, match=r"data\.folds: found 1"):
        split_cases(CASES, tmp_path / "splits.json", folds=1)
