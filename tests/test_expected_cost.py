"""The expected cost of the paper's tables: the document has the script's figures, and these follow from the paper's."""

import importlib
import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
RESULTS = json.loads((ROOT / "experiments" / "paper_tables" / "results" / "expected_cost.json").read_text())
PAGE, SCALING = ((ROOT / "docs" / name).read_text() for name in ("reproduce.md", "scaling.md"))


@pytest.fixture
def script(monkeypatch):
    """The script as a module; it imports its neighbour, as when it is run."""
    monkeypatch.syspath_prepend(ROOT / "experiments" / "paper_tables")
    return importlib.import_module("expected_cost")


def test_a_supervised_step_is_counted_as_three_sixteenths_of_one_of_cross_pseudo_supervision(script):
    """One forward and one backward pass, which counts as two; twice two of these and, for pseudo-labels, twice two."""
    assert script.PASSES == {"sup": 1 + 2, "ssl": 2 * 2 * (1 + 2) + 2 * 2}
    assert script.hours_of("ssl", steps=1000, step=36.0) == pytest.approx(10)
    assert script.hours_of("sup", steps=1000, step=36.0) == pytest.approx(1.875)


@pytest.mark.parametrize(
    ("trainings", "gpus", "end"),
    [
        ([2.0, 3.0, 5.0], 1, 10.0),
        ([2.0, 3.0, 5.0], 2, 5.0),
        ([2.0, 2.0, 2.0, 3.0, 3.0], 2, 7.0),  # 3 + 2 + 2 beside 3 + 2
        ([1.0, 1.0], 4, 1.0),
    ],
)
def test_the_last_training_ends_when_the_busiest_gpu_is_free(script, trainings, gpus, end):
    assert script.makespan(trainings, gpus) == end


def test_the_hours_of_experiments_are_those_of_all_their_seeds(script):
    """Three times 10 and three times 1.875 hours: on four GPUs, the short ones share one."""
    hours = script.hours({"ssl_light", "sup_nnunet"}, steps=1000, step=36.0)
    assert hours == {"trainings": 6, "gpus_1": 36, "gpus_4": 10}


def test_the_results_are_those_of_the_script(script):
    step = script.HOURS * 3600 / RESULTS["steps"] * script.AUTHORS_GPUS
    assert script.hours_of_tables(RESULTS["steps"], step) == RESULTS["hours"]


@pytest.mark.parametrize("step", ["-1", "0", "nan"])
def test_a_step_that_takes_no_time_is_refused(script, monkeypatch, capsys, step):
    monkeypatch.setattr("sys.argv", ["expected_cost.py", "--step", step])
    with pytest.raises(SystemExit):
        script.main()
    assert "expected the seconds of a step, such as 0.9" in capsys.readouterr().err


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


def test_the_page_on_scaling_has_the_figures_of_the_results():
    of_one = RESULTS["hours_of_one_training"]
    for kind in ("sup", "ssl"):
        gpus, hours = (", ".join(map(str, numbers)) for numbers in (of_one["gpus"], of_one[kind]))
        assert f"| `{kind}_light scale=paper` | {gpus} GPUs | {hours} hours |" in SCALING
        assert of_one[kind][0] == 2 * of_one[kind][1]
    assert of_one["ssl"][1] == 276  # Table 2: on two GPUs
    for study, scale, runs in (("demo", "demo", ("sup_light", "ssl_light")), ("gap", "cpu", ("floor-4", "ssl-4"))):
        known = json.loads((ROOT / "experiments" / "recipes" / "results" / f"{study}.json").read_text())["dsc"]
        for experiment, run in zip(("sup_light", "ssl_light"), runs, strict=True):
            row = re.search(rf"^\| `{experiment} scale={scale}`.*?\| one CPU core \| ([\d.]+) minutes", SCALING, re.M)
            assert float(row[1]) == known[run]["cpu_minutes"]
    peaks = json.loads((ROOT / "benchmarks" / "results" / "training_memory.json").read_text())["peak_gib"]
    for training, peak in peaks.items():
        (row,) = re.findall(rf"^\| `{training}`.*", SCALING, re.M)
        assert re.search(rf"\| {peak:.1f} GiB( on a CPU)? \|$", row)
    assert len(peaks) == 6


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
