"""Reports on folders of label maps, whatever made them, have the figures of reports on runs."""

import json
import re
import shutil

import pandas as pd
import pytest

from dlunet.labels import FLARE22
from tests.reporting.html_page import Page

pytestmark = pytest.mark.usefixtures("blank_figures")


@pytest.fixture
def place(make_run, data, tmp_path):
    """Two folders of label maps, one of which says where its CTs are."""
    for name, error in (("mine", 1.0), ("theirs", 2.0)):
        shutil.copytree(make_run("ssl_light", seed=int(error), error=error) / "predictions", tmp_path / name)
    (tmp_path / "theirs" / "prediction.json").unlink()
    record = tmp_path / "mine" / "prediction.json"
    record.write_text(json.dumps({**json.loads(record.read_text()), "labels": FLARE22.to_dict()}))
    shutil.copytree(data / "Testing", tmp_path / "Testing")
    return tmp_path


WORDS = ("report", "references=Testing/labels", "labels=flare22", "output=report")


def viewed(place):
    return re.findall(r'<option value="(case_\d)"', (place / "report" / "index.html").read_text())


def test_two_folders_are_compared(place, dlunet):
    dlunet(*WORDS, "predictions=[mine,theirs]", "floor=theirs", cwd=place)
    page = Page(place / "report" / "index.html")
    assert page.sections == ["scores", "paired", "cases", "viewer", "organs", "panels"]
    assert "Label maps in mine, theirs" in " ".join(page.text.split())
    for name in ("mine", "theirs"):
        scores = pd.read_csv(place / "report" / "scores" / name / "scores.csv")
        assert f"{scores['dsc'].mean():.3f}" in next(row for row in page.tables[0] if row[0] == name)[2]
        assert any(name in row for row in page.tables[2][1:])
    assert page.tables[2][0] == ["Experiment", "Cases", "Mean DSC", "Difference to floor", "p", "Cases better / worse"]
    paired = next(text for text in (place / "report" / "scores.md").read_text().splitlines() if "p is that" in text)
    assert "intervals over cases." in paired and "seed" not in paired


def test_label_maps_of_a_paper_s_name_are_in_no_table_of_the_paper(place, dlunet):
    (place / "mine").rename(place / "ssl_light")
    (place / "theirs").rename(place / "sup_light")
    printed = dlunet(*WORDS, "predictions=[ssl_light,sup_light]", cwd=place).stdout
    assert "paper" not in printed and "paper" not in Page(place / "report" / "index.html").sections


def test_the_cts_are_those_of_the_predictions_or_of_a_folder(place, dlunet):
    dlunet(*WORDS, "predictions=mine", cwd=place)
    assert len(viewed(place)) == 4
    dlunet(*WORDS, "predictions=theirs", cwd=place)
    assert not viewed(place) and "give the CTs: images=FOLDER" in Page(place / "report" / "index.html").text
    dlunet(*WORDS, "predictions=theirs", "images=Testing/images", "cases=case_3", cwd=place)
    assert viewed(place) == ["case_3"]


def test_one_label_map_that_cannot_be_read_does_not_stop_the_others(place, dlunet):
    (place / "theirs" / "case_2.nii.gz").write_bytes(b"")
    message = dlunet(*WORDS, "predictions=[mine,theirs]", cwd=place, fails=True).stderr
    assert "1 of 4 cases could not be scored" in message and "case_2.nii.gz" in message
    page = Page(place / "report" / "index.html")
    assert "1 of 4 cases could not be scored" in page.text and "case_2.nii.gz" in page.text
    rows = page.tables[0][1:]
    assert {row[0]: row[1] for row in rows} == {"mine": "4", "theirs": "3"}


def test_one_label_map_that_is_missing_does_not_stop_the_others(place, dlunet):
    (place / "theirs" / "case_2.nii.gz").unlink()
    message = dlunet(*WORDS, "predictions=[mine,theirs]", cwd=place, fails=True).stderr
    assert "theirs: no label map for 1 of 4 references, which are left out: Testing/labels/case_2.nii.gz" in message
    page = Page(place / "report" / "index.html")
    assert {row[0]: row[1] for row in page.tables[0][1:]} == {"mine": "4", "theirs": "3"}
    assert "Scored on different cases" in page.text
    assert "no label map for 1 of 4 references, which are left out" in page.text
    for path in (place / "theirs").glob("case_*"):
        path.rename(path.with_name(f"other_{path.name}"))
    message = dlunet(*WORDS, "predictions=theirs", cwd=place, fails=True).stderr
    assert "theirs: has no prediction for any of 4 references in Testing/labels" in message


def test_what_is_missing_is_said(place, dlunet):
    def refused(*words):
        return dlunet("report", "output=report", *words, cwd=place, fails=True).stderr

    assert "found neither runs nor predictions; expected runs=FOLDER, or predictions=FOLDER" in refused()
    assert "found both runs and predictions" in refused("runs=sweep", "predictions=mine")
    assert "missing: references; add references=FOLDER" in refused("predictions=mine")
    given = "references=Testing/labels"
    assert "theirs: its classes have no names; add labels=dataset.json" in refused("predictions=theirs", given)
    (place / "more").mkdir()
    shutil.copytree(place / "mine", place / "more" / "mine")
    assert "more/mine: is the second folder named mine" in refused("predictions=[mine,more/mine]", given)
    assert "table=3: found it with predictions; expected runs=FOLDER" in refused("predictions=mine", given, "table=3")
    assert "cases: found it with table=methods" in refused("runs=sweep", "table=methods", "cases=[case_1]")
    assert "ceiling: found it with table=methods" in refused("runs=sweep", "table=methods", "ceiling=mine")
    assert "ceiling: found mine, which is the floor" in refused("runs=sweep", "floor=mine", "ceiling=mine")
    assert "images: found it with runs, which know theirs" in refused("runs=sweep", "images=Testing/images")
    assert "images=gone: no such folder; expected the CTs" in refused("predictions=mine", given, "images=gone")
    assert "predictions: found []; expected at least one folder" in refused("predictions=[]", given)
