"""The organs, as the paper's and FLARE22's official scripts name, number and score them."""

import json

import pytest

from dlunet.labels import FLARE22, LabelSet

# Abbreviation, tolerance in mm, tubular: section 7 of FLARE22's evaluation, written out again on purpose.
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
