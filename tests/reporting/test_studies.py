"""Studies: what they collect of finished runs, against pandas, and whether what they train exists."""

import json
import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from omegaconf import OmegaConf

from dlunet.configs import compose
from dlunet.datasets import Case
from dlunet.run_layout import RunLayout
from experiments.recipes import study as studies
from experiments.recipes.phases import by_phase
from experiments.recipes.volumes import predicted_per_true

#: A link to the results of a study and the table below it, and figures with decimals or percentages.
TABLE = re.compile(r"results/(\w+)\.md\)\)[^|]*?:\n\n((?:\|.*\n)+)")
#: The floor of a comparison in the results of a study, and its table.
PAIRED = re.compile(r"shares with (.+?)(?: and .+?)?, with 95.*\n\n((?:\|.*\n)+)")
FIGURE = re.compile(r"[+-]?\d+\.\d+|-?\d+%")

#: Columns of whole numbers.
COUNTS = ("cases kept", "epochs")
DEMO_EPOCHS = str(OmegaConf.load(Path(__file__).parents[2] / "conf" / "scale" / "demo.yaml").trainer.max_epochs)
#: How much longer a step of a method takes than one of supervised training.
COST = Path(__file__).parents[2] / "benchmarks" / "results" / "method_cost.json"
PAGE = Path(__file__).parents[2] / "README.md"
STUDIES = sorted(path.stem for path in studies.HERE.glob("*.yaml"))
#: In `make test`, tests/test_sweeps.py composes the runs of the methods.
TO_COMPOSE = [pytest.param(name, marks=pytest.mark.slow if name == "methods" else ()) for name in STUDIES]


@pytest.fixture
def place(tmp_path, monkeypatch):
    """An empty project: runs and results are written here, and nothing is trained."""
    monkeypatch.setattr(studies, "ROOT", tmp_path)
    monkeypatch.setattr(studies, "RESULTS", tmp_path / "results")
    (tmp_path / "results").mkdir()
    return tmp_path


@pytest.fixture
def finish(place, make_run):
    """``finish(folder, seed, error)`` writes a finished training into a folder; the larger the error, the worse."""

    def run(folder, seed, error):
        folder.parent.mkdir(parents=True, exist_ok=True)
        shutil.move(make_run("ssl_light", seed, error), folder)

    return run


def collect(name, study):
    runs = studies.finished_runs(name, study)
    studies.write_scores(name, runs)
    studies.write_summary(name, study, runs, {"commit": "0123abcd"})
    studies.write_comparisons(name, runs, study.comparisons)


def test_the_results_are_those_of_all_finished_runs(place, finish):
    study = OmegaConf.create(
        {
            "seeds": [0, 1, 2],
            "settings": {},
            "runs": {"floor": {}, "ours": {}, "other": {}},
            "comparisons": [{"floor": "floor"}],
        }
    )
    made = (
        ("floor", 0, 3.0),
        ("floor", 1, 3.5),
        ("floor", 2, 3.2),
        ("ours", 0, 1.0),
        ("ours", 1, 1.5),
        ("ours", 2, 1.2),
    )
    for run, seed, error in made:
        finish(studies.run_folder("some", run, seed), seed, error)
    (studies.run_folder("some", "ours", 0) / studies.CPU_SECONDS).write_text("start\n90.0\n")
    for seed, text in ((1, "start\n60.0\nstart\n70.0\n"), (2, "start\nstart\n10.0\n")):  # stopped, killed
        (studies.run_folder("some", "ours", seed) / studies.CPU_SECONDS).write_text(text)
    studies.run_folder("some", "other", 0).mkdir()  # begun
    record = RunLayout(studies.run_folder("some", "floor", 0)).provenance
    record.write_text(record.read_text().replace('"modified": false', '"modified": true'))
    collect("some", study)

    summary = json.loads((place / "results" / "some.json").read_text())
    assert list(summary["dsc"]) == ["floor", "ours"]
    scores = pd.read_csv(place / "results" / "some.csv")
    for run, row in summary["dsc"].items():
        by_seed = scores[scores["run"] == run].groupby("seed")["dsc"].mean()
        assert {int(seed): value for seed, value in row["seeds"].items()} == pytest.approx(dict(by_seed), abs=1e-4)
        assert row["mean"] == pytest.approx(by_seed.mean(), abs=1e-4)
        modified = ["0123abcd (modified)"] if run == "floor" else []
        assert row["commits"] == ["0123abcd", *modified] and "kept" not in row
        assert row["settings"] == [f"name={run}"]
    assert [row["cpu_minutes"] for row in summary["dsc"].values()] == [None, 1.5]
    paired = pd.read_csv(place / "results" / "some_paired.csv").set_index("run")
    means = {run: row["mean"] for run, row in summary["dsc"].items()}
    assert paired.loc["ours", "difference"] == pytest.approx(means["ours"] - means["floor"], abs=2e-4)


