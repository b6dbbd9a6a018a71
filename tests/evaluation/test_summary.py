"""Summaries of scores: means and intervals against closed forms, and the cases that hold the mean down."""

import math

import numpy as np
import pandas as pd
import pytest

from dlunet.evaluation import bootstrap, low_cases, print_summary, summarize_scores
from dlunet.evaluation.metrics import ALWAYS, Metric, write_metrics
from dlunet.labels import label_set


def table(dsc):
    """Scores of cases c0, c1, …: one row of DSC of liver, spleen and aorta each; the NSD is half of that."""
    organs = ("Liver", "Spleen", "Aorta")
    rows = [
        (f"c{case}", organ, value, value / 2)
        for case, row in enumerate(dsc)
        for organ, value in zip(organs, row, strict=True)
    ]
    return pd.DataFrame(rows, columns=["case", "organ", "dsc", "nsd"])


def test_the_mean_s_deviation_is_that_of_the_cases():
    scores = pd.DataFrame(
        {"case": ["a", "a", "b", "b"], "organ": ["Liver", "Spleen"] * 2, "dsc": [1, 0, 0.5, 0.5], "nsd": [1, 1, 0, 0]}
    )
    mean = summarize_scores(scores).iloc[-1]
    assert (mean["dsc_mean"], mean["dsc_std"], mean["nsd_mean"], mean["nsd_std"]) == (0.5, 0, 0.5, 0.5)


def test_the_interval_of_a_mean_is_about_that_of_the_normal_distribution():
    values = np.random.default_rng(3).normal(0.7, 0.1, (400, 3))
    summary = summarize_scores(table(values)).set_index("organ")
    for organ, column in (("Liver", values[:, 0]), ("Aorta", values[:, 2]), ("Mean", values.mean(1))):
        row, half = summary.loc[organ], 1.96 * column.std(ddof=1) / math.sqrt(400)
        assert row["dsc_mean"] == pytest.approx(column.mean(), abs=1e-4)
        assert (row["dsc_low"], row["dsc_high"]) == pytest.approx(
            (column.mean() - half, column.mean() + half), abs=0.05 * half
        )
        assert row["nsd_high"] == pytest.approx(row["dsc_high"] / 2, abs=1e-4)


def test_the_interval_of_few_cases():
    two = summarize_scores(table([[0.2, 0.5, 1.0], [0.6, 0.5, math.nan]])).set_index("organ")
    assert tuple(two.loc["Liver", ["dsc_low", "dsc_high"]]) == (0.2, 0.6)
    assert tuple(two.loc["Spleen", ["dsc_low", "dsc_high"]]) == (0.5, 0.5)
    assert two.loc["Aorta", "dsc_mean"] == 1.0
    assert two.loc["Aorta", ["dsc_low", "dsc_high"]].isna().all()  # one value


