"""The report page is self-contained, has every section, and agrees with the run folders."""

import json
import os
import shutil
from dataclasses import replace

import pandas as pd
import pytest
import torch
from omegaconf import OmegaConf

from dlunet.errors import UserError
from dlunet.execution import EXECUTION
from dlunet.labels import FLARE22, label_set
from dlunet.networks import load_bundle
from dlunet.reporting import (
    paper,
    print_paper_table,
    print_report,
    read_report,
    write_paper_table,
    write_report,
)
from dlunet.reporting.groups import NOT_COMPARED, group_by_experiment
from dlunet.reporting.runs import read_run
from dlunet.reporting.tables import format_score, score_table
from dlunet.training.run_folder import FREE_ON_RESUME
from tests.networks.test_bundle import checkpoint as network_checkpoint
from tests.reporting.conftest import PARTS_OF
from tests.reporting.html_page import Page

pytestmark = pytest.mark.usefixtures("blank_figures")

TABLE_3 = {
    "sup_nnunet": "nnU-Net w/o SSL",
    "ssl_nnunet": "nnU-Net w SSL",
    "sup_light": "Light UNet w/o SSL",
    "ssl_light": "Light UNet w SSL",
}


def written(runs, output, **compared):
    """Write a report and return its page."""
    return write_report(read_report(runs, **compared), output)


@pytest.fixture(scope="module")
def report(table_3_runs, tmp_path_factory):
    """The folder of a report on the runs of table 3, given the sweep's folder."""
    return written([table_3_runs[0].parents[1]], tmp_path_factory.mktemp("report")).parent


@pytest.fixture(scope="module")
def page(report):
    return Page(report / "index.html")


@pytest.fixture(scope="module")
def scores(table_3_runs):
    """The runs' scores by experiment."""
    return {run.parent.name: pd.read_csv(run / "scores" / "scores.csv") for run in table_3_runs}


def test_the_page_stands_alone_and_has_all_sections(report, page):
    assert page.links and all(link.startswith("data:") for link in page.links)
    assert not page.tags & {"iframe", "object"}
    source = (report / "index.html").read_text()
    assert "http:" not in source and "https:" not in source and "@import" not in source and "url(" not in source
    assert page.sections == ["scores", "cases", "viewer", "organs", "curves", "panels", "paper", "provenance"]
    assert len(page.images) == 4 and all(len(image["alt"]) > 20 for image in page.images)
    assert "case_1" in page.images[-1]["alt"]
    names = {path.name for path in report.iterdir()}
    figures = {"organ_scores.png", "training_curves.png", "organ_curves.png", "panels.png"}
    assert names == {"index.html", "scores.csv", "scores.md"} | figures
    assert 'class="missing"' not in source


def test_it_says_that_the_data_is_synthetic(report, page):
    text = " ".join(page.text.split())
    assert "4 cases by FLARE22's rules." in text
    assert "Synthetic data." in text and "not comparable with the paper's" in text and "Ours are synthetic." in text
    assert "SYNTHETIC" in (report / "scores.md").read_text()


def test_synthetic_data_is_called_so_under_any_name(make_run, tmp_path):
    run = make_run("ssl_light", data_name="gap4")
    assert "Synthetic data." in Page(written([run], tmp_path / "report")).text


def said(run, folder, capsys):
    """What the page of a run and the terminal say, without line breaks."""
    page = written([run], folder)
    print_report(read_report([run]), page)
    return [" ".join(text.split()) for text in (Page(page).text, capsys.readouterr().out)]


def test_other_losses_than_the_papers_are_named_beside_its_tables(make_run, tmp_path, capsys):
    run = make_run("ssl_light")
    assert "recipe=" not in Page(written([run], tmp_path / "paper")).text
    config = run / "config.yaml"
    alone = config.read_text().replace("RobustSegmentationLoss", "AnotherLoss")
    config.write_text(alone)
    for text in said(run, tmp_path / "loss", capsys):
        assert "Ours are trained with other losses than the paper's." in text
    for name, decay, averaged in (("best", 0.99, ", and averaged networks"), ("plain", 0, "")):
        config.write_text(f"{alone}recipe: {{name: {name}, decay: {decay}}}\n")
        for text in said(run, tmp_path / name, capsys):
            assert f"recipe={name}: other losses than the paper's{averaged}." in text


