"""Tables of the paper as files: every form has the same figures, those of the runs, and says where they are from."""

import json
import re
import shutil
import subprocess

import pandas as pd
import pytest

from dlunet.errors import UserError
from dlunet.labels import FLARE22
from dlunet.reporting import read_report, write_paper_table
from dlunet.reporting.paper import paper_figures
from tests.reporting.html_page import Page

COLUMNS = ["Mean", *(label.abbreviation for label in FLARE22)]
#: What LaTeX has for the characters that are printed elsewhere.
WRITTEN = {r"$\pm$": "±", "$-$": "−", "$<$": "<", r"\_": "_", r"\%": "%", "--": "–"}


@pytest.fixture(scope="module")
def folder(table_3_runs, tmp_path_factory):
    """The files of table 3."""
    output = tmp_path_factory.mktemp("table")
    write_paper_table(read_report([table_3_runs[0].parents[1]]), 3, output)
    return output


def of_html(path):
    return [[[cell.replace("± ", " ± ") for cell in row] for row in table] for table in Page(path).tables]


def of_markdown(path):
    tables, rows = [], []
    for line in [*path.read_text().splitlines(), ""]:
        if line.startswith("| "):
            rows.append([cell.strip() for cell in line.strip("|").split(" | ")])
        elif rows:
            tables.append([rows[0], *rows[2:]])
            rows = []
    return tables


def of_latex(path):
    text = path.read_text()
    for written, printed in WRITTEN.items():
        text = text.replace(written, printed)
    found = re.findall(r"\\begin\{tabular\}.*?\n(.*?)\\end\{tabular\}", text, re.DOTALL)
    return [
        [[cell.strip() for cell in line.removesuffix(r"\\").split("&")] for line in table.splitlines() if "&" in line]
        for table in found
    ]


def test_every_form_has_the_same_cells(folder):
    html, markdown, latex = (
        of_html(folder / "table3.html"),
        of_markdown(folder / "table3.md"),
        of_latex(folder / "table3.tex"),
    )
    assert html == markdown == latex
    scores, *tests = html
    assert scores[0] == ["Method", "Source", *COLUMNS] and len(scores) == 9
    assert [[row[0] for row in table] for table in tests] == [["Class", *COLUMNS]] * 4


def test_the_figures_are_those_of_the_runs_and_of_the_paper(folder, table_3_runs):
    values = pd.read_csv(folder / "table3.csv").set_index(["row", "source", "column"])["mean"]
    paper = paper_figures().query("table == 3").set_index("row").rename(columns={"mean": "Mean"})
    rows = ("nnU-Net w/o SSL", "nnU-Net w SSL", "Light UNet w/o SSL", "Light UNet w SSL")
    printed = {(row[0], row[1]): row[2:] for row in of_html(folder / "table3.html")[0][1:]}
    for run, row in zip(table_3_runs, rows, strict=True):
        scores = pd.read_csv(run / "scores" / "scores.csv")
        means = {label.abbreviation: scores.loc[scores["organ"] == label.name, "dsc"].mean() for label in FLARE22}
        means["Mean"] = scores["dsc"].mean()
        for number, column in enumerate(COLUMNS):
            assert values[row, "ours (synthetic)", column] == pytest.approx(means[column], abs=1e-4)
            assert printed[row, "ours (synthetic)"][number] == f"{means[column]:.3f}"
            assert printed[row, "paper"][number] == f"{paper.loc[row, column]:.3f}"


