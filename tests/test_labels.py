"""Label sets: FLARE22's organs as named, numbered and scored by the paper and the official scripts, and others."""

import json

import pytest

from dlunet.labels import FLARE22, LabelSet, label_set

# Abbreviation, tolerance in mm, tubular: section 7 of FLARE22's evaluation, deliberately repeated here.
OFFICIAL = """
LV 5 no, RK 3 no, SL 3 no, PC 5 no, AT 2 yes, IVC 2 yes, RAG 2 no, LAG 2 no, GB 2 no, EH 3 yes,
SM 5 no, DD 7 no, LK 3 no
"""


def test_flare22_is_the_official_list():
    rows = [f"{label.abbreviation} {label.nsd_tolerance_mm} {'yes' if label.tubular else 'no'}" for label in FLARE22]
    assert ", ".join(rows) == " ".join(OFFICIAL.split())
    assert [label.id for label in FLARE22] == list(range(1, 14))
    assert (len(FLARE22), FLARE22.num_classes) == (13, 14)
    assert len({label.color for label in FLARE22}) == len({label.name for label in FLARE22}) == 13


def test_a_label_set_survives_json():
    assert LabelSet.from_dict(json.loads(json.dumps(FLARE22.to_dict()))) == FLARE22


def test_ids_have_no_gaps():
    with pytest.raises(ValueError, match="without gaps, found \\[1, 3\\]"):
        LabelSet("gap", (FLARE22.labels[0], FLARE22.labels[2]))


def test_names_of_a_dataset():
    """Known organs keep their properties; other classes get an abbreviation and a colour, but no tolerance."""
    labels = label_set("own", {3: "Kidney_Left", 1: "gall stone", 2: "aorta", 4: "gut segment", 5: "tumour"})
    assert [label.id for label in labels] == [1, 2, 3, 4, 5]
    assert [label.abbreviation for label in labels] == ["GS", "AT", "LK", "GS4", "TUM"]
    assert [label.nsd_tolerance_mm for label in labels] == [None, 2, 3, None, None]
    assert not any(label.tubular for label in labels)
    assert len({label.color for label in labels}) == 5
    assert LabelSet.from_dict(json.loads(json.dumps(labels.to_dict()))) == labels


def test_names_are_names_of_one_label():
    with pytest.raises(ValueError, match="'liver' is used more than once"):
        label_set("twice", {1: "liver", 2: "liver"})