def test_losses_of_runs_that_are_in_no_table_are_not_said_of_its_rows(make_run, tmp_path, capsys):
    """A run of the paper's recipe is the row; one of another name and recipe is beside it."""
    runs = [make_run("ssl_light"), make_run("mine")]
    config = runs[1] / "config.yaml"
    config.write_text(config.read_text() + "recipe: {name: best}\n")
    page = written(runs, tmp_path / "report")
    print_report(read_report(runs), page)
    assert "paper" in Page(page).sections
    for text in (Page(page).text, capsys.readouterr().out):
        assert "other losses than the paper's" not in " ".join(text.split())


def test_scores_of_validation_cases_are_called_so(make_run, tmp_path, capsys):
    run = make_run("ssl_light")
    (run / "cases.json").write_text(json.dumps({"validation": [f"case_{number}" for number in range(1, 5)]}))
    for text in said(run, tmp_path / "report", capsys):
        assert "the validation cases are scored, by which the checkpoints were chosen" in text


def test_test_cases_may_have_the_names_of_validation_cases(make_run, tmp_path, capsys):
    """As in FLARE22."""
    run = make_run("ssl_light")
    (run / "cases.json").write_text(json.dumps({"validation": [f"case_{number}" for number in range(1, 5)]}))
    for part in ("test", "validation"):
        (run / "scores" / "part.txt").write_text(f"{part}\n")
        for text in said(run, tmp_path / part, capsys):
            assert ("the validation cases are scored" in text) == (part == "validation")


def test_scores_of_an_earlier_checkpoint_are_called_so(make_run, tmp_path, capsys):
    run = make_run("ssl_light")
    (run / "checkpoints").mkdir()
    scored = (run / "scores" / "scores.csv").stat().st_mtime
    for name, later, is_said in (("last", 60, True), ("best", -60, False)):  # training went on, with no better epoch
        checkpoint = run / "checkpoints" / f"{name}.ckpt"
        checkpoint.touch()
        os.utime(checkpoint, (scored + later, scored + later))
        for text in said(run, tmp_path / name, capsys):
            assert (
                "Trained further since they were scored, so these scores are of before: ssl_light" in text
            ) == is_said


def test_scores_of_this_checkpoint_are_not_called_earlier_ones_where_a_copy_has_lost_its_times(make_run, tmp_path):
    run = make_run("ssl_light")
    (run / "checkpoints").mkdir()
    checkpoint, record = run / "checkpoints" / "best.ckpt", run / "predictions" / "prediction.json"
    torch.save(network_checkpoint()[0], checkpoint)
    later = (run / "scores" / "scores.csv").stat().st_mtime + 60
    os.utime(checkpoint, (later, later))
    for weights, earlier in ((load_bundle(checkpoint).digest, False), ("of other weights", True)):
        record.write_text(json.dumps({**json.loads(record.read_text()), "weights": weights}))
        assert read_run(run).is_scored_before_its_end == earlier


def test_a_report_does_not_replace_scores(make_run, tmp_path):
    run = make_run("ssl_light")
    before = (run / "scores" / "scores.csv").read_bytes()
    (run / "scores" / "references.json").write_text("{}")
    with pytest.raises(UserError, match=r"scores: contains scores, and a report would replace scores.csv; choose"):
        written([run], run / "scores")
    assert (run / "scores" / "scores.csv").read_bytes() == before


def test_classes_without_a_tolerance_are_left_out_of_the_mean_nsd(make_run, tmp_path, capsys):
    run = make_run("ssl_light")
    scores = pd.read_csv(run / "scores" / "scores.csv")
    scores.loc[scores["organ"] == "Aorta", "nsd"] = float("nan")
    scores.to_csv(run / "scores" / "scores.csv", index=False)
    for text in (*said(run, tmp_path / "report", capsys), (tmp_path / "report" / "scores.md").read_text()):
        assert "NSD: No value for AT; the mean leaves out what has none." in text


def test_real_data_is_not_called_synthetic(make_run, tmp_path):
    run = make_run("ssl_light", data_name="flare22")
    text = Page(written([run], tmp_path / "report")).text.lower()
    assert "synthetic" not in text and "not all runs are at the paper's scale" in text