def test_seeds_have_a_deviation_and_tests_pair_them(make_run, tmp_path):
    runs = [make_run(name, seed, error) for name, error in (("sup_light", 2.0), ("ssl_light", 1.0)) for seed in (1, 2)]
    written = write_paper_table(read_report(runs), 3, tmp_path)
    means = [pd.read_csv(run / "scores" / "scores.csv")["dsc"].mean() for run in runs[2:]]
    row = next(row for row in written.sheets[0].rows if row[:2] == ("Light UNet w SSL", "ours (synthetic)"))
    assert row[2] == f"{pd.Series(means).mean():.3f} ± {pd.Series(means).std():.3f}"
    absent = next(row for row in written.sheets[0].rows if row[:2] == ("nnU-Net w SSL", "ours (synthetic)"))
    assert set(absent[2:]) == {"–"}
    (title,) = (sheet.title for sheet in written.sheets[1:])
    assert title == "Semi-supervision, light U-Net: Light UNet w SSL − Light UNet w/o SSL (4 cases, seeds 1, 2)"
    html = of_html(tmp_path / "table3.html")
    assert html == of_markdown(tmp_path / "table3.md") == of_latex(tmp_path / "table3.tex")
    assert "±" in html[0][-1][2]
    tests = pd.read_csv(tmp_path / "table3_tests.csv")
    assert list(tests["column"]) == COLUMNS and (tests["cases"] == 4).all()


def test_table_4_takes_the_first_row_of_table_3_for_its_second(make_run, tmp_path):
    """They are the same experiment, which is trained once."""
    runs = [make_run("sup_nnunet", error=1.0), make_run("loss_dice_ce", error=2.0)]
    written = write_paper_table(read_report(runs), 4, tmp_path)
    mean = pd.read_csv(runs[0] / "scores" / "scores.csv")["dsc"].mean()
    (row,) = (row for row in written.sheets[0].rows if row[:2] == ("NRD+TCE", "ours (synthetic)"))
    assert row[2] == f"{mean:.3f}" and len(written.sheets) == 2


def test_table_5_has_the_scores_with_flips_and_the_cost(make_run, tmp_path):
    run = make_run("ssl_light")
    shutil.copytree(run / "predictions", run / "flips-axes" / "predictions")
    scores = pd.read_csv(run / "scores" / "scores.csv")
    (run / "flips-axes" / "scores").mkdir()
    scores.assign(dsc=scores["dsc"] + 0.01).to_csv(run / "flips-axes" / "scores" / "scores.csv", index=False)
    costs = "case,seconds,gpu_area_mb_s,cpu_area_percent_s\ncase_1,10,0,5\ncase_2,20,0,7\n"
    (run / "flips-axes" / "predictions" / "efficiency.csv").write_text(costs)
    table, tests, cost = write_paper_table(read_report([run]), 5, tmp_path).sheets
    mean = scores["dsc"].mean()
    ours = {row[0]: row[2] for row in table.rows if row[1] == "ours (synthetic)"}
    assert ours == {"DLUNet": f"{mean:.3f}", "DLUNet+tta": f"{mean + 0.01:.3f}", "DLUNet+tta+RAM": f"{mean + 0.01:.3f}"}
    assert tests.rows[0][2] == "+0.010 [+0.010, +0.010]"
    paper, with_flips = (row[1:] for row in cost.rows if row[0] == "DLUNet+tta")
    assert paper == ("paper", "144", "–", "–") and with_flips == ("ours (synthetic)", "15.0", "0.0", "6.0")


def test_flips_of_another_network_are_called_so(make_run, tmp_path):
    run = make_run("ssl_light")
    for part in ("predictions", "scores"):
        shutil.copytree(run / part, run / "flips-axes" / part)
    for weights, is_said in (("old", True), ("new", False)):
        for folder, digest in ((run, "new"), (run / "flips-axes", weights)):
            (folder / "predictions" / "prediction.json").write_text(json.dumps({"images": {}, "weights": digest}))
        notes = " ".join(write_paper_table(read_report([run]), 5, tmp_path / "table").notes)
        assert ("With flips, another network than without has predicted: seeds 1;" in notes) == is_said


def test_table_6_has_the_best_and_worst_of_synthetic_cases_below_the_paper_s(make_run, tmp_path):
    runs = [make_run("sup_light", error=2.0), make_run("ssl_light", error=1.0)]
    rows = write_paper_table(read_report(runs), 6, tmp_path).sheets[0].rows
    assert [row[:2] for row in rows[:2]] == [("Case 06 w/o SSL", "paper"), ("Case 06 w SSL", "paper")]
    assert {row[1] for row in rows[8:]} == {"ours (synthetic)"} and len(rows) == 8 + 2 * 4
    scores = pd.read_csv(runs[0] / "scores" / "scores.csv")
    for name, _, mean, *_ in rows[8::2]:
        case = name.removesuffix(" w/o SSL")
        assert mean == f"{scores.loc[scores['case'] == case, 'dsc'].mean():.3f}"
    assert (tmp_path / "figure3.png").read_bytes().startswith(b"\x89PNG")