def test_after_how_many_epochs_the_scored_checkpoint_was_saved_is_known(place, finish):
    """That with the best validation DSC: of four epochs, the second one in a run that gets worse after it."""
    study = OmegaConf.create({"seeds": [0, 1], "settings": {}, "runs": {"ours": {}}, "comparisons": []})
    for seed in study.seeds:
        finish(studies.run_folder("some", "ours", seed), seed, 1.0)
    path = RunLayout(studies.run_folder("some", "ours", 1)).metrics
    metrics = pd.read_csv(path)
    metrics.loc[(metrics["epoch"] > 1) & metrics["val/dsc"].notna(), "val/dsc"] = 0.1
    metrics.to_csv(path, index=False)
    for _ in ("here", "elsewhere"):
        collect("some", study)
        summary = json.loads((place / "results" / "some.json").read_text())["dsc"]
        assert summary["ours"]["checkpoint_epochs"] == {"0": 4, "1": 2}
        shutil.rmtree(place / "runs", ignore_errors=True)


def test_scores_of_runs_that_are_not_here_are_kept(place, finish):
    study = OmegaConf.create(
        {"seeds": [0, 1], "settings": {}, "runs": {"floor": {}, "ours": {}}, "comparisons": [{"floor": "floor"}]}
    )
    for number, run in enumerate(study.runs):
        for seed in study.seeds:
            folder = studies.run_folder("some", run, seed)
            finish(folder, seed, 3.0 - number - seed / 4)
            (folder / studies.CPU_SECONDS).write_text("start\n90.0\n")
    collect("some", study)
    results = sorted((place / "results").iterdir())
    before = [path.read_bytes() for path in results]
    for run in study.runs:
        shutil.rmtree(studies.run_folder("some", run, 0))  # one seed of each is trained elsewhere
    collect("some", study)
    assert len(results) == 5 and [path.read_bytes() for path in results] == before
    shutil.rmtree(studies.run_folder("some", "ours", 1))
    finish(studies.run_folder("some", "ours", 0), 0, 0.1)  # and one is trained again, better than before
    collect("some", study)
    means = json.loads((place / "results" / "some.json").read_text())["dsc"]["ours"]["seeds"]
    earlier = json.loads(before[results.index(place / "results" / "some.json")])["dsc"]["ours"]["seeds"]
    assert means["0"] > earlier["0"] and means["1"] == earlier["1"]


def test_a_comparison_waits_for_its_floor_and_ceiling(place, finish):
    study = OmegaConf.create(
        {
            "seeds": [0],
            "settings": {},
            "runs": {"a": {}, "b": {}, "c": {}},
            "comparisons": [{"floor": "a", "ceiling": "c"}],
        }
    )
    for number, run in enumerate("ab"):
        finish(studies.run_folder("some", run, 0), 0, 3.0 - number)
    collect("some", study)
    assert not (place / "results" / "some_paired.csv").exists()
    finish(studies.run_folder("some", "c", 0), 0, 0.5)
    collect("some", study)
    assert set(pd.read_csv(place / "results" / "some_paired.csv")["run"]) == {"a", "b", "c"}