def test_table_3_stands_beside_the_paper_s(page, scores):
    table = page.tables[3]
    assert [row[0] for row in table[1::2]] == list(TABLE_3.values())
    figures = paper.paper_figures().query("table == 3").set_index("row")
    for (name, row), theirs, ours in zip(TABLE_3.items(), table[1::2], table[2::2], strict=True):
        assert theirs[1:] == ["paper"] + [f"{value:.3f}" for value in figures.loc[row].iloc[2:]]
        dsc = scores[name]["dsc"]
        expected = [dsc.mean(), *(dsc[scores[name]["organ"] == label.name].mean() for label in FLARE22)]
        assert ours == ["ours (synthetic)"] + [f"{value:.3f}" for value in expected]


def test_the_best_of_a_distance_is_the_smallest(make_run, tmp_path):
    runs = [make_run(name, error=error) for name, error in (("sup_light", 1.0), ("ssl_light", 2.0))]
    for run, distance in zip(runs, (3.0, 7.0), strict=True):
        scores = pd.read_csv(run / "scores" / "scores.csv")
        scores.assign(far=distance).to_csv(run / "scores" / "scores.csv", index=False)
        described = {"dsc": ["DSC", True], "nsd": ["NSD", True], "far": ["Far [mm]", False]}
        (run / "scores" / "metrics.json").write_text(json.dumps(described))
    written(runs, tmp_path / "report")
    markdown = (tmp_path / "report" / "scores.md").read_text()
    assert "Far [mm]: Means are over the cases in which reference and prediction have the class." in markdown
    dsc, _, far = (part for part in markdown.split("\n\n") if part.startswith("| run"))
    assert "**3.000**" in far and "**7.000**" not in far
    best = {row.split("|")[1].strip() for row in dsc.splitlines()[2:] if "**" in row.split("|")[2]}
    assert best == {"sup_light"}


def test_of_values_that_are_printed_alike_all_are_the_best(make_run):
    """0.5135 is a little less than that, and printed as 0.513."""
    runs = {name: read_run(make_run(name)) for name in ("a", "b", "c")}
    groups = {
        name: [replace(run, scores=run.scores.assign(dsc=dsc))]
        for (name, run), dsc in zip(runs.items(), (0.5135, 0.5131, 0.5124), strict=True)
    }
    table = score_table(groups, "dsc")
    assert [format_score(table, name, "AT") for name in groups] == ["0.513", "0.513", "0.512"]
    assert [table.is_best(name, "AT") for name in groups] == [True, True, False]


def test_a_distance_of_fewer_cases_is_not_called_the_best(make_run, tmp_path, capsys):
    """Who misses a class in all cases but the easy ones has the smaller distance."""
    runs = [make_run("sup_light"), make_run("ssl_light")]
    for run, distance, missed in zip(runs, (8.0, 4.0), ((), ("case_1", "case_2", "case_3")), strict=True):
        scores = pd.read_csv(run / "scores" / "scores.csv").assign(far=distance)
        scores.loc[(scores["organ"] == "Gallbladder") & scores["case"].isin(missed), "far"] = float("nan")
        scores.to_csv(run / "scores" / "scores.csv", index=False)
        described = {"dsc": ["DSC", True], "nsd": ["NSD", True], "far": ["Far [mm]", False]}
        (run / "scores" / "metrics.json").write_text(json.dumps(described))
    page = Page(written(runs, tmp_path / "report"))
    print_report(read_report(runs), tmp_path)
    markdown = (tmp_path / "report" / "scores.md").read_text()
    table = page.tables[2]
    aorta, gallbladder = map(table[0].index, ("AT", "GB"))
    assert [row[gallbladder] for row in table[1:]] in (["8.000", "4.000 (n=1)"], ["4.000 (n=1)", "8.000"])
    assert sorted(row[aorta] for row in table[1:]) == ["*4.000", "8.000"]
    assert {row[2] for row in table[1:]} == {"4"} and table[0][2] == "Scored cases"
    for text in (page.text, markdown, capsys.readouterr().out):
        assert "n is the number of cases with a value where it is below that of the scored cases" in " ".join(
            text.split()
        )
    assert "| 4.000 (n=1) |" in markdown


def test_a_damaged_record_of_the_metrics_is_said(make_run):
    run = make_run("sup_light")
    (run / "scores" / "metrics.json").write_text('{"dsc": ["DSC"')
    assert any("scores/metrics.json cannot be read" in text for text in read_run(run).missing)
    (run / "scores" / "metrics.json").unlink()  # evaluations of earlier versions have none
    assert not any("metrics.json" in text for text in read_run(run).missing)