def test_table_6_has_the_paper_s_cases_where_they_were_scored(make_run, tmp_path):
    run = make_run("ssl_light", data_name="flare22")
    names = {f"case_{number}": f"FLARETs_00{case}" for number, case in enumerate(("06", "21", "47", "48"), start=1)}
    scores = pd.read_csv(run / "scores" / "scores.csv")
    scores["case"] = scores["case"].map(names)
    scores.to_csv(run / "scores" / "scores.csv", index=False)
    rows = write_paper_table(read_report([run]), 6, tmp_path).sheets[0].rows
    assert {row[0] for row in rows if row[1] == "ours"} == {f"{name} w SSL" for name in names.values()}, "test cases"
    (run / "scores" / "part.txt").write_text("validation\n")
    rows = write_paper_table(read_report([run]), 6, tmp_path).sheets[0].rows
    ours = {row[0]: row[2] for row in rows if row[1] == "ours"}
    expected = {f"Case {case[-2:]} w SSL": f"{dsc:.3f}" for case, dsc in scores.groupby("case")["dsc"].mean().items()}
    assert ours == expected and len(rows) == 8 + 4


def test_table_7_has_both_scores_and_the_cost(make_run, tmp_path):
    run = make_run("ssl_light")
    costs = "case,seconds,gpu_area_mb_s,cpu_area_percent_s\ncase_1,10,1000,5\n"
    (run / "predictions" / "efficiency.csv").write_text(costs)
    table, cost = write_paper_table(read_report([run]), 7, tmp_path).sheets
    scores = pd.read_csv(run / "scores" / "scores.csv")
    means = [row[2] for row in table.rows]
    assert means == ["0.881", f"{scores['dsc'].mean():.3f}", "0.940", f"{scores['nsd'].mean():.3f}"]
    assert [row[2:] for row in cost.rows] == [("74", "138,831", "1,195"), ("10.0", "1,000.0", "5.0")]


def test_the_notes_say_what_was_run(folder):
    for name in ("table3.md", "table3.html", "table3.tex"):
        text = " ".join((folder / name).read_text().split())
        for part in ("SYNTHETIC", "scale cpu", "Seeds: 1", "steps: 240", "commits: 0123abcd", "machines: two cores"):
            assert part in text, (name, part)


def test_too_few_cases_for_a_small_p_are_said(folder):
    """Thirteen classes that could change in all of four cases: 13 × 2 / 2⁴ is more than 1."""
    assert "With 4 cases, no p of a class can be below 1.000" in (folder / "table3.md").read_text()


def test_few_cases_and_a_single_seed_are_said(folder):
    said = "From fewer than 10 cases, intervals are too narrow. From one seed, intervals are over cases alone."
    assert said in (folder / "table3.md").read_text()


def test_seeds_without_scores_are_not_said_to_be_averaged(make_run, tmp_path):
    runs = [make_run("sup_light", 1), make_run("ssl_light", 1), make_run("ssl_light", 2)]
    shutil.rmtree(runs[2] / "scores")
    written = write_paper_table(read_report(runs), 3, tmp_path)
    assert any("Seeds: 1;" in note for note in written.notes)
    seeds = pd.read_csv(tmp_path / "table3.csv", dtype=str).query("source != 'paper'")["seeds"]
    assert set(seeds) == {"1"}


def test_experiments_without_a_common_seed_are_shown_but_not_tested(make_run, tmp_path):
    written = write_paper_table(read_report([make_run("sup_light", 1), make_run("ssl_light", 2)]), 3, tmp_path)
    assert len(written.sheets) == 1 and not (tmp_path / "table3_tests.csv").exists()
    notes = " ".join(written.notes)
    assert "Not tested: Light UNet w/o SSL, Light UNet w SSL: their runs share no seed" in notes
    assert "Seeds: Light UNet w/o SSL: 1; Light UNet w SSL: 2." in notes