def test_self_training_has_a_row_for_each_round(place, finish):
    study = OmegaConf.create(
        {
            "command": "self_train",
            "seeds": [0],
            "settings": {"rounds": 2},
            "runs": {"mine": {}},
            "comparisons": [{"floor": "mine, round 0"}],
        }
    )
    folder = studies.run_folder("some", "mine", 0)
    for part, error in (("teacher", 3.0), ("student", 2.0), ("rounds/2/student", 1.0)):
        finish(folder / part, 0, error)
    kept = folder / "rounds" / "2" / "kept"
    kept.mkdir()
    rows = ["case,agreement,kept,reason", "a,0.9,yes,agreement of at least 0.8", "b,0.7,no,agreement below 0.8"]
    (kept / "kept.csv").write_text("\n".join([*rows, "c,0.8,yes,agreement of at least 0.8"]))
    collect("some", study)
    summary = json.loads((place / "results" / "some.json").read_text())["dsc"]
    assert [row.get("kept") for row in summary.values()] == [None, None, {"0": 2}]
    means = [row["mean"] for row in summary.values()]
    assert means == sorted(means) and list(summary) == [f"mine, round {number}" for number in range(3)]


def test_a_run_of_another_study_is_trained_once(place, finish, monkeypatch, capsys):
    monkeypatch.setattr(studies, "HERE", place)
    (place / "first.yaml").write_text("seeds: [0]\nsettings: {}\nruns: {ours: {}}\ncomparisons: []\n")
    study = OmegaConf.create(
        {"command": "self_train", "settings": {"rounds": 1}, "runs": {"one": {"same_as": "first/ours"}}}
    )
    folder = studies.run_folder("first", "ours", 0)
    finish(folder, 0, 1.0)
    assert studies.trainings(study, "second", "one", 0) == {"one": folder}
    assert studies.train("second", study, "one", 0)  # does not train again
    assert "DSC" in capsys.readouterr().out


SETTINGS = {"seeds": [0], "settings": {"scale": "demo"}, "runs": {"ours": {}}, "comparisons": []}


@pytest.fixture
def changed_study(place, monkeypatch):
    """Saves a study in which the scale was changed, and returns the command that goes on with it."""
    monkeypatch.setattr(studies, "HERE", place)

    def run(*words):
        (place / "some.yaml").write_text(json.dumps({**SETTINGS, "settings": {"scale": "cpu"}}))
        monkeypatch.setattr("sys.argv", ["study.py", "some", *words])
        studies.main()

    return run


@pytest.fixture
def collected(finish):
    """The study before that, of which only the results are left."""
    study = OmegaConf.create(SETTINGS)
    folder = studies.run_folder("some", "ours", 0)
    finish(folder, 0, 1.0)
    collect("some", study)
    shutil.rmtree(folder)
    return study


def test_results_of_other_settings_are_refused(changed_study, collected):
    reordered = OmegaConf.create({**SETTINGS, "settings": {}, "runs": {"ours": {"scale": "demo"}}})
    for same in (collected, reordered):
        studies.check_settings("some", same)
    with pytest.raises(SystemExit, match=r"some.json, ours: ours was trained with name=ours scale=demo, .* scale=cpu"):
        changed_study()


def test_scores_without_a_summary_do_not_count(place, collected):
    """Of a run of which only the summary was deleted."""
    assert studies.finished_runs("some", collected)
    (place / "results" / "some.json").write_text(json.dumps({"dsc": {}}))
    assert not studies.finished_runs("some", collected)


@pytest.mark.parametrize("begun", [True, False])
def test_a_run_that_was_begun_with_other_settings_is_refused(changed_study, monkeypatch, begun):
    """But not one that has failed before its first checkpoint."""
    started = []
    monkeypatch.setattr(studies.subprocess, "Popen", lambda words, **_: started.append(words) or SimpleNamespace(pid=0))
    monkeypatch.setattr(studies.os, "wait4", lambda *_: (0, 1, SimpleNamespace(ru_utime=1, ru_stime=1)))
    monkeypatch.setattr(studies, "prepare_all", lambda *_: None)
    assert not studies.train("some", OmegaConf.create(SETTINGS), "ours", 0)
    said = "1 runs failed"
    if begun:
        last = RunLayout(studies.run_folder("some", "ours", 0)).last
        last.parent.mkdir()
        last.touch()
        said = r"ours-seed0: ours was trained with name=ours scale=demo, .* scale=cpu"
    with pytest.raises(SystemExit, match=said):
        changed_study()
    assert ["scale=cpu" in words for words in started] == ([False] if begun else [False, True])


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--runs", "ours", "our"), "--runs: found our; some.yaml has ours"),
        (("--seeds", "0", "7"), "--seeds: found 7; some.yaml has 0"),  # its scores would not be collected
    ],
)
def test_a_run_or_seed_that_the_study_has_not_is_refused(changed_study, capsys, words, said):
    with pytest.raises(SystemExit):
        changed_study(*words)
    assert said in capsys.readouterr().err