def test_a_run_s_place_follows_from_what_it_is_not_from_its_name(make_run, tmp_path):
    """Users choose names freely: neither supervised nor semi-supervised runs are recognised by name."""
    loss = "dlunet.losses.RobustSegmentationLoss"
    runs = [
        make_run("a_second_try", parts_of=("dlunet.methods.CrossPseudo", "LightUNet", loss)),
        make_run("ssl_in_name_alone", parts_of=("dlunet.methods.Supervised", "LightUNet", loss)),
        make_run("ssl_without_a_row", parts_of=("dlunet.methods.Supervised", "Other", loss)),
    ]
    page = Page(written(runs, tmp_path / "report"))
    assert [row[0] for row in page.tables[0][1:]] == ["ssl_in_name_alone", "ssl_without_a_row", "a_second_try"]
    groups = group_by_experiment([read_run(run) for run in runs])
    (table,) = paper.tables_of_experiments(groups)
    assert {row.name: row.ours is not None for row in table.rows} == {
        "nnU-Net w/o SSL": False,
        "nnU-Net w SSL": False,
        "Light UNet w/o SSL": True,
        "Light UNet w SSL": True,
    }
    (comparison,) = paper.comparisons([table])
    scores = [pd.read_csv(run / "scores" / "scores.csv") for run in runs[:2]]
    means = [frame.groupby("case")["dsc"].mean().mean() for frame in scores]
    assert comparison.ours["Mean"] == pytest.approx(means[0] - means[1])


def test_rows_of_the_paper_say_which_experiments_are_in_them(make_run, tmp_path, capsys):
    """And have none whose loss on pseudo-labels is another one."""
    runs = [make_run("first", parts_of=PARTS_OF["sup_light"]), make_run("second", parts_of=PARTS_OF["ssl_light"])]
    page = written(runs, tmp_path / "report")
    print_report(read_report(runs), page)
    text = " ".join(Page(page).text.split())
    for said in (text, " ".join(capsys.readouterr().out.split())):
        assert "Ours of sup_light are first; of ssl_light are second." in said
    assert "(first → second, 4 cases" in text
    config = OmegaConf.load(runs[1] / "config.yaml")
    for loss, is_shown in (("RobustSegmentationLoss", True), ("DiceCrossEntropyLoss", False)):
        config["pseudo_loss"] = {"_target_": f"dlunet.losses.{loss}"}
        OmegaConf.save(config, runs[1] / "config.yaml")
        (table,) = paper.tables_of_experiments(group_by_experiment([*map(read_run, runs)]))
        assert [row.group for row in table.rows] == ["", "", "first", "second" if is_shown else ""]


def test_headlines_are_of_the_seeds_and_cases_that_both_have(make_run, tmp_path):
    """A seed and a case of one experiment alone would turn the sign."""
    runs = [make_run("sup_light", 1, 2.0), make_run("ssl_light", 1, 1.0), make_run("ssl_light", 2, 1.0)]
    frames = [pd.read_csv(run / "scores" / "scores.csv") for run in runs]
    frames[0] = frames[0][frames[0]["case"] != "case_4"]
    frames[2]["dsc"] = 0.0
    for run, frame in zip(runs, frames, strict=True):
        frame.to_csv(run / "scores" / "scores.csv", index=False)
    page = Page(written(runs, tmp_path / "report", floor="sup_light"))
    both = frames[1][frames[1]["case"] != "case_4"]
    difference = f"{both['dsc'].mean() - frames[0]['dsc'].mean():+.3f}"
    assert frames[0]["dsc"].mean() > (frames[1]["dsc"].mean() + frames[2]["dsc"].mean()) / 2
    text = " ".join(page.text.split())
    assert f"mean DSC {difference} (sup_light → ssl_light, 3 cases, seeds 1; the paper" in text
    (row,) = (row for table in page.tables for row in table if row[0] == "ssl_light" and " [" in row[-1] + row[4])
    assert row[4].startswith(f"{difference} [")


def test_no_headline_without_common_seeds(make_run, tmp_path):
    page = Page(written([make_run("sup_light", 1), make_run("ssl_light", 2)], tmp_path / "report"))
    text = " ".join(page.text.split())
    said = "not compared (Light UNet w/o SSL, Light UNet w SSL: their runs share no seed; found"
    assert f"Semi-supervision, light U-Net: {said}" in text and "mean DSC +" not in text and "mean DSC -" not in text