@pytest.mark.parametrize(("cases", "is_enough"), [(bootstrap.FEW, True), (bootstrap.FEW // 2, False)])
def test_intervals_of_few_cases_miss_the_true_mean_too_often(cases, is_enough):
    resampled = bootstrap.weights(np.random.default_rng(0), cases) @ np.random.default_rng(1).normal(size=(cases, 2000))
    low, high = np.quantile(resampled, bootstrap.QUANTILES, axis=0)
    covered = ((low < 0) & (high > 0)).mean()
    assert covered > 0.89 if is_enough else covered < 0.86


def test_cases_that_hold_the_mean_down():
    scores = table([[0.9, 0.8, 0.7], [0.9, 0.1, 0.4], [0.9, 0.8, 0.8], [0.5, 0.8, 0.0], [0.9, 0.9, 0.9]])
    first, second = low_cases(scores)
    assert (first.case, second.case) == ("c3", "c1")
    assert first.dsc == pytest.approx(1.3 / 3, abs=1e-4)
    assert first.others == pytest.approx(np.mean([2.4, 1.4, 2.5, 2.7]) / 3, abs=1e-4)
    assert first.organs == {"Aorta": 0.0, "Liver": 0.5}  # the spleen is above its mean
    assert next(iter(second.organs.items())) == ("Spleen", 0.1)
    assert low_cases(table([[0.9, 0.8, 0.7]] * 4)) == []
    assert low_cases(table([[0.9, 0.8, 0.7], [0.1, 0.2, 0.3]])) == []


def test_the_printed_summary(tmp_path, capsys):
    scores = table([[0.9, 0.8, 0.7], [0.9, 0.8, 0.6], [0.9, 0.0, 0.2]]).assign(bold=math.nan)
    summarize_scores(scores).to_csv(tmp_path / "summary.csv", index=False)
    write_metrics({**ALWAYS, "bold": Metric("[bold]", higher_is_better=False)}, tmp_path)
    print_summary(scores, tmp_path)
    printed = capsys.readouterr().out
    rows = {cells[0]: cells[1:] for line in printed.splitlines() if len(cells := line.strip("│┃ ").split("│")) > 1}
    found = {name.strip(): [cell.strip() for cell in cells] for name, cells in rows.items()}
    assert found["Liver"] == ["0.900 [0.900, 0.900]", "0.450 [0.450, 0.450]", "–"]
    assert found["Spleen"][0].startswith("0.533 [0.000, 0.800")
    assert found["Duodenum"] == ["–", "–", "–"]
    assert "3 cases" in printed and "[bold]" in printed
    assert "low: c2, mean DSC 0.367 (all others 0.783): Spleen 0.000, Aorta 0.200\n" in printed


def test_cases_without_a_value_are_counted_and_classes_without_one_are_named(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    far = [3.0, math.nan, math.nan, 5.0, 8.0, math.nan]  # liver, spleen and aorta of two cases: no value for the aorta
    scores = table([[0.9, 0.0, 0.7], [0.9, 0.8, 0.6]]).assign(far=far)
    summary = summarize_scores(scores)
    summary.to_csv(tmp_path / "summary.csv", index=False)
    assert summary.set_index("organ").loc[["Liver", "Spleen", "Aorta", "Mean"], "far_cases"].tolist() == [2, 1, 0, 2]
    write_metrics({**ALWAYS, "far": Metric("Far [mm]", higher_is_better=False)}, tmp_path)
    print_summary(scores, tmp_path)
    printed = capsys.readouterr().out
    assert "8.000 (n=1)" in printed and "4.000 [3.000, 5.000]" in printed and "too narrow" in printed
    assert "Far [mm]: no value for Aorta; the mean leaves out what has none\n" in printed and "DSC: no" not in printed


def test_classes_that_are_perfect_or_nowhere_are_named(tmp_path, capsys):
    for values, said in (([1.0, 1.0, 0.7], "DSC of 1 in all cases: Liver, Spleen;"), ([1.0, 0.8, 0.7], "Liver;")):
        scores = table([values, [1.0, values[1], 0.6]])
        summarize_scores(scores).to_csv(tmp_path / "summary.csv", index=False)
        print_summary(scores, tmp_path)
        assert said in capsys.readouterr().out
    scores = table([[0.9, 0.8, 1.0], [1.0, 0.8, 0.6]])
    print_summary(scores, tmp_path)
    assert "DSC of 1" not in capsys.readouterr().out


def test_a_class_may_be_called_na(tmp_path, capsys):
    scores = table([[0.9, 0.8, 0.7]]).replace({"organ": {"Liver": "NA"}})
    summarize_scores(scores, label_set("mine", {1: "NA"})).to_csv(tmp_path / "summary.csv", index=False)
    print_summary(scores, tmp_path)
    printed = capsys.readouterr().out
    assert "Scores of one case" in printed and "NA" in printed and "[" not in printed.split("\n", 1)[1]