def test_files_of_an_earlier_table_do_not_stay(make_run, tmp_path):
    runs = [make_run("sup_light"), make_run("ssl_light", error=2.0)]
    for number in (3, 6):
        write_paper_table(read_report(runs), number, tmp_path)
    assert (tmp_path / "table3_tests.csv").exists() and (tmp_path / "figure3.png").exists()
    for run in runs:
        shutil.rmtree(run / "predictions")
    for number in (3, 6):
        written = write_paper_table(read_report(runs[:1]), number, tmp_path)
    assert not (tmp_path / "table3_tests.csv").exists() and not (tmp_path / "figure3.png").exists()
    assert any("no predictions to show" in note for note in written.notes)


def test_scores_of_validation_cases_are_not_taken_for_those_of_test_cases(make_run, tmp_path):
    run, said = make_run("ssl_light"), "the validation cases are scored"
    assert not any(said in note for note in write_paper_table(read_report([run]), 7, tmp_path).notes)
    (run / "cases.json").write_text(json.dumps({"validation": [f"case_{number}" for number in range(1, 5)]}))
    assert any(said in note for note in write_paper_table(read_report([run]), 7, tmp_path).notes)


def test_other_runs_do_not_appear_in_the_notes(make_run, tmp_path):
    runs = [make_run("ssl_light", data_name="flare22"), make_run("mine", seed=9)]
    text = " ".join(write_paper_table(read_report(runs), 7, tmp_path).notes)
    assert "SYNTHETIC" not in text and "Seeds: 1;" in text


def test_real_and_synthetic_runs_are_refused_together(make_run, tmp_path):
    runs = [make_run("ssl_light"), make_run("sup_light", data_name="flare22")]
    with pytest.raises(UserError, match=r"table=3: found runs of synthetic and of real CTs; expected runs of one"):
        write_paper_table(read_report(runs), 3, tmp_path)


def test_a_run_with_the_name_of_an_experiment_but_not_its_method_or_losses_is_in_no_row(make_run, tmp_path):
    parts = ("dlunet.methods.MeanTeacher", "LightUNet", "dlunet.losses.RobustSegmentationLoss")
    runs = [make_run("ssl_light", parts_of=parts), make_run("sup_light"), make_run("loss_nrd_tce")]
    rows = write_paper_table(read_report(runs), 3, tmp_path).table.rows
    assert [row.name for row in rows if row.ours] == ["nnU-Net w/o SSL", "Light UNet w/o SSL"]
    another = make_run("loss_dice_ce", parts_of=("dlunet.methods.Supervised", "PlainUNet", "dlunet.losses.GA"))
    rows = write_paper_table(read_report([another, *runs]), 4, tmp_path).table.rows
    assert [row.name for row in rows if row.ours] == ["NRD+TCE"]


def test_averaged_networks_are_said_also_where_the_losses_are_the_rows(make_run, tmp_path):
    config = make_run("loss_nrd_tce") / "config.yaml"
    config.write_text(config.read_text() + "recipe: {name: best, decay: 0.99}\n")
    notes = write_paper_table(read_report([config.parent]), 4, tmp_path).notes
    assert "Ours are trained with recipe=best: averaged networks." in notes


def test_the_least_possible_p_is_that_of_each_comparison(make_run, tmp_path):
    """One comparison has no difference, one has a class that differs in three cases, the others all classes in four."""
    errors = {"sup_light": 2.0, "ssl_light": 2.0, "sup_nnunet": 1.0, "ssl_nnunet": 1.0}
    runs = {name: make_run(name, error=error) for name, error in errors.items()}
    scores = pd.read_csv(runs["ssl_light"] / "scores" / "scores.csv")
    scores.loc[(scores["organ"] == "Liver") & (scores["case"] != "case_1"), "dsc"] += 0.01
    scores.to_csv(runs["ssl_light"] / "scores" / "scores.csv", index=False)
    written = write_paper_table(read_report(list(runs.values())), 3, tmp_path)
    assert "With 3 to 4 cases, no p of a class can be below 0.250 to 1.000, by comparison (" in " ".join(written.notes)
    tests = pd.read_csv(tmp_path / "table3_tests.csv").query("before == 'Light UNet w/o SSL' and column == 'LV'")
    assert tests["p_corrected"].tolist() == [0.25]