def test_the_score_tables_are_those_of_the_folders_with_the_best_in_bold(report, page, scores):
    csv = pd.read_csv(report / "scores.csv").set_index(["run", "score"])
    for table, score, first in ((page.tables[0], "dsc", 5), (page.tables[1], "nsd", 4)):
        assert [row[0] for row in table[1:]] == ["sup_nnunet", "sup_light", "ssl_nnunet", "ssl_light"]
        for index, label in enumerate(FLARE22):
            values = {name: frame.loc[frame["organ"] == label.name, score].mean() for name, frame in scores.items()}
            best = max(round(value, 3) for value in values.values())
            for row in table[1:]:
                value = values[row[0]]
                assert row[first + index] == f"{'*' if round(value, 3) == best else ''}{value:.3f}"
                assert csv.loc[(row[0], score), label.abbreviation] == pytest.approx(value, abs=1e-4)
    for column, score in ((3, "dsc"), (4, "nsd")):
        for row in page.tables[0][1:]:
            assert row[column].strip("*") == f"{scores[row[0]][score].mean():.3f}"


def test_seeds_are_averaged(make_run, tmp_path):
    runs = [make_run("ssl_light", seed, error=seed) for seed in (1, 2, 3)]
    row = Page(written(runs, tmp_path / "report")).tables[0][1]
    means = pd.Series([pd.read_csv(run / "scores" / "scores.csv")["dsc"].mean() for run in runs])
    assert row[:4] == ["ssl_light", "1, 2, 3", "4", f"{means.mean():.3f}± {means.std():.3f}"]


def test_seeds_without_scores_are_not_said_to_be_averaged(make_run, tmp_path):
    runs = [make_run("ssl_light", seed, error=seed) for seed in (1, 2, 3)]
    shutil.rmtree(runs[2] / "scores")
    page = Page(written(runs, tmp_path / "report"))
    assert page.tables[0][1][1] == "1, 2" and "Without scores, so not in the means: ssl_light, seed 3." in page.text
    table = pd.read_csv(tmp_path / "report" / "scores.csv", dtype=str)
    assert set(table["seeds"]) == {"1 2"}


def test_runs_that_differ_in_more_than_the_seed_are_not_averaged(make_run, tmp_path):
    runs = [make_run("ssl_light"), make_run("ssl_light", 2, data_name="flare22"), make_run("sup_light")]
    twin = shutil.copytree(runs[2], tmp_path / "again")
    rows = Page(written([*runs, twin], tmp_path / "report")).tables[0][1:]
    twins = {f"sup_light ({folder})" for folder in (runs[2], twin)}
    assert {row[0] for row in rows} == {"ssl_light (phantom, cpu)", "ssl_light (flare22, cpu)"} | twins


def test_runs_with_other_settings_are_not_averaged(make_run):
    """Where files are does not matter, but whether there are any."""

    def run(seed, **changed):
        folder = make_run("ssl_light", seed, parts=())
        config = OmegaConf.load(folder / "config.yaml")
        given = {"data.source.labelled": 4, "optimizer.lr": 0.02, "optimizer.betas": [0.9, 0.99]}
        for key, value in {**given, "data.prepared": f"there/{seed}", **changed}.items():
            OmegaConf.update(config, key, value)
        OmegaConf.save(config, folder / "config.yaml")
        return read_run(folder)

    def groups(*runs):
        return {name: [run.seed for run in runs] for name, runs in group_by_experiment(runs).items()}

    same = [run(seed, **{"data.unlabelled": f"cts{seed}"}) for seed in (1, 2, 3)]
    assert groups(*same) == {"ssl_light": ["1", "2", "3"]}
    slow = run(4, **{"data.unlabelled": "cts", "optimizer.lr": 0.01, "optimizer.betas": [0.8, 0.9]})
    few = [run(seed, **{"data.unlabelled": "cts", "data.source.labelled": 2}) for seed in (5, 6)]
    assert groups(*same, slow, *few) == {
        "ssl_light (data.source.labelled=4, optimizer.betas=[0.9, 0.99])": ["1", "2", "3"],
        "ssl_light (data.source.labelled=4, optimizer.betas=[0.8, 0.9])": ["4"],
        "ssl_light (data.source.labelled=2, optimizer.betas=[0.9, 0.99])": ["5", "6"],
    }
    without, other = run(7), run(8, **{"data.unlabelled": "cts", "other_network.kind": "PlainUNet"})
    assert groups(*same, without) == {
        "ssl_light (data.unlabelled=…)": ["1", "2", "3"],
        "ssl_light (data.unlabelled=–)": ["7"],
    }
    assert groups(*same, other) == {
        "ssl_light (other_network.kind=–)": ["1", "2", "3"],
        "ssl_light (other_network.kind=PlainUNet)": ["8"],
    }


