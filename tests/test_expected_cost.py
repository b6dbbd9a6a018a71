"""The expected cost of the paper's tables: the document has the script's figures, and these follow from the paper's."""

import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
RESULTS = json.loads((ROOT / "experiments" / "paper_tables" / "results" / "expected_cost.json").read_text())
PAGE = (ROOT / "docs" / "reproduce.md").read_text()


def test_the_page_has_the_figures_of_the_results():
    rows = {
        name: row for name, *row in re.findall(r"^\| (table \d|all) \| (\d+) \| (\d+) \| (\d+) \|$", PAGE, re.MULTILINE)
    }
    expected = {
        name: [str(row["trainings"]), *(f"{row[f'gpus_{count}'] / 24:.0f}" for count in (1, 4))]
        for name, row in RESULTS["hours"].items()
    }
    assert rows == expected
    assert f"{RESULTS['prepared_gb']} GB of prepared cases" in PAGE


def test_the_step_of_the_paper_on_one_gpu_is_twice_that_on_two():
    assert RESULTS["step_seconds"] / 2 == pytest.approx(4.0, abs=0.05)  # facts of Table 2: 276 h, 250,000 steps
    assert RESULTS["hours"]["table 7"] == {"trainings": 3, "gpus_1": 3 * 552, "gpus_4": 552}


def test_tables_share_trainings():
    hours = RESULTS["hours"]
    assert hours["all"]["trainings"] == 15  # five experiments, three seeds
    supervised = 2 * 276 * 3 / 16
    assert hours["table 4"]["gpus_1"] == pytest.approx(6 * supervised, abs=1)
    assert hours["all"]["gpus_1"] == pytest.approx(6 * 552 + 9 * supervised, abs=1)
    assert hours["all"]["gpus_4"] >= hours["all"]["gpus_1"] / 4
