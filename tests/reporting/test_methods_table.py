"""The table of methods has the figures of the runs, best method first; its p values are SciPy's, by Holm's method."""

import pandas as pd
import pytest
from scipy.stats import wilcoxon

from dlunet.errors import UserError
from dlunet.reporting import read_report, write_methods_table

LOSSES = {"ga": "dlunet.losses.GradientAwareLoss", "dice_ce": "dlunet.losses.DiceCrossEntropyLoss"}
ERRORS = {"supervised": 2.0, "mean_teacher": 1.0, "bcp": 3.0}
CLASSES = {"supervised": "Supervised", "mean_teacher": "MeanTeacher", "bcp": "BCP"}


@pytest.fixture(scope="module")
def sweep(table_3_runs, data, tmp_path_factory):
    """Three methods with two losses each, two seeds of the first losses."""
    from tests.reporting.conftest import write_run

    folder = tmp_path_factory.mktemp("methods")
    for losses, target in LOSSES.items():
        for method, error in ERRORS.items():
            parts = f"dlunet.methods.{CLASSES[method]}", "LightUNet", target
            for seed in (0, 1) if losses == "ga" else (0,):
                write_run(folder, data, f"{method}-light-{losses}", seed, error + seed / 10, parts_of=parts)
    return folder


@pytest.fixture(scope="module")
def written(sweep, tmp_path_factory):
    return write_methods_table(read_report([sweep]), tmp_path_factory.mktemp("table"))


def case_means(sweep, name):
    runs = [pd.read_csv(path) for path in sorted(sweep.glob(f"{name}/seed_*/scores/scores.csv"))]
    return pd.concat(runs).groupby("case")["dsc"].mean()


def test_each_choice_of_losses_has_a_table_with_the_best_method_first(sweep, written):
    sheets, notes, files = written
    assert len(sheets) == 2 and {path.suffix for path in files} == {".md", ".tex", ".html", ".csv"}
    for sheet in sheets:
        losses = "ga" if "GradientAwareLoss" in sheet.title else "dice_ce"
        means = {name: case_means(sweep, f"{name}-light-{losses}").mean() for name in ERRORS}
        best_first = sorted(means, key=means.get, reverse=True)
        assert [row[0] for row in sheet.rows] == [f"{name}-light-{losses}" for name in best_first]
        assert [row[3].split()[0] for row in sheet.rows] == [f"{means[name]:.3f}" for name in best_first]
        assert {row[1] for row in sheet.rows} == ({"0, 1"} if losses == "ga" else {"0"})
    assert any(note.startswith("Steps: 240; plan: unknown") for note in notes)


def test_methods_are_compared_with_supervised_training(sweep, written):
    sheet = next(sheet for sheet in written[0] if "GradientAwareLoss" in sheet.title)
    rows = {row[0].partition("-")[0]: row for row in sheet.rows}
    supervised = case_means(sweep, "supervised-light-ga")
    differences = {name: case_means(sweep, f"{name}-light-ga") - supervised for name in ("mean_teacher", "bcp")}
    p = {name: wilcoxon(values).pvalue for name, values in differences.items()}
    smaller, larger = sorted(p, key=p.get)
    corrected = {smaller: min(1, 2 * p[smaller]), larger: min(1, max(2 * p[smaller], p[larger]))}
    for name, values in differences.items():
        assert rows[name][4].startswith(f"{values.mean():+.3f} [") and rows[name][5] == f"{corrected[name]:.3f}"
        assert rows[name][6] == f"{(values > 0).sum()} / {(values < 0).sum()}"
    assert rows["supervised"][4:] == ("–", "–", "–")
    csv = pd.read_csv(next(path for path in written[2] if path.suffix == ".csv")).set_index("run")
    for name, values in p.items():
        row = csv.loc[f"{name}-light-ga"]
        assert (row["p"], row["p_corrected"]) == pytest.approx((values, corrected[name]))
    assert pd.isna(csv.loc["supervised-light-ga", "p_corrected"])


def test_all_forms_have_the_same_figures(written):
    sheets, _, files = written
    texts = [path.read_text() for path in files if path.suffix != ".csv"]
    for sheet in sheets:
        for row in sheet.rows:
            figures = [cell.partition(" ")[0] for cell in row[3:5] if cell != "–"]
            assert all(figure in text for figure in figures for text in texts)


def test_few_cases_and_a_single_seed_are_said(written):
    """Four cases, and one seed of the second losses."""
    notes = " ".join(written[1])
    assert "From fewer than 10 cases, intervals are too narrow. From one seed, intervals are over cases alone." in notes


def test_different_budgets_are_said(make_run, tmp_path):
    for name in ("supervised", "bcp"):
        run = make_run(name, parts_of=(f"dlunet.methods.{CLASSES[name]}", "LightUNet", LOSSES["ga"]))
    (run / "config.yaml").write_text(
        (run / "config.yaml").read_text().replace("steps_per_epoch: 60", "steps_per_epoch: 75")
    )
    _, notes, _ = write_methods_table(read_report([tmp_path / "sweep"]), tmp_path / "table")
    assert any("not trained for the same number of steps. Steps: 240, 300" in note for note in notes)


def test_networks_have_tables_of_their_own(make_run, tmp_path):
    for network in ("LightUNet", "PlainUNet"):
        for name, error in (("supervised", 2.0), ("bcp", 1.0)):
            parts = (f"dlunet.methods.{CLASSES[name]}", network, LOSSES["ga"])
            make_run(f"{name}-{network}", error=error, parts_of=parts)
    sheets, _, _ = write_methods_table(read_report([tmp_path / "sweep"]), tmp_path / "table")
    for sheet in sheets:
        network = sheet.title.rpartition(", ")[2]
        assert [row[0] for row in sheet.rows] == [f"bcp-{network}", f"supervised-{network}"]


def test_several_supervised_experiments_are_an_error(make_run, tmp_path):
    for name in ("floor", "ceiling", "mine"):
        method = "BCP" if name == "mine" else "Supervised"
        make_run(name, parts_of=(f"dlunet.methods.{method}", "LightUNet", LOSSES["ga"]))
    with pytest.raises(UserError, match=r"several supervised experiments with GradientAwareLoss: ceiling, floor"):
        write_methods_table(read_report([tmp_path / "sweep"]), tmp_path / "table")


def test_nothing_to_compare_is_an_error(make_run, tmp_path):
    run = make_run("bcp", parts_of=("dlunet.methods.BCP", "LightUNet", LOSSES["ga"]))
    with pytest.raises(UserError, match=r"found bcp; expected scored runs of method=supervised"):
        write_methods_table(read_report([run]), tmp_path / "table")