@pytest.mark.parametrize(
    "changed",
    [
        {"checkpoint": {"every_n_minutes": 30, "on_full": "continue"}},
        {"callbacks": {"device_monitor": {"_target_": "a.B", "cpu_stats": True}, "weight_norms": {"_target_": "a.C"}}},
        {"dry_run": True, "strict": True, "data": {"workers": 3}},
        {"new_part": None},  # of a later version
    ],
)
def test_seeds_that_were_executed_in_another_way_are_averaged(make_run, changed):
    runs = [make_run("ssl_light", seed, parts=()) for seed in (1, 2)]
    OmegaConf.save(OmegaConf.merge(OmegaConf.load(runs[0] / "config.yaml"), changed), runs[0] / "config.yaml")
    assert list(group_by_experiment([*map(read_run, runs)])) == ["ssl_light"]


def test_an_earlier_end_is_another_experiment(make_run):
    runs = [make_run("ssl_light", seed, parts=()) for seed in (1, 2)]
    early = {"callbacks": {"early_stopping": {"patience": 3}}}
    OmegaConf.save(OmegaConf.merge(OmegaConf.load(runs[0] / "config.yaml"), early), runs[0] / "config.yaml")
    assert set(group_by_experiment([*map(read_run, runs)])) == {
        "ssl_light (callbacks.early_stopping.patience=3)",
        "ssl_light (callbacks.early_stopping.patience=–)",
    }


def test_how_a_run_is_executed_is_the_same_list_for_reports_and_continuations():
    assert set(EXECUTION) <= set(NOT_COMPARED) & set(FREE_ON_RESUME)


def test_table_4_is_shown_for_the_losses(make_run, tmp_path):
    page = Page(written([make_run("loss_nrd_tce")], tmp_path / "report"))
    assert "Table 4" in page.text and "Table 3" not in page.text
    assert "loss_dice_ce: no scores in this report" in page.text


def test_other_runs_have_no_paper_table(make_run, tmp_path):
    assert "paper" not in Page(written([make_run("mine")], tmp_path / "report")).sections


def test_missing_parts_are_said_in_place(make_run, tmp_path):
    runs = [make_run("sup_light"), make_run("ssl_light", parts=())]
    text = Page(written(runs, tmp_path / "report")).text
    assert "no scores in this run's folder" in text
    assert "ssl_light: no predictions to show" in text
    assert "no provenance.json; no scores/scores.csv; no predictions" in text


def test_a_run_of_which_nothing_is_left_but_its_config(make_run, tmp_path):
    run = make_run("sup_light", parts=())
    (run / "metrics.csv").write_text("")
    page = Page(written([run], tmp_path / "report"))
    for sentence in (
        "No run has scores.",
        "No run has logged",
        "no best or worst case",
        "metrics.csv contains no logged step",
    ):
        assert sentence in page.text
    assert not page.images


def test_a_case_that_was_scored_twice_is_an_error(make_run):
    run = make_run("ssl_light")
    rows = (run / "scores" / "scores.csv").read_text().splitlines()
    twice = [*rows, *(row for row in rows if row.startswith("case_3,Liver"))]
    (run / "scores" / "scores.csv").write_text("\n".join(twice))
    with pytest.raises(UserError, match=r"scores\.csv: case_3, Liver occurs 2 times; expected one row per case and"):
        read_report([run], floor="ssl_light")


def test_images_that_are_gone_are_said(make_run, tmp_path):
    run = make_run("ssl_light")
    record = run / "predictions" / "prediction.json"
    images = {case: f"gone/{case}.nii.gz" for case in json.loads(record.read_text())["images"]}
    record.write_text(json.dumps({"images": images}))
    page = Page(written([run], tmp_path / "report"))
    assert "case_1: not shown: gone/case_1.nii.gz: no such file" in page.text
    record.unlink()
    assert (
        "prediction.json and references.json do not list the scored CTs"
        in Page(written([run], tmp_path / "report")).text
    )