def test_synthetic_cts_in_another_layout_are_called_so(make_run, data, tmp_path):
    run = make_run("ssl_light", data_name="flare22")
    assert write_paper_table(read_report([run]), 7, tmp_path).ours == "ours"
    (data / "phantom.json").write_text("{}")
    try:
        assert write_paper_table(read_report([run]), 7, tmp_path).ours == "ours (synthetic)"
    finally:
        (data / "phantom.json").unlink()


def test_notes_say_how_many_cases_of_which_part_and_how_long_runs_were(make_run, tmp_path):
    run = make_run("ssl_light")
    notes = " ".join(write_paper_table(read_report([run]), 5, tmp_path).notes)
    assert "Means over seeds and 4 test cases;" in notes and "steps: 240;" in notes
    assert "`make table5` predicts them" in notes
    (run / "scores" / "part.txt").write_text("validation\n")
    metrics = pd.read_csv(run / "metrics.csv")
    metrics[metrics["step"] < 120].to_csv(run / "metrics.csv", index=False)
    notes = " ".join(write_paper_table(read_report([run]), 5, tmp_path).notes)
    assert "Means over seeds and 4 validation cases;" in notes and "steps: 120 of 240;" in notes


def test_several_kinds_of_runs_are_refused(make_run, tmp_path):
    runs = [make_run("ssl_light"), make_run("ssl_light", 2, data_name="flare22")]
    with pytest.raises(UserError, match=r"several kinds of runs, ssl_light \(.*expected one of each experiment; pass"):
        write_paper_table(read_report(runs), 7, tmp_path)


def test_a_damaged_table_of_costs_costs_no_more_than_its_figures(make_run, tmp_path):
    run = make_run("ssl_light")
    (run / "predictions" / "efficiency.csv").write_text("case,seconds\ncase_1,many\n")
    cost = write_paper_table(read_report([run]), 7, tmp_path).sheets[1]
    assert cost.rows[1] == ("Test set", "ours (synthetic)", "–", "–", "–")


def test_a_table_without_runs_is_an_error(make_run, tmp_path):
    with pytest.raises(UserError, match=r"table=4: found no scores .* among ssl_light; .*loss_nrd_tce.*make table4"):
        write_paper_table(read_report([make_run("ssl_light")]), 4, tmp_path)
    assert not list(tmp_path.glob("table4*"))


def test_the_command(make_run, tmp_path, dlunet):
    make_run("loss_nrd_tce")
    printed = dlunet("report", "runs=sweep", "table=4", "output=out", cwd=tmp_path).stdout
    assert "Table 4" in printed and "written: out/table4.tex" in printed and "SYNTHETIC" in printed
    files = {"table4.md", "table4.tex", "table4.html", "table4.csv"}
    assert {path.name for path in (tmp_path / "out").iterdir()} == files
    refused = dlunet("report", "runs=sweep", "table=4", "floor=loss_nrd_tce", cwd=tmp_path, fails=True).stderr
    assert "floor: found it with table=4, which has its own; leave one out" in refused
    refused = dlunet("report", "runs=sweep", "table=8", cwd=tmp_path, fails=True).stderr
    assert "table: found 8; expected a whole number from 3 to 7" in refused


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("pdflatex"), reason="there is no pdflatex (Debian: texlive-latex-recommended)")
def test_latex_compiles(folder, tmp_path):
    document = (
        r"\documentclass{article}\usepackage{booktabs,graphicx,rotating}\begin{document}\input{table3}\end{document}"
    )
    (tmp_path / "document.tex").write_text(document)
    shutil.copy(folder / "table3.tex", tmp_path)
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "document.tex"]
    made = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert made.returncode == 0, made.stdout
    assert "Output written on document.pdf" in made.stdout and "Missing character" not in made.stdout