def test_the_sizes_of_organs_are_those_of_all_cases_and_seeds(tmp_path, write_volume):
    """Against sums by hand: organ 1 has 4 + 6 true voxels, and 5 + 5 and 12 + 8 are found; organ 13 has 10."""

    def write(file, **sizes):
        return write_volume(tmp_path / file, np.repeat([0, 1, 13], [30, *sizes.values()]).astype(np.uint8)[None, None])

    cases = [
        Case("a", tmp_path / "a", write("a.nii.gz", first=4, last=10)),
        Case("b", tmp_path / "b", write("b.nii.gz", first=6, last=0)),
    ]
    write("seed0/a.nii.gz", first=5, last=10)
    write("seed0/b.nii.gz", first=5, last=1)
    write("seed1/a.nii.gz", first=12, last=0)
    write("seed1/b.nii.gz", first=8, last=0)
    with np.errstate(invalid="ignore"):  # of the organs that no case has
        found = predicted_per_true(cases, [tmp_path / "seed0", tmp_path / "seed1"])
    assert found[[0, 12]].tolist() == [(5 + 5 + 12 + 8) / (2 * (4 + 6)), (10 + 1) / (2 * 10)]


def test_differences_are_averaged_over_the_cases_of_a_phase():
    """Of the seeds that both runs have: by hand."""
    dsc = {
        ("floor", 0): {"a": 0.5, "b": 0.6, "c": 0.7},
        ("floor", 1): {"a": 0.7, "b": 0.6, "c": 0.7},
        ("ours", 0): {"a": 0.8, "b": 0.5, "c": 0.8},
        ("ours", 1): {"a": 0.8, "b": 0.5, "c": 0.9},
        ("ours", 2): {"a": 0.1, "b": 0.1, "c": 0.1},
    }
    rows = [
        {"run": run, "seed": seed, "case": case, "organ": organ, "dsc": value + delta}
        for (run, seed), of_cases in dsc.items()
        for case, value in of_cases.items()
        for organ, delta in (("LV", 0.1), ("EH", -0.1))
    ]
    found = by_phase(pd.DataFrame(rows), "ours", "floor", {"a": "late", "b": "arterial", "c": "late"})
    assert found["arterial"] == {"difference": pytest.approx(-0.1), "better": 0}
    assert found["late"] == {"difference": pytest.approx((0.3 + 0.1 + 0.1 + 0.2) / 4), "better": 2}


@pytest.mark.parametrize("name", TO_COMPOSE)
def test_every_run_composes(name):
    study = OmegaConf.load(studies.HERE / f"{name}.yaml")
    for run in study.runs:
        where, _, original = studies.home(study, name, run)
        compose(studies.command_of(where), studies.settings_of(where, original))


@pytest.mark.parametrize("name", STUDIES)
def test_every_comparison_is_of_runs_that_exist(name):
    study = OmegaConf.load(studies.HERE / f"{name}.yaml")
    rows = {row for run in study.runs for row in studies.trainings(study, name, run, 0)}
    for comparison in study.comparisons:
        compared = [*comparison.get("runs", []), comparison.floor, comparison.get("ceiling", comparison.floor)]
        assert set(compared) <= rows