def test_other_organs_have_their_own_columns_and_no_table_of_the_paper(make_run, tmp_path):
    run, other = make_run("ssl_light", data_name="mine"), make_run("sup_light", data_name="mine")
    spleen = label_set("mine", {1: "spleen", 2: "tumour"})
    (run / "labels.json").write_text(json.dumps(spleen.to_dict()))
    (run / "scores" / "scores.csv").write_text("case,organ,dsc,nsd\na,spleen,0.9,0.8\na,tumour,0.5,\n")
    page = Page(written([run], tmp_path / "report"))
    assert "0.700" in page.text and "TUM" in page.text and "Table 3" not in page.text
    assert "scored on 1 case." in page.text and "No value for TUM" in page.text
    with pytest.raises(UserError, match=r"spleen, tumour.*report them separately"):
        written([run, other], tmp_path / "both")
    with pytest.raises(UserError, match=r"spleen, tumour.*report them separately"):  # not that no case is shared
        read_report([run, other], floor="sup_light")


@pytest.mark.parametrize(("attribute", "value", "there"), [("nsd_tolerance_mm", 9, 2), ("tubular", False, True)])
def test_classes_that_are_scored_in_another_way_are_named(make_run, attribute, value, there):
    runs = [make_run("ssl_light"), make_run("sup_light")]
    labels = FLARE22.to_dict()
    labels["labels"][4] |= {attribute: value}
    (runs[0] / "labels.json").write_text(json.dumps(labels))
    said = rf"\(Aorta: {attribute} {value}\) differ from those of .*sup_light.*\(Aorta: {attribute} {there}\)"
    with pytest.raises(UserError, match=said):
        read_report(runs)


def test_names_are_escaped(make_run, tmp_path):
    evil = '<script>alert("1")</script> $x$'
    run = make_run("ssl_light")
    scores = pd.read_csv(run / "scores" / "scores.csv")
    scores["case"] = scores["case"].replace("case_1", evil)
    scores.to_csv(run / "scores" / "scores.csv", index=False)
    config = (run / "config.yaml").read_text().replace("name: ssl_light", f"name: '{evil}'")
    (run / "config.yaml").write_text(config)
    page = Page(written([run], tmp_path / "report"))
    plain = Page(written([make_run("sup_light")], tmp_path / "plain"))
    assert page.count["script"] == plain.count["script"] and evil in page.text


def test_names_are_printed_as_they_are(make_run, tmp_path, capsys):
    """Also those that look like the markup of the terminal."""
    run = make_run("ssl_light", data_name="my[/x]data")
    config = OmegaConf.load(run / "config.yaml")
    config.merge_with({"name": r"x\[b]y", "recipe": {"name": "[red]best", "decay": 0.99}})
    OmegaConf.save(config, run / "config.yaml")
    print_report(read_report([run]), tmp_path)
    printed = " ".join(capsys.readouterr().out.split())
    assert r" x\[b]y " in printed and "SYNTHETIC data (my[/x]data)" in printed and "recipe=[red]best" in printed


def test_a_class_without_scores_has_a_dash_in_every_form(make_run, tmp_path, capsys):
    runs = [make_run("sup_light"), make_run("ssl_light")]
    for run in runs:
        scores = pd.read_csv(run / "scores" / "scores.csv")
        scores[scores["organ"] != "Gallbladder"].to_csv(run / "scores" / "scores.csv", index=False)
    page = written(runs, tmp_path / "report")
    print_report(read_report(runs), page)
    print_paper_table(write_paper_table(read_report(runs), 3, tmp_path / "table"))
    texts = [capsys.readouterr().out, (tmp_path / "table" / "table3.md").read_text()]
    assert not any("nan" in text.lower().split() or "+nan" in text for text in texts)
    assert not any("nan" in cell for table in Page(page).tables for row in table for cell in row)


def test_a_case_name_cannot_end_its_attribute(make_run, tmp_path):
    run = make_run("ssl_light")
    evil = 'a" onerror="alert(1)'
    quoted_csv, quoted_json = '"{}"'.format(evil.replace('"', '""')), json.dumps(evil)
    shutil.copy(run / "predictions" / "case_1.nii.gz", run / "predictions" / f"{evil}.nii.gz")
    for file in (
        run / "scores" / "scores.csv",
        run / "scores" / "references.json",
        run / "predictions" / "prediction.json",
    ):
        file.write_text(file.read_text().replace("case_1,", f"{quoted_csv},").replace('"case_1"', quoted_json))
    page = Page(written([run], tmp_path / "report"))
    assert evil in page.images[-1]["alt"]
    assert all(set(image) == {"src", "alt"} for image in page.images)


