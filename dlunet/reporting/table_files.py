"""Writes a table of the paper, with our scores beside the paper's and tests, as Markdown, CSV, LaTeX and HTML."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from dlunet.errors import UserError
from dlunet.files import write_bytes, write_text
from dlunet.labels import FLARE22
from dlunet.reporting.contents import Report
from dlunet.reporting.figures import png
from dlunet.reporting.organ_tests import OrganTest, organ_tests
from dlunet.reporting.page import render
from dlunet.reporting.paired import NONE, p_text
from dlunet.reporting.panels import case_panels
from dlunet.reporting.paper import Comparison, PaperTable, comparisons, paper_table, runs_of_figure_3
from dlunet.reporting.sheets import Sheet, as_latex, as_markdown
from dlunet.reporting.tables import MEAN, mean_and_std

#: What the paper states of the cost per case: seconds, and areas under the curves of GPU memory and CPU use.
COSTS = {
    "DLUNet+tta": (144.0, None, None),
    "DLUNet+tta+RAM": (48.0, None, None),
    "Test set, DSC": (73.92, 138_831.0, 1_195.0),
}
COST_COLUMNS = {"seconds": "Seconds", "gpu_area_mb_s": "GPU memory, MB·s", "cpu_area_percent_s": "CPU, %·s"}
TESTS_NOTE = (
    "Differences are medians over cases of the difference in DSC, each case's mean over seeds, with 95 % bootstrap "
    "intervals over cases and seeds. p is that of Wilcoxon's signed-rank test over cases, two-sided; those of the "
    "classes are corrected for their number by Holm's method. It is about the networks of these seeds. The paper's "
    "differences are those of its means."
)


@dataclass(frozen=True)
class WrittenTable:
    """A table of the paper as written.

    Attributes:
        table: Its contents.
        ours: What its rows of our scores are called.
        sheets: The table as printed, and one of tests for each comparison that the paper draws.
        notes: What must be known about the figures.
        files: Its files.
    """

    table: PaperTable
    ours: str
    sheets: tuple[Sheet, ...]
    notes: tuple[str, ...]
    files: tuple[Path, ...]


def write_paper_table(report: Report, number: int, output: Path) -> WrittenTable:
    """Write a table of the paper with our scores.

    ``tableN.md``, ``tableN.tex`` (for booktabs) and ``tableN.html`` have the table, the tests and the notes;
    ``tableN.csv`` has the values (columns ``row,source,seeds,column,mean,std``) and ``tableN_tests.csv`` the tests.
    Figure 3, ``figure3.png``, is written with table 6.

    Args:
        report: The contents.
        number: The number of the table in the paper.
        output: Folder to write to; created if missing.

    Raises:
        UserError: No run belongs to the table, or the output cannot be written.
    """
    table = _table(report, number)
    compared = comparisons([table])
    tests = [organ_tests(each.before.runs, each.after.runs, report.labels) for each in compared]
    sheets = [_score_sheet(table, report.ours), *map(_test_sheet, compared, tests)]
    if (costs := _cost_sheet(table, report.ours)) is not None:
        sheets.append(costs)
    notes = list(_notes(report, table, bool(tests)))
    texts = {
        f"table{number}.md": as_markdown(sheets, notes),
        f"table{number}.tex": as_latex(sheets, notes),
        f"table{number}.html": render("paper_table.html.j2", sheets=sheets, notes=notes),
        f"table{number}.csv": _values(table, report.ours).to_csv(index=False),
    }
    if tests:
        texts[f"table{number}_tests.csv"] = _test_values(compared, tests).to_csv(index=False)
    for name, text in texts.items():
        write_text(output / name, text)
    files = [output / name for name in texts]
    if number == 6 and (figure := _figure_3(report, table)) is not None:
        files.append(output / "figure3.png")
        write_bytes(files[-1], png(figure))
    return WrittenTable(table, report.ours, tuple(sheets), tuple(notes), tuple(files))


def _table(report: Report, number: int) -> PaperTable:
    if report.labels == FLARE22:
        table = paper_table(number, report.groups)
        if any(row.ours for row in table.rows):
            return table
    raise UserError(
        f"table={number}: found no scores of its experiments among {', '.join(report.groups)}; expected "
        f"{', '.join(dict.fromkeys(row.experiment for row in paper_table(number, {}).rows))}, with FLARE22's classes; "
        f"train and score them with: make table{number}"
    )


def _score_sheet(table: PaperTable, ours: str) -> Sheet:
    columns, rows = [MEAN, *(label.abbreviation for label in FLARE22)], []
    for row in table.rows:
        for source in table.sources(row):
            name, texts = ("paper", _texts(row.paper)) if source == "paper" else (ours, _texts(row.ours, row.std))
            rows.append((row.name, name, *(texts.get(column, NONE) for column in columns)))
    return Sheet(table.title, ("Method", "Source", *columns), tuple(rows), texts=2)


def _texts(means: Mapping[str, float] | None, std: Mapping[str, float] | None = None) -> dict[str, str]:
    return {column: mean_and_std(mean, (std or {}).get(column, math.nan)) for column, mean in (means or {}).items()}


def _test_sheet(comparison: Comparison, tests: Sequence[OrganTest]) -> Sheet:
    header = ("Class", "Paper", "Ours, median difference", "p", "Cases better / worse")
    rows = [
        (
            test.column,
            f"{comparison.paper[test.column]:+.3f}",
            test.median.text("+.3f"),
            p_text(test.corrected),
            f"{test.better} / {test.worse}",
        )
        for test in tests
    ]
    return Sheet(f"{comparison.change}: {comparison.after.name} − {comparison.before.name}", header, tuple(rows))


def _cost_sheet(table: PaperTable, ours: str) -> Sheet | None:
    """Time and memory per case, where the paper states them."""
    rows = []
    for row in table.rows:
        if (paper := COSTS.get(row.name)) is None:
            continue
        costs = [costs for run in row.runs if (costs := run.costs) is not None]
        means = pd.concat(costs)[list(COST_COLUMNS)].mean() if costs else pd.Series(dtype=float)
        rows.append((row.name, "paper", *(NONE if value is None else f"{value:,.0f}" for value in paper)))
        rows.append((row.name, ours, *(f"{means[name]:,.1f}" if name in means else NONE for name in COST_COLUMNS)))
    return Sheet("Cost per case", ("Method", "Source", *COST_COLUMNS.values()), tuple(rows), texts=2) if rows else None


def _notes(report: Report, table: PaperTable, tested: bool) -> Iterable[str]:
    yield report.data_note
    if report.recipe_note:
        yield report.recipe_note
    yield "Means over test cases and seeds; ± is the standard deviation over seeds."
    yield "The paper: arXiv 2209.10984, on FLARE22."
    if tested:
        yield TESTS_NOTE
    runs = [run for row in table.rows for run in row.runs]
    facts = {
        "Seeds": (run.seed for run in runs),
        "plan": (run.plan for run in runs),
        "steps": (str(run.steps + 1) for run in runs),
        "commits": (run.commit for run in runs),
        "machines": (run.machine for run in runs),
    }
    yield "; ".join(f"{name}: {', '.join(dict.fromkeys(values))}" for name, values in facts.items()) + "."


def _figure_3(report: Report, table: PaperTable) -> Figure | None:
    """The cases of table 6 as pictures."""
    scored = [run.scores for row in table.rows for run in row.runs if run.scores is not None]
    cases = {case for scores in scored for case in scores["case"]}
    return case_panels(runs_of_figure_3(report.groups), report.labels, cases).figure


def _values(table: PaperTable, source: str) -> pd.DataFrame:
    columns = ["row", "source", "seeds", "column", "mean", "std"]
    values: list[tuple[object, ...]] = []
    for row in table.rows:
        seeds = " ".join(run.seed for run in row.runs)
        values += [(row.name, "paper", "", column, mean, None) for column, mean in (row.paper or {}).items()]
        values += [
            (row.name, source, seeds, column, mean, (row.std or {})[column])
            for column, mean in (row.ours or {}).items()
        ]
    return pd.DataFrame(values, columns=columns).round(4)


def _test_values(compared: Sequence[Comparison], tests: Sequence[Sequence[OrganTest]]) -> pd.DataFrame:
    columns = ["before", "after", "column", "cases", "median", "low", "high", "p", "p_corrected", "better", "worse"]
    values = [
        (
            *(comparison.before.name, comparison.after.name, test.column, test.cases),
            *(round(value, 4) for value in (test.median.value, test.median.low, test.median.high)),
            *(test.p, test.corrected, test.better, test.worse),
        )
        for comparison, each in zip(compared, tests, strict=True)
        for test in each
    ]
    return pd.DataFrame(values, columns=columns)
