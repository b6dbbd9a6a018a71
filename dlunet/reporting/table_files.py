"""Writes a table of the paper, with our scores beside the paper's and tests, as Markdown, CSV, LaTeX and HTML."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from dlunet.errors import UserError
from dlunet.files import write_text
from dlunet.reporting.contents import Report
from dlunet.reporting.organ_tests import OrganTest, organ_tests
from dlunet.reporting.page import render
from dlunet.reporting.paired import NONE, p_text
from dlunet.reporting.paper import PAPER_ROWS, Comparison, PaperTable, comparisons, paper_tables
from dlunet.reporting.sheets import Sheet, as_latex, as_markdown
from dlunet.reporting.tables import format_score

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

    Args:
        report: The contents.
        number: The number of the table in the paper.
        output: Folder to write to; created if missing.

    Raises:
        UserError: No run belongs to the table, or the output cannot be written.
    """
    table = _table(report, number)
    tests = [(comparison, _tests(report, comparison)) for comparison in comparisons([table])]
    sheets = (_score_sheet(report, table), *(_test_sheet(*tested) for tested in tests))
    notes = tuple(_notes(report, table, bool(tests)))
    texts = {
        f"table{number}.md": as_markdown(sheets, notes),
        f"table{number}.tex": as_latex(sheets, notes),
        f"table{number}.html": render("paper_table.html.j2", sheets=sheets, notes=notes),
        f"table{number}.csv": _values(report, table).to_csv(index=False),
        f"table{number}_tests.csv": _test_values(tests).to_csv(index=False),
    }
    for name, text in texts.items():
        write_text(output / name, text)
    return WrittenTable(table, report.ours, sheets, notes, tuple(output / name for name in texts))


def _table(report: Report, number: int) -> PaperTable:
    for table in paper_tables(report.dsc, report.groups, report.labels):
        if table.number == number and any(row.ours for row in table.rows):
            return table
    raise UserError(
        f"table={number}: found no scores of its experiments among {', '.join(report.groups)}; expected one of "
        f"{', '.join(PAPER_ROWS[number])}, with FLARE22's classes; train with +sweep=table{number}"
    )


def _tests(report: Report, comparison: Comparison) -> list[OrganTest]:
    before, after = (report.groups[name] for name in comparison.groups)
    return organ_tests(before, after, report.labels)


def _score_sheet(report: Report, table: PaperTable) -> Sheet:
    columns, rows = list(table.rows[0].paper), []
    for row in table.rows:
        ours = [NONE if row.group is None else format_score(report.dsc, row.group, column) for column in columns]
        rows.append((row.name, "paper", *(f"{row.paper[column]:.3f}" for column in columns)))
        rows.append((row.name, report.ours, *ours))
    return Sheet(table.title, ("Method", "Source", *columns), tuple(rows), texts=2)


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
    return Sheet(f"{comparison.change}: {comparison.groups[1]} − {comparison.groups[0]}", header, tuple(rows))


def _notes(report: Report, table: PaperTable, tested: bool) -> Iterable[str]:
    yield report.data_note
    if report.recipe_note:
        yield report.recipe_note
    yield "Means over test cases; ± is the standard deviation over seeds. The paper: arXiv 2209.10984, on FLARE22."
    if tested:
        yield TESTS_NOTE
    runs = [run for row in table.rows if row.group is not None for run in report.groups[row.group]]
    facts = {
        "Seeds": (run.seed for run in runs),
        "plan": (run.plan for run in runs),
        "steps": (str(run.steps + 1) for run in runs),
        "commits": (run.commit for run in runs),
        "machines": (run.machine for run in runs),
    }
    yield "; ".join(f"{name}: {', '.join(dict.fromkeys(values))}" for name, values in facts.items()) + "."


def _values(report: Report, table: PaperTable) -> pd.DataFrame:
    values = []
    for row in table.rows:
        for column, mean in row.paper.items():
            values.append({"row": row.name, "source": "paper", "seeds": "", "column": column, "mean": mean})
        for column, mean in (row.ours or {}).items():
            assert row.group is not None
            seeds = " ".join(run.seed for run in report.groups[row.group])
            std = float(report.dsc.std[column][row.group])
            values.append(
                {"row": row.name, "source": report.ours, "seeds": seeds, "column": column, "mean": mean, "std": std}
            )
    return pd.DataFrame(values, columns=["row", "source", "seeds", "column", "mean", "std"]).round(4)


def _test_values(tests: Sequence[tuple[Comparison, Sequence[OrganTest]]]) -> pd.DataFrame:
    columns = ["before", "after", "column", "cases", "median", "low", "high", "p", "p_corrected", "better", "worse"]
    values = [
        (
            *comparison.groups,
            test.column,
            test.cases,
            *(round(value, 4) for value in (test.median.value, test.median.low, test.median.high)),
            *(test.p, test.corrected, test.better, test.worse),
        )
        for comparison, each in tests
        for test in each
    ]
    return pd.DataFrame(values, columns=columns)