def test_runs_scored_on_different_cases_are_called_so(make_run, tmp_path):
    runs = [make_run("sup_light"), make_run("ssl_light")]
    scores = pd.read_csv(runs[0] / "scores" / "scores.csv")
    scores[scores["case"] != "case_1"].to_csv(runs[0] / "scores" / "scores.csv", index=False)
    assert "scored on different cases" in Page(written(runs, tmp_path / "report")).text
    assert "Scored on different cases: means are not comparable." in (tmp_path / "report" / "scores.md").read_text()


def test_the_terminal_gets_the_table_and_the_page_s_path(make_run, tmp_path, capsys):
    run = make_run("ssl_light")
    page = tmp_path / "report" / "index.html"
    print_report(read_report([run]), page)
    printed = capsys.readouterr().out
    assert f"report: {page}" in printed and "SYNTHETIC" in printed and "mean NSD" in printed and "DSC LAG" in printed
    assert f"{pd.read_csv(run / 'scores' / 'scores.csv')['nsd'].mean():.3f}" in printed


def test_experiments_are_compared_with_a_floor_and_a_ceiling(table_3_runs, report, scores, tmp_path):
    folder = written(table_3_runs, tmp_path / "report", floor="sup_nnunet", ceiling="ssl_light").parent
    page, csv = Page(folder / "index.html"), pd.read_csv(folder / "paired.csv").set_index("run")
    assert page.sections[:3] == ["scores", "paired", "cases"]
    header, *rows = page.tables[2]
    assert header[3:6] == ["Mean DSC", "Difference to floor", "p"] and header[-1] == "Share of the gap"
    assert [row[0] for row in rows] == list(csv.index) == ["sup_nnunet", "sup_light", "ssl_nnunet", "ssl_light"]
    assert rows[0][4:] == ["–"] * 5 and rows[3][-1] == "100% [100%, 100%]"
    mean = {name: frame["dsc"].mean() for name, frame in scores.items()}
    for name, _, cases, dsc, difference, _, _, _, share in rows[1:]:
        gained = mean[name] - mean["sup_nnunet"]
        closed = gained / (mean["ssl_light"] - mean["sup_nnunet"])
        assert cases == "4" and dsc.startswith(f"{mean[name]:.3f} [") and difference.startswith(f"{gained:+.3f} [")
        assert share.startswith(f"{closed:.0%} [") and csv.loc[name, "share"] == pytest.approx(closed, abs=1e-4)
        ends = [csv.loc[name, f"difference_{end}"] for end in ("low", "high")]
        assert difference.endswith(" [{:+.3f}, {:+.3f}]".format(*ends))
        assert f"| {name} | 1 | 4 | {dsc} | {difference} |" in (folder / "scores.md").read_text()
    written(table_3_runs, folder)
    assert {path.name for path in folder.iterdir()} == {path.name for path in report.iterdir()}  # no paired.csv
    assert (folder / "scores.md").read_text() == (report / "scores.md").read_text()


def test_the_command_takes_names_as_the_report_shows_them(make_run, tmp_path, dlunet):
    runs = [make_run("ssl_light", error=2.0), make_run("ssl_light", data_name="better", seed=2)]
    (runs[1] / "config.yaml").write_text((runs[1] / "config.yaml").read_text().replace("seed: 2", "seed: 1"))
    names = ("ssl_light (phantom, cpu)", "ssl_light (better, cpu)")
    words = ("report", "runs=sweep", f"floor={names[0]}", "output=report")
    printed = " ".join(dlunet(*words, f"ceiling={names[1]}", cwd=tmp_path).stdout.split())
    assert "Difference to floor" in printed and "100% [100%, 100%]" in printed
    text = " ".join(Page(tmp_path / "report" / "index.html").text.split())
    assert f"Comparison with {names[0]}" in text and "comparable only if their test cases are the same" in text
    printed = dlunet(*words, "ceiling=ssl_light", cwd=tmp_path, fails=True).stderr
    assert f"ceiling=ssl_light: no such experiment; expected one of: {names[0]}, {names[1]}" in printed


def test_folders_without_runs_are_errors(tmp_path):
    with pytest.raises(UserError, match="nowhere: no such folder"):
        written([tmp_path / "nowhere"], tmp_path / "report")
    with pytest.raises(UserError, match=r"found no run; expected a folder with config\.yaml"):
        written([tmp_path], tmp_path / "report")