def printed_figures(study):
    """By run and title of a column: the figures as a page prints them; those of a gap for each floor."""
    found = {}
    for run, row in json.loads((studies.RESULTS / f"{study}.json").read_text())["dsc"].items():
        organs = {name: f"{score:.3f}" for name, score in row["organs"].items()}
        found[run] = {
            "mean DSC": [[f"{row['mean']:.3f}"]],
            "adrenal glands, right and left": [[organs["RAG"], organs["LAG"]]],
            "esophagus": [[organs["EH"]]],
            "CPU minutes": [[] if row["cpu_minutes"] is None else [f"{row['cpu_minutes']:.1f}"]],
            "share of the gap": [[]],
            "cases kept": [[str(count) for count in row.get("kept", {}).values()]],
            "time of a step": [[]],
            "epochs": [re.findall(r"trainer.max_epochs=(\d+)", " ".join(row.get("settings", ()))) or [DEMO_EPOCHS]],
        }
    for run, cost in (json.loads(COST.read_text())["runs"] if study == "methods" else {}).items():
        found[run]["time of a step"] = [[f"{cost['ratio']:.1f}"]]
    for floor, table in PAIRED.findall((studies.RESULTS / f"{study}.md").read_text()):
        titles, _, *rows = [line.strip("| ").split(" | ") for line in table.splitlines()]
        for row in (dict(zip(titles, cells, strict=True)) for cells in rows):
            of_run = found[row["Experiment"]]
            of_run["mean DSC"] = [FIGURE.findall(row["Mean DSC"])[:1]]  # rounded once, not as in the summary twice
            of_run[f"difference to `{floor}`"] = [FIGURE.findall(row["Difference to floor"])]
            of_run["share of the gap"].append(FIGURE.findall(row.get("Share of the gap", "")))
    return found


@pytest.mark.parametrize("page", [studies.HERE / "README.md", PAGE])
def test_the_figures_in_the_tables_of_a_page_are_those_of_the_results(page):
    """In tables whose rows are runs, below a link to the results of their study."""
    checked = 0
    for study, table in TABLE.findall(page.read_text()):
        known = printed_figures(study)
        (_, *titles), _, *rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines()]
        for run, *cells in rows:
            for title, cell in zip(titles, cells, strict=True):
                figures = (re.compile(r"\d+") if title in COUNTS else FIGURE).findall(cell)
                assert figures in known[run.strip("`")][title], (study, run, title)
                checked += 1
    assert checked


def compared(results, floor, run):
    """The row of a run in the comparison with a floor, by title of the column."""
    titles, _, *rows = [
        line.strip("| ").split(" | ") for line in dict(PAIRED.findall(results.read_text()))[floor].splitlines()
    ]
    (found,) = [row for cells in rows if (row := dict(zip(titles, cells, strict=True)))["Experiment"] == run]
    return found


def test_the_comparisons_of_two_recipes_on_the_page_are_those_of_the_results():
    page = (studies.HERE / "README.md").read_text()
    (table,) = re.findall(r"### The plainer recipe\n[^|]*?:\n\n((?:\|.*\n)+)", page)
    _, _, *rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines()]
    for _, runs, cases, seeds, difference, p, better, of_surfaces, link in rows:
        run, floor = re.fullmatch(r"`(.+)` to `(.+)`", runs).groups()
        results = studies.HERE / re.search(r"\((.+)\)", link)[1]
        of_run = compared(results, floor, run)
        by_nsd = compared(results.with_name(f"{results.stem}_nsd.md"), floor, run)
        assert FIGURE.findall(of_surfaces) == FIGURE.findall(by_nsd["Difference to floor"])
        assert (cases.split(", ")[1], p) == (of_run["Cases"], of_run["p"])
        assert int(seeds) == len(of_run["Seeds"].split(", "))
        assert FIGURE.findall(difference) == FIGURE.findall(of_run["Difference to floor"])
        assert better.split(", ") == [of_run[f"{kind} better / worse"].split(" / ")[0] for kind in ("Cases", "Seeds")]
    assert len(rows) == 5


def test_the_differences_by_phase_on_the_page_are_those_of_the_results():
    page = (studies.HERE / "README.md").read_text()
    (table,) = re.findall(r"results/gap_phases\.json\)\):\n\n((?:\|.*\n)+)", page)
    (_, *titles), _, *rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines()]
    found = {
        part["floor"]: part for part in json.loads((studies.RESULTS / "gap_phases.json").read_text())["comparisons"]
    }
    for kind, *cells in rows:
        count, phase = kind.replace("without contrast", "non-contrast").split(" ", 1)
        assert found["floor-4"]["test"][phase] == int(count)
        for title, cell in zip(titles, cells, strict=True):
            run, floor = re.fullmatch(r"`(.+)` to `(.+)`", title).groups()
            known = found[floor]["differences"][run][phase]
            difference, better = cell.split(", ")
            assert (
                float(difference) == pytest.approx(known["difference"], abs=0.00051) and int(better) == known["better"]
            )
    assert len(rows) == 4 and len(titles) == 3
